"""Contrast: did training change where the model looks, and does it matter?"""

from symbolic_residue.contrast._deltas import deltas, LAGS, missing
from symbolic_residue.contrast._gates import Gates, gates, Options
from symbolic_residue.contrast._heads import select_heads
from symbolic_residue.contrast._published import DEFECTS
from symbolic_residue.contrast._records import check_deltas, check_records, CONTROLS, DELTAS, EVENT, RECORDS, TRAJECTORY
from symbolic_residue.contrast._training import diff_of_diffs, DiffOfDiffs, OUTCOMES, peak_shift, verdict

__all__ = [
    "CONTROLS",
    "DEFECTS",
    "DELTAS",
    "EVENT",
    "LAGS",
    "OUTCOMES",
    "RECORDS",
    "TRAJECTORY",
    "DiffOfDiffs",
    "Gates",
    "Options",
    "check_deltas",
    "check_records",
    "deltas",
    "diff_of_diffs",
    "gates",
    "missing",
    "peak_shift",
    "select_heads",
    "verdict",
]
