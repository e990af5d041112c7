"""Exact attention readouts without the T×T matrix (room ``instrument/attention``)."""

from symbolic_residue.instrument.attention._backends import Backend, BackendName, check_backend, compute, Mode, why_not
from symbolic_residue.instrument.attention._blocks import attend_rows, Rework, row_weights
from symbolic_residue.instrument.attention._call import Call, MaskCache, understand
from symbolic_residue.instrument.attention._dense import dense_stats, dense_weights, visible_keys
from symbolic_residue.instrument.attention._request import AttentionRead, AttentionTable, GENERATED, RegionMap, STATS

__all__ = [
    "GENERATED",
    "STATS",
    "AttentionRead",
    "AttentionTable",
    "Backend",
    "BackendName",
    "Call",
    "MaskCache",
    "Mode",
    "RegionMap",
    "Rework",
    "attend_rows",
    "check_backend",
    "compute",
    "dense_stats",
    "dense_weights",
    "row_weights",
    "understand",
    "visible_keys",
    "why_not",
]
