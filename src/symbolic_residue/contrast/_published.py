"""The published study's own formulas, so that its tables can be recomputed; every known defect is named.

For one place, with ``x [example, layer]`` the deltas against C1:

1. A: the share of examples with ``x > 0`` is at least ``share``.
2. B: the percentile interval (2.5, 97.5) of the mean over 1000 resamples of *examples*, drawn with ``numpy.random.default_rng(42)``, does not hold
   zero, on either side. All layers of a place share the draws.
3. C: the mean delta is larger than the mean delta of every other region.
4. D = A ∧ B ∧ C. Windows are runs of three or more layers with D; the peak is the layer with the largest mean delta.
5. Rule-outs: mean over examples of Cx − C1, which is ``delta(C1) − delta(Cx)`` where both are of one example; over two samples for an unpaired stratum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.contrast._stack import Place, Stacks

__all__ = ["DEFECTS", "iid_interval", "published"]

_REFERENCE = "C1"
_DRAWS = 1000
_SEED = 42

DEFECTS = (
    "Gate A counts examples; those of one question hang together.",
    "Gate B passes on either side of zero: a fall passes for a rise.",
    "Gate B resamples examples, not questions: its interval is too narrow where a question has several examples.",
    "Gate B tests every layer at 5 % by itself: of 30 layers one or two pass by chance.",
    "Gate C compares means without an interval.",
    "Gate D repeats A to C; it does not look at another segmentation.",
    "The rule-outs compare controls with a control: the behaviour's own row is not in them.",
    "Offset 0 is the row after the behaviour was emitted; the row that emits it is −1.",
)


def published(found: Stacks, places: Sequence[Place], *, share: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """``(layers, rule_outs)`` by the study's formulas; columns as ``Gates``, what the study did not compute left null."""
    layers: list[dict[str, Any]] = []
    ruled: list[dict[str, Any]] = []
    for place in places:
        stack = found.get(place, _REFERENCE)
        if stack is None:
            continue
        mean = stack.values.mean(axis=0)
        low, high = iid_interval(stack.values)
        positive = (stack.values > 0).mean(axis=0)
        others = [
            rival.values.mean(axis=0)
            for other in found.places(_REFERENCE)
            if other.region != place.region
            and (other.model, other.condition, other.segmentation, other.query_offset)
            == (place.model, place.condition, place.segmentation, place.query_offset)
            and (rival := found.get(other, _REFERENCE)) is not None
        ]
        best = np.max(others, axis=0) if others else None
        for i, (layer, head) in enumerate(found.columns):
            a = bool(positive[i] >= share - 1e-12)
            b = bool(low[i] > 0 or high[i] < 0)
            c = None if best is None else bool(mean[i] > best[i])
            layers.append(
                {
                    **place.fields(), "layer": layer, "head": head, "value": mean[i], "low": low[i], "high": high[i], "n": len(stack),
                    "clusters": stack.n_clusters,
                    "share": positive[i], "A": a, "B": b, "C": c, "D": None if c is None else a and b and c,
                }
            )  # fmt: skip
        ruled += _rule_outs(found, place)
    empty = {"model": pl.String, "stratum": pl.String}
    return pl.DataFrame(layers, infer_schema_length=None), pl.DataFrame(ruled, infer_schema_length=None) if ruled else pl.DataFrame(
        schema=empty
    )


def iid_interval(
    values: NDArray[np.float64], *, draws: int = _DRAWS, seed: int = _SEED
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """2.5 and 97.5 percentiles of the means of resampled rows of ``values [n, k]``."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(values), size=(draws, len(values)))
    counts = np.zeros((draws, len(values)))
    np.add.at(counts, (np.arange(draws)[:, None], drawn), 1.0)
    low, high = np.percentile(counts @ values / len(values), [2.5, 97.5], axis=0)
    return low, high


def _rule_outs(found: Stacks, place: Place) -> list[dict[str, Any]]:
    reference = found.get(place, _REFERENCE, 0, "control")
    if reference is None:
        return []
    rows = []
    for stratum in ("C2", "C3", "C4", "C5"):
        control = found.get(place, stratum, 0, "control")
        if control is None:
            continue
        theirs, mine, _ = control.shared(reference)
        difference = (
            theirs.mean(axis=0) - mine.mean(axis=0) if len(mine) else control.values.mean(axis=0) - reference.values.mean(axis=0)
        )
        for i, (layer, head) in enumerate(found.columns):
            rows.append(
                {
                    **place.fields(), "layer": layer, "head": head, "stratum": stratum, "value": difference[i],
                    "n": len(mine) or len(reference), "control_n": len(theirs) or len(control), "clusters": reference.n_clusters,
                }
            )  # fmt: skip
    return rows
