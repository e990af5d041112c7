"""Concepts: which directions, and which heads, carry a concept?"""

from symbolic_residue.concepts._corpus import BASELINE, ConceptText, Corpus, Meaning, Pair
from symbolic_residue.concepts._read import read_corpus, write_corpus

__all__ = [
    "BASELINE",
    "ConceptText",
    "Corpus",
    "Meaning",
    "Pair",
    "read_corpus",
    "write_corpus",
]
