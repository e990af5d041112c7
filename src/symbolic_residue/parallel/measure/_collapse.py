"""From rows of a table to one number a prompt: heads first, then layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

__all__ = ["by_layer", "crossing", "headline"]


def crossing(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Where ``y`` first reaches 0 from below, between the points by a line; None where it does not, or holds no numbers."""
    over = np.flatnonzero(y >= 0)
    if not len(over):
        return None
    i = int(over[0])
    return float(x[i]) if i == 0 else float(x[i - 1] + (x[i] - x[i - 1]) * -y[i - 1] / (y[i] - y[i - 1]))


def by_layer(held: pl.DataFrame, column: str) -> tuple[NDArray[np.float64], list[int]]:
    """``[prompt, layer]`` of a column's means over heads, and the layers."""
    import polars as pl

    if held.is_empty():
        return np.empty((0, 0)), []
    mean = held.group_by("item", "layer").agg(pl.col(column).mean())
    items, layers = sorted(mean["item"].unique()), sorted(mean["layer"].unique())
    out = np.full((len(items), len(layers)), np.nan)
    row, col = {k: i for i, k in enumerate(items)}, {k: i for i, k in enumerate(layers)}
    for item, layer, value in mean.select("item", "layer", column).iter_rows():
        out[row[item], col[layer]] = value
    return out, layers


def headline(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[prompt]``: mean over the layers that a prompt has."""
    if not matrix.size:
        return np.empty(0)
    count = np.isfinite(matrix).sum(1)
    total = np.nansum(matrix, axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
