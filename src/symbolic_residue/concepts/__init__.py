"""Concepts: which directions of the residual stream, and which heads, carry a concept?"""

from symbolic_residue.concepts._collect import collect, Pooled, skipped_layers, SkippedLayer
from symbolic_residue.concepts._pool import pooled_positions, Pooling, POOLINGS

__all__ = [
    "POOLINGS",
    "Pooled",
    "Pooling",
    "SkippedLayer",
    "collect",
    "pooled_positions",
    "skipped_layers",
]
