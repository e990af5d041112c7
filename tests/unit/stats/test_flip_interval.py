"""Intervals from sign flips: what they promise for few and for unequal clusters."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import bootstrap_columns, cluster_sign_flip, flip_columns

SIZES = {
    "equal": lambda n: np.full(n, 4),
    "1 to n": lambda n: np.arange(1, n + 1),
    "one of half": lambda n: np.array([1] * (n - 1) + [n]),
    "two large": lambda n: np.array([2] * (n - 2) + [10, 10]),
}


def studies(n: int, kind: str, of: str, seed: int, studies: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Values ``[row, study]`` of mean 0 whose clusters share four fifths of their variance, and the labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n), SIZES[kind](n))
    if of == "normal":
        shared = rng.normal(size=(n, studies))
    elif of == "heavy":
        shared = rng.standard_t(3, size=(n, studies)) / np.sqrt(3)
    else:
        shared = (rng.gamma(2.0, size=(n, studies)) - 2) / np.sqrt(2)
    return shared[labels] + 0.5 * rng.normal(size=(len(labels), studies)), labels


def covered(bounds: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    return float(np.mean((bounds[1] <= 0) & (bounds[2] >= 0)))


@pytest.mark.parametrize("n", [6, 8, 12, 20])
@pytest.mark.parametrize("kind", list(SIZES))
def test_coverage_at_few_clusters(n: int, kind: str) -> None:
    """3000 studies: the standard error of 95 % is .4 points."""
    for of, floor in (("normal", 0.938), ("heavy", 0.935), ("skewed", 0.92)):
        x, labels = studies(n, kind, of, seed=n)
        assert covered(flip_columns(x, clusters=labels, seed=1, n_resamples=1000)) >= floor, (of, n, kind)
    # The bootstrap is what it replaces: at 6 clusters more than two points short in normal clusters.
    if n == 6:
        x, labels = studies(n, kind, "normal", seed=n)
        assert covered(bootstrap_columns(x, clusters=labels, seed=1, n_resamples=1000)) < 0.938


def test_bounds_by_hand_through_the_test_itself() -> None:
    """Seven clusters, all splits: means just inside are not refused by the exact test of the values minus them, means just outside are."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(7), [1, 3, 2, 5, 1, 4, 2])
    x = rng.normal(0.4, 1.0, size=(len(labels), 1))
    value, low, high = flip_columns(x, clusters=labels, seed=0)
    assert low[0] < value[0] < high[0]
    for bound, inward in ((low[0], 1e-6), (high[0], -1e-6)):
        assert cluster_sign_flip(x[:, 0] - bound - inward, labels, seed=0) > 0.05
        assert cluster_sign_flip(x[:, 0] - bound + inward, labels, seed=0) <= 0.05


def test_by_brute_force() -> None:
    """Six clusters of one value: 32 splits; at 95 % one split beside the trivial one may not count, so the bounds are the most extreme."""
    x = np.array([0.1, 0.4, 0.9, 1.6, 2.5, 3.6])
    ends = []
    for k in range(1, 6):
        for group in itertools.combinations(range(6), k):
            rest = [i for i in range(6) if i not in group]
            ends.append(sorted((x[list(group)].mean(), x[rest].mean())))
    lows, highs = sorted({round(a, 12) for a, _ in ends}), sorted({round(b, 12) for _, b in ends})
    value, low, high = flip_columns(x[:, None], seed=0)
    assert (value[0], low[0], high[0]) == pytest.approx((x.mean(), lows[0], highs[-1]))


def test_up_to_twelve_clusters_nothing_is_drawn() -> None:
    rng = np.random.default_rng(6)
    labels = np.repeat(np.arange(12), [1, 3, 2, 5, 1, 4, 2, 6, 1, 2, 3, 7])
    x = rng.normal(0.4, 1.0, size=(len(labels), 2))
    value, low, high = flip_columns(x, clusters=labels, seed=0, n_resamples=100)
    for seed in (1, 2):
        again = flip_columns(x, clusters=labels, seed=seed, n_resamples=100)
        assert np.array_equal(again, (value, low, high))
    for column in range(2):
        for end, inward in ((low[column], 1e-6), (high[column], -1e-6)):
            assert cluster_sign_flip(x[:, column] - end - inward, labels, seed=0, n_resamples=100) > 0.05
            assert cluster_sign_flip(x[:, column] - end + inward, labels, seed=0, n_resamples=100) <= 0.05
    # With one more cluster they are drawn, and the seed matters.
    more, others = np.concatenate([x, x[:2] + 1]), np.concatenate([labels, [12, 12]])
    drawn = [flip_columns(more, clusters=others, seed=seed, n_resamples=100)[1][0] for seed in range(4)]
    assert len(set(drawn)) > 1


@given(st.integers(0, 10**6), st.integers(6, 30), st.floats(-5, 5), st.floats(0.1, 10))
@settings(max_examples=40, deadline=None)
def test_shift_scale_and_order(seed: int, n: int, shift: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(2 * n, 3)), np.repeat(np.arange(n), 2)
    value, low, high = flip_columns(x, clusters=labels, seed=1, n_resamples=300)
    assert (low <= value).all()
    assert (value <= high).all()
    moved = flip_columns(shift + scale * x, clusters=labels, seed=1, n_resamples=300)
    assert np.allclose(moved[1], shift + scale * low)
    assert np.allclose(moved[2], shift + scale * high)
    order = rng.permutation(2 * n)
    again = flip_columns(x[order], clusters=labels[order], seed=1, n_resamples=300)
    assert np.allclose(again[1], low)
    mirrored = flip_columns(-x, clusters=labels, seed=1, n_resamples=300)
    assert np.allclose(mirrored[2], -low)


def test_constant_few_and_refused() -> None:
    for bounds in flip_columns(np.full((12, 2), 0.1), seed=0):
        assert np.allclose(bounds, 0.1)
    value, low, high = flip_columns(np.full((3, 1), 2.0), clusters=["a"] * 3, seed=0)
    assert value[0] == 2.0
    assert np.isnan([low[0], high[0]]).all()
    # Five clusters: no bound follows from flips at 95 %; t with the cluster-robust variance.
    x = np.arange(5.0)[:, None]
    _, low, high = flip_columns(x, seed=0)
    assert high[0] - 2 == pytest.approx(2.7764451 * np.sqrt(2.5 / 5))
    with pytest.raises(ConfigError, match="NaN"):
        flip_columns(np.array([[np.nan]]), seed=0)
