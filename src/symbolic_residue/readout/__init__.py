"""Readouts computed from a trace: logit lens, direct logit attribution, attention tables."""

from symbolic_residue.readout._dla import direct_logit_attribution, DirectLogitAttribution, dla_during, dla_reads
from symbolic_residue.readout._frames import attention_frames
from symbolic_residue.readout._lens import lens_frames, lens_logits, lens_reads, logit_lens, LogitLens
from symbolic_residue.readout._norm import fold, frozen_scale
from symbolic_residue.readout._patch_agreement import screen_agreement
from symbolic_residue.readout._patch_metric import KLToSource, LogitDifference, LogProbability
from symbolic_residue.readout._patch_pairs import patch_pair, patch_pairs, PatchPair
from symbolic_residue.readout._patch_screen import attribution_patching, PatchScreen
from symbolic_residue.readout._patch_sweep import patch_sweep
from symbolic_residue.readout._patch_table import PatchSweep
from symbolic_residue.readout._tuned_fit import DepthFit, fit_tuned_lens, TunedLensFit
from symbolic_residue.readout._tuned_lens import load_tuned_lens, Translator, tuned_lens, TunedLens

__all__ = [
    "DepthFit",
    "DirectLogitAttribution",
    "KLToSource",
    "LogProbability",
    "LogitDifference",
    "LogitLens",
    "PatchPair",
    "PatchScreen",
    "PatchSweep",
    "Translator",
    "TunedLens",
    "TunedLensFit",
    "attention_frames",
    "attribution_patching",
    "direct_logit_attribution",
    "dla_during",
    "dla_reads",
    "fit_tuned_lens",
    "fold",
    "frozen_scale",
    "lens_frames",
    "lens_logits",
    "lens_reads",
    "load_tuned_lens",
    "logit_lens",
    "patch_pair",
    "patch_pairs",
    "patch_sweep",
    "screen_agreement",
    "tuned_lens",
]
