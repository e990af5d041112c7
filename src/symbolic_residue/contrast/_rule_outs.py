"""Gates E and F: what else could have made the rise, and whether it came before (see :mod:`symbolic_residue.contrast._gates`).

C4 is of other generations, so that there are no pairs whose signs could be flipped: its interval draws the clusters of both samples together
(:mod:`symbolic_residue.stats._samples`, where both ways are compared).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.contrast._options import interval, Options, side
from symbolic_residue.contrast._records import TRAJECTORY
from symbolic_residue.contrast._stack import DenseDeltas, Place, Stack
from symbolic_residue.stats import bound, two_sample_columns

__all__ = ["late", "rule_outs", "trajectory"]

_RULE_OUTS = ("C2", "C3", "C4", "C5")
_BACK = 5


def rule_outs(
    found: DenseDeltas, place: Place, sign: float, options: Options, notes: dict[str, None]
) -> tuple[NDArray[np.bool_] | None, list[Any]]:
    """Gate E and its rows."""
    passed: list[NDArray[np.bool_]] = []
    rows: list[Any] = []
    for stratum in _RULE_OUTS:
        paired, event, control = (found.get(place, stratum, 0, what) for what in ("delta", "mass", "control"))
        if paired is not None:
            value, low, high = interval(paired, options)
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
            inside = side(low, high, sign)
            passed.append(inside)
            verdicts = [bool(flag) for flag in inside]
        for i, (layer, head) in enumerate(found.columns):
            rows.append(
                {
                    **place.fields(), "layer": layer, "head": head, "stratum": stratum, "value": value[i], "low": bound(low[i]), "high": bound(high[i]),
                    "n": n, "control_n": control_n, "clusters": clusters, "passed": verdicts[i],
                }
            )  # fmt: skip
    return (np.all(passed, axis=0) if passed else None), rows


def late(
    found: DenseDeltas, place: Place, sign: float, options: Options, inside: NDArray[np.bool_], notes: dict[str, None]
) -> NDArray[np.bool_] | None:
    """Gate F: under half of the delta is there five rows before."""
    now, before = (found.get(place, TRAJECTORY, lag) for lag in (0, _BACK))
    if now is None or before is None:
        notes[f"{place.condition} ({place.model}): no event rows {_BACK} before the row, so gate F is not evaluated."] = None
        return None
    here, earlier, clusters = now.shared(before)
    if len(set(clusters)) < 2:
        return None
    _, low, high = interval(Stack(earlier - 0.5 * here, before.examples, clusters), options)
    return inside & side(low, high, -sign)


def trajectory(found: DenseDeltas, place: Place, options: Options) -> list[Any]:
    """Mean delta of the rows before the event's, with intervals."""
    rows = []
    for lag in sorted({lag for at, stratum, lag, what in found.of if at == place and stratum == TRAJECTORY and what == "delta"}):
        stack = found.get(place, TRAJECTORY, lag)
        assert stack is not None
        value, low, high = interval(stack, options)
        for i, (layer, head) in enumerate(found.columns):
            rows.append(
                {
                    **place.fields(), "layer": layer, "head": head, "lag": lag, "value": value[i], "low": bound(low[i]), "high": bound(high[i]),
                    "n": len(stack), "clusters": stack.n_clusters,
                }
            )  # fmt: skip
    return rows
