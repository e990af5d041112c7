"""Gates: the conditions that a rise of attention has to pass before anything is said of it.

For one region, segmentation and offset in a condition of a model, layer by layer (or head by head), with delta = event − control (stratum C1) of
each example, in the *predicted* direction (``up``: the event attends more):

A   direction: the share of examples with a positive delta is at least ``share`` (.70).
B   the interval of the mean delta (cluster bootstrap) lies wholly on the predicted side, and the family-wise p of its sign (whole clusters flipped,
    step-down max-T over the layers) is at most ``alpha``.
C   the region's delta exceeds that of *every* other region: each paired difference has its interval above zero (all must pass, so no correction is due).
D   A, B and C hold under every segmentation. One segmentation: not evaluated.
E   rule-outs: for each of C2, C3, C4, C5 the mean of event − Cx lies above zero with its interval. Paired within examples; C4 is of other
    generations: two samples, whose clusters are drawn together. A stratum without rows is not evaluated.
F   trajectory: the rise is at the row, not before: ``delta(5 rows before) − ½ · delta(row)`` has its interval below zero (the ratio is under one
    half, said without dividing by a small number), and the delta itself is on the predicted side.

*Windows* are maximal runs of ``run`` (3) or more layers that pass A to C. Layers of a model are correlated, so no count of layers is tested; a
window is a description, and the family-wise p belongs to its layers. ``null`` in a flag means not evaluated: neither passed nor failed.

``protocol="published"`` computes what the study that this follows computed, see :mod:`symbolic_residue.contrast._published`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.contrast._published import DEFECTS, published
from symbolic_residue.contrast._records import check_deltas, TRAJECTORY
from symbolic_residue.contrast._stack import Place, Stack, Stacks, stacks
from symbolic_residue.errors import ConfigError, RecordError
from symbolic_residue.stats import bootstrap_columns, detectable_effect, max_t, two_sample_columns

__all__ = ["Gates", "Options", "gates", "windows_of"]

Array = NDArray[np.float64]
Protocol = Literal["strict", "published"]
Direction = Literal["up", "down"]
_RULE_OUTS = ("C2", "C3", "C4", "C5")
_BACK = 5
LAYERS: dict[str, Any] = {
    "model": pl.String,
    "condition": pl.String,
    "region": pl.String,
    "segmentation": pl.String,
    "query_offset": pl.Int32,
    "layer": pl.Int32,
    "head": pl.Int32,
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
    "model": pl.String,
    "condition": pl.String,
    "region": pl.String,
    "segmentation": pl.String,
    "query_offset": pl.Int32,
    "layer": pl.Int32,
    "head": pl.Int32,
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
    "model": pl.String,
    "condition": pl.String,
    "region": pl.String,
    "segmentation": pl.String,
    "query_offset": pl.Int32,
    "layer": pl.Int32,
    "head": pl.Int32,
    "lag": pl.Int32,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "clusters": pl.Int64,
}
WINDOWS: dict[str, Any] = {
    "model": pl.String,
    "condition": pl.String,
    "region": pl.String,
    "segmentation": pl.String,
    "query_offset": pl.Int32,
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
    "model": pl.String,
    "condition": pl.String,
    "region": pl.String,
    "segmentation": pl.String,
    "query_offset": pl.Int32,
    "head": pl.Int32,
    "peak_layer": pl.Int32,
    "peak_value": pl.Float64,
}


@dataclass(frozen=True)
class Gates:
    """What :func:`gates` found. All values are shares of a row's attention.

    Attributes:
        layers: a row for each place, layer (and head): ``value low high`` the mean delta and its interval, ``n`` examples, ``clusters``, ``p``
            family-wise over the layers (and heads) of the place, ``share`` of positive deltas, ``control`` mean mass of the control rows, flags
            ``A`` to ``F`` (null: not evaluated), ``rival`` the region nearest to it with the ``margin`` over it, ``detectable`` the smallest mean
            delta that the data could have seen with 80 % power (one layer alone).
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


@dataclass(frozen=True)
class Options:
    """How the gates decide.

    Attributes:
        direction: the predicted sign of the delta at the event.
        share: gate A's least share of examples in that direction.
        alpha: of gate B's family-wise p; intervals have the level 1 − alpha.
        run: fewest layers of a window.
        seed: of bootstrap and flips; ``n_resamples`` of each.
        reference: stratum of gates A to D and F.
    """

    direction: Direction = "up"
    share: float = 0.70
    alpha: float = 0.05
    run: int = 3
    seed: int = 0
    n_resamples: int = 2000
    reference: str = "C1"

    def __post_init__(self) -> None:
        if self.direction not in ("up", "down"):
            raise ConfigError(f"{self.direction!r} is no direction.", todo="Use 'up' or 'down'.")
        if not 0 < self.share <= 1 or not 0 < self.alpha < 1 or self.run < 1:
            raise ConfigError("A gate's option is out of range.", todo="0 < share <= 1, 0 < alpha < 1, run >= 1.")


