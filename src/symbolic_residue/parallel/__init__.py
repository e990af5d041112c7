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

__all__ = [
    "Capture",
    "Ending",
    "Grown",
    "Layout",
    "ParallelConfig",
    "PathToken",
    "PositionWatch",
    "Pruning",
    "Schedule",
    "SiblingEmbedding",
    "StepStats",
    "Tree",
    "TreeStep",
    "check_pruning",
    "check_rotary",
    "decode",
    "fit_sibling_embedding",
    "generate",
    "grow",
    "make_config",
    "tree_tables",
]
