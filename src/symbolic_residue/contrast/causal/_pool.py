"""One number an example, pooled: means with cluster intervals, beside their controls.

1. Rows of one analysis, model, condition, part, place, dose and unit form a matrix ``[example, layer and head]``. Its means have intervals from inverted
   cluster sign flips (:mod:`symbolic_residue.stats._flip_interval`; the cluster is the question): a bootstrap is too narrow for so few. One cluster has no
   interval and no p.
2. ``p``: where doing nothing would give 0 (a difference tuned − base, a change by an edit), whole clusters are flipped in sign, step-down max-T over the
   layers and heads of the matrix. Where every example has a control, what is flipped is value − control; where only some have, the value alone, and
   ``why`` says how many. A log-probability, or a component's own contribution, has no such null: p is null.
3. *Shares* are ratios of means (``bootstrap_ratio``, which draws clusters), in rows with unit ``share``: of ``donor − recipient`` (part ``total``) for
   patches and mediation, of the whole adapter's effect (part and place all) for surgery. Where the total's interval touches 0 there is no share, and
   the total's row says so.
4. An interval of a log-probability does not pass 0.
5. Mediation's verdict is given here, so that it can be had from saved records: see ``_mediation``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.contrast.causal._emission import DIFFERENCE
from symbolic_residue.contrast.causal._exchange import ALL, BASE_INTO_TUNED, DIRECTIONS, TOTAL, TUNED_INTO_BASE
from symbolic_residue.contrast.causal._tables import check_causal, effects_frame
from symbolic_residue.errors import ConfigError, RecordError
from symbolic_residue.stats import bootstrap_ratio, bound, flip_columns, max_t

__all__ = ["pool_effects"]

CHANGES = ("patch", "knock-out", "surgery", "mediation")
"""Analyses whose value is a change: 0 where nothing was done."""

_GROUP = ["analysis", "model", "condition", "part", "place", "dose", "unit"]
Array = NDArray[np.float64]


def pool_effects(
    frame: pl.DataFrame, *, seed: int, n_resamples: int = 2000, level: float = 0.95, criterion: float = 0.5
) -> pl.DataFrame:
    """Effects over examples.

    Args:
        frame: columns as in ``CAUSAL``.
        seed: of the resampling.
        n_resamples: sign flips drawn of more than 12 clusters, and draws of the shares.
        level: of the intervals.
        criterion: of mediation's verdict.

    Returns:
        Columns as in ``EFFECTS``: ``n`` examples, ``clusters`` their questions.

    Raises:
        RecordError: a table that cannot be trusted: columns, NaN, an example that stands twice, or lacks layers that others have.
        ConfigError: a criterion outside (0, 1).
    """
    if not 0 < criterion < 1:
        raise ConfigError(f"The criterion is {criterion}.", todo="Give a share between 0 and 1.")
    frame = check_causal(frame)
    options: dict[str, Any] = {"seed": seed, "n_resamples": n_resamples, "level": level}
    parts = frame.sort([*_GROUP, "layer", "head", "cluster", "example"]).partition_by(_GROUP, as_dict=True, maintain_order=True)
    totals = {_total_key(place): part for key, part in parts.items() if _is_total(place := dict(zip(_GROUP, key, strict=True)))}
    rows: list[dict[str, Any]] = []
    for key, part in parts.items():
        place = dict(zip(_GROUP, key, strict=True))
        block = _matrix(part, place)
        changes = place["analysis"] in CHANGES
        made = _pooled(block, options, tested=changes or place["model"] == DIFFERENCE)
        if not changes and place["analysis"] == "lens" and place["model"] != DIFFERENCE:
            for row in made:
                row["high"], row["control_high"] = bound(row["high"], most=0.0), bound(row["control_high"], most=0.0)
        if _is_total(place):
            made[0]["why"] = _no_shares(made[0])
        rows += [{**place, **row} for row in made]
        if place["part"] != TOTAL and (total := totals.get(_total_key(place))) is not None:
            rows += [{**place, "unit": "share", **row} for row in _shares(block, total, options)]
    _mediation_verdicts(rows, criterion)
    return effects_frame(rows)


def _is_total(place: dict[str, Any]) -> bool:
    """Whether these rows are what shares are taken of."""
    if place["analysis"] == "surgery":
        return place["model"] == "tuned" and place["part"] == ALL and place["place"] == "all layers"
    return place["analysis"] in ("patch", "mediation") and place["part"] == TOTAL and place["model"] in DIRECTIONS


def _total_key(place: dict[str, Any]) -> tuple[str, str, str]:
    """Which total a place's shares are of: another donor's, or another adapter's, are shares of the tuned model's effect."""
    analysis, model = place["analysis"], place["model"]
    if analysis == "surgery":
        model = "tuned"
    elif analysis == "mediation" and model not in DIRECTIONS:
        model = TUNED_INTO_BASE
    return analysis, model, place["condition"]


def _no_shares(row: dict[str, Any]) -> str | None:
    """Why there is nothing to take shares of, or None."""
    if np.isnan(row["low"]):
        return "one cluster: no interval"
    if row["low"] <= 0 <= row["high"]:
        return "the interval of the total touches 0: there is nothing to take shares of"
    return None


@dataclass(frozen=True)
class _Block:
    """``values [example, column]`` and ``controls`` (rows of NaN where an example has none); columns are (layer, head)."""

    columns: list[tuple[int | None, int | None]]
    values: Array
    controls: Array
    examples: list[str]
    clusters: list[str]

    @property
    def controlled(self) -> list[int]:
        """Examples that have every control."""
        return np.flatnonzero(~np.isnan(self.controls).any(axis=1)).tolist()

    def counts(self) -> dict[str, int]:
        return {"n": len(self.values), "clusters": len(set(self.clusters))}


def _matrix(part: pl.DataFrame, place: dict[str, Any]) -> _Block:
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
    return _Block(columns, values, controls, list(units["example"]), list(units["cluster"]))


def _pooled(block: _Block, options: dict[str, Any], *, tested: bool) -> list[dict[str, Any]]:
    value, low, high = flip_columns(block.values, clusters=block.clusters, **options)
    control = control_low = control_high = p = np.full_like(value, np.nan)
    at = block.controlled
    if at:
        control, control_low, control_high = flip_columns(block.controls[at], clusters=[block.clusters[i] for i in at], **options)
    if tested and len(set(block.clusters)) > 1:
        excess = block.values - block.controls if len(at) == len(block.values) else block.values
        p = max_t(excess, seed=options["seed"], n_resamples=options["n_resamples"], clusters=block.clusters)
    partly = f"{len(at)} of {len(block.values)} examples have a control" if 0 < len(at) < len(block.values) else None
    return [
        {
            "layer": layer, "head": head, "value": value[i], "low": low[i], "high": high[i], **block.counts(), "control": control[i],
            "control_low": control_low[i], "control_high": control_high[i], "p": p[i], "why": partly,
        }
        for i, (layer, head) in enumerate(block.columns)
    ]  # fmt: skip


def _shares(block: _Block, totals: pl.DataFrame, options: dict[str, Any]) -> list[dict[str, Any]]:
    of = dict(totals.select("example", "value").iter_rows())
    if lacking := [name for name in block.examples if name not in of]:
        raise RecordError(
            f"Example {lacking[0]!r} was patched and its total is not in the table.", todo="Keep the rows of the totals."
        )
    total = np.array([of[name] for name in block.examples])
    _, low, high = flip_columns(total[:, None], clusters=block.clusters, **options)
    if not (low[0] > 0 or high[0] < 0):
        return []
    value, low, high = bootstrap_ratio(block.values, total, clusters=block.clusters, **options)
    if np.isnan(value).any():
        return []
    control = control_low = control_high = excess = np.full_like(value, np.nan)
    at = block.controlled
    own = [block.clusters[i] for i in at]
    if at:
        control, control_low, control_high = bootstrap_ratio(block.controls[at], total[at], clusters=own, **options)
        _, excess, _ = bootstrap_ratio(block.values[at] - block.controls[at], total[at], clusters=own, **options)
    return [
        {
            "layer": layer, "head": head, "value": value[i], "low": low[i], "high": high[i], **block.counts(), "control": control[i],
            "control_low": control_low[i], "control_high": control_high[i], "excess_low": excess[i],
        }
        for i, (layer, head) in enumerate(block.columns)
    ]  # fmt: skip


def _mediation_verdicts(rows: list[dict[str, Any]], criterion: float) -> None:
    """Outcome, criterion and reason, on the two shares of each condition; on the totals where there are no shares."""
    mine = [row for row in rows if row["analysis"] == "mediation" and row["model"] in DIRECTIONS]
    for condition in {row["condition"] for row in mine}:
        here = [row for row in mine if row["condition"] == condition]
        shares = {row["model"]: row for row in here if row["unit"] == "share"}
        if set(shares) == set(DIRECTIONS):
            outcome, why = _verdict(shares[TUNED_INTO_BASE], shares[BASE_INTO_TUNED], criterion)
            total = next(row for row in here if row["part"] == TOTAL and row["model"] == TUNED_INTO_BASE)
            if total["value"] < 0:
                outcome = "undecided"
                why = f"the tuned model is less likely to emit the behaviour than the base ({total['value']:.2g} nats): nothing was raised to be carried"
            carriers = list(shares.values())
        else:
            totals = [row for row in here if row["part"] == TOTAL]
            outcome, why = "undecided", next((row["why"] for row in totals if row.get("why")), "one direction was not run")
            carriers = totals or here
        for row in carriers:
            row |= {"outcome": outcome, "criterion": criterion, "why": why}


def _verdict(sufficiency: dict[str, Any], necessity: dict[str, Any], criterion: float) -> tuple[str, str]:
    said = ", ".join(
        f"{name} {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        for name, row in (("sufficiency", sufficiency), ("necessity", necessity))
    )
    both = (sufficiency, necessity)
    if all(row["high"] < criterion for row in both):
        return "not attention-mediated", f"{said}: both below {criterion:g}"
    if not all(row["low"] > criterion for row in both):
        return "undecided", f"{said}: not both on one side of {criterion:g}"
    if any(row["excess_low"] <= 0 for row in both):
        return (
            "undecided",
            f"{said}: both above {criterion:g}, and so is what the same change at other heads does, within the interval",
        )
    return "attention-mediated", f"{said}: both above {criterion:g}"
