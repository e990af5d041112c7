"""A number with its interval, and the checks that every statistic makes of its input.

1. Input is turned into a float64 array and refused if it is empty, of the wrong shape, or not finite: a statistic of
   a NaN is a NaN that looks like a result.
2. A statistic comes back as an :class:`Estimate`: value, interval, sample size, level, and the name of the method.
3. Where no interval can be had, the bounds are NaN and ``method`` says why; such an estimate is above, below and
   apart from nothing, so no verdict can rest on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy import stats as sps

from symbolic_residue.errors import ConfigError

__all__ = [
    "Estimate",
    "bound",
    "check_level",
    "check_resamples",
    "cluster_sums",
    "finite_array",
    "generator",
    "score_bounds",
    "t_interval",
    "wilson",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its confidence interval, in the unit of the values it came from.

    Args:
        value: the point estimate.
        low: lower bound of the interval, or NaN where there is none.
        high: upper bound of the interval, or NaN where there is none.
        n: number of independent units (values, or clusters where they were resampled).
        level: the interval's nominal coverage.
        method: how the interval was made, or why there is none.

    Raises:
        ConfigError: only one bound is NaN, or ``low > high``.
    """

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95
    method: str = ""

    def __post_init__(self) -> None:
        if math.isnan(self.low) != math.isnan(self.high) or self.low > self.high:
            raise ConfigError(f"[{self.low}, {self.high}] is no interval.", todo="Give low <= high, or NaN for both.")

    @property
    def has_interval(self) -> bool:
        """Whether the bounds are numbers."""
        return not math.isnan(self.low)

    def above(self, x: float) -> bool:
        """Whether the whole interval lies strictly above ``x``; False without an interval."""
        return self.low > x

    def below(self, x: float) -> bool:
        """Whether the whole interval lies strictly below ``x``; False without an interval."""
        return self.high < x

    def excludes(self, x: float) -> bool:
        """Whether ``x`` lies outside the interval; False without an interval."""
        return self.above(x) or self.below(x)


def bound(x: SupportsFloat, least: float = -math.inf, most: float = math.inf) -> float | None:
    """A number as tables hold it: None where there is none (NaN), else cut to the quantity's range."""
    found = float(x)
    return None if math.isnan(found) else min(max(found, least), most)


def finite_array(values: ArrayLike, name: str, ndim: Sequence[int] = (1,)) -> Array:
    """``values`` as a float64 array, never empty and always finite.

    Raises:
        ConfigError: no numbers, too many or too few axes, empty, or NaN or infinity among them.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} cannot be read as numbers.", why=str(error)) from error
    if array.ndim not in ndim:
        raise ConfigError(f"{name} has {array.ndim} axes.", todo=f"Give an array of {' or '.join(map(str, ndim))} axes.")
    if array.size == 0:
        raise ConfigError(f"{name} is empty.", why="Nothing can be estimated from no values.")
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise ConfigError(
            f"{name} holds {bad} of {array.size} values that are NaN or infinite.",
            why="They would turn every statistic into a number without meaning.",
            todo="Leave these values out on purpose, or find where they come from.",
        )
    return array


def generator(seed: int) -> np.random.Generator:
    """The package's one random generator: PCG64 with an integer seed.

    Raises:
        ConfigError: ``seed`` is no integer, or negative.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ConfigError(f"The seed is {seed!r}.", todo="Give an integer of 0 or more.")
    return np.random.Generator(np.random.PCG64(int(seed)))


def check_level(level: float) -> float:
    """``level`` if it lies strictly between 0 and 1.

    Raises:
        ConfigError: it does not.
    """
    if not 0 < level < 1:
        raise ConfigError(f"The level is {level}.", todo="Give a number between 0 and 1, such as 0.95.")
    return float(level)


def check_resamples(n_resamples: int) -> int:
    """``n_resamples`` if there are enough of them to speak of tails.

    Raises:
        ConfigError: fewer than 100.
    """
    if n_resamples < 100:
        raise ConfigError(f"{n_resamples} resamples are too few.", why="The tails would be noise.", todo="Use 100 or more.")
    return int(n_resamples)


def cluster_sums(values: Array, clusters: Sequence[Any] | NDArray[Any]) -> tuple[Array, Array, NDArray[np.intp]]:
    """Sums and sizes of clusters.

    Args:
        values: ``[n]`` or ``[n, k]``.
        clusters: one label a row, ``[n]``.

    Returns:
        ``(sums [cluster] or [cluster, k], sizes [cluster], index [n])``, clusters in the order of their sorted labels.

    Raises:
        ConfigError: there is not one label for each row, or a label is NaN.
    """
    labels = np.asarray(clusters)
    if labels.shape != values.shape[:1]:
        raise ConfigError(f"There are {labels.shape} cluster labels for {len(values)} rows.", todo="Give one label a row.")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ConfigError("A cluster label is NaN.", todo="Name the cluster of every row.")
    _, index = np.unique(labels, return_inverse=True)
    sizes = np.bincount(index).astype(np.float64)
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.intp)
    members = sparse.csr_array((np.ones(len(index)), np.argsort(index, kind="stable"), ends), shape=(len(sizes), len(index)))
    return members @ values, sizes, index


def t_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Mean of ``values [n]`` with Student's t interval, ``mean ± t · sd / sqrt(n)``.

    Raises:
        ConfigError: ``values`` empty or not finite, ``level`` not in (0, 1).
    """
    x, level = finite_array(values, "values"), check_level(level)
    mean, n = float(x.mean()), len(x)
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n, level, "none: one value has no spread")
    half = float(sps.t.ppf((1 + level) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n, level, "t")


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927), which holds near 0 and 1 and never leaves [0, 1].

    Raises:
        ConfigError: ``n < 1``, ``successes`` not in ``0..n``, ``level`` not in (0, 1).
    """
    level = check_level(level)
    if n < 1 or not 0 <= successes <= n or successes != int(successes) or n != int(n):
        raise ConfigError(f"{successes} successes of {n} trials is no proportion.", todo="Give whole numbers, 0 <= successes <= n.")
    p = successes / n
    return Estimate(p, *score_bounds(p, n, level), int(n), level, "Wilson")


def score_bounds(p: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's bounds of a share ``p`` of ``n`` independent answers, which need be no whole number."""
    z = float(sps.norm.ppf((1 + level) / 2))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Rounding must not carry the interval past the ends, nor leave the value itself outside.
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))
