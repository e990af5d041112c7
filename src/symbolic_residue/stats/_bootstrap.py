"""Bootstrap intervals of means and medians, of independent values and of clusters.

1. A resample is a row of counts: how often each unit (value or cluster) was drawn when as many units are drawn, with
   replacement, as there are. Means of all resamples are then one matrix product.
2. The interval runs between two quantiles of the resampled statistic. Plain percentiles are too narrow in small samples,
   by ``sqrt((n - 1) / n)`` and by normal instead of t tails; the tails are therefore moved out to
   ``Phi(sqrt(n / (n - 1)) · t[alpha/2, n - 1])`` (the expanded percentile of Hesterberg 2015, The American Statistician 69).
3. No quantile can reach past the largest value, so with ``n`` units the coverage of a symmetric sample is at most
   ``1 - 2^(1 - n)``. Where that is less than the level (n < 6 at 95%), a mean gets the t interval instead (with the
   cluster-robust variance for clusters), and ``method`` says so; a median gets no interval.
4. Values are sorted first, so the result depends on the values and the seed and never on their order.

Clusters: where values of one prompt, or one template, hang together, they are not independent, and an interval that
treats them so is too narrow. Whole clusters are drawn, and ``n`` of the estimate is the number of clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats._estimate import Array, check_level, check_resamples, cluster_sums, Estimate, finite_array, generator
from symbolic_residue.stats._units import CHUNK, column_sums, resample_counts, residuals, robust_se, tails, too_few

__all__ = ["bootstrap_columns", "bootstrap_mean", "bootstrap_median", "bootstrap_ratio", "cluster_bootstrap"]


def bootstrap_mean(
    values: ArrayLike,
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Mean of ``values [n]`` with its bootstrap interval (t interval where n is too small, see the module).

    Raises:
        ConfigError: ``values`` empty or not finite; seed, level or resamples out of range.
    """
    x = np.sort(finite_array(values, "values"))
    return cluster_bootstrap(x, np.arange(len(x)), seed=seed, n_resamples=n_resamples, level=level, _unit="value")


