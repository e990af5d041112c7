"""Exact attention readouts without the T×T matrix (room ``instrument/attention``)."""

from symbolic_residue.instrument.attention._dense import dense_stats, dense_weights, visible_keys
from symbolic_residue.instrument.attention._request import AttentionRead, AttentionTable, RegionMap, STATS
from symbolic_residue.instrument.attention._torch import block_stats, flash_stats, max_stats

__all__ = [
    "STATS",
    "AttentionRead",
    "AttentionTable",
    "RegionMap",
    "block_stats",
    "dense_stats",
    "dense_weights",
    "flash_stats",
    "max_stats",
    "visible_keys",
]
