"""Deltas as matrices: one row an example, one column a layer (or a layer and head)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.contrast._frames import OF_MODEL, PLACE
from symbolic_residue.contrast._records import check_deltas
from symbolic_residue.errors import RecordError

__all__ = ["DenseDeltas", "Place", "Stack", "stacks"]

Array = NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Place:
    """What one question is asked of: a region, under a segmentation, at an offset, in a condition of a model."""

    model: str
    condition: str
    segmentation: str
    query_offset: int
    region: str

    def fields(self) -> dict[str, Any]:
        """As columns."""
        return {name: getattr(self, name) for name in OF_MODEL}

    def fields_of_pair(self, tuned: str, reference: str) -> dict[str, Any]:
        """As columns of a comparison of two models."""
        return {"tuned": tuned, "reference": reference, **{name: getattr(self, name) for name in PLACE}}


@dataclass(frozen=True)
class Stack:
    """``values [example, column]`` with the examples' names and clusters."""

    values: Array
    examples: tuple[str, ...]
    clusters: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def n_clusters(self) -> int:
        return len(set(self.clusters))

    def shared(self, other: Stack) -> tuple[Array, Array, tuple[str, ...]]:
        """Rows of the examples that both have, in one order, and their clusters."""
        mine, theirs, (_, clusters) = self.pair(other)
        return mine, theirs, clusters

    def pair(self, other: Stack) -> tuple[Array, Array, tuple[tuple[str, ...], tuple[str, ...]]]:
        """:meth:`shared`, with the examples' names before their clusters."""
        if self.examples == other.examples:
            return self.values, other.values, (self.examples, self.clusters)
        here = {name: i for i, name in enumerate(self.examples)}
        pairs = [(here[name], j) for j, name in enumerate(other.examples) if name in here]
        mine, theirs = ([pair[k] for pair in pairs] for k in (0, 1))
        kept = tuple(self.examples[i] for i in mine), tuple(self.clusters[i] for i in mine)
        return self.values[mine], other.values[theirs], kept

    def minus(self, other: Stack) -> Stack:
        """The paired difference, of the examples that both have."""
        mine, theirs, kept = self.pair(other)
        return Stack(mine - theirs, *kept)


@dataclass(frozen=True)
class DenseDeltas:
    """All matrices of a table of deltas, or of arrays (:func:`symbolic_residue.contrast.dense_deltas`).

    Attributes:
        columns: ``(layer, head)`` of each column; head None: the mean over heads.
        of: (place, stratum, lag, what) → matrix; ``what`` is ``delta``, ``control``, or for unpaired strata ``mass``.
    """

    columns: tuple[tuple[int, int | None], ...]
    of: dict[tuple[Place, str, int, str], Stack]

    def models(self) -> list[str]:
        """Names of the models, sorted."""
        return sorted({place.model for place, _, _, _ in self.of})

    def by_layer(self) -> DenseDeltas:
        """The mean over heads."""
        layers = sorted({layer for layer, _ in self.columns})
        share = np.array([[float(layer == at) for layer in layers] for at, _ in self.columns])
        share /= share.sum(axis=0)
        of = {key: Stack(stack.values @ share, stack.examples, stack.clusters) for key, stack in self.of.items()}
        return DenseDeltas(tuple((layer, None) for layer in layers), of)

    def places(self, stratum: str) -> list[Place]:
        """Places that have deltas of this stratum, sorted."""
        return sorted({place for place, name, lag, what in self.of if name == stratum and lag == 0 and what == "delta"})

    def get(self, place: Place, stratum: str, lag: int = 0, what: str = "delta") -> Stack | None:
        return self.of.get((place, stratum, lag, what))

    def absent(self, place: Place, stratum: str) -> bool:
        """Whether the region has no keys at all (no system turn, say): its mass is exactly 0 in every row, so that no gate can be asked of it."""
        both = [self.get(place, stratum, 0, what) for what in ("delta", "control")]
        return all(stack is not None and not stack.values.any() for stack in both)

    def rivals(self, place: Place, stratum: str) -> dict[str, Stack]:
        """The other regions of the same rows that have keys, by name.

        Raises:
            RecordError: one of them lacks examples.
        """
        mine = self.get(place, stratum)
        found: dict[str, Stack] = {}
        for other in self.places(stratum):
            rival = self.get(other, stratum)
            if (
                mine is None
                or rival is None
                or other == place
                or replace(other, region=place.region) != place
                or self.absent(other, stratum)
            ):
                continue
            if (n := len(mine.shared(rival)[2])) < len(mine):
                raise RecordError(
                    f"Region {other.region!r} has {n} of the {len(mine)} examples that {place.region!r} has.",
                    why="Regions are compared within the same rows.",
                    todo="Give every region of every row.",
                )
            found[other.region] = rival
        return found


