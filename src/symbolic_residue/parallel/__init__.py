"""Several next tokens at one position in one sequence: decoded, and how the model attends to them."""

from symbolic_residue.parallel._config import ParallelConfig, Pruning
from symbolic_residue.parallel._decode import decode, grow, Grown
from symbolic_residue.parallel._embedding import fit_sibling_embedding, SiblingEmbedding
from symbolic_residue.parallel._layout import Layout
from symbolic_residue.parallel._rotary import check_rotary, PositionWatch
from symbolic_residue.parallel._schedule import Schedule
from symbolic_residue.parallel._tree import Ending, PathToken, StepStats, Tree, TreeStep
from symbolic_residue.parallel.measure import (
    arrange,
    Arranged,
    measure_prompt,
    MeasureConfig,
    QUESTIONS,
    replay,
    Seen,
    Sight,
    verdicts,
)

__all__ = [
    "QUESTIONS",
    "Arranged",
    "Ending",
    "Grown",
    "Layout",
    "MeasureConfig",
    "ParallelConfig",
    "PathToken",
    "PositionWatch",
    "Pruning",
    "Schedule",
    "Seen",
    "SiblingEmbedding",
    "Sight",
    "StepStats",
    "Tree",
    "TreeStep",
    "arrange",
    "check_rotary",
    "decode",
    "fit_sibling_embedding",
    "grow",
    "measure_prompt",
    "replay",
    "verdicts",
]
