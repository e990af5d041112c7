"""The two tables of the causal follow-ups: one number an example, and effects pooled over examples.

``CAUSAL``: what one analysis gave for one example; ``value`` and ``control`` in ``unit``. ``EFFECTS``: means over examples with intervals. A null layer (head,
dose) means that the analysis has none, or takes all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from symbolic_residue.errors import RecordError

__all__ = ["CAUSAL", "EFFECTS", "causal_frame", "check_causal", "effects_frame"]

CAUSAL: dict[str, Any] = {
    "analysis": pl.String,
    "model": pl.String,
    "condition": pl.String,
    "example": pl.String,
    "cluster": pl.String,
    "part": pl.String,
    "place": pl.String,
    "layer": pl.Int64,
    "head": pl.Int64,
    "dose": pl.Float64,
    "value": pl.Float64,
    "control": pl.Float64,
    "unit": pl.String,
}
EFFECTS: dict[str, Any] = {
    "analysis": pl.String,
    "model": pl.String,
    "condition": pl.String,
    "part": pl.String,
    "place": pl.String,
    "layer": pl.Int64,
    "head": pl.Int64,
    "dose": pl.Float64,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "clusters": pl.Int64,
    "control": pl.Float64,
    "control_low": pl.Float64,
    "control_high": pl.Float64,
    "p": pl.Float64,
    "unit": pl.String,
    "outcome": pl.String,
    "criterion": pl.Float64,
    "why": pl.String,
}
_MAY_BE_NULL = ("layer", "head", "dose", "control")


def causal_frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as a table; what a row does not name is null."""
    return pl.DataFrame([{name: row.get(name) for name in CAUSAL} for row in rows], schema=CAUSAL)


def effects_frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as a table; NaN is null."""
    frame = pl.DataFrame([{name: row.get(name) for name in EFFECTS} for row in rows], schema=EFFECTS)
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None))


def check_causal(frame: pl.DataFrame) -> pl.DataFrame:
    """The table with its columns in order.

    Raises:
        RecordError: a column is missing, a value is missing or not finite, an example stands twice in one place or in two clusters.
    """
    lacking = [name for name in CAUSAL if name not in frame.columns]
    if lacking:
        raise RecordError(f"The table lacks {', '.join(lacking)}.", todo=f"Its columns are {', '.join(CAUSAL)}.")
    frame = frame.select([pl.col(name).cast(kind) for name, kind in CAUSAL.items()])
    for name in CAUSAL:
        if name not in _MAY_BE_NULL and frame[name].null_count():
            raise RecordError(f"{frame[name].null_count()} rows of the table have no {name}.")
    for name in ("value", "control"):
        if not bool(frame[name].drop_nulls().is_finite().all()):
            raise RecordError(
                f"A {name} is NaN or infinite.", todo="Leave the example out on purpose, or find where it comes from."
            )
    key = [name for name in CAUSAL if name not in ("value", "control", "cluster")]
    if frame.select(key).is_duplicated().any():
        row = frame.filter(frame.select(key).is_duplicated()).row(0, named=True)
        raise RecordError(
            f"Example {row['example']!r} stands twice at {row['analysis']}, {row['model']}, {row['part']}, {row['place']}, layer {row['layer']}.",
            why="It would count twice.",
        )
    twice = frame.group_by("condition", "example").agg(pl.col("cluster").n_unique()).filter(pl.col("cluster") > 1)
    if len(twice):
        raise RecordError(f"Example {twice['example'][0]!r} is in two clusters.")
    return frame
