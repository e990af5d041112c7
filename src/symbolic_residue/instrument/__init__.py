"""The instrument: the only code that hooks a model. Points, reads, edits, and the one attention function."""

from symbolic_residue.instrument._batch import Batch, collate
from symbolic_residue.instrument._cached import Decoder, LastRow, Prefix
from symbolic_residue.instrument._edits import (
    Add,
    AttentionBias,
    AttentionEdit,
    AttentionMask,
    Edit,
    FreezeNorm,
    HeadReplace,
    HeadScale,
    MeanAblate,
    PatternReplace,
    PatternScale,
    Positions,
    Replace,
    Resample,
    ResampleAblate,
    Scale,
    Steer,
    ZeroAblate,
)
from symbolic_residue.instrument._generate import generate, stop_ids_of, stream
from symbolic_residue.instrument._generation import continuation, Generation, Step, Stop
from symbolic_residue.instrument._instrument import cache_name, Instrument
from symbolic_residue.instrument._means import ActivationMean, mean_activation
from symbolic_residue.instrument._norms import norm_scales
from symbolic_residue.instrument._trace import Trace
from symbolic_residue.instrument._verify import open_model, Verification, verify
from symbolic_residue.instrument.attention import AttentionRead, AttentionTable

__all__ = [
    "ActivationMean",
    "Add",
    "AttentionBias",
    "AttentionEdit",
    "AttentionMask",
    "AttentionRead",
    "AttentionTable",
    "Batch",
    "Decoder",
    "Edit",
    "FreezeNorm",
    "Generation",
    "HeadReplace",
    "HeadScale",
    "Instrument",
    "LastRow",
    "MeanAblate",
    "PatternReplace",
    "PatternScale",
    "Positions",
    "Prefix",
    "Replace",
    "Resample",
    "ResampleAblate",
    "Scale",
    "Steer",
    "Step",
    "Stop",
    "Trace",
    "Verification",
    "ZeroAblate",
    "cache_name",
    "collate",
    "continuation",
    "generate",
    "mean_activation",
    "norm_scales",
    "open_model",
    "stop_ids_of",
    "stream",
    "verify",
]
