"""Figures of a run's tables, drawn with Altair and written as SVG or PNG; and the verdict cards for notebooks.

Every figure function takes polars frames of one item, in the columns of the tables of the same name, and returns an
``altair.Chart``. Altair and vl-convert come with the extra ``figures`` and are imported when a figure is drawn, not before.
"""

from __future__ import annotations

from symbolic_residue.figures._across import blame_map, qk_ov
from symbolic_residue.figures._alignment import alignment_map
from symbolic_residue.figures._compare import run_comparison
from symbolic_residue.figures._concepts import concept_heads, concept_layers
from symbolic_residue.figures._contrast import contrast_differences, contrast_layers, contrast_strata, contrast_trajectory
from symbolic_residue.figures._contrast_bars import contrast_rates, contrast_regions, contrast_shifts
from symbolic_residue.figures._contrast_causal import (
    contrast_components,
    contrast_knock_out,
    contrast_lens,
    contrast_patching,
    contrast_surgery,
)
from symbolic_residue.figures._curves import curves, layer_token_map, MOST_SERIES
from symbolic_residue.figures._depth import attention_by_region, components, ov_strength
from symbolic_residue.figures._export import to_png, to_svg
from symbolic_residue.figures._html import cards_css, interval_text, number, OUTCOME_SIGNS, verdict_cards_html
from symbolic_residue.figures._instructions import instruction_conflict
from symbolic_residue.figures._maps import head_map, lens_heatmap
from symbolic_residue.figures._measures import disruption_map, silence_parts
from symbolic_residue.figures._memory import memory_decay
from symbolic_residue.figures._palette import diverging_colour, region_colours
from symbolic_residue.figures._parallel_measure import (
    parallel_auc,
    parallel_curve,
    parallel_heads,
    parallel_intra,
    parallel_layers,
    parallel_ratios,
    parallel_trace,
)
from symbolic_residue.figures._parallel_tree import parallel_steps
from symbolic_residue.figures._salience import salience_heatmap
from symbolic_residue.figures._similarity import similarity_map
from symbolic_residue.figures._temporal import temporal_coherence
from symbolic_residue.figures._text import visible
from symbolic_residue.figures._verdict import probability_traces, verdict_intervals

__all__ = [
    "MOST_SERIES",
    "OUTCOME_SIGNS",
    "alignment_map",
    "attention_by_region",
    "blame_map",
    "cards_css",
    "components",
    "concept_heads",
    "concept_layers",
    "contrast_components",
    "contrast_differences",
    "contrast_knock_out",
    "contrast_layers",
    "contrast_lens",
    "contrast_patching",
    "contrast_rates",
    "contrast_regions",
    "contrast_shifts",
    "contrast_strata",
    "contrast_surgery",
    "contrast_trajectory",
    "curves",
    "disruption_map",
    "diverging_colour",
    "head_map",
    "instruction_conflict",
    "interval_text",
    "layer_token_map",
    "lens_heatmap",
    "memory_decay",
    "number",
    "ov_strength",
    "parallel_auc",
    "parallel_curve",
    "parallel_heads",
    "parallel_intra",
    "parallel_layers",
    "parallel_ratios",
    "parallel_steps",
    "parallel_trace",
    "probability_traces",
    "qk_ov",
    "region_colours",
    "run_comparison",
    "salience_heatmap",
    "silence_parts",
    "similarity_map",
    "temporal_coherence",
    "to_png",
    "to_svg",
    "verdict_cards_html",
    "verdict_intervals",
    "visible",
]
