"""Readouts computed from a trace: logit lens, direct logit attribution, attention tables."""

from symbolic_residue.readout._dla import direct_logit_attribution, DirectLogitAttribution, dla_during, dla_reads
from symbolic_residue.readout._frames import attention_frames
from symbolic_residue.readout._lens import lens_frames, lens_logits, lens_reads, logit_lens, LogitLens
from symbolic_residue.readout._norm import fold, frozen_scale

__all__ = [
    "DirectLogitAttribution",
    "LogitLens",
    "attention_frames",
    "direct_logit_attribution",
    "dla_during",
    "dla_reads",
    "fold",
    "frozen_scale",
    "lens_frames",
    "lens_logits",
    "lens_reads",
    "logit_lens",
]
