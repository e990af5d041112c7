"""TEMPORAL-INFERENCE: does order survive a gap?"""

from symbolic_residue.shells.temporal_inference._changepoint import Change, change_point
from symbolic_residue.shells.temporal_inference._config import Criteria, TemporalInferenceConfig
from symbolic_residue.shells.temporal_inference._findings import TemporalInferenceFindings
from symbolic_residue.shells.temporal_inference._operations import Prediction, Remembered, Shifted
from symbolic_residue.shells.temporal_inference._pairs import EventPair
from symbolic_residue.shells.temporal_inference._residue import TemporalInferenceResidue
from symbolic_residue.shells.temporal_inference._shell import TemporalInferenceShell
from symbolic_residue.shells.temporal_inference._shift import coherence_curve

__all__ = [
    "Change",
    "Criteria",
    "EventPair",
    "Prediction",
    "Remembered",
    "Shifted",
    "TemporalInferenceConfig",
    "TemporalInferenceFindings",
    "TemporalInferenceResidue",
    "TemporalInferenceShell",
    "change_point",
    "coherence_curve",
]
