"""Readouts computed from a trace: logit lens, direct logit attribution, attention tables."""

from symbolic_residue.readout._dla import direct_logit_attribution, DirectLogitAttribution, dla_during, dla_reads
from symbolic_residue.readout._frames import attention_frames
from symbolic_residue.readout._lens import lens_frames, lens_logits, lens_reads, logit_lens, LogitLens
from symbolic_residue.readout._norm import fold, frozen_scale
from symbolic_residue.readout._tuned_fit import DepthFit, fit_tuned_lens, TunedLensFit
from symbolic_residue.readout._tuned_lens import load_tuned_lens, Translator, tuned_lens, TunedLens

__all__ = [
    "DepthFit",
    "DirectLogitAttribution",
    "LogitLens",
    "Translator",
    "TunedLens",
    "TunedLensFit",
    "attention_frames",
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
    "tuned_lens",
]
