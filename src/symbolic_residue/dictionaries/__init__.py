"""Dictionaries of features that stand in for MLPs: transcoders and cross-layer transcoders, read from the formats in which they are published, or trained."""

from symbolic_residue.dictionaries._dictionary import Activation, Dictionary, LayerDictionary, Predicts, Reads, Transcoders
from symbolic_residue.dictionaries._documents import hold_out, read_documents
from symbolic_residue.dictionaries._evaluate import error_curves, evaluate_dictionary
from symbolic_residue.dictionaries._open import open_dictionary
from symbolic_residue.dictionaries._own import save_dictionary
from symbolic_residue.dictionaries._plan import TrainingPlan
from symbolic_residue.dictionaries._stand_in import FrozenScales, require_model, stand_in, Standing, standing
from symbolic_residue.dictionaries._train import text_sha256, train_dictionary, trained_texts, TrainedDictionary
from symbolic_residue.dictionaries._train_sparsify import train_with_sparsify

__all__ = [
    "Activation",
    "Dictionary",
    "FrozenScales",
    "LayerDictionary",
    "Predicts",
    "Reads",
    "Standing",
    "TrainedDictionary",
    "TrainingPlan",
    "Transcoders",
    "error_curves",
    "evaluate_dictionary",
    "hold_out",
    "open_dictionary",
    "read_documents",
    "require_model",
    "save_dictionary",
    "stand_in",
    "standing",
    "text_sha256",
    "train_dictionary",
    "train_with_sparsify",
    "trained_texts",
]
