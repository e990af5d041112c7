"""The instrument: the only code that hooks a model. Points, reads, edits, and the one attention function."""

from symbolic_residue.instrument._batch import Batch, collate
from symbolic_residue.instrument._cached import Decoder, LastRow
from symbolic_residue.instrument._edits import (
    Add,
    AttentionBias,
    AttentionMask,
    Edit,
    HeadReplace,
    HeadScale,
    Positions,
    Replace,
    Scale,
)
from symbolic_residue.instrument._instrument import Instrument
from symbolic_residue.instrument._trace import Trace
from symbolic_residue.instrument._verify import open_model, Verification, verify
from symbolic_residue.instrument.attention import AttentionRead, AttentionTable

__all__ = [
    "Add",
    "AttentionBias",
    "AttentionMask",
    "AttentionRead",
    "AttentionTable",
    "Batch",
    "Decoder",
    "Edit",
    "HeadReplace",
    "HeadScale",
    "Instrument",
    "LastRow",
    "Positions",
    "Replace",
    "Scale",
    "Trace",
    "Verification",
    "collate",
    "open_model",
    "verify",
]
