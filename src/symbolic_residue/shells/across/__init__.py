"""Across shells: what several of them blame, and measures that any of them can use."""

from symbolic_residue.shells.across._blame import Blame, blames_of
from symbolic_residue.shells.across._frame import frame_of
from symbolic_residue.shells.across._integrate import IntegratedAttribution, IntegratedRun, ShellIntegrator
from symbolic_residue.shells.across._meta import MetaConfig, MetaFindings, MetaResidue, MetaShell
from symbolic_residue.shells.across._overlap import Overlap, overlap_in_a_row, overlap_of_several, overlap_within_layers

__all__ = [
    "Blame",
    "IntegratedAttribution",
    "IntegratedRun",
    "MetaConfig",
    "MetaFindings",
    "MetaResidue",
    "MetaShell",
    "Overlap",
    "ShellIntegrator",
    "blames_of",
    "frame_of",
    "overlap_in_a_row",
    "overlap_of_several",
    "overlap_within_layers",
]