def gates(
    deltas: pl.DataFrame,
    *,
    protocol: Protocol = "strict",
    regions: Sequence[str] | None = None,
    heads: bool = False,
    options: Options | None = None,
) -> Gates:
    """Judge each region, layer by layer, from the deltas alone.

    Args:
        deltas: from :func:`symbolic_residue.contrast.deltas`, or made by others in that form.
        protocol: ``strict`` (the default), or ``published``: the study's own formulas with their known defects.
        regions: regions to judge; all are used as rivals in gate C. Default: all.
        heads: judge heads instead of layers; the family of p is then all heads of all layers.
        options: direction, thresholds, seed.

    Raises:
        RecordError: deltas that cannot be trusted, no deltas of the reference stratum, an unknown region.
        ConfigError: an unknown protocol.
    """
    chosen = options or Options()
    if protocol not in ("strict", "published"):
        raise ConfigError(f"{protocol!r} is no protocol.", todo="Use 'strict' or 'published'.")
    found = stacks(check_deltas(deltas), heads=heads)
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
    if protocol == "published":
        layers, rule_outs = published(found, asked, share=chosen.share)
        windows = windows_of(layers, flags=("D",), run=chosen.run, sign=1.0)
        empty = pl.DataFrame(schema=TRAJECTORIES)
        return Gates(
            _conform(layers, LAYERS), _conform(rule_outs, RULE_OUTS), empty, windows, _peaks(layers, 1.0), DEFECTS, "published"
        )
    notes: dict[str, None] = {}
    sign = 1.0 if chosen.direction == "up" else -1.0
    layer_rows, rule_rows, lag_rows = [], [], []
    for place in asked:
        rows, ruled = _strict(found, place, sign, chosen, notes)
        layer_rows += rows
        rule_rows += ruled
        lag_rows += _lags(found, place, chosen)
    layers = _both_segmentations(pl.DataFrame(layer_rows, schema=LAYERS), notes)
    windows = windows_of(layers, flags=("A", "B", "C"), run=chosen.run, sign=sign)
    return Gates(
        layers,
        pl.DataFrame(rule_rows, schema=RULE_OUTS),
        pl.DataFrame(lag_rows, schema=TRAJECTORIES),
        windows,
        _peaks(layers, sign),
        tuple(notes),
        "strict",
    )


def _strict(found: Stacks, place: Place, sign: float, options: Options, notes: dict[str, None]) -> tuple[list[Any], list[Any]]:
    stack = found.get(place, options.reference)
    assert stack is not None
    value, low, high = _columns(stack, options)
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
    inside = _side(low, high, sign)
    margin, rival = _margins(found, place, stack, sign, options, notes)
    ruled, rule_rows = _rule_outs(found, place, sign, options, notes)
    late = _late(found, place, sign, options, inside, notes)
    control = found.get(place, options.reference, 0, "control")
    detectable = detectable_effect(stack.values, clusters=stack.clusters, alpha=options.alpha)
    rows = []
    for i, (layer, head) in enumerate(found.columns):
        rows.append(
            {
                **place.fields(),
                "layer": layer,
                "head": head,
                "value": value[i],
                "low": _number(low[i]),
                "high": _number(high[i]),
                "n": len(stack),
                "clusters": stack.n_clusters,
                "p": _number(p[i]),
                "share": share[i],
                "control": None if control is None else float(control.values[:, i].mean()),
                "A": bool(share[i] >= options.share - 1e-12),
                "B": bool(inside[i] and p[i] <= options.alpha) if known else None,
                "C": None if margin is None or not known else bool(_side(margin[1][i], margin[2][i], sign)),
                "E": None if ruled is None else bool(ruled[i]),
                "F": None if late is None else bool(late[i]),
                "rival": None if rival is None else rival[i],
                "margin": None if margin is None else _number(margin[0][i]),
                "margin_low": None if margin is None else _number(margin[1][i]),
                "margin_high": None if margin is None else _number(margin[2][i]),
                "detectable": _number(detectable[i]),
            }
        )
    return rows, rule_rows


def _columns(stack: Stack, options: Options, values: Array | None = None) -> tuple[Array, Array, Array]:
    return bootstrap_columns(
        stack.values if values is None else values,
        seed=options.seed,
        n_resamples=options.n_resamples,
        level=1 - options.alpha,
        clusters=stack.clusters,
    )


def _margins(
    found: Stacks, place: Place, stack: Stack, sign: float, options: Options, notes: dict[str, None]
) -> tuple[tuple[Array, Array, Array] | None, list[str] | None]:
    """Gate C: the weakest of the paired differences to the other regions, layer by layer, and which region that is."""
    others = [
        other
        for other in found.places(options.reference)
        if other.region != place.region and (other.model, other.condition, other.segmentation, other.query_offset)
        == (place.model, place.condition, place.segmentation, place.query_offset)
    ]  # fmt: skip
    if not others:
        notes[f"{place.condition} ({place.model}): only one region, so gate C is not evaluated."] = None
        return None, None
    bounds = []
    for other in others:
        rival = found.get(other, options.reference)
        assert rival is not None
        mine, theirs, clusters = stack.shared(rival)
        if len(mine) < len(stack):
            raise RecordError(
                f"Region {other.region!r} has {len(mine)} of the {len(stack)} examples that {place.region!r} has.",
                why="Regions are compared within the same rows.",
                todo="Give every region of every row.",
            )
        bounds.append(_columns(Stack(mine - theirs, stack.examples, clusters), options))
    near = np.array([sign * (low if sign > 0 else high) for _, low, high in bounds])
    weakest = np.argmin(np.where(np.isnan(near), np.inf, near), axis=0)
    column = np.arange(near.shape[1])
    value, low, high = (np.array([bound[k] for bound in bounds])[weakest, column] for k in range(3))
    return (value, low, high), [others[i].region for i in weakest]


