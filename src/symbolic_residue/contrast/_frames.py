"""Columns of the tables that the analysis gives."""

from __future__ import annotations

from typing import Any

import polars as pl

__all__ = ["COLUMN", "LAYERS", "OF_MODEL", "OF_PAIR", "PEAKS", "PLACE", "RULE_OUTS", "TRAJECTORIES", "WINDOWS", "conform"]

PLACE: dict[str, Any] = {"condition": pl.String, "region": pl.String, "segmentation": pl.String, "query_offset": pl.Int32}
"""What one question is asked of, under whichever model."""
OF_MODEL: dict[str, Any] = {"model": pl.String, **PLACE}
OF_PAIR: dict[str, Any] = {"tuned": pl.String, "reference": pl.String, **PLACE}
COLUMN: dict[str, Any] = {"layer": pl.Int32, "head": pl.Int32}
"""What a place is judged by; ``head`` null: the mean over heads."""

LAYERS: dict[str, Any] = {
    **OF_MODEL,
    **COLUMN,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "clusters": pl.Int64,
    "p": pl.Float64,
    "share": pl.Float64,
    "control": pl.Float64,
    "A": pl.Boolean,
    "B": pl.Boolean,
    "C": pl.Boolean,
    "D": pl.Boolean,
    "E": pl.Boolean,
    "F": pl.Boolean,
    "rival": pl.String,
    "margin": pl.Float64,
    "margin_low": pl.Float64,
    "margin_high": pl.Float64,
    "detectable": pl.Float64,
}
RULE_OUTS: dict[str, Any] = {
    **OF_MODEL,
    **COLUMN,
    "stratum": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "control_n": pl.Int64,
    "clusters": pl.Int64,
    "passed": pl.Boolean,
}
TRAJECTORIES: dict[str, Any] = {
    **OF_MODEL,
    **COLUMN,
    "lag": pl.Int32,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "clusters": pl.Int64,
}
WINDOWS: dict[str, Any] = {
    **OF_MODEL,
    "head": pl.Int32,
    "first": pl.Int32,
    "last": pl.Int32,
    "layers": pl.Int64,
    "peak_layer": pl.Int32,
    "peak_value": pl.Float64,
    "D": pl.Boolean,
    "E": pl.Boolean,
    "F": pl.Boolean,
}
PEAKS: dict[str, Any] = {
    **OF_MODEL,
    "head": pl.Int32,
    "peak_layer": pl.Int32,
    "peak_value": pl.Float64,
}


def conform(frame: pl.DataFrame, schema: dict[str, Any]) -> pl.DataFrame:
    """The frame with the columns of a schema, in order; what it lacks is null."""
    given = [pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in frame.columns]
    return frame.with_columns(given).select([pl.col(name).cast(dtype) for name, dtype in schema.items()])
