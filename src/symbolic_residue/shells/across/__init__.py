"""Across shells: what several of them blame, and measures that any of them can use."""

from symbolic_residue.shells.across._blame import Blame, blame_table, blames_of, KeptBlame
from symbolic_residue.shells.across._cross import cross_run, CrossRun, run_features
from symbolic_residue.shells.across._disruption import attention_disruption, attention_metrics, AttentionDisruption
from symbolic_residue.shells.across._errors_by_layer import error_accumulation, ErrorAccumulation
from symbolic_residue.shells.across._frame import frame_of
from symbolic_residue.shells.across._ghosts import ghost_units, GhostUnits
from symbolic_residue.shells.across._integrate import IntegratedAttribution, IntegratedRun, ShellIntegrator
from symbolic_residue.shells.across._meta import MetaConfig, MetaFindings, MetaResidue, MetaShell
from symbolic_residue.shells.across._overlap import (
    leading,
    Overlap,
    overlap_in_a_row,
    overlap_of_leaders,
    overlap_of_several,
    overlap_within_layers,
)
from symbolic_residue.shells.across._silence import null_attribution, NullAttribution
from symbolic_residue.shells.across._view import attention_view, AttentionView

__all__ = [
    "AttentionDisruption",
    "AttentionView",
    "Blame",
    "CrossRun",
    "ErrorAccumulation",
    "GhostUnits",
    "IntegratedAttribution",
    "IntegratedRun",
    "KeptBlame",
    "MetaConfig",
    "MetaFindings",
    "MetaResidue",
    "MetaShell",
    "NullAttribution",
    "Overlap",
    "ShellIntegrator",
    "attention_disruption",
    "attention_metrics",
    "attention_view",
    "blame_table",
    "blames_of",
    "cross_run",
    "error_accumulation",
    "frame_of",
    "ghost_units",
    "leading",
    "null_attribution",
    "overlap_in_a_row",
    "overlap_of_leaders",
    "overlap_of_several",
    "overlap_within_layers",
    "run_features",
]
