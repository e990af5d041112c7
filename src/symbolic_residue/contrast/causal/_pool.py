"""One number an example, pooled: means with cluster intervals, beside their controls.

1. Rows of one analysis, model, condition, part, place, dose and unit form a matrix ``[example, layer and head]``. The cluster (the question) is resampled; one
   cluster has no interval and no p.
2. ``p``: where doing nothing would give 0 (a difference tuned − base, a change by an edit), whole clusters are flipped in sign, step-down max-T over the
   layers and heads of the matrix. Where every example has a control in the same unit, what is flipped is value − control. A log-probability, or a
   component's own contribution, has no such null: p is null.
3. Patching: the change as a share of ``donor − recipient`` (part ``total``) is a ratio of means (``bootstrap_ratio``), a row with unit ``share``. Where the
   total's interval touches 0 there is no share, and the total's row says so.
4. An interval of a log-probability does not pass 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.contrast.causal._emission import DIFFERENCE
from symbolic_residue.contrast.causal._tables import check_causal, effects_frame
from symbolic_residue.errors import RecordError
from symbolic_residue.stats import bootstrap_columns, bootstrap_ratio, bound, max_t

__all__ = ["TOTAL", "pool_effects"]

TOTAL = "total"
CHANGES = ("patch", "knock-out", "surgery", "mediation")
"""Analyses whose value is a change: 0 where nothing was done."""

_GROUP = ["analysis", "model", "condition", "part", "place", "dose", "unit"]
Array = NDArray[np.float64]


def pool_effects(frame: pl.DataFrame, *, seed: int, n_resamples: int = 2000, level: float = 0.95) -> pl.DataFrame:
    """Effects over examples.

    Args:
        frame: columns as in ``CAUSAL``.
        seed: of the resampling.
        n_resamples: bootstrap resamples, and sign flips.
        level: of the intervals.

    Returns:
        Columns as in ``EFFECTS``: ``n`` examples, ``clusters`` what was resampled.

    Raises:
        RecordError: a table that cannot be trusted: columns, NaN, an example that stands twice, or lacks layers that others have.
    """
    frame = check_causal(frame)
    options: dict[str, Any] = {"seed": seed, "n_resamples": n_resamples, "level": level}
    parts = frame.sort([*_GROUP, "layer", "head", "cluster", "example"]).partition_by(_GROUP, as_dict=True, maintain_order=True)
    totals = {key[1:3]: part for key, part in parts.items() if key[0] in ("patch", "mediation") and key[3] == TOTAL}
    rows: list[dict[str, Any]] = []
    for key, part in parts.items():
        place = dict(zip(_GROUP, key, strict=True))
        columns, values, controls, names, clusters = _matrix(part, place)
        nullable = place["analysis"] in CHANGES or place["model"] == DIFFERENCE
        made = _pooled(columns, values, controls, clusters, options, tested=nullable and place["part"] != TOTAL)
        if not nullable and place["analysis"] == "lens":
            for row in made:
                row["high"], row["control_high"] = bound(row["high"], most=0.0), bound(row["control_high"], most=0.0)
        rows += [{**place, **row} for row in made]
        if place["analysis"] != "patch":
            continue
        if place["part"] == TOTAL:
            rows[-1]["why"] = total_undecided(rows[-1])
        elif key[1:3] in totals:
            rows += _shares(place, columns, values, controls, names, clusters, totals[key[1:3]], options)
    return effects_frame(rows)


def total_undecided(row: dict[str, Any]) -> str | None:
    """Why there is nothing to take shares of, or None."""
    low, high = row["low"], row["high"]
    if low is None or np.isnan(low):
        return "one cluster: no interval"
    if low <= 0 <= high:
        return "the interval of donor − recipient touches 0: there is nothing to take shares of"
    return None


def _matrix(part: pl.DataFrame, place: dict[str, Any]) -> tuple[list[tuple[Any, Any]], Array, Array | None, list[str], list[str]]:
    """Columns (layer, head), ``values [example, column]``, ``controls`` of the same shape (rows of NaN where an example has none), names and clusters."""
    columns = part.select("layer", "head").unique().sort("layer", "head").rows()
    units = part.select("example", "cluster").unique().sort("cluster", "example")
    where = {column: i for i, column in enumerate(columns)}
    unit = {name: i for i, name in enumerate(units["example"])}
    values = np.full((len(unit), len(columns)), np.nan)
    controls = np.full_like(values, np.nan)
    for example, layer, head, value, control in part.select("example", "layer", "head", "value", "control").iter_rows():
        values[unit[example], where[layer, head]] = value
        controls[unit[example], where[layer, head]] = np.nan if control is None else control
    if np.isnan(values).any():
        example = units["example"][int(np.argwhere(np.isnan(values))[0, 0])]
        raise RecordError(
            f"Example {example!r} lacks layers or heads that others have ({place['analysis']}, {place['model']}, {place['part']}, {place['place']}).",
            why="Records were lost, or the analysis was run on other layers.",
        )
    return columns, values, None if np.isnan(controls).all() else controls, list(units["example"]), list(units["cluster"])


def _pooled(
    columns: list[tuple[Any, Any]],
    values: Array,
    controls: Array | None,
    clusters: list[str],
    options: dict[str, Any],
    *,
    tested: bool,
) -> list[dict[str, Any]]:
    value, low, high = bootstrap_columns(values, clusters=clusters, **options)
    n_clusters = len(set(clusters))
    control = control_low = control_high = np.full_like(value, np.nan)
    complete = controls is not None and not np.isnan(controls).any()
    if controls is not None:
        have: Any = ~np.isnan(controls).any(axis=1)
        if have.any():
            own = [cluster for cluster, here in zip(clusters, have, strict=True) if here]
            control, control_low, control_high = bootstrap_columns(controls[have], clusters=own, **options)
    p = np.full_like(value, np.nan)
    if tested and n_clusters > 1:
        excess = values - controls if complete and controls is not None else values
        p = max_t(excess, seed=options["seed"], n_resamples=options["n_resamples"], clusters=clusters)
    return [
        {
            "layer": layer, "head": head, "value": value[i], "low": low[i], "high": high[i], "n": len(values), "clusters": n_clusters, "control": control[i],
            "control_low": control_low[i], "control_high": control_high[i], "p": p[i],
        }
        for i, (layer, head) in enumerate(columns)
    ]  # fmt: skip


def _shares(
    place: dict[str, Any],
    columns: list[tuple[Any, Any]],
    values: Array,
    controls: Array | None,
    names: list[str],
    clusters: list[str],
    totals: pl.DataFrame,
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    of = dict(totals.select("example", "value").iter_rows())
    if any(name not in of for name in names):
        raise RecordError("An example was patched and its total is not in the table.", todo="Keep the rows with part 'total'.")
    total = np.array([of[name] for name in names])
    value, low, high = bootstrap_ratio(values, total, clusters=clusters, **options)
    if np.isnan(value).any():
        return []
    control = control_low = control_high = np.full_like(value, np.nan)
    if controls is not None:
        have: Any = ~np.isnan(controls).any(axis=1)
        own = [cluster for cluster, here in zip(clusters, have, strict=True) if here]
        control, control_low, control_high = bootstrap_ratio(controls[have], total[have], clusters=own, **options)
    return [
        {
            **place, "unit": "share", "layer": layer, "head": head, "value": value[i], "low": low[i], "high": high[i], "n": len(values),
            "clusters": len(set(clusters)), "control": control[i], "control_low": control_low[i], "control_high": control_high[i],
        }
        for i, (layer, head) in enumerate(columns)
    ]  # fmt: skip
