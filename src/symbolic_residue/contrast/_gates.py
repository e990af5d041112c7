"""Gates: the conditions that a rise of attention has to pass before anything is said of it.

For one region, segmentation and offset in a condition of a model, layer by layer (or head by head), with delta = event − control (stratum C1) of
each example, in the *predicted* direction (``up``: the event attends more):

A   direction: the share of examples with a positive delta is at least ``share`` (.70).
B   the interval of the mean delta (inverted cluster sign flips, :mod:`symbolic_residue.stats._flip_interval`: a bootstrap is too narrow for few or
    unequal clusters) lies wholly on the predicted side, and the family-wise p of its sign (whole clusters flipped,
    step-down max-T over the layers) is at most ``alpha``.
C   the region's delta exceeds that of *every* other region: each paired difference has its interval above zero (all must pass, so no correction is due).
D   A, B and C hold under every segmentation. One segmentation: not evaluated.
E   rule-outs: for each of C2, C3, C4, C5 the mean of event − Cx lies above zero with its interval. Paired within examples; C4 is of other
    generations: two samples, whose clusters are drawn together. A stratum without rows is not evaluated.
F   trajectory: the rise is at the row, not before: ``delta(5 rows before) − ½ · delta(row)`` has its interval below zero (the ratio is under one
    half, said without dividing by a small number), and the delta itself is on the predicted side.

*Windows* are maximal runs of ``run`` (3) or more layers that pass A to C. Layers of a model are correlated, so no count of layers is tested; a
window is a description, and the family-wise p belongs to its layers. ``null`` in a flag means not evaluated: neither passed nor failed. A region without
keys (no system turn: its mass is exactly 0 in every row) is not evaluated and no rival.

``protocol="published"`` computes what the study that this follows computed, see :mod:`symbolic_residue.contrast._published`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.contrast._frames import conform, LAYERS, RULE_OUTS, TRAJECTORIES
from symbolic_residue.contrast._options import interval, Options, side
from symbolic_residue.contrast._published import check_options, DEFECTS, published
from symbolic_residue.contrast._rule_outs import late, rule_outs, trajectory
from symbolic_residue.contrast._stack import DenseDeltas, Place, Stack, stacks
from symbolic_residue.contrast._windows import peaks_of, windows_of
from symbolic_residue.errors import ConfigError, RecordError
from symbolic_residue.stats import bound, detectable_effect, max_t

__all__ = ["Gates", "gates"]

Array = NDArray[np.float64]
Protocol = Literal["strict", "published"]


@dataclass(frozen=True)
class Gates:
    """What :func:`gates` found. All values are shares of a row's attention.

    Attributes:
        layers: a row for each place, layer (and head): ``value low high`` the mean delta and its interval, ``n`` examples, ``clusters``, ``p``
            family-wise over the layers (and heads) of the place, ``share`` of positive deltas, ``control`` mean mass of the control rows, flags
            ``A`` to ``F`` (null: not evaluated), ``rival`` the region nearest to it with the ``margin`` over it, ``detectable`` the smallest mean
            delta that gate B would have seen with 80 % power (family-wise; null: too few clusters for any).
        rule_outs: event − control stratum, for each of C2 to C5.
        trajectory: mean delta of the rows before the event's.
        windows: runs of layers that pass, with the layer of the largest delta; ``D E F`` whether all of its layers pass.
        peaks: the layer with the largest delta in the predicted direction.
        notes: what could not be evaluated and why; the known defects under ``published``.
        protocol: ``strict`` or ``published``.
    """

    layers: pl.DataFrame = field(repr=False)
    rule_outs: pl.DataFrame = field(repr=False)
    trajectory: pl.DataFrame = field(repr=False)
    windows: pl.DataFrame
    peaks: pl.DataFrame
    notes: tuple[str, ...]
    protocol: Protocol


def gates(
    deltas: pl.DataFrame | DenseDeltas,
    *,
    protocol: Protocol = "strict",
    regions: Sequence[str] | None = None,
    heads: bool = False,
    options: Options | None = None,
) -> Gates:
    """Judge each region, layer by layer, from the deltas alone.

    Args:
        deltas: from :func:`symbolic_residue.contrast.deltas` or :func:`symbolic_residue.contrast.dense_deltas`, or made by others in that form.
        protocol: ``strict`` (the default), or ``published``: the study's own formulas with their known defects. These are for a rise against C1 at 5 %
            with their own resamples and seed: of the options they take ``share`` and ``run``, leave ``seed`` and ``n_resamples`` aside, and the others are
            refused.
        regions: regions to judge; all are used as rivals in gate C. Default: all.
        heads: judge heads instead of layers; the family of p is then all heads of all layers.
        options: direction, thresholds, seed.

    Raises:
        RecordError: deltas that cannot be trusted, no deltas of the reference stratum, a region that no condition has.
        ConfigError: an unknown protocol; an option that the published formulas do not have.
    """
    chosen = options or Options()
    if protocol not in ("strict", "published"):
        raise ConfigError(f"{protocol!r} is no protocol.", todo="Use 'strict' or 'published'.")
    if protocol == "published":
        check_options(chosen)
    found = stacks(deltas, heads=heads)
    places = found.places(chosen.reference)
    if not places:
        raise RecordError(
            f"There are no deltas of stratum {chosen.reference!r}.",
            why="Gates A to D compare the event with it.",
            todo="Name another with options=Options(reference=…), or read its rows.",
        )
    known = sorted({place.region for place in places})
    unknown = sorted(set(regions or ()) - set(known))
    if unknown:
        raise RecordError(f"There are no deltas of region {', '.join(unknown)}.", todo=f"There are: {', '.join(known)}.")
    asked = [place for place in places if regions is None or place.region in regions]
    notes = dict.fromkeys(_absences(found, asked, known if regions is None else regions, chosen.reference))
    if protocol == "published":
        layers, ruled = published(found, asked, share=chosen.share)
        windows = windows_of(layers, flags=("D",), run=chosen.run, sign=1.0)
        empty = pl.DataFrame(schema=TRAJECTORIES)
        return Gates(
            conform(layers, LAYERS),
            conform(ruled, RULE_OUTS),
            empty,
            windows,
            peaks_of(layers, 1.0),
            (*notes, *DEFECTS),
            "published",
        )
    sign = 1.0 if chosen.direction == "up" else -1.0
    layer_rows, rule_rows, lag_rows = [], [], []
    for place in asked:
        if found.absent(place, chosen.reference):
            layer_rows += _not_evaluated(found, place, chosen)
            continue
        rows, ruled = _strict(found, place, sign, chosen, notes)
        layer_rows += rows
        rule_rows += ruled
        lag_rows += trajectory(found, place, chosen)
    layers = _both_segmentations(pl.DataFrame(layer_rows, schema=LAYERS), notes)
    windows = windows_of(layers, flags=("A", "B", "C"), run=chosen.run, sign=sign)
    return Gates(
        layers,
        pl.DataFrame(rule_rows, schema=RULE_OUTS),
        pl.DataFrame(lag_rows, schema=TRAJECTORIES),
        windows,
        peaks_of(layers, sign),
        tuple(notes),
        "strict",
    )


def _strict(found: DenseDeltas, place: Place, sign: float, options: Options, notes: dict[str, None]) -> tuple[list[Any], list[Any]]:
    stack = found.get(place, options.reference)
    assert stack is not None
    value, low, high = interval(stack, options)
    share = (sign * stack.values > 0).mean(axis=0)
    known = not bool(np.isnan(low).any())
    if not known:
        notes[f"{place.condition} ({place.model}): one cluster only, so no interval: gates B, C, E and F are not evaluated."] = None
    p = (
        max_t(stack.values, seed=options.seed, n_resamples=options.n_resamples, clusters=stack.clusters)
        if known
        else np.full(len(value), np.nan)
    )
    if known and 2.0 ** (1 - stack.n_clusters) > options.alpha:
        notes[
            f"{place.condition} ({place.model}): {stack.n_clusters} clusters have too few sign flips for p ≤ {options.alpha:g}: gate B cannot pass."
        ] = None
    inside = side(low, high, sign)
    margin, rival = _margins(found, place, stack, sign, options, notes)
    ruled, rule_rows = rule_outs(found, place, sign, options, notes)
    timely = late(found, place, sign, options, inside, notes)
    control = found.get(place, options.reference, 0, "control")
    detectable = detectable_effect(stack.values, clusters=stack.clusters, alpha=options.alpha, family=True)
    rows = []
    for i, (layer, head) in enumerate(found.columns):
        rows.append(
            {
                **place.fields(),
                "layer": layer,
                "head": head,
                "value": value[i],
                "low": bound(low[i]),
                "high": bound(high[i]),
                "n": len(stack),
                "clusters": stack.n_clusters,
                "p": bound(p[i]),
                "share": share[i],
                "control": None if control is None else float(control.values[:, i].mean()),
                "A": bool(share[i] >= options.share - 1e-12),
                "B": bool(inside[i] and p[i] <= options.alpha) if known else None,
                "C": None if margin is None or not known else bool(side(margin[1][i], margin[2][i], sign)),
                "E": None if ruled is None else bool(ruled[i]),
                "F": None if timely is None else bool(timely[i]),
                "rival": None if rival is None else rival[i],
                "margin": None if margin is None else bound(margin[0][i]),
                "margin_low": None if margin is None else bound(margin[1][i]),
                "margin_high": None if margin is None else bound(margin[2][i]),
                "detectable": bound(detectable[i]),
            }
        )
    return rows, rule_rows


def _not_evaluated(found: DenseDeltas, place: Place, options: Options) -> list[Any]:
    """Rows of a region without keys: nothing is passed and nothing failed."""
    stack = found.get(place, options.reference)
    assert stack is not None
    given = {**place.fields(), "value": 0.0, "n": len(stack), "clusters": stack.n_clusters, "control": 0.0}
    empty = dict.fromkeys(LAYERS)
    return [{**empty, **given, "share": 0.0, "layer": layer, "head": head} for layer, head in found.columns]


def _absences(found: DenseDeltas, asked: Sequence[Place], regions: Sequence[str], stratum: str) -> list[str]:
    """What is said of regions that a condition does not have, whether they have no records or no keys."""
    there = {(p.model, p.condition, p.region) for p in asked if not found.absent(p, stratum)}
    pairs = sorted({(p.model, p.condition) for p in found.places(stratum)})
    return [
        f"{condition} ({model}): region {region} has no keys, so it is not evaluated."
        for model, condition in pairs
        for region in sorted(set(regions))
        if (model, condition, region) not in there
    ]


def _margins(
    found: DenseDeltas, place: Place, stack: Stack, sign: float, options: Options, notes: dict[str, None]
) -> tuple[tuple[Array, Array, Array] | None, list[str] | None]:
    """Gate C: the weakest of the paired differences to the other regions, layer by layer, and which region that is."""
    others = found.rivals(place, options.reference)
    if not others:
        notes[f"{place.condition} ({place.model}): only one region, so gate C is not evaluated."] = None
        return None, None
    bounds = []
    for rival in others.values():
        bounds.append(interval(stack.minus(rival), options))
    near = np.array([sign * (low if sign > 0 else high) for _, low, high in bounds])
    weakest = np.argmin(np.where(np.isnan(near), np.inf, near), axis=0)
    column = np.arange(near.shape[1])
    value, low, high = (np.array([bound[k] for bound in bounds])[weakest, column] for k in range(3))
    names = list(others)
    return (value, low, high), [names[i] for i in weakest]


def _both_segmentations(layers: pl.DataFrame, notes: dict[str, None]) -> pl.DataFrame:
    """Gate D: A, B and C under every segmentation; null with one segmentation, or where any of them is not evaluated and none fails."""
    key = ["model", "condition", "region", "query_offset", "layer", "head"]
    passed = pl.col("A") & pl.col("B") & pl.col("C")
    each = layers.group_by(key).agg(pl.len().alias("segmentations"), passed.all(ignore_nulls=False).alias("D"))
    if (each["segmentations"] < 2).any():
        notes["One segmentation only, so gate D is not evaluated."] = None
    each = each.with_columns(D=pl.when(pl.col("segmentations") > 1).then("D")).drop("segmentations")
    names = layers.columns
    return layers.drop("D").join(each, on=key, how="left", nulls_equal=True, maintain_order="left").select(names)
