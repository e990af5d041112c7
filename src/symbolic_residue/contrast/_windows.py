"""Runs of neighbouring layers that pass, and the layer of the largest delta. Descriptions: no count of layers is tested."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from symbolic_residue.contrast._frames import OF_MODEL, WINDOWS

__all__ = ["peaks_of", "windows_of"]


def windows_of(layers: pl.DataFrame, *, flags: Sequence[str], run: int, sign: float) -> pl.DataFrame:
    """Maximal runs of ``run`` or more neighbouring layers in which all ``flags`` hold (columns as ``Gates.windows``)."""
    key = [*OF_MODEL, "head"]
    rows = []
    for place, part in layers.sort(*key, "layer", nulls_last=False).group_by(key, maintain_order=True):
        fields = dict(zip(key, place, strict=True))
        found: list[list[dict[str, Any]]] = [[]]
        previous: int | None = None
        for row in part.iter_rows(named=True):
            good = all(row[flag] is True for flag in flags)
            if not good or (previous is not None and row["layer"] != previous + 1):
                found.append([])
            if good:
                found[-1].append(row)
            previous = row["layer"]
        for window in found:
            if len(window) < run:
                continue
            peak = max(window, key=lambda row: sign * row["value"])
            rows.append(
                {
                    **fields,
                    "first": window[0]["layer"],
                    "last": window[-1]["layer"],
                    "layers": len(window),
                    "peak_layer": peak["layer"],
                    "peak_value": peak["value"],
                    **{flag: _all(row.get(flag) for row in window) for flag in ("D", "E", "F")},
                }
            )
    return pl.DataFrame(rows, schema=WINDOWS)


def _all(flags: Any) -> bool | None:
    given = list(flags)
    if any(flag is False for flag in given):
        return False
    return None if any(flag is None for flag in given) else True


def peaks_of(layers: pl.DataFrame, sign: float) -> pl.DataFrame:
    """The layer of the largest mean delta in the predicted direction, for each place (columns as ``Gates.peaks``)."""
    key = [*OF_MODEL, "head"]
    best = (
        layers.with_columns(by=sign * pl.col("value"))
        .sort("by", "layer", descending=[True, False])
        .group_by(key, maintain_order=True)
        .first()
    )
    return best.select(*key, peak_layer=pl.col("layer"), peak_value=pl.col("value")).sort(key, nulls_last=False)
