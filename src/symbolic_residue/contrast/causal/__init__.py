"""Causal follow-ups of a contrast: where the behaviour's first token rises, and what happens to it when parts of one model are put into the other.

Every analysis gives one number an example (``CAUSAL``); :func:`pool_effects` pools them over examples with the question as the cluster (``EFFECTS``).
"""

from symbolic_residue.contrast.causal._emission import emission_components, emission_lens
from symbolic_residue.contrast.causal._pool import pool_effects
from symbolic_residue.contrast.causal._ready import log_probabilities
from symbolic_residue.contrast.causal._tables import CAUSAL, check_causal, EFFECTS

__all__ = ["CAUSAL", "EFFECTS", "check_causal", "emission_components", "emission_lens", "log_probabilities", "pool_effects"]