def stacks(table: pl.DataFrame | DenseDeltas, *, heads: bool) -> DenseDeltas:
    """Matrices of a table of deltas.

    Args:
        table: checked here; matrices are passed on.
        heads: columns are layers and heads; otherwise layers (records with ``head`` null, or where there are none the mean over the heads).

    Raises:
        RecordError: what :func:`check_deltas` refuses; heads asked for and none there; models that differ in their layers.
    """
    if isinstance(table, DenseDeltas):
        if heads and table.columns[0][1] is None:
            raise RecordError(
                "The deltas hold no single heads.", todo="Make them with dense_deltas(…, heads=True), or test layers."
            )
        return table if heads or table.columns[0][1] is None else table.by_layer()
    table = check_deltas(table)
    with_head, without = table.filter(pl.col("head").is_not_null()), table.filter(pl.col("head").is_null())
    if heads and not len(with_head):
        raise RecordError(
            "The records hold no single heads.",
            why="Their column 'head' is empty: means over heads.",
            todo="Read with heads, or test layers.",
        )
    frame = with_head if heads else without
    if not heads and not len(without):
        keys = [name for name in table.columns if name not in ("head", "mass", "control", "delta", "control_rows")]
        frame = with_head.group_by(keys).agg(
            pl.col("mass", "control", "delta").mean(), pl.col("control_rows").first()
        ).with_columns(head=pl.lit(None, pl.Int32))  # fmt: skip
    columns = [tuple(row) for row in frame.select("layer", "head").unique().sort("layer", "head").iter_rows()]
    index = pl.DataFrame(columns, schema={"layer": pl.Int32, "head": pl.Int32}, orient="row").with_row_index("column")
    frame = frame.join(index, on=["layer", "head"], how="left", nulls_equal=True)
    of: dict[tuple[Place, str, int, str], Stack] = {}
    keys = ["model", "condition", "segmentation", "query_offset", "region", "stratum", "lag"]
    for key, part in frame.partition_by(keys, as_dict=True, include_key=False).items():
        model, condition, segmentation, offset, region, stratum, lag = key
        place = Place(model, condition, segmentation, offset, region)
        for what, stack in _matrices(part, len(columns), place):
            of[place, stratum, lag, what] = stack
    return DenseDeltas(tuple(columns), of)


def _matrices(part: pl.DataFrame, width: int, place: Place) -> Iterator[tuple[str, Stack]]:
    for what in ("delta", "mass", "control"):
        have = part.filter(pl.col(what).is_not_null())
        if not len(have):
            continue
        names = have.select("example", "cluster").unique().sort("cluster", "example")
        rows = have.join(names.with_row_index("unit"), on="example", how="left")
        values = np.full((len(names), width), np.nan)
        values[rows["unit"].to_numpy(), rows["column"].to_numpy()] = rows[what].to_numpy()
        if np.isnan(values).any():
            example = names["example"][int(np.argwhere(np.isnan(values))[0, 0])]
            raise RecordError(
                f"Example {example!r} of {place.model!r} lacks layers or heads that others have (region {place.region!r}).",
                why="Records were lost, or two models of different depth stand in one table.",
                todo="Analyse models of different depth apart.",
            )
        yield what, Stack(values, tuple(names["example"]), tuple(names["cluster"]))
