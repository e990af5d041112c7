"""Readouts computed from a trace: logit lens, direct logit attribution, attention tables."""

from symbolic_residue.readout._behaviours import duplicate_token_scores, HeadScores, induction_scores, previous_token_scores
from symbolic_residue.readout._circuits import (
    copying_scores,
    CopyingScores,
    ov_circuit,
    ov_top_tokens,
    OVCircuit,
    qk_circuit,
    QKCircuit,
)
from symbolic_residue.readout._composition import composition_scores, CompositionScores
from symbolic_residue.readout._dla import direct_logit_attribution, DirectLogitAttribution, dla_during, dla_reads
from symbolic_residue.readout._frames import attention_frames, computed_by
from symbolic_residue.readout._heads import head_writes, value_weighted_attention, ValueWeighted, write_norms
from symbolic_residue.readout._lens import depth_logits, lens_frames, lens_logits, lens_reads, logit_lens, LogitLens
from symbolic_residue.readout._norm import fold, frozen_scale
from symbolic_residue.readout._patch_agreement import screen_agreement
from symbolic_residue.readout._patch_cells import check_same_architecture
from symbolic_residue.readout._patch_metric import KLToSource, LogitDifference, LogProbability
from symbolic_residue.readout._patch_pairs import patch_pair, patch_pairs, PatchPair
from symbolic_residue.readout._patch_restart import verify as verify_restart
from symbolic_residue.readout._patch_restart import Walk
from symbolic_residue.readout._patch_screen import attribution_patching, PatchScreen
from symbolic_residue.readout._patch_sweep import patch_sweep
from symbolic_residue.readout._patch_table import PatchSweep
from symbolic_residue.readout._rotary import run_with_turns, Turn
from symbolic_residue.readout._tuned_fit import DepthFit, fit_tuned_lens, TunedLensFit
from symbolic_residue.readout._tuned_lens import load_tuned_lens, Translator, tuned_lens, TunedLens

__all__ = [
    "CompositionScores",
    "CopyingScores",
    "DepthFit",
    "DirectLogitAttribution",
    "HeadScores",
    "KLToSource",
    "LogProbability",
    "LogitDifference",
    "LogitLens",
    "OVCircuit",
    "PatchPair",
    "PatchScreen",
    "PatchSweep",
    "QKCircuit",
    "Translator",
    "TunedLens",
    "TunedLensFit",
    "Turn",
    "ValueWeighted",
    "Walk",
    "attention_frames",
    "attribution_patching",
    "check_same_architecture",
    "composition_scores",
    "computed_by",
    "copying_scores",
    "depth_logits",
    "direct_logit_attribution",
    "dla_during",
    "dla_reads",
    "duplicate_token_scores",
    "fit_tuned_lens",
    "fold",
    "frozen_scale",
    "head_writes",
    "induction_scores",
    "lens_frames",
    "lens_logits",
    "lens_reads",
    "load_tuned_lens",
    "logit_lens",
    "ov_circuit",
    "ov_top_tokens",
    "patch_pair",
    "patch_pairs",
    "patch_sweep",
    "previous_token_scores",
    "qk_circuit",
    "run_with_turns",
    "screen_agreement",
    "tuned_lens",
    "value_weighted_attention",
    "verify_restart",
    "write_norms",
]
