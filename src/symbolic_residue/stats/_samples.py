"""Two samples whose units may share clusters, and the smallest effect that data could have seen.

1. Two samples (rows of runs with a behaviour, rows of runs without): whole clusters are drawn, each with all its rows of both samples, and the means
   of the two samples in the draw are subtracted. A cluster that both samples share moves both means.
2. A draw without a row of one sample has no difference; where more than one draw in twenty is such, no interval is given.
3. The interval lies between the expanded percentiles of the smaller sample's number of clusters; with too few for these it is the t interval with
   the cluster-robust variance of the difference.
4. Detectable effect: a mean of size ``(t[1 − alpha/2] + t[power]) · se`` is found with about that power, with the cluster-robust standard error and
   clusters − 1 degrees of freedom (the usual approximation to the noncentral t). A sign-flip test of few clusters needs more, for its p values are
   coarse: by the factors of ``_COARSE`` (simulated, normal clusters of one size), and with too few flips for p ≤ alpha nothing is detectable.
5. With ``family`` the level is shared by the columns: ``alpha / m`` for m effective columns, ``m = k + 1 − Σ λ² / k`` with λ the eigenvalues of the
   columns' correlation (Nyholt 2004, American Journal of Human Genetics 74): 1 where all move together, k where none do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats._bootstrap import _counts, _robust_se, _tails, _too_few
from symbolic_residue.stats._estimate import Array, check_level, check_resamples, cluster_sums, finite_array, generator

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
    if _too_few(n, level):
        residual = (sums_x - size_x[:, None] * x.mean(axis=0)) / len(x) - (sums_y - size_y[:, None] * y.mean(axis=0)) / len(y)
        half = sps.t.ppf((1 + level) / 2, n - 1) * np.sqrt(n / (n - 1) * (residual**2).sum(axis=0))
        return value, value - half, value + half
    total = len(size_x)
    counts = np.concatenate(list(_counts(rng, n_resamples, total, total)))
    drawn_x, drawn_y = counts @ size_x, counts @ size_y
    good = (drawn_x > 0) & (drawn_y > 0)
    if good.mean() < 1 - _LOST:
        return value, none, none
    counts, drawn_x, drawn_y = counts[good], drawn_x[good][:, None], drawn_y[good][:, None]
    low, high = np.quantile((counts @ sums_x) / drawn_x - (counts @ sums_y) / drawn_y, _tails(n, level), axis=0)
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
        family: whether ``alpha`` is that of all columns together (step-down max-T).

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
    level = alpha / _effective_columns(sums - sizes[:, None] * x.mean(axis=0)) if family else alpha
    reach = float(sps.t.ppf(1 - level / 2, n - 1) + sps.t.ppf(power, n - 1))
    coarse = next((factor for below, factor in _COARSE if allowed < below), 1.0)
    return coarse * reach * _robust_se(sums, sizes)


def _effective_columns(residuals: Array) -> float:
    """How many independent columns ``residuals [n, k]`` are worth, from 1 to k."""
    scale = np.sqrt((residuals**2).sum(axis=0))
    z = residuals[:, scale > 0] / scale[scale > 0]
    k = z.shape[1]
    # The sum of squared eigenvalues is that of the squared correlations; from the smaller of the two products.
    product = z.T @ z if k < len(z) else z @ z.T
    return max(1.0, k + 1 - float((product**2).sum()) / k) if k else 1.0
