"""Attention readouts as long tables, one row per (layer, head, query row[, region])."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from symbolic_residue.errors import ReadError

if TYPE_CHECKING:
    from symbolic_residue.instrument import AttentionTable

__all__ = ["attention_frames", "computed_by"]

_STATS = ("entropy", "distance", "max", "argmax")


def attention_frames(table: AttentionTable, sequence: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One sequence's readouts as polars frames.

    Args:
        table: from a trace; ``mass`` and any of entropy (nats), distance (tokens), max, argmax.
        sequence: which of the batch.

    Returns:
        ``(layer, head, row, region, mass)`` and ``(layer, head, row, …statistics)``; rows that are padding are left out.

    Raises:
        ReadError: there is no such sequence.
    """
    if not 0 <= sequence < table.valid.shape[0]:
        raise ReadError(f"There is no sequence {sequence} in a batch of {table.valid.shape[0]}.")
    keep = table.valid[sequence].cpu().numpy()
    rows = table.rows.cpu().numpy()[keep]
    any_stat = next(iter(table.values.values()))
    n_heads = any_stat.shape[2]
    layer, head, row = (g.ravel() for g in np.meshgrid(np.array(table.layers), np.arange(n_heads), rows, indexing="ij"))
    index = {"layer": layer.astype(np.int64), "head": head.astype(np.int64), "row": row.astype(np.int64)}

    def flat(name: str) -> np.ndarray:
        return table[name][:, sequence].cpu().numpy()[:, :, keep]

    stats = {
        name: flat(name).ravel().astype(np.int64 if name == "argmax" else np.float64) for name in _STATS if name in table.values
    }
    mass = pl.DataFrame(schema={"layer": pl.Int64, "head": pl.Int64, "row": pl.Int64, "region": pl.String, "mass": pl.Float64})
    if "mass" in table.values:
        n = len(table.regions)
        names = pl.Series("region", list(table.regions), dtype=pl.String)
        mass = pl.DataFrame(
            {name: np.repeat(values, n) for name, values in index.items()}
            | {"region": names.gather(np.tile(np.arange(n), len(layer))), "mass": flat("mass").ravel().astype(np.float64)}
        )
    return mass, pl.DataFrame(index | stats)


def computed_by(table: AttentionTable, *names: str) -> pl.DataFrame:
    """Which computation produced the readouts that tables hold: ``(table, backend, mode)``, one row a name.

    Args:
        table: from a trace.
        names: tables made of it.
    """
    rows = [(name, table.backend, table.mode) for name in names]
    return pl.DataFrame(rows, schema={"table": pl.String, "backend": pl.String, "mode": pl.String}, orient="row")
