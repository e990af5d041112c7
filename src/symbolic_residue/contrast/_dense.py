"""Deltas from arrays, for records too many for a long table: the same differences as :func:`symbolic_residue.contrast.deltas` gives, as matrices.

1. ``masses [row, layer, head, region]`` with one line of ``rows`` for each row: example, cluster, condition, stratum, query_offset, as in ``RECORDS``.
2. Rows are averaged example by example in pieces, so that an array that lies on disk (``numpy.load(…, mmap_mode="r")``) is never held whole.
3. Gates, differences, peaks and heads take what comes out in place of a table of deltas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from symbolic_residue.contrast._deltas import LAGS
from symbolic_residue.contrast._records import EVENT, TRAJECTORY
from symbolic_residue.contrast._stack import DenseDeltas, Place, Stack
from symbolic_residue.errors import RecordError

__all__ = ["dense_deltas"]

_ROWS = ("example", "cluster", "condition", "stratum", "query_offset")
_CHUNK = 2_000_000
_SLACK = 1e-3

Array = NDArray[np.float64]


def dense_deltas(
    masses: Mapping[str, ArrayLike] | ArrayLike,
    rows: pl.DataFrame,
    *,
    model: str,
    regions: Sequence[str],
    layers: Sequence[int] | None = None,
    heads: bool = False,
    reference: str = "C1",
) -> DenseDeltas:
    """Event minus control of each example, layer and region (and head).

    Args:
        masses: ``[row, layer, head, region]``, or one such array for each segmentation (name → array); a single one is called ``full``.
        rows: ``example cluster condition stratum query_offset``, a line for each row in order. ``condition`` may be left out.
        model: its name.
        regions: names of the last axis.
        layers: numbers of the second axis. Default: from 0.
        heads: keep heads apart; otherwise their mean.
        reference: the stratum whose mean the trajectory is measured from.

    Raises:
        RecordError: axes that do not fit, masses that are NaN or no shares, doubled event rows, an example in two clusters, no event rows.
    """
    arrays = (
        {str(k): np.asanyarray(v) for k, v in masses.items()} if isinstance(masses, Mapping) else {"full": np.asanyarray(masses)}
    )
    table = _rows(rows)
    for name, array in arrays.items():
        if array.ndim != 4 or array.shape[0] != len(table) or array.shape[3] != len(regions):
            raise RecordError(
                f"The masses {name!r} are {array.shape}, for {len(table)} rows and {len(regions)} regions.",
                todo="Give an array of the axes row, layer, head, region.",
            )
    shape = {array.shape[1:3] for array in arrays.values()}
    if len(shape) != 1 or (layers is not None and len(layers) != next(iter(shape))[0]):
        raise RecordError("The layers or heads of the arrays differ, or their names do not fit.", todo="Give one name a layer.")
    n_layers, n_heads = next(iter(shape))
    numbers = range(n_layers) if layers is None else [int(layer) for layer in layers]
    columns = tuple((layer, head) for layer in numbers for head in (range(n_heads) if heads else (None,)))
    of: dict[tuple[Place, str, int, str], Stack] = {}
    for (condition,), part in table.partition_by("condition", as_dict=True).items():
        for segmentation, array in arrays.items():
            _condition(of, array, part, (model, str(condition), segmentation), regions, heads, reference)
    return DenseDeltas(columns, of)


def _rows(rows: pl.DataFrame) -> pl.DataFrame:
    if "condition" not in rows.columns:
        rows = rows.with_columns(condition=pl.lit("all"))
    lacking = [name for name in _ROWS if name not in rows.columns]
    if lacking:
        raise RecordError(f"The rows have no column {', '.join(lacking)}.", todo=f"The columns are: {', '.join(_ROWS)}.")
    table = rows.select(pl.col(*_ROWS[:4]).cast(pl.String), pl.col("query_offset").cast(pl.Int32)).with_row_index("at")
    if table.null_count().sum_horizontal().item():
        raise RecordError("The rows have empty places.", todo="Say of every row which example, cluster, stratum and offset it has.")
    if not len(table.filter(pl.col("stratum") == EVENT)):
        raise RecordError("There are no event rows.", todo=f"Their stratum is {EVENT!r}.")
    doubled = (
        table.filter(pl.col("stratum") == EVENT).group_by("condition", "example", "query_offset").len().filter(pl.col("len") > 1)
    )
    if len(doubled):
        raise RecordError(
            f"Example {doubled['example'].sort()[0]!r} has two event rows at one offset.",
            why="Counted twice, it would weigh twice.",
        )
    two = table.group_by("condition", "example").agg(pl.col("cluster").n_unique().alias("n")).filter(pl.col("n") > 1)
    if len(two):
        raise RecordError(
            f"Example {two['example'].sort()[0]!r} is in {two['n'].max()} clusters.",
            why="An example is resampled with one cluster.",
        )
    return table


def _condition(
    of: dict[tuple[Place, str, int, str], Stack],
    array: NDArray[Any],
    table: pl.DataFrame,
    name: tuple[str, str, str],
    regions: Sequence[str],
    heads: bool,
    reference: str,
) -> None:
    events = {
        int(offset): _pool(array, part, heads)
        for (offset,), part in table.filter(pl.col("stratum") == EVENT).partition_by("query_offset", as_dict=True).items()
    }
    with_event = {example for examples, _, _ in events.values() for example in examples}
    for (stratum, offset), part in (
        table.filter(pl.col("stratum") != EVENT).partition_by("stratum", "query_offset", as_dict=True).items()
    ):
        if offset not in events:
            continue
        examples, clusters, control = _pool(array, part, heads)
        paired = [example in with_event for example in examples]
        if any(paired) and not all(paired):
            raise RecordError(
                f"Stratum {stratum} has rows of examples with the behaviour and of examples without it.",
                todo="Give the rows of answers without the behaviour a stratum of their own.",
            )
        names, labels, mass = events[offset]
        for r, region in enumerate(regions):
            place = Place(name[0], name[1], name[2], int(offset), region)
            if not all(paired):
                of[place, stratum, 0, "mass"] = Stack(mass[r], names, labels)
                of[place, stratum, 0, "control"] = Stack(control[r], examples, clusters)
                continue
            event, base, kept = Stack(mass[r], names, labels).pair(Stack(control[r], examples, clusters))
            of[place, stratum, 0, "delta"] = Stack(event - base, *kept)
            of[place, stratum, 0, "control"] = Stack(base, *kept)
            if stratum == reference:
                _trajectory(of, place, Stack(base, *kept), events, r)


def _trajectory(
    of: dict[tuple[Place, str, int, str], Stack],
    place: Place,
    base: Stack,
    events: Mapping[int, tuple[tuple[str, ...], tuple[str, ...], Array]],
    region: int,
) -> None:
    for lag in range(LAGS + 1):
        if place.query_offset - lag in events:
            names, labels, mass = events[place.query_offset - lag]
            there = Stack(mass[region], names, labels).minus(base)
            if len(there):
                of[place, TRAJECTORY, lag, "delta"] = there


def _pool(array: NDArray[Any], part: pl.DataFrame, heads: bool) -> tuple[tuple[str, ...], tuple[str, ...], Array]:
    """Examples in order, their clusters, and the mean of each one's rows ``[region, example, column]``."""
    ordered = part.sort("cluster", "example", "at")
    units = ordered.group_by("cluster", "example", maintain_order=True).len()
    at, counts = ordered["at"].to_numpy(), units["len"].to_numpy().astype(np.intp)
    ends = np.cumsum(counts)
    n_layers, n_heads, n_regions = array.shape[1:]
    out = np.empty((n_regions, len(units), n_layers * (n_heads if heads else 1)))
    step = max(1, int(_CHUNK // (array[0].size * max(1.0, float(counts.mean())))))
    for first in range(0, len(units), step):
        last = min(first + step, len(units))
        start = int(ends[first] - counts[first])
        block = array[at[start : int(ends[last - 1])]]
        low, high = float(block.min()), float(block.max())
        if not (low >= -_SLACK and high <= 1 + _SLACK):
            raise RecordError(
                f"Attention masses run from {low:.4g} to {high:.4g}." if low == low and high == high else "Masses are NaN.",
                why="A share of attention lies between 0 and 1; NaN would turn every statistic into a number without meaning.",
            )
        size = counts[first:last]
        weights = np.repeat(1.0 / size, size)
        mean = sparse.csr_array(
            (weights, np.arange(len(block)), np.concatenate([[0], np.cumsum(size)])), shape=(len(size), len(block))
        )
        pooled = (mean @ block.reshape(len(block), -1)).reshape(len(size), n_layers, n_heads, n_regions)
        if heads:
            pooled = pooled.reshape(len(size), -1, n_regions)
        else:
            pooled = pooled.mean(axis=2)
        out[:, first:last] = np.moveaxis(pooled, 2, 0)
    return tuple(units["example"]), tuple(units["cluster"]), out
