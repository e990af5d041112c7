"""Across shells: what several of them blame, and measures that any of them can use."""

from symbolic_residue.shells.across._blame import Blame, blame_table, blames_of, KeptBlame
from symbolic_residue.shells.across._cross import cross_run, CrossRun, feature_names, run_features
from symbolic_residue.shells.across._disruption import (
    attention_disruption,
    attention_metrics,
    AttentionDisruption,
    compare_attention,
    FEWEST_PAIRS,
    METRICS,
)
from symbolic_residue.shells.across._errors_by_layer import error_accumulation, ErrorAccumulation
from symbolic_residue.shells.across._failing import aim, Aimed, failing_prompts, FailingPrompt, prompt_of, worst_of
from symbolic_residue.shells.across._failure_graphs import explain_failure, FailureGraphs, LONGEST
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
from symbolic_residue.shells.across._silence import end_tokens, Ending, endings, null_attribution, NullAttribution
from symbolic_residue.shells.across._stress import stressed
from symbolic_residue.shells.across._view import attention_view, AttentionView, check_heads

__all__ = [
    "FEWEST_PAIRS",
    "LONGEST",
    "METRICS",
    "Aimed",
    "AttentionDisruption",
    "AttentionView",
    "Blame",
    "CrossRun",
    "Ending",
    "ErrorAccumulation",
    "FailingPrompt",
    "FailureGraphs",
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
    "aim",
    "attention_disruption",
    "attention_metrics",
    "attention_view",
    "blame_table",
    "blames_of",
    "check_heads",
    "compare_attention",
    "cross_run",
    "end_tokens",
    "endings",
    "error_accumulation",
    "explain_failure",
    "failing_prompts",
    "feature_names",
    "frame_of",
    "ghost_units",
    "leading",
    "null_attribution",
    "overlap_in_a_row",
    "overlap_of_leaders",
    "overlap_of_several",
    "overlap_within_layers",
    "prompt_of",
    "run_features",
    "stressed",
    "worst_of",
]
