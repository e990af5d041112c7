"""The published study's own formulas, so that its tables can be recomputed; every known defect is named.

For one place, with ``x [example, layer]`` the deltas against C1:

1. A: the share of examples with ``x > 0`` is at least ``share``.
2. B: the percentile interval (2.5, 97.5) of the mean over 1000 resamples of *examples*, drawn with ``numpy.random.default_rng(42)``, does not hold
   zero, on either side. All layers of a place share the draws; examples are in order of cluster and name.
3. C: the mean delta is larger than the mean delta of every other region. Without another region it is not evaluated, nor then is D.
4. D = A ∧ B ∧ C. Windows are runs of three or more layers with D; the peak is the layer with the largest mean delta.
5. Rule-outs: mean over examples of Cx − C1, which is ``delta(C1) − delta(Cx)`` where both are of one example; over two samples for an unpaired stratum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.contrast._options import Options
from symbolic_residue.contrast._stack import DenseDeltas, Place
from symbolic_residue.errors import ConfigError

__all__ = ["DEFECTS", "check_options", "iid_interval", "published"]

_REFERENCE = "C1"
_DRAWS = 1000
_SEED = 42
_FLAGS = {"head": pl.Int32, **dict.fromkeys("ABCD", pl.Boolean)}

DEFECTS = (
    "Gate A: examples are counted as if they were independent; those of one question hang together.",
    "Gate B, two-sided: it passes on either side of zero, so a fall passes for a rise.",
    "Gate B, units: examples are resampled, not questions; the interval is too narrow where a question has several examples.",
    "Gate B, percentiles: plain ones are too narrow for few examples.",
    "Gate B, family: every layer is tested at 5 % by itself; of 30 layers one or two pass by chance.",
    "Gate C: means are compared without an interval.",
    "Gate D: it repeats A to C and does not look at another segmentation.",
    "Rule-outs: controls are compared with a control; the behaviour's own row is not in them.",
    "Peak: the largest of all layers, from the data that chose it, is too large.",
    "One model: what a gate finds may come from the text; training is judged by tuned − base alone.",
    "Offset 0: it is the row after the behaviour was emitted; the row that emits it is −1.",
)
"""What is wrong with the formulas, each with the gate that it concerns."""


def check_options(options: Options) -> None:
    """Refuse options that the study's formulas do not have.

    Raises:
        ConfigError: a direction, level or reference stratum of one's own.
    """
    given = {"direction": ("up", options.direction), "alpha": (0.05, options.alpha), "reference": (_REFERENCE, options.reference)}
    for name, (fixed, asked) in given.items():
        if asked != fixed:
            raise ConfigError(
                f"The published formulas have no {name} {asked!r}; theirs is {fixed!r}.",
                why="They would answer another question than was asked.",
                todo=f"Leave {name} out, or use protocol='strict'.",
            )


def published(found: DenseDeltas, places: Sequence[Place], *, share: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """``(layers, rule_outs)`` by the study's formulas; columns as ``Gates``, what the study did not compute left null."""
    layers: list[dict[str, Any]] = []
    ruled: list[dict[str, Any]] = []
    for place in places:
        stack = found.get(place, _REFERENCE)
        if stack is None:
            continue
        gone = found.absent(place, _REFERENCE)
        mean = stack.values.mean(axis=0)
        low, high = iid_interval(stack.values)
        positive = (stack.values > 0).mean(axis=0)
        others = [stack.shared(rival)[1].mean(axis=0) for rival in found.rivals(place, _REFERENCE).values()]
        best = np.max(others, axis=0) if others else None
        for i, (layer, head) in enumerate(found.columns):
            a = None if gone else bool(positive[i] >= share - 1e-12)
            b = None if gone else bool(low[i] > 0 or high[i] < 0)
            c = None if gone or best is None else bool(mean[i] > best[i])
            layers.append(
                {
                    **place.fields(), "layer": layer, "head": head, "value": mean[i], "low": None if gone else low[i],
                    "high": None if gone else high[i], "n": len(stack),
                    "clusters": stack.n_clusters,
                    "share": positive[i], "A": a, "B": b, "C": c, "D": None if c is None else bool(a and b and c),
                }
            )  # fmt: skip
        ruled += _rule_outs(found, place)
    return pl.DataFrame(layers, schema_overrides=_FLAGS, infer_schema_length=None), pl.DataFrame(
        ruled, schema=None if ruled else {"model": pl.String, "stratum": pl.String}, infer_schema_length=None
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


def _rule_outs(found: DenseDeltas, place: Place) -> list[dict[str, Any]]:
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
