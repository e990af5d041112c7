"""Tests that assume exchangeability and nothing else: sign flips, paired permutations, ranks against a null.

1. Differences between a run and its matched control are symmetric about 0 if the stress does nothing: each could as well
   have had the other sign. The statistic is the size of their sum; its null is the same sum under all sign flips.
2. All ``2^n`` flips are listed where n is at most 12, or they are no more than ``n_resamples``: the p value is then exact, the share of flips, the one that
   changes nothing among them, that reach the observed size. Otherwise flips are drawn, and the p value is ``(1 + count) / (1 + n_resamples)``, which is
   valid for any number of draws (Phipson & Smyth 2010) and never 0.
3. Values that hang together (one prompt, one template) are flipped together: :func:`cluster_sign_flip`. Flipping them
   one by one finds effects in noise.
4. Many quantities at once (heads, layers): :func:`max_t` flips all columns together and compares each with the largest,
   stepping down (Westfall & Young 1993), which holds the family-wise error and uses the columns' correlation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats._estimate import (
    Array,
    check_level,
    check_resamples,
    cluster_sums,
    Estimate,
    finite_array,
    generator,
    wilson,
)
from symbolic_residue.stats._units import CHUNK, list_flips

__all__ = ["auc", "cluster_sign_flip", "empirical_p", "max_t", "paired_permutation", "power_sign_flip", "sign_flip_test"]

_TIE = 1e-12
"""Sums that are equal on paper differ by rounding; within this share of the largest possible sum they count as equal."""


def sign_flip_test(values: ArrayLike, *, seed: int, n_resamples: int = 10_000) -> Any:
    """Two-sided sign-flip test that differences centre on 0.

    Args:
        values: differences ``[n]``, or ``[n, k]`` for k tests of the same n units.
        seed: of the flips, where they are drawn.
        n_resamples: number of flips drawn where they are more and the units more than 12; else all are listed.

    Returns:
        p value: a float for ``[n]``, an array ``[k]`` for ``[n, k]``.

    Raises:
        ConfigError: values empty or not finite; seed or resamples out of range.
    """
    x = finite_array(values, "values", (1, 2))
    columns = x[:, None] if x.ndim == 1 else x
    observed = np.abs(columns.sum(axis=0)) - _TIE * np.abs(columns).sum(axis=0)
    count = np.zeros(columns.shape[1])
    flips, exact = _flips(len(columns), seed, n_resamples, columns.shape[1])
    for signs in flips:
        count += np.count_nonzero(np.abs(signs @ columns) >= observed, axis=0)
    p = count / 2.0 ** (len(columns) - 1) if exact else (1 + count) / (1 + n_resamples)
    return float(p[0]) if x.ndim == 1 else p


def paired_permutation(a: ArrayLike, b: ArrayLike, *, seed: int, n_resamples: int = 10_000) -> Any:
    """Two-sided test that paired ``a`` and ``b`` (``[n]`` or ``[n, k]``) could be exchanged within each pair.

    Exchanging a pair flips the sign of its difference: this is :func:`sign_flip_test` of ``a - b``, and returns the same.

    Raises:
        ConfigError: shapes that differ, values empty or not finite, an option out of range.
    """
    x, y = finite_array(a, "a", (1, 2)), finite_array(b, "b", (1, 2))
    if x.shape != y.shape:
        raise ConfigError(f"Pairs need equal shapes; a is {x.shape} and b is {y.shape}.")
    return sign_flip_test(x - y, seed=seed, n_resamples=n_resamples)


def cluster_sign_flip(values: ArrayLike, clusters: Sequence[Any] | NDArray[Any], *, seed: int, n_resamples: int = 10_000) -> Any:
    """:func:`sign_flip_test` that flips all values of a cluster together: valid however they hang together inside it.

    Args:
        values: ``[n]`` or ``[n, k]``.
        clusters: the label of each row's cluster, ``[n]``.
        seed: of the flips, where they are drawn.
        n_resamples: number of flips drawn where they are more and the units more than 12; else all are listed.

    Raises:
        ConfigError: labels that do not match, values empty or not finite, an option out of range.
    """
    sums, _, _ = cluster_sums(finite_array(values, "values", (1, 2)), clusters)
    return sign_flip_test(sums, seed=seed, n_resamples=n_resamples)


def max_t(
    values: ArrayLike,
    *,
    seed: int,
    n_resamples: int = 10_000,
    clusters: Sequence[Any] | NDArray[Any] | None = None,
) -> Array:
    """Family-wise adjusted p values of k two-sided sign-flip tests, by the step-down maximum of |t|.

    The statistic is ``|sum| / sqrt(sum of squares)``: a flip leaves the squares alone, so over flips and columns of one
    n it orders as |t| does.

    Args:
        values: differences ``[n, k]``.
        seed: of the flips, where they are drawn.
        n_resamples: number of flips drawn where they are more and the units more than 12; else all are listed.
        clusters: the label of each row's cluster ``[n]``, whose rows are flipped together.

    Returns:
        Adjusted p values ``[k]``. A column of zeros gets 1.

    Raises:
        ConfigError: values empty, not finite or without two axes; labels or options that do not fit.
    """
    x = finite_array(values, "values", (2,))
    if clusters is not None:
        x, _, _ = cluster_sums(x, clusters)
    scale = np.sqrt((x**2).sum(axis=0))
    x = np.divide(x, scale, out=np.zeros_like(x), where=scale > 0)
    statistic = np.abs(x.sum(axis=0))
    order = np.argsort(-statistic, kind="stable")
    x, ranked = x[:, order], statistic[order]
    observed = ranked - _TIE * np.abs(x).sum(axis=0)
    count = np.zeros(x.shape[1])
    flips, exact = _flips(len(x), seed, n_resamples, x.shape[1])
    for signs in flips:
        # The largest statistic among this column and all weaker ones: what the step-down compares with.
        largest = np.maximum.accumulate(np.abs(signs @ x)[:, ::-1], axis=1)[:, ::-1]
        count += np.count_nonzero(largest >= observed, axis=0)
    p = count / 2.0 ** (len(x) - 1) if exact else (1 + count) / (1 + n_resamples)
    p = np.maximum.accumulate(p)
    adjusted = np.empty_like(p)
    adjusted[order] = p
    return adjusted


Alternative = Literal["greater", "less", "two-sided"]


@overload
def empirical_p(value: float, null: ArrayLike, alternative: Alternative = "greater") -> float: ...
@overload
def empirical_p(value: Sequence[float] | Array, null: ArrayLike, alternative: Alternative = "greater") -> Array: ...
def empirical_p(value: Any, null: ArrayLike, alternative: Alternative = "greater") -> Any:
    """p value of a number against a drawn null: ``(1 + count) / (1 + n)``, so never 0.

    Args:
        value: one number, or several ``[m]``.
        null: values drawn under the null ``[n]``.
        alternative: ``"greater"`` counts null values ``>= value``; ``"less"`` counts ``<= value``; ``"two-sided"`` is twice
            the smaller of both, at most 1.

    Raises:
        ConfigError: NaN or infinity, an empty null, or an unknown alternative.
    """
    x, drawn = finite_array(value, "value", (0, 1)), np.sort(finite_array(null, "null"))
    n = len(drawn)
    greater = (1 + n - np.searchsorted(drawn, x, side="left")) / (1 + n)
    less = (1 + np.searchsorted(drawn, x, side="right")) / (1 + n)
    if alternative == "greater":
        p = greater
    elif alternative == "less":
        p = less
    elif alternative == "two-sided":
        p = np.minimum(1.0, 2 * np.minimum(greater, less))
    else:
        raise ConfigError(f"{alternative!r} is no alternative.", todo="Use 'greater', 'less' or 'two-sided'.")
    return float(p) if x.ndim == 0 else p


def auc(positive: ArrayLike, negative: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Chance that a positive scores above a negative (ties count half), with its interval.

    The interval is DeLong's (DeLong, DeLong & Clarke-Pearson 1988) on the logit scale, which keeps it inside (0, 1). Where
    the classes are wholly apart, or all scores equal, DeLong's variance is 0, which is no certainty: the score interval of Newcombe
    (2006, Statistics in Medicine 25, method 5) is given instead, and ``method`` says so.

    Args:
        positive: scores of the positives ``[m]``.
        negative: scores of the negatives ``[n]``.
        level: nominal coverage.

    Returns:
        The estimate, with ``n`` the number of all scores; no interval where a class has one member.

    Raises:
        ConfigError: scores empty or not finite, ``level`` not in (0, 1).
    """
    x, y, level = finite_array(positive, "positive"), finite_array(negative, "negative"), check_level(level)
    m, n = len(x), len(y)
    ranks = sps.rankdata(np.concatenate([x, y]))
    # Share of the other class that each score beats: DeLong's structural components.
    wins_x = (ranks[:m] - sps.rankdata(x)) / n
    wins_y = 1 - (ranks[m:] - sps.rankdata(y)) / m
    value = float(wins_x.mean())
    if min(m, n) < 2:
        return Estimate(value, math.nan, math.nan, m + n, level, "none: a class has one member")
    z = float(sps.norm.ppf((1 + level) / 2))
    variance = float(wins_x.var(ddof=1) / m + wins_y.var(ddof=1) / n)
    if variance <= 0 or value <= 0 or value >= 1:
        low, high = _newcombe(value, m, n, z)
        return Estimate(value, low, high, m + n, level, "Newcombe score (DeLong's variance is 0)")
    centre, half = math.log(value / (1 - value)), z * math.sqrt(variance) / (value * (1 - value))
    low, high = (float(1 / (1 + np.exp(-np.clip(centre + side * half, -700, 700)))) for side in (-1, 1))
    return Estimate(value, low, high, m + n, level, "DeLong on the logit scale")


