"""The report of a run: one self-contained HTML file, and the figures as files, made from the run folder and nothing else."""

from __future__ import annotations

from symbolic_residue.report._export import export_figures
from symbolic_residue.report._render import render_report
from symbolic_residue.report._suite import suite_heads, suite_rows

__all__ = ["export_figures", "render_report", "suite_heads", "suite_rows"]
