"""Tuned minus reference on identical tokens: the estimate that decides whether training did it.

1. Both models read the same ids at the same rows, so an example's delta under the one and under the other differ by the weights alone. ``d = delta(tuned) −
   delta(reference)`` is paired by example; text, position and distance cancel.
2. Mean of d with a cluster bootstrap interval; p by flipping the signs of whole clusters, step-down max-T over the layers (and heads) of a place.
3. An example that one of the two lacks is not compared: pairs are counted, and fewer than ``least`` of them are refused.
4. Where the layers peak is compared by resampling clusters: in each draw the layer with the largest mean delta of either model, and their difference.
5. Verdict of a place (a region in a condition, under each segmentation at one offset). *Rise*: the delta is on the predicted side with its interval
   and its family-wise p in some layer; d likewise.

   induced               d rises in a layer in which the tuned model passes gates A, B, C, D and E (those that could be evaluated; A to C must be)
   reduced by training   d falls (family-wise) in a layer in which the reference rises
   present in base       neither, and the reference passes A to C in some layer
   undecided             anything else; beside it the interval of d at the layer of its largest size, and the smallest effect that the data could
   have seen there

   A gate within one model never gives "induced".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from symbolic_residue.contrast._gates import Gates
from symbolic_residue.contrast._options import Options
from symbolic_residue.contrast._records import check_deltas, TRAJECTORY
from symbolic_residue.contrast._stack import Place, Stack, Stacks, stacks
from symbolic_residue.errors import ConfigError, RecordError
from symbolic_residue.stats import bootstrap_columns, bound, detectable_effect, generator, max_t

__all__ = ["OUTCOMES", "DiffOfDiffs", "diff_of_diffs", "peak_shift", "verdict"]

OUTCOMES = ("induced", "present in base", "reduced by training", "undecided")

DIFFERENCES: dict[str, Any] = {
    "tuned": pl.String,
    "reference": pl.String,
    "condition": pl.String,
    "region": pl.String,
    "segmentation": pl.String,
    "query_offset": pl.Int32,
    "stratum": pl.String,
    "layer": pl.Int32,
    "head": pl.Int32,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "n": pl.Int64,
    "clusters": pl.Int64,
    "unpaired": pl.Int64,
    "tuned_value": pl.Float64,
    "reference_value": pl.Float64,
    "detectable": pl.Float64,
}
VERDICTS: dict[str, Any] = {
    "tuned": pl.String,
    "reference": pl.String,
    "condition": pl.String,
    "region": pl.String,
    "segmentation": pl.String,
    "query_offset": pl.Int32,
    "head": pl.Int32,
    "outcome": pl.String,
    "layer": pl.Int32,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "n": pl.Int64,
    "clusters": pl.Int64,
    "tuned_value": pl.Float64,
    "reference_value": pl.Float64,
    "detectable": pl.Float64,
    "layers": pl.String,
    "why": pl.String,
}
SHIFTS: dict[str, Any] = {
    "tuned": pl.String,
    "reference": pl.String,
    "condition": pl.String,
    "region": pl.String,
    "segmentation": pl.String,
    "query_offset": pl.Int32,
    "tuned_peak": pl.Int32,
    "reference_peak": pl.Int32,
    "shift": pl.Int32,
    "low": pl.Float64,
    "high": pl.Float64,
    "agree": pl.Float64,
    "n": pl.Int64,
    "clusters": pl.Int64,
}


@dataclass(frozen=True)
class DiffOfDiffs:
    """Tuned − reference.

    Attributes:
        frame: for each place and layer (and head): ``value low high p`` of d, ``n`` pairs, ``clusters``, ``unpaired`` examples that one of the two
            lacks, the two models' own mean deltas over these pairs, ``detectable``.
        tuned: name of the tuned model; ``reference`` of what it is compared with.
    """

    frame: pl.DataFrame = field(repr=False)
    tuned: str
    reference: str


def diff_of_diffs(
    tuned: pl.DataFrame,
    reference: pl.DataFrame,
    *,
    stratum: str = "C1",
    heads: bool = False,
    least: int = 2,
    options: Options | None = None,
) -> DiffOfDiffs:
    """Tuned minus reference, paired by condition and example.

    Args:
        tuned: deltas of one model.
        reference: deltas of another on the same ids (base, other adapter, random adapter, other prompt).
        stratum: the control that the deltas are taken against.
        heads: heads instead of layers.
        least: fewest pairs of a place.
        options: seed, level, resamples.

    Raises:
        RecordError: several models in one table, layers that differ, no place in common, too few pairs.
    """
    chosen = options or Options()
    ours, theirs = check_deltas(tuned), check_deltas(reference)
    names = (_one_model(ours, "tuned"), _one_model(theirs, "reference"))
    mine, other = stacks(ours, heads=heads), stacks(theirs, heads=heads)
    if mine.columns != other.columns:
        raise RecordError(
            f"{names[0]!r} has {len(mine.columns)} layers and heads, {names[1]!r} has {len(other.columns)}.",
            why="Layers of models of different shape do not correspond.",
            todo="Compare a tuned model with the base that it was tuned from.",
        )
    rows: list[dict[str, Any]] = []
    for place, stack, rival in _common(mine, other, stratum, names[1]):
        a, b, clusters = stack.shared(rival)
        if len(a) < least:
            raise RecordError(
                f"{place.condition}, {place.region}: {len(a)} examples are in both models' deltas.",
                why="The difference of differences is paired by example.",
                todo="Run the reference over the ids of the tuned model's generations (force-feed).",
            )
        d = Stack(a - b, tuple(map(str, range(len(a)))), clusters)
        value, low, high = bootstrap_columns(
            d.values, seed=chosen.seed, n_resamples=chosen.n_resamples, level=1 - chosen.alpha, clusters=clusters
        )
        p = (
            max_t(d.values, seed=chosen.seed, n_resamples=chosen.n_resamples, clusters=clusters)
            if d.n_clusters > 1
            else np.full(len(value), np.nan)
        )
        detectable = detectable_effect(d.values, clusters=clusters, alpha=chosen.alpha)
        for i, (layer, head) in enumerate(mine.columns):
            rows.append(
                {
                    "tuned": names[0], "reference": names[1], "condition": place.condition, "region": place.region, "segmentation": place.segmentation,
                    "query_offset": place.query_offset, "stratum": stratum, "layer": layer, "head": head, "value": value[i], "low": bound(low[i]),
                    "high": bound(high[i]), "p": bound(p[i]), "n": len(a), "clusters": d.n_clusters, "unpaired": len(stack) + len(rival) - 2 * len(a),
                    "tuned_value": a[:, i].mean(), "reference_value": b[:, i].mean(), "detectable": bound(detectable[i]),
                }
            )  # fmt: skip
    return DiffOfDiffs(pl.DataFrame(rows, schema=DIFFERENCES), *names)


def verdict(tuned: Gates, reference: Gates, difference: DiffOfDiffs, *, options: Options | None = None) -> pl.DataFrame:
    """What training did to each place, by the rules of the module.

    Args:
        tuned: gates of the tuned model; ``reference`` of the reference, both ``strict``.
        difference: from :func:`diff_of_diffs` of the same two.
        options: direction and level; those of the gates.

    Returns:
        A row for each place: ``outcome`` (one of ``OUTCOMES``), the layer it rests on with d's ``value low high p``, ``layers`` for which the same
          holds, ``why`` in a sentence.

    Raises:
        ConfigError: gates by the published protocol, which no verdict can rest on.
        RecordError: gates and difference of different models.
    """
    chosen = options or Options()
    if "published" in (tuned.protocol, reference.protocol):
        raise ConfigError(
            "The published protocol gives no verdict.",
            why="Its gates look at one model, and pass on either side of zero.",
            todo="Use gates(…, protocol='strict') for the verdict.",
        )
    for gates, name in ((tuned, difference.tuned), (reference, difference.reference)):
        have = gates.layers["model"].unique().to_list()
        if name not in have:
            raise RecordError(
                f"The gates are of {', '.join(have)}, the differences of {name!r}.", todo="Give the gates of the same two models."
            )
    sign = 1.0 if chosen.direction == "up" else -1.0
    key = ["condition", "region", "segmentation", "query_offset", "head"]
    flags = ["value", "p", "low", "high", "A", "B", "C", "D", "E", "F"]
    frame = difference.frame
    for gates, name, prefix in ((tuned, difference.tuned, "t_"), (reference, difference.reference, "r_")):
        part = gates.layers.filter(pl.col("model") == name).select(
            *key, "layer", *(pl.col(flag).alias(prefix + flag) for flag in flags)
        )
        frame = frame.join(part, on=[*key, "layer"], how="left", nulls_equal=True)
    rows = []
    for place, part in frame.sort(*key, "layer", nulls_last=False).group_by(key, maintain_order=True):
        rows.append({**dict(zip(key, place, strict=True)), **_decide(part, sign, chosen.alpha)})
    tail = [{"tuned": difference.tuned, "reference": difference.reference, **row} for row in rows]
    return pl.DataFrame(tail, schema=VERDICTS)


def _decide(part: pl.DataFrame, sign: float, alpha: float) -> dict[str, Any]:
    rows = part.to_dicts()

    def rises(row: dict[str, Any], way: float) -> bool:
        bound = row["low"] if way > 0 else row["high"]
        return bound is not None and way * bound > 0 and row["p"] is not None and row["p"] <= alpha

    def passes(row: dict[str, Any], prefix: str) -> bool:
        return (
            all(row[prefix + flag] is True for flag in "ABC") and row[prefix + "D"] is not False and row[prefix + "E"] is not False
        )

    induced = [row for row in rows if rises(row, sign) and passes(row, "t_")]
    reduced = [row for row in rows if rises(row, -sign) and row["r_B"] is True]
    present = [row for row in rows if all(row["r_" + flag] is True for flag in "ABC")]
    if all(row["t_A"] is None and row["r_A"] is None for row in rows):
        return _row("undecided", rows[0], [], "not evaluated: the region has no keys in this condition")
    if induced:
        best = max(induced, key=lambda row: sign * row["value"])
        already = best["reference_value"] / best["tuned_value"] if best["tuned_value"] else math.nan
        interval = f"{best['value']:+.4f} [{best['low']:+.4f}, {best['high']:+.4f}]"
        why = f"tuned − reference is {interval} at layer {best['layer']}; the reference has {already:.0%} of the tuned delta"
        return _row("induced", best, induced, why)
    if reduced:
        best = min(reduced, key=lambda row: sign * row["value"])
        why = f"the reference's delta {best['reference_value']:+.4f} falls to {best['tuned_value']:+.4f} at layer {best['layer']}"
        return _row("reduced by training", best, reduced, why)
    if present:
        best = max(present, key=lambda row: sign * row["r_value"])
        why = f"the reference has a delta of {best['r_value']:+.4f} at layer {best['layer']}; no layer that passes the gates rises above it"
        return _row("present in base", best, present, why)
    best = max(rows, key=lambda row: abs(row["value"]))
    seen = "no interval: one cluster" if best["detectable"] is None else f"{best['detectable']:.4f}"
    why = f"no layer passes; the smallest difference that could have been seen at layer {best['layer']} is {seen}"
    return _row("undecided", best, [], why)


def _row(outcome: str, best: dict[str, Any], layers: list[dict[str, Any]], why: str) -> dict[str, Any]:
    return {
        "outcome": outcome,
        **{
            name: best[name]
            for name in ("layer", "value", "low", "high", "p", "n", "clusters", "tuned_value", "reference_value", "detectable")
        },
        "layers": " ".join(str(row["layer"]) for row in layers),
        "why": why,
    }


def peak_shift(
    tuned: pl.DataFrame, reference: pl.DataFrame, *, stratum: str = "C1", options: Options | None = None
) -> pl.DataFrame:
    """By how many layers the peak moved, with its distribution over resampled clusters.

    Returns:
        For each place: the two peaks, ``shift`` = tuned − reference (layers), its interval ``low high`` (plain percentiles: layers are whole
        numbers), ``agree`` the share of draws with the same two peaks. One cluster: no interval.

    Raises:
        RecordError: as :func:`diff_of_diffs`.
    """
    chosen = options or Options()
    ours, theirs = check_deltas(tuned), check_deltas(reference)
    names = (_one_model(ours, "tuned"), _one_model(theirs, "reference"))
    mine, other = stacks(ours, heads=False), stacks(theirs, heads=False)
    if mine.columns != other.columns:
        raise RecordError(f"{names[0]!r} and {names[1]!r} have different layers.", todo="Compare models of one shape.")
    sign = 1.0 if chosen.direction == "up" else -1.0
    layer_of = np.array([layer for layer, _ in mine.columns])
    rows = []
    for place, stack, rival in _common(mine, other, stratum, names[1]):
        a, b, clusters = stack.shared(rival)
        if not len(a):
            continue
        peaks = [int(layer_of[np.argmax(sign * x.mean(axis=0))]) for x in (a, b)]
        labels, index = np.unique(np.asarray(clusters), return_inverse=True)
        low = high = agree = None
        if len(labels) > 1:
            drawn = generator(chosen.seed).integers(0, len(labels), size=(chosen.n_resamples, len(labels)))
            weights = np.stack([np.bincount(row, minlength=len(labels)) for row in drawn])[:, index].astype(np.float64)
            tops = [layer_of[np.argmax(sign * (weights @ x), axis=1)] for x in (a, b)]
            shifts = tops[0] - tops[1]
            tail = chosen.alpha / 2
            low, high = (float(np.quantile(shifts, q, method="inverted_cdf")) for q in (tail, 1 - tail))
            agree = float(((tops[0] == peaks[0]) & (tops[1] == peaks[1])).mean())
        rows.append(
            {
                "tuned": names[0], "reference": names[1], "condition": place.condition, "region": place.region, "segmentation": place.segmentation,
                "query_offset": place.query_offset, "tuned_peak": peaks[0], "reference_peak": peaks[1], "shift": peaks[0] - peaks[1], "low": low, "high": high,
                "agree": agree, "n": len(a), "clusters": len(labels),
            }
        )  # fmt: skip
    return pl.DataFrame(rows, schema=SHIFTS)


def _common(mine: Stacks, other: Stacks, stratum: str, name: str) -> list[tuple[Place, Stack, Stack]]:
    if stratum == TRAJECTORY:
        raise ConfigError("A trajectory is no control.", todo="Use a control stratum such as C1.")
    pairs = []
    for place in mine.places(stratum):
        twin = Place(name, place.condition, place.segmentation, place.query_offset, place.region)
        stack, rival = mine.get(place, stratum), other.get(twin, stratum)
        if stack is not None and rival is not None:
            pairs.append((place, stack, rival))
    if not pairs:
        raise RecordError(
            f"The two tables have no place in common for stratum {stratum!r}.",
            todo="Use the same conditions, regions and offsets in both.",
        )
    return pairs


def _one_model(frame: pl.DataFrame, role: str) -> str:
    names = frame["model"].unique().sort().to_list()
    if len(names) != 1:
        raise RecordError(
            f"The {role} deltas are of {len(names)} models: {', '.join(names)}.",
            todo="Filter one model: deltas.filter(pl.col('model') == …).",
        )
    return names[0]
