"""Concepts: which directions, and which heads, carry a concept?"""

from symbolic_residue.concepts._collect import collect, Pooled, skipped_layers, SkippedLayer
from symbolic_residue.concepts._corpus import BASELINE, ConceptText, Corpus, Meaning, Pair
from symbolic_residue.concepts._pool import pooled_positions, Pooling, POOLINGS
from symbolic_residue.concepts._read import read_corpus, write_corpus

__all__ = [
    "BASELINE",
    "POOLINGS",
    "ConceptText",
    "Corpus",
    "Meaning",
    "Pair",
    "Pooled",
    "Pooling",
    "SkippedLayer",
    "collect",
    "pooled_positions",
    "read_corpus",
    "skipped_layers",
    "write_corpus",
]
