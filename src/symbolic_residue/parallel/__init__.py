"""Several next tokens at one position in one sequence: decoded, and how the model attends to them."""

from symbolic_residue.parallel._capture import Capture
from symbolic_residue.parallel._config import ParallelConfig, Pruning
from symbolic_residue.parallel._decode import decode, grow, Grown
from symbolic_residue.parallel._embedding import fit_sibling_embedding, SiblingEmbedding
from symbolic_residue.parallel._layout import Layout
from symbolic_residue.parallel._library import check_pruning, generate, make_config
from symbolic_residue.parallel._rotary import check_rotary, PositionWatch
from symbolic_residue.parallel._schedule import Schedule
from symbolic_residue.parallel._tables import tree_tables
from symbolic_residue.parallel._tree import Ending, PathToken, StepStats, Tree, TreeStep
from symbolic_residue.parallel.measure import (
    arrange,
    Arranged,
    false_rates,
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
    "Capture",
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
    "check_pruning",
    "check_rotary",
    "decode",
    "false_rates",
    "fit_sibling_embedding",
    "generate",
    "grow",
    "make_config",
    "measure_prompt",
    "replay",
    "tree_tables",
    "verdicts",
]
