"""What training did: the rules that join the gates of two models, their difference and the null models to one word a place.

A place is a region in a condition, under each segmentation at one offset. *Rise*: a mean lies on the predicted side with its interval and its family-wise
p in some layer. d is tuned − reference (:mod:`symbolic_residue.contrast._training`).

induced               d rises in a layer in which the tuned model passes gates A, B, C, D and E (those that could be evaluated; A to C must be), and is
                      larger in size than that of every null model (:mod:`symbolic_residue.contrast._nulls`)
reduced by training   d falls (family-wise) in a layer in which the reference rises, further than every null model moves
present in base       neither, and the reference passes A to C in some layer
undecided             anything else; beside it the interval of d at the layer of its largest size, and the smallest effect that the data could
                      have seen there

A gate within one model never gives "induced". Family-wise is over the layers (and heads) of one place, not over places.
With both models the same process and every gate within them passed, a place is called induced or reduced in 5 % of studies and no more: ten unequal clusters
gave 1,096 of 22,400, 4.9 % [4.6, 5.2] (the flips of ten allow p ≤ .05 in 4.9 %), exactly the studies in which max-T alone has p ≤ .05.
Without null models the verdict says that none were given: any tuning moves attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from symbolic_residue.contrast._frames import OF_PAIR, PLACE
from symbolic_residue.contrast._gates import Gates
from symbolic_residue.contrast._nulls import beyond_nulls
from symbolic_residue.contrast._options import Options
from symbolic_residue.contrast._training import DiffOfDiffs
from symbolic_residue.errors import ConfigError, RecordError

__all__ = ["OUTCOMES", "verdict"]

OUTCOMES = ("induced", "present in base", "reduced by training", "undecided")

VERDICTS: dict[str, Any] = {
    **OF_PAIR,
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
    "nulls": pl.String,
    "beyond_nulls": pl.Boolean,
    "margin": pl.Float64,
    "margin_low": pl.Float64,
    "margin_high": pl.Float64,
    "null_p": pl.Float64,
    "why": pl.String,
}
_CARRIED = ("layer", "value", "low", "high", "p", "n", "clusters", "tuned_value", "reference_value", "detectable")


def verdict(
    tuned: Gates,
    reference: Gates,
    difference: DiffOfDiffs,
    *,
    nulls: Sequence[DiffOfDiffs] = (),
    options: Options | None = None,
) -> pl.DataFrame:
    """What training did to each place, by the rules of the module.

    Args:
        tuned: gates of the tuned model; ``reference`` of the reference, both ``strict``.
        difference: from :func:`diff_of_diffs` of the same two.
        nulls: :func:`diff_of_diffs` of null models (random adapter, other behaviour, shuffled labels) and the same reference, on the same ids.
        options: direction and level; those of the gates.

    Returns:
        A row for each place: ``outcome`` (one of ``OUTCOMES``), the layer it rests on with d's ``value low high p``, ``layers`` for which the same
          holds, ``why`` in a sentence. ``nulls`` names the null models compared with (null: none given), ``beyond_nulls`` whether d is larger in size
          than each of theirs, in the outcome's direction; ``margin margin_low margin_high`` d minus the nearest of them, ``null_p`` the largest
          family-wise p.

    Raises:
        ConfigError: gates by the published protocol, which no verdict can rest on.
        RecordError: gates and difference of different models; a null model that does not match.
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
    key = [*PLACE, "head"]
    flags = ["value", "p", "low", "high", "A", "B", "C", "D", "E", "F"]
    frame = difference.frame
    for gates, name, prefix in ((tuned, difference.tuned, "t_"), (reference, difference.reference, "r_")):
        part = gates.layers.filter(pl.col("model") == name).select(
            *key, "layer", *(pl.col(flag).alias(prefix + flag) for flag in flags)
        )
        frame = frame.join(part, on=[*key, "layer"], how="left", nulls_equal=True)
    frame = frame.join(beyond_nulls(difference, nulls, chosen), on=[*key, "layer"], how="left", nulls_equal=True)
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

    def beyond(row: dict[str, Any], way: float) -> bool | None:
        """Whether d is larger than every null model's; None without null models."""
        if row["nulls"] is None:
            return None
        side = "up_" if way > 0 else "down_"
        near, p = row[side + ("margin_low" if way > 0 else "margin_high")], row[side + "null_p"]
        return near is not None and way * near > 0 and p <= alpha

    def told(outcome: str, best: dict[str, Any], layers: list[dict[str, Any]], why: str, way: float = sign) -> dict[str, Any]:
        side = "up_" if way > 0 else "down_"
        margins = {name: best[side + name] for name in ("margin", "margin_low", "margin_high", "null_p")}
        return {
            "outcome": outcome,
            **{name: best[name] for name in _CARRIED},
            "layers": " ".join(str(row["layer"]) for row in layers),
            "nulls": best["nulls"],
            "beyond_nulls": beyond(best, way),
            **margins,
            "why": why,
        }

    if all(row["t_A"] is None and row["r_A"] is None for row in rows):
        return told("undecided", rows[0], [], "not evaluated: the region has no keys in this condition")
    risen = [row for row in rows if rises(row, sign) and passes(row, "t_")]
    fallen = [row for row in rows if rises(row, -sign) and row["r_B"] is True]
    induced = [row for row in risen if beyond(row, sign) is not False]
    reduced = [row for row in fallen if beyond(row, -sign) is not False]
    present = [row for row in rows if all(row["r_" + flag] is True for flag in "ABC")]
    if induced:
        best = max(induced, key=lambda row: sign * row["value"])
        already = best["reference_value"] / best["tuned_value"] if best["tuned_value"] else math.nan
        why = f"tuned − reference is {_said(best)} at layer {best['layer']}; the reference has {already:.0%} of the tuned delta"
        return told("induced", best, induced, f"{why}; {_of_nulls(best)}")
    if reduced:
        best = min(reduced, key=lambda row: sign * row["value"])
        why = f"the reference's delta {best['reference_value']:+.4f} falls to {best['tuned_value']:+.4f} at layer {best['layer']}"
        return told("reduced by training", best, reduced, f"{why}; {_of_nulls(best)}", -sign)
    if present:
        best = max(present, key=lambda row: sign * row["r_value"])
        why = f"the reference has a delta of {best['r_value']:+.4f} at layer {best['layer']}; no layer that passes the gates rises above it"
        if risen:
            why += " further than a null model does"
        grown = [row for row in rows if rises(row, sign) and all(row["t_" + flag] is True for flag in "ABC") and row not in risen]
        if grown:
            failed = sorted({flag for row in grown for flag in "DE" if row["t_" + flag] is False})
            why += f" (it does in layer {' '.join(str(row['layer']) for row in grown)}, where gate {' and '.join(failed)} fails)"
        return told("present in base", best, present, why)
    for moved, way in ((risen, sign), (fallen, -sign)):
        if moved:
            best = max(moved, key=lambda row: way * row["value"])
            why = f"tuned − reference is {_said(best)} at layer {best['layer']}, and a null model ({best['nulls']}) moves as far"
            return told("undecided", best, [], why, way)
    best = max(rows, key=lambda row: abs(row["value"]))
    if best["detectable"] is None:
        why = f"no layer passes; with clusters: {best['clusters']}, no difference of any size could have been seen"
    else:
        why = f"no layer passes; the smallest difference that could have been seen at layer {best['layer']} is {best['detectable']:.4f}"
    return told("undecided", best, [], why)


def _said(row: dict[str, Any]) -> str:
    return f"{row['value']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"


def _of_nulls(row: dict[str, Any]) -> str:
    return "no null model was given" if row["nulls"] is None else f"larger than in the null models ({row['nulls']})"
