"""Held-out AUCs, and differences of them on the same scenarios, with intervals.

1. ``parts`` are the AUCs that the same procedure gave on parts of the scenarios (``_delete_third``). Where variance falls as ``F^−a``, parts of m scenarios
   vary about their whole by ``(F/m)^a − 1`` times the variance of the whole, so the AUC's variance is theirs over that. With a = 1 this is the delete-d
   jackknife. A mean of several readouts, and a difference of two, have the mean and the difference of their parts.
2. Intervals are Student's with F − 1 degrees of freedom, cut to [−1, 1] for differences; of single AUCs on the logit scale.
3. Two readouts that make no errors have no variance, and yet were seen on F scenarios only: a standard error is never below half a scenario, ``0.5 / F``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

__all__ = ["AucDifference", "HeldOutAuc", "difference"]

Array = NDArray[np.float64]
_FALL = 1.5
"""How fast the variance of a held-out AUC falls with the number of scenarios: by the first power for fixed directions, by the second for learned ones near
chance (a degenerate U statistic). In made worlds, chosen heads or not, signal or none, it was 1.6 or more (``tests/unit/concepts/test_delete_third.py``)."""
_MOST = 10_000
"""More scenarios than that are no advice."""


@dataclass(frozen=True, eq=False)
class HeldOutAuc:
    """An AUC, its values on parts of the scenarios (``[part]``), and how many scenarios there are and are left out of a part."""

    value: float
    parts: Array
    n: int
    n_out: int

    @property
    def error(self) -> float:
        """Standard error, never below half a scenario."""
        return _error(self.parts, self.n, self.n_out)

    def bounds(self, level: float = 0.95) -> tuple[float, float]:
        """Two-sided interval on the logit scale; at an AUC of 0 or 1, as if half a scenario had gone wrong."""
        inside = min(max(self.value, 0.5 / self.n), 1 - 0.5 / self.n)
        half = float(sps.t.ppf((1 + level) / 2, self.n - 1)) * self.error / (inside * (1 - inside))
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


def difference(first: HeldOutAuc, second: HeldOutAuc) -> AucDifference:
    """Of two AUCs on the same scenarios and parts."""
    value, n = first.value - second.value, first.n
    error = _error(first.parts - second.parts, n, first.n_out)
    two, one = (float(sps.t.ppf(q, n - 1)) * error for q in (0.975, 0.95))
    return AucDifference(
        value, error, max(-1.0, value - two), min(1.0, value + two), max(-1.0, value - one), min(1.0, value + one), n
    )


def _error(parts: Array, n: int, n_out: int) -> float:
    factor = 1 / ((n / (n - n_out)) ** _FALL - 1)
    return max(math.sqrt(factor * float(parts.var(ddof=1))), 0.5 / n)
