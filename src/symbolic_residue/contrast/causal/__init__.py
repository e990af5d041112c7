"""Causal follow-ups of a contrast: where the behaviour's first token rises, and what happens to it when parts of one model are put into the other.

Every analysis gives one number an example (``CAUSAL``); :func:`pool_effects` pools them over examples with the question as the cluster (``EFFECTS``).
"""

from symbolic_residue.contrast.causal._emission import emission_components, emission_lens
from symbolic_residue.contrast.causal._exchange import PARTS, patch_models
from symbolic_residue.contrast.causal._knockout import DOSES, knock_out
from symbolic_residue.contrast.causal._mediation import exchange_patterns, mediation
from symbolic_residue.contrast.causal._pool import pool_effects
from symbolic_residue.contrast.causal._ready import log_probabilities
from symbolic_residue.contrast.causal._surgery import surgery
from symbolic_residue.contrast.causal._tables import CAUSAL, check_causal, EFFECTS

__all__ = [
    "CAUSAL",
    "DOSES",
    "EFFECTS",
    "PARTS",
    "check_causal",
    "emission_components",
    "emission_lens",
    "exchange_patterns",
    "knock_out",
    "log_probabilities",
    "mediation",
    "patch_models",
    "pool_effects",
    "surgery",
]
