"""The report of a run: one self-contained HTML file, and the figures as files, made from the run folder and nothing else; and runs compared."""

from __future__ import annotations

from symbolic_residue.report._compare import compare_runs, Comparison
from symbolic_residue.report._compare_page import render_comparison
from symbolic_residue.report._concepts_page import concepts_page
from symbolic_residue.report._contrast_summary import contrast_summary
from symbolic_residue.report._export import export_figures
from symbolic_residue.report._failure_graphs import failure_tables
from symbolic_residue.report._graph_page import graph_page
from symbolic_residue.report._render import render_report
from symbolic_residue.report._suite import suite_heads, suite_rows

__all__ = [
    "Comparison",
    "compare_runs",
    "concepts_page",
    "contrast_summary",
    "export_figures",
    "failure_tables",
    "graph_page",
    "render_comparison",
    "render_report",
    "suite_heads",
    "suite_rows",
]
