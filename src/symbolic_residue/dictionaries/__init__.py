"""Dictionaries of features that stand in for MLPs: transcoders and cross-layer transcoders, read from the formats in which they are published, or trained."""

from symbolic_residue.dictionaries._dictionary import Activation, Dictionary, LayerDictionary, Predicts, Reads, Transcoders
from symbolic_residue.dictionaries._evaluate import evaluate_dictionary
from symbolic_residue.dictionaries._open import open_dictionary
from symbolic_residue.dictionaries._own import save_dictionary
from symbolic_residue.dictionaries._plan import TrainingPlan
from symbolic_residue.dictionaries._train import text_sha256, train_dictionary, trained_texts, TrainedDictionary

__all__ = [
    "Activation",
    "Dictionary",
    "LayerDictionary",
    "Predicts",
    "Reads",
    "TrainedDictionary",
    "TrainingPlan",
    "Transcoders",
    "evaluate_dictionary",
    "open_dictionary",
    "save_dictionary",
    "text_sha256",
    "train_dictionary",
    "trained_texts",
]