def power_sign_flip(
    effect_sd_ratio: float,
    n: int,
    *,
    alpha: float = 0.05,
    seed: int = 0,
    n_simulations: int = 500,
    n_resamples: int = 2000,
) -> Estimate:
    """Share of simulated experiments in which :func:`sign_flip_test` finds a planted effect, with Wilson's interval.

    Args:
        effect_sd_ratio: mean of the differences over their standard deviation (normal differences are simulated).
        n: differences in each experiment.
        alpha: the test's level.
        seed: of the simulation.
        n_simulations: number of experiments.
        n_resamples: flips in each test.

    Raises:
        ConfigError: a number that is not finite or out of range.
    """
    ratio, alpha = float(finite_array(effect_sd_ratio, "effect_sd_ratio", (0,))), check_level(alpha)
    if n < 1 or n_simulations < 1:
        raise ConfigError(f"{n} values in {n_simulations} simulations cannot be drawn.", todo="Give numbers of 1 or more.")
    values = generator(seed).normal(ratio, 1.0, size=(n, n_simulations))
    p = sign_flip_test(values, seed=seed, n_resamples=n_resamples)
    return wilson(int(np.count_nonzero(p <= alpha)), n_simulations)


def _flips(n: int, seed: int, n_resamples: int, width: int) -> tuple[Iterator[Array], bool]:
    """Sign rows ``[flip, n]`` of -1 and 1 in pieces, and whether they are all flips: the half in which the last unit stays, for a flip and its opposite
    are as large."""
    rng, n_resamples = generator(seed), check_resamples(n_resamples)
    exact = list_flips(n, n_resamples)
    total = 2 ** (n - 1) if exact else n_resamples
    step = max(1, CHUNK // max(n, width))

    def pieces() -> Iterator[Array]:
        for start in range(0, total, step):
            rows = min(step, total - start)
            if exact:
                bits = (np.arange(start, start + rows)[:, None] >> np.arange(n)) & 1
            else:
                bits = rng.integers(0, 2, size=(rows, n), dtype=np.int8)
            yield 2.0 * bits.astype(np.float64) - 1.0

    return pieces(), exact


def _newcombe(value: float, m: int, n: int, z: float) -> tuple[float, float]:
    """Score interval of an AUC: all ``a`` whose own standard error leaves ``value`` within ``z`` of them."""
    spare = (m + n) / 2 - 1

    def bound(end: float) -> float:
        # |value - a| outgrows z standard errors once on the way from the value to the end: halve until the crossing is met.
        near, far = value, end
        for _ in range(80):
            a = (near + far) / 2
            inner = 1 + spare * (1 - a) / (2 - a) + spare * a / (1 + a)
            inside = abs(value - a) <= z * math.sqrt(a * (1 - a) * inner / (m * n))
            near, far = (a, far) if inside else (near, a)
        return near

    return bound(0.0), bound(1.0)