def _rule_outs(
    found: Stacks, place: Place, sign: float, options: Options, notes: dict[str, None]
) -> tuple[NDArray[np.bool_] | None, list[Any]]:
    """Gate E and its rows."""
    passed: list[NDArray[np.bool_]] = []
    rows: list[Any] = []
    for stratum in _RULE_OUTS:
        paired, event, control = (found.get(place, stratum, 0, what) for what in ("delta", "mass", "control"))
        if paired is not None:
            value, low, high = _columns(paired, options)
            n, control_n, clusters = len(paired), len(paired), paired.n_clusters
        elif event is not None and control is not None:
            value, low, high = two_sample_columns(
                event.values, control.values, clusters=(event.clusters, control.clusters), seed=options.seed,
                n_resamples=options.n_resamples, level=1 - options.alpha,
            )  # fmt: skip
            n, control_n, clusters = len(event), len(control), len({*event.clusters, *control.clusters})
        else:
            notes[f"{place.condition} ({place.model}): stratum {stratum} has no rows, so its rule-out is not evaluated."] = None
            continue
        if np.isnan(low).any():
            verdicts: list[bool | None] = [None] * len(value)
        else:
            inside = _side(low, high, sign)
            passed.append(inside)
            verdicts = [bool(flag) for flag in inside]
        for i, (layer, head) in enumerate(found.columns):
            rows.append(
                {
                    **place.fields(), "layer": layer, "head": head, "stratum": stratum, "value": value[i], "low": _number(low[i]), "high": _number(high[i]),
                    "n": n, "control_n": control_n, "clusters": clusters, "passed": verdicts[i],
                }
            )  # fmt: skip
    return (np.all(passed, axis=0) if passed else None), rows


def _late(
    found: Stacks, place: Place, sign: float, options: Options, inside: NDArray[np.bool_], notes: dict[str, None]
) -> NDArray[np.bool_] | None:
    """Gate F: under half of the delta is there five rows before."""
    now, before = (found.get(place, TRAJECTORY, lag) for lag in (0, _BACK))
    if now is None or before is None:
        notes[f"{place.condition} ({place.model}): no event rows {_BACK} before the row, so gate F is not evaluated."] = None
        return None
    here, earlier, clusters = now.shared(before)
    if len(set(clusters)) < 2:
        return None
    _, low, high = _columns(Stack(earlier - 0.5 * here, before.examples, clusters), options)
    return inside & _side(low, high, -sign)


def _lags(found: Stacks, place: Place, options: Options) -> list[Any]:
    rows = []
    for lag in sorted({lag for at, stratum, lag, what in found.of if at == place and stratum == TRAJECTORY and what == "delta"}):
        stack = found.get(place, TRAJECTORY, lag)
        assert stack is not None
        value, low, high = _columns(stack, options)
        for i, (layer, head) in enumerate(found.columns):
            rows.append(
                {
                    **place.fields(), "layer": layer, "head": head, "lag": lag, "value": value[i], "low": _number(low[i]), "high": _number(high[i]),
                    "n": len(stack), "clusters": stack.n_clusters,
                }
            )  # fmt: skip
    return rows


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


def windows_of(layers: pl.DataFrame, *, flags: Sequence[str], run: int, sign: float) -> pl.DataFrame:
    """Maximal runs of ``run`` or more neighbouring layers in which all ``flags`` hold (columns as ``Gates.windows``)."""
    key = ["model", "condition", "region", "segmentation", "query_offset", "head"]
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


def _peaks(layers: pl.DataFrame, sign: float) -> pl.DataFrame:
    key = ["model", "condition", "region", "segmentation", "query_offset", "head"]
    best = (
        layers.with_columns(by=sign * pl.col("value"))
        .sort("by", "layer", descending=[True, False])
        .group_by(key, maintain_order=True)
        .first()
    )
    return best.select(*key, peak_layer=pl.col("layer"), peak_value=pl.col("value")).sort(key, nulls_last=False)


def _side(low: Any, high: Any, sign: float) -> Any:
    return low > 0 if sign > 0 else high < 0


def _number(x: float) -> float | None:
    return None if math.isnan(x) else float(x)


def _conform(frame: pl.DataFrame, schema: dict[str, Any]) -> pl.DataFrame:
    given = [pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in frame.columns]
    return frame.with_columns(given).select([pl.col(name).cast(dtype) for name, dtype in schema.items()])
