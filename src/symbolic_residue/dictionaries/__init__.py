"""Dictionaries of features that stand in for MLPs: transcoders and cross-layer transcoders, read from the formats in which they are published."""

from symbolic_residue.dictionaries._dictionary import Activation, Dictionary, LayerDictionary, Predicts, Reads, Transcoders
from symbolic_residue.dictionaries._evaluate import evaluate_dictionary
from symbolic_residue.dictionaries._open import open_dictionary
from symbolic_residue.dictionaries._own import save_dictionary

__all__ = [
    "Activation",
    "Dictionary",
    "LayerDictionary",
    "Predicts",
    "Reads",
    "Transcoders",
    "evaluate_dictionary",
    "open_dictionary",
    "save_dictionary",
]
