"""Two samples whose units may share clusters, and the smallest effect that data could have seen.

1. Two samples (rows of runs with a behaviour, rows of runs without): whole clusters are drawn, each with all its rows of both samples, and the means
   of the two samples in the draw are subtracted. A cluster that both samples share moves both means.
2. A draw without a row of one sample has no difference; where more than one draw in twenty is such, no interval is given.
3. The interval lies between the expanded percentiles of the smaller sample's number of clusters; with too few for these it is the t interval with
   the cluster-robust variance of the difference.
   Flipping clusters, by which :mod:`symbolic_residue.stats._flip_interval` finds the interval of one mean, is no better here: the level that both samples
   share is not known, so that the flips are of estimated residuals and the test is not exact. Over 72 designs (samples that share all, half or none of 6 to 20
   clusters, equal and unequal, normal and skewed, 2,000 studies each) 95 % of it covered 94.4 % on average and 92.7 % at least, of the draws
   95.7 % and 92.7 %: the draws stay.
4. Detectable effect: the mean, in standard errors, at which the noncentral t with clusters − 1 degrees of freedom passes the two-sided critical value with
   the power asked, times the standard error, by leaving out one cluster at a time (unequal clusters make the usual one too small). A sign-flip test of
   few clusters needs more, for its p values are coarse: by the factors of ``_COARSE`` (simulated, normal clusters of one size); with too few flips for
   p ≤ alpha nothing is detectable. With clusters of 1 to 12 values the power at it was .75, not .80. With
   ``family`` each column is tested at alpha / k, an upper bound of what max-T needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as sps
from scipy.optimize import brentq

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats._estimate import Array, check_level, check_resamples, cluster_sums, finite_array, generator
from symbolic_residue.stats._units import resample_counts, tails, too_few

__all__ = ["detectable_effect", "two_sample_columns"]

_LOST = 0.05
_COARSE = ((3, 1.26), (6, 1.07), (25, 1.03))
"""Flips (of 2^(n − 1)) that p ≤ alpha allows, fewer than → by how much the effect must be larger than t's approximation says."""

Labels = Sequence[Any] | NDArray[Any]


def two_sample_columns(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: tuple[Labels, Labels] | None = None,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> tuple[Array, Array, Array]:
    """Column means of ``a [m, k]`` minus those of ``b [n, k]``, each with its own interval.

    Args:
        a: rows of the first sample.
        b: rows of the second.
        clusters: labels of the rows of both; a label in both is one cluster. Rows are their own clusters when left out.
        seed: of the resampling.
        n_resamples: number of resamples.
        level: nominal coverage of each interval by itself.

    Returns:
        ``(value [k], low [k], high [k])``; the bounds are NaN where a sample has one cluster, or draws without one of the samples are too many.

    Raises:
        ConfigError: samples empty, not finite or of different width; labels or options that do not fit.
    """
    x, y = finite_array(a, "a", (2,)), finite_array(b, "b", (2,))
    level, n_resamples, rng = check_level(level), check_resamples(n_resamples), generator(seed)
    if x.shape[1] != y.shape[1]:
        raise ConfigError(f"The samples have {x.shape[1]} and {y.shape[1]} columns.", todo="Measure the same things in both.")
    if clusters is None:
        labels = np.arange(len(x) + len(y))
        first, second = labels[: len(x)], labels[len(x) :]
    else:
        first, second = (np.asarray(label).astype(str) for label in clusters)
        if first.shape != (len(x),) or second.shape != (len(y),):
            raise ConfigError(
                f"There are {first.size} and {second.size} cluster labels for {len(x)} and {len(y)} rows.",
                todo="Give one label a row.",
            )
    value = x.mean(axis=0) - y.mean(axis=0)
    # One common list of clusters: a row of zeros marks a cluster that a sample lacks.
    both = np.concatenate([first, second])
    side = np.concatenate([np.ones(len(x)), np.zeros(len(y))])
    stacked = np.concatenate([x, y])
    sums_x, _, _ = cluster_sums(stacked * side[:, None], both)
    sums_y, _, _ = cluster_sums(stacked * (1 - side)[:, None], both)
    size_x, size_y = cluster_sums(side, both)[0], cluster_sums(1 - side, both)[0]
    n = int(min(np.count_nonzero(size_x), np.count_nonzero(size_y)))
    none = np.full_like(value, np.nan)
    if n < 2:
        return value, none, none
    if too_few(n, level):
        residual = (sums_x - size_x[:, None] * x.mean(axis=0)) / len(x) - (sums_y - size_y[:, None] * y.mean(axis=0)) / len(y)
        half = sps.t.ppf((1 + level) / 2, n - 1) * np.sqrt(n / (n - 1) * (residual**2).sum(axis=0))
        return value, value - half, value + half
    total = len(size_x)
    counts = np.concatenate(list(resample_counts(rng, n_resamples, total, total)))
    drawn_x, drawn_y = counts @ size_x, counts @ size_y
    good = (drawn_x > 0) & (drawn_y > 0)
    if good.mean() < 1 - _LOST:
        return value, none, none
    counts, drawn_x, drawn_y = counts[good], drawn_x[good][:, None], drawn_y[good][:, None]
    low, high = np.quantile((counts @ sums_x) / drawn_x - (counts @ sums_y) / drawn_y, tails(n, level), axis=0)
    return value, low, high


def detectable_effect(
    matrix: ArrayLike, *, clusters: Labels | None = None, alpha: float = 0.05, power: float = 0.80, family: bool = False
) -> Array:
    """The smallest mean of each column of ``matrix [n, k]`` that a two-sided sign-flip test of level ``alpha`` would have found with ``power``.

    Args:
        matrix: rows are the units, columns what was measured on each.
        clusters: labels of the rows ``[n]``; rows are their own clusters when left out.
        alpha: level of the test of one column.
        power: chance to find the effect.
        family: whether ``alpha`` is that of all columns together.

    Returns:
        ``[k]``, in the unit of the values; NaN with too few clusters for p ≤ alpha (fewer than 6 at .05).

    Raises:
        ConfigError: a matrix that is empty or not finite, labels that do not fit, alpha or power outside (0, 1).
    """
    x = finite_array(matrix, "matrix", (2,))
    alpha, power = check_level(alpha), check_level(power)
    sums, sizes, _ = cluster_sums(x, np.arange(len(x)) if clusters is None else clusters)
    n = len(sums)
    allowed = math.floor(alpha * 2.0 ** min(n - 1, 60))
    if allowed < 1:
        return np.full(x.shape[1], np.nan)
    means = (sums.sum(axis=0) - sums) / (sizes.sum() - sizes)[:, None]
    error = np.sqrt((n - 1) / n * ((means - x.mean(axis=0)) ** 2).sum(axis=0))
    coarse = next((factor for below, factor in _COARSE if allowed < below), 1.0)
    return coarse * _reach(n - 1, alpha / x.shape[1] if family else alpha, power) * error


@lru_cache(maxsize=256)
def _reach(df: int, alpha: float, power: float) -> float:
    """Noncentrality at which ``|t|`` passes its critical value with the power asked."""
    critical = float(sps.t.ppf(1 - alpha / 2, df))
    high = critical + 1.0
    while sps.nct.sf(critical, df, high) < power:
        high *= 1.5
    return cast(float, brentq(lambda d: sps.nct.sf(critical, df, d) - power, 0.0, high))