def bootstrap_median(
    values: ArrayLike,
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Median of ``values [n]`` with its bootstrap interval; none where n is too small (n < 6 at 95%).

    Raises:
        ConfigError: ``values`` empty or not finite; seed, level or resamples out of range.
    """
    x = np.sort(finite_array(values, "values"))
    return cluster_bootstrap(
        x, np.arange(len(x)), seed=seed, statistic="median", n_resamples=n_resamples, level=level, _unit="value"
    )


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[Any] | NDArray[Any],
    *,
    seed: int,
    statistic: Literal["mean", "median"] = "mean",
    n_resamples: int = 2000,
    level: float = 0.95,
    _unit: str = "cluster",
) -> Estimate:
    """Mean or median of all ``values [n]``, with an interval that resamples whole clusters.

    Args:
        values: ``[n]``.
        clusters: the label of each value's cluster, ``[n]``: any labels that sort.
        seed: of the resampling.
        statistic: of the pooled values; a large cluster weighs more than a small one.
        n_resamples: number of resamples.
        level: nominal coverage.

    Returns:
        The estimate, with ``n`` the number of clusters. One cluster has no interval.

    Raises:
        ConfigError: values empty or not finite, labels that do not match, an unknown statistic, or an option out of range.
    """
    x, level, n_resamples = finite_array(values, "values"), check_level(level), check_resamples(n_resamples)
    rng = generator(seed)
    if statistic not in ("mean", "median"):
        raise ConfigError(f"{statistic!r} is no statistic of the bootstrap.", todo="Use 'mean' or 'median'.")
    order = np.argsort(x, kind="stable")
    x = x[order]
    labels = np.asarray(clusters)
    sums, sizes, index = cluster_sums(x, labels[order] if labels.shape == x.shape else labels)
    n = len(sums)
    value = float(x.mean() if statistic == "mean" else np.median(x))
    if n < 2:
        return Estimate(value, math.nan, math.nan, n, level, f"none: one {_unit} has no spread")
    if too_few(n, level):
        if statistic == "median":
            return Estimate(
                value, math.nan, math.nan, n, level, f"none: {n} {_unit}s cannot carry a {level:.0%} interval of a median"
            )
        half = float(sps.t.ppf((1 + level) / 2, n - 1)) * robust_se(sums[:, None], sizes)[0]
        return Estimate(value, value - half, value + half, n, level, f"t ({n} {_unit}s are too few for a bootstrap)")
    if statistic == "mean":
        resampled = np.concatenate([(c @ sums) / (c @ sizes) for c in resample_counts(rng, n_resamples, n, n)])
    else:
        resampled = np.concatenate([_weighted_median(x, c[:, index]) for c in resample_counts(rng, n_resamples, n, len(x))])
    low, high = np.quantile(resampled, tails(n, level))
    name = "bootstrap" if _unit == "value" else "cluster bootstrap"
    return Estimate(value, float(low), float(high), n, level, f"{name} of the {statistic}, expanded percentile")


def bootstrap_columns(
    matrix: ArrayLike,
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
) -> tuple[Array, Array, Array]:
    """Means of the columns of ``matrix [n, k]``, each with its own interval; all columns share the resamples of rows.

    Args:
        matrix: ``[n, k]``: rows are the units, columns what was measured on each (heads, layers, tokens).
        seed: of the resampling.
        n_resamples: number of resamples.
        level: nominal coverage of each interval by itself, not of all together.
        clusters: the label of each row's cluster ``[n]``; rows are their own clusters when left out.

    Returns:
        ``(value [k], low [k], high [k])``; the bounds are NaN for one row (or one cluster).

    Raises:
        ConfigError: a matrix that is empty, not finite or has not two axes; labels or options that do not fit.
    """
    n_resamples, rng = check_resamples(n_resamples), generator(seed)
    value, sums, sizes, few = column_sums(matrix, clusters, check_level(level))
    if few is not None:
        return value, *few
    n = len(sums)
    counts = np.concatenate(list(resample_counts(rng, n_resamples, n, n)))
    drawn = (counts @ sizes)[:, None]
    low, high = np.empty_like(value), np.empty_like(value)
    step = max(1, CHUNK // n_resamples)
    for start in range(0, len(value), step):
        part = slice(start, start + step)
        low[part], high[part] = np.quantile((counts @ sums[:, part]) / drawn, tails(n, level), axis=0)
    return value, low, high


def bootstrap_ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
) -> tuple[Array, Array, Array]:
    """Ratios of means, ``mean(numerator[:, k]) / mean(denominator)``, each with its interval: shares of a total that is itself measured.

    Rows are resampled together, so what numerator and denominator have in common cancels. With too few units for a bootstrap the interval is Fieller's
    (1954): all r for which a t interval of ``mean(numerator − r · denominator)`` holds 0.

    Args:
        numerator: ``[n, k]``.
        denominator: ``[n]``.
        seed: of the resampling.
        n_resamples: number of resamples.
        level: nominal coverage.
        clusters: the label of each row's cluster ``[n]``; rows are their own clusters when left out.

    Returns:
        ``(value [k], low [k], high [k])``; all NaN where the denominator's own interval touches 0 (the ratio is then not bounded), or with one unit.

    Raises:
        ConfigError: shapes that do not fit, values empty or not finite, an option out of range.
    """
    x, y = finite_array(numerator, "numerator", (2,)), finite_array(denominator, "denominator")
    if len(x) != len(y):
        raise ConfigError(f"There are {len(x)} numerators and {len(y)} denominators.")
    labels = np.arange(len(x)) if clusters is None else clusters
    both = np.column_stack([x, y])
    value, low, high = bootstrap_columns(both, seed=seed, n_resamples=n_resamples, level=level, clusters=labels)
    nothing = np.full(x.shape[1], np.nan)
    if not (low[-1] > 0 or high[-1] < 0):
        return nothing, nothing.copy(), nothing.copy()
    ratio = value[:-1] / value[-1]
    sums, sizes, _ = cluster_sums(both, labels)
    n = len(sums)
    if not too_few(n, level):
        counts = np.concatenate(list(resample_counts(generator(seed), n_resamples, n, n)))
        drawn = counts @ sums
        keep = drawn[:, -1] * value[-1] > 0  # a resample on the other side of 0 says nothing of the share; there are hardly any
        bounds = np.quantile(drawn[keep, :-1] / drawn[keep, -1:], tails(n, level), axis=0)
        return ratio, np.minimum(bounds[0], ratio), np.maximum(bounds[1], ratio)
    t = float(sps.t.ppf((1 + level) / 2, n - 1))
    left = residuals(sums, sizes)
    factor = n / (n - 1) / sizes.sum() ** 2
    var = factor * (left**2).sum(axis=0)
    cov = factor * (left[:, :-1] * left[:, -1:]).sum(axis=0)
    a = value[-1] ** 2 - t**2 * var[-1]  # positive: the denominator's interval excludes 0
    b = value[:-1] * value[-1] - t**2 * cov
    c = value[:-1] ** 2 - t**2 * var[:-1]
    root = np.sqrt(np.maximum(b**2 - a * c, 0.0))
    return ratio, (b - root) / a, (b + root) / a


def _weighted_median(x: Array, weights: Array) -> Array:
    """Median of sorted ``x [n]`` repeated ``weights [resample, n]`` times (whole numbers): mean of the middle two."""
    reached = np.cumsum(weights, axis=1)
    total = reached[:, -1]
    lower = np.argmax(reached >= np.floor((total + 1) / 2)[:, None], axis=1)
    upper = np.argmax(reached >= (np.floor(total / 2) + 1)[:, None], axis=1)
    return (x[lower] + x[upper]) / 2
