"""Differences of held-out AUCs on the same scenarios.

1. An AUC's influence of a scenario is how far its texts' shares of comparisons won lie from the mean (DeLong 1988; scenarios as units, Obuchowski 1997). The
   variance of an AUC, of a mean of AUCs and of their difference is ``F/(F−1) Σ influence²`` of the influences, averaged or subtracted scenario by scenario.
2. Intervals are Student's with F − 1 degrees of freedom, cut to [−1, 1] for differences; single AUCs and means of several on the logit scale.
3. Two readouts that make no errors have no variance, and yet were seen on F scenarios only: a standard error is never below half a scenario, ``0.5 / F``.
4. The interval is of these readouts on new scenarios; that other training scenarios would have given other directions is in it only as far as folds differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

from symbolic_residue.concepts._design import Design

__all__ = ["AucDifference", "ScenarioAuc", "difference", "mean_of", "scenario_auc"]

Array = NDArray[np.float64]
_MOST = 10_000
"""More scenarios than that are no advice."""


@dataclass(frozen=True, eq=False)
class ScenarioAuc:
    """An AUC, and how far each scenario moves it (``influence [scenario]``; they sum to 0)."""

    value: float
    influence: Array

    @property
    def error(self) -> float:
        """Standard error, never below half a scenario."""
        return _error(self.influence)

    def bounds(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided interval on the logit scale; at an AUC of 0 or 1, from the other end as if half a scenario had gone wrong."""
        n = len(self.influence)
        inside = min(max(self.value, 0.5 / n), 1 - 0.5 / n)
        half = float(sps.t.ppf((1 + level) / 2, n - 1)) * self.error / (inside * (1 - inside))
        centre = math.log(inside / (1 - inside))
        low, high = (float(1 / (1 + math.exp(-min(max(centre + sign * half, -700), 700)))) for sign in (-1, 1))
        return min(low, self.value), max(high, self.value)


@dataclass(frozen=True, slots=True)
class AucDifference:
    """First minus second.

    Attributes:
        value, error: the difference and its standard error.
        low, high: two-sided 95 % interval.
        lower, upper: one-sided 95 % bounds: above ``lower`` and, separately, below ``upper``.
        n: scenarios.
    """

    value: float
    error: float
    low: float
    high: float
    lower: float
    upper: float
    n: int

    def scenarios_needed(self, bound: float, *, above: bool = True) -> int | None:
        """Scenarios at which the one-sided bound would pass, if value and spread stayed.

        None where the value is on the wrong side, or more than 10,000 are needed.
        """
        room = self.value - bound if above else bound - self.value
        if room <= 0:
            return None
        spread, n = self.error * math.sqrt(self.n), 3.0
        for _ in range(50):  # the quantile depends on n
            wanted = max(3.0, (float(sps.t.ppf(0.95, n - 1)) * spread / room) ** 2)
            if wanted > _MOST:
                return None
            if abs(wanted - n) < 1e-6 * n:
                break
            n = wanted
        return math.ceil(n)


def scenario_auc(scores: Array, design: Design) -> ScenarioAuc:
    """Of held-out scores ``[n]``; ties count half."""
    positive, folds = design.positive, design.n_folds
    x, y = scores[positive], scores[~positive]
    ranks = sps.rankdata(np.concatenate([x, y]))
    beats_x, beats_y = (ranks[: len(x)] - sps.rankdata(x)) / len(y), 1 - (ranks[len(x) :] - sps.rankdata(y)) / len(x)
    value = float(beats_x.mean())
    influence = np.zeros(folds)
    np.add.at(influence, design.fold[positive], (beats_x - value) / len(x))
    np.add.at(influence, design.fold[~positive], (beats_y - value) / len(y))
    return ScenarioAuc(value, influence)


def mean_of(several: list[ScenarioAuc]) -> ScenarioAuc:
    """The mean of several AUCs on the same scenarios."""
    return ScenarioAuc(float(np.mean([one.value for one in several])), np.mean([one.influence for one in several], axis=0))


def difference(first: ScenarioAuc, second: ScenarioAuc) -> AucDifference:
    """Of two AUCs on the same scenarios."""
    value, error, n = first.value - second.value, _error(first.influence - second.influence), len(first.influence)
    two, one = (float(sps.t.ppf(q, n - 1)) * error for q in (0.975, 0.95))
    return AucDifference(
        value, error, max(-1.0, value - two), min(1.0, value + two), max(-1.0, value - one), min(1.0, value + one), n
    )


def _error(influence: Array) -> float:
    n = len(influence)
    return max(math.sqrt(n / (n - 1) * float((influence**2).sum())), 0.5 / n)
