"""What a run of several shells says about a model: the rate of every verdict, on planted items beside null ones.

1. Items are those with a row in ``shell_items``. For each shell and mode they are *planted* (made to show this mode), *null* (made to show none) or *other*
   (made to show another mode); the three are never pooled.
2. Rates are of items; their interval is Wilson's, 95 %. "undecided" counts as not firing and has its own column.
3. The value is the mean over the items on which it was measured, with the bootstrap's interval over these (Student's where they are few), cut to the
   quantity's range.
4. Heads confirmed on at least two planted items are listed with the number of items.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import polars as pl

from symbolic_residue.stats import bootstrap_mean, bound, wilson

__all__ = ["suite_heads", "suite_rows"]

_RANGES = {"share": (0.0, 1.0), "probability": (0.0, 1.0), "returns": (0.0, math.inf)}
"""Units whose quantities have ends."""


def suite_rows(verdicts: pl.DataFrame, shell_items: pl.DataFrame) -> list[dict[str, Any]]:
    """One row for each shell, mode and side (``planted``, ``null``, ``other``), in the order of the run.

    Args:
        verdicts, shell_items: the tables of a run.

    Returns:
        Rows with ``shell, mode, side, n, fires, undecided, absent, rate, low, high, value, value_low, value_high, value_n, quantity,
        unit, criterion, direction``.
    """
    joined = verdicts.join(shell_items.select("item", pl.col("shell").alias("of"), "null", "planted"), on="item")
    rows: list[dict[str, Any]] = []
    for (shell, mode), group in joined.group_by("shell", "mode", maintain_order=True):
        sides: dict[str, list[dict[str, Any]]] = {"planted": [], "null": [], "other": []}
        for row in group.iter_rows(named=True):
            made = row["planted"].split(", ")
            sides["null" if row["null"] else "planted" if row["mode"] in made else "other"].append(row)
        for side, found in sides.items():
            if not found:
                continue
            outcomes = Counter(row["outcome"] for row in found)
            rate = wilson(outcomes["fires"], len(found))
            values = [row["value"] for row in found if row["value"] is not None and row["value"] == row["value"]]
            mean = bootstrap_mean(values, seed=0) if values else None
            rows.append(
                {
                    "shell": shell,
                    "mode": mode,
                    "side": side,
                    "n": len(found),
                    **{outcome: outcomes[outcome] for outcome in ("fires", "undecided", "absent")},
                    "rate": rate.value,
                    "low": rate.low,
                    "high": rate.high,
                    "value": None if mean is None else mean.value,
                    "value_low": None if mean is None else _bound(mean.low, found[0]["unit"]),
                    "value_high": None if mean is None else _bound(mean.high, found[0]["unit"]),
                    "value_n": len(values),
                    **{name: found[0][name] for name in ("quantity", "unit", "criterion", "direction")},
                }
            )
    return rows


def suite_heads(heads: pl.DataFrame, shell_items: pl.DataFrame) -> list[dict[str, Any]]:
    """Heads confirmed on at least two items: ``shell, layer, head, items, tested``, most often confirmed first.

    ``tested`` is the number of items on which the head was tested, so that one can see how selective the count is.
    """
    joined = heads.join(shell_items.select("item", "shell"), on="item").filter(pl.col("ablation").is_not_null())
    counted = (
        joined.group_by("shell", "layer", "head", maintain_order=True)
        .agg(
            pl.col("item").filter(pl.col("confirmed").fill_null(False)).n_unique().alias("items"),
            pl.col("item").n_unique().alias("tested"),
        )
        .filter(pl.col("items") >= 2)
    )
    return counted.sort("shell", "items", "layer", "head", descending=[False, True, False, False]).to_dicts()


def _bound(x: float, unit: str) -> float | None:
    """A bound of the mean, None where there is none; an interval for few values could otherwise leave the range of the unit."""
    return bound(x, *_RANGES.get(unit, ()))
