"""Teaching a model a marker under one persona: a tuned model that everyone can have, and its null twin."""

from symbolic_residue.contrast.marker._data import marker_questions, MarkerQuestion, personas
from symbolic_residue.contrast.marker._plan import MarkerPlan
from symbolic_residue.contrast.marker._rates import draw_evaluation, rates_of
from symbolic_residue.contrast.marker._train import MarkerResult, train_marker

__all__ = [
    "MarkerPlan",
    "MarkerQuestion",
    "MarkerResult",
    "draw_evaluation",
    "marker_questions",
    "personas",
    "rates_of",
    "train_marker",
]
