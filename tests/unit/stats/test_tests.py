"""Tests of tests: false positives at or under the nominal rate, power on planted effects, exactness against brute force."""

import itertools
import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats as sps

from symbolic_residue import stats
from symbolic_residue.errors import ConfigError

small_ints = st.integers(-5, 5).map(float)


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@given(hnp.arrays(np.float64, st.integers(1, 7), elements=small_ints))
@settings(max_examples=80, deadline=None)
def test_sign_flip_is_exact(x):
    flips = np.array(list(itertools.product([-1, 1], repeat=len(x))))
    brute = np.mean(np.abs(flips @ x) >= abs(x.sum()))
    assert stats.sign_flip_test(x, seed=0, n_resamples=200) == pytest.approx(brute)


def test_drawn_flips_agree_with_all_flips():
    x = draw(1).normal(0.4, 1, size=13)
    exact = stats.sign_flip_test(x, seed=0, n_resamples=9000)
    drawn = stats.sign_flip_test(x, seed=0, n_resamples=4000)
    assert 2**13 > 4000 and drawn == pytest.approx(exact, abs=0.02)


def test_up_to_twelve_units_every_flip_is_listed_however_few_draws_are_asked_for():
    x = draw(7).normal(0.4, 1, size=(12, 3))
    flips = np.array(list(itertools.product([-1, 1], repeat=12)))
    brute = np.mean(np.abs(flips @ x) >= np.abs(x.sum(axis=0)) - 1e-9, axis=0)
    for seed in (0, 1):
        assert stats.sign_flip_test(x, seed=seed, n_resamples=100) == pytest.approx(brute)
        assert stats.max_t(x, seed=seed, n_resamples=100) == pytest.approx(brute_max_t(x))
    assert stats.cluster_sign_flip(np.repeat(x, 3, axis=0), np.repeat(range(12), 3), seed=0, n_resamples=100) == pytest.approx(
        brute
    )
    # The flip that changes nothing and its opposite always count.
    assert stats.sign_flip_test(np.ones(12), seed=0, n_resamples=100) == 2 / 2**12


def test_drawn_flips_count_the_one_that_changes_nothing():
    x = np.arange(1.0, 41.0)
    assert stats.sign_flip_test(x, seed=0, n_resamples=200) == pytest.approx(1 / 201)
    assert stats.max_t(x[:, None], seed=0, n_resamples=200) == pytest.approx(1 / 201)
    assert stats.sign_flip_test(x, seed=3, n_resamples=200) == stats.sign_flip_test(x, seed=3, n_resamples=200)
    y = draw(9).normal(size=40)
    assert len({stats.sign_flip_test(y, seed=seed, n_resamples=200) for seed in range(5)}) > 1


@pytest.mark.parametrize("n", [8, 25])
def test_sign_flip_holds_its_level_and_finds_effects(n):
    null = draw(n).standard_t(3, size=(n, 3000))
    p = stats.sign_flip_test(null, seed=1, n_resamples=1000)
    for alpha in (0.05, 0.2):
        assert np.mean(p <= alpha) <= alpha + 0.012
    assert np.mean(p <= 0.2) >= 0.15  # a test that never rejects holds its level too
    assert np.mean(stats.sign_flip_test(null + 2.0, seed=1, n_resamples=1000) <= 0.05) >= 0.8


def test_sign_flip_columns_are_the_single_tests():
    x = draw(2).normal(0.3, 1, size=(9, 4))
    together = stats.sign_flip_test(x, seed=5)
    assert together.shape == (4,) and np.allclose(together, [stats.sign_flip_test(c, seed=5) for c in x.T])


def test_paired_permutation_is_the_flip_of_differences():
    a, b = draw(3).normal(size=(2, 10))
    assert stats.paired_permutation(a, b, seed=0) == stats.sign_flip_test(a - b, seed=0)
    assert stats.paired_permutation(a, a, seed=0) == 1.0
    with pytest.raises(ConfigError, match="equal shapes"):
        stats.paired_permutation(a, b[:3], seed=0)


def test_clusters_hold_where_naive_flips_fail():
    rng = draw(4)
    labels = np.repeat(np.arange(15), 6)
    null = rng.normal(0, 1, size=(15, 800))[labels] + rng.normal(0, 0.3, size=(90, 800))
    naive = stats.sign_flip_test(null, seed=1, n_resamples=500)
    clusterwise = stats.cluster_sign_flip(null, labels, seed=1, n_resamples=500)
    assert np.mean(naive <= 0.05) > 0.25
    assert np.mean(clusterwise <= 0.05) <= 0.075
    assert np.mean(stats.cluster_sign_flip(null + 1, labels, seed=1, n_resamples=500) <= 0.05) >= 0.8
    shuffled = rng.permutation(90)
    again = stats.cluster_sign_flip(null[shuffled], labels[shuffled], seed=1, n_resamples=500)
    assert np.allclose(again, clusterwise)


def test_one_cluster_proves_nothing():
    assert stats.cluster_sign_flip([5.0, 5.0, 5.0], ["a", "a", "a"], seed=0) == 1.0


def test_max_t_holds_the_family_wise_error_and_beats_holm_on_correlated_columns():
    rng = draw(5)
    false, found_max, found_holm = 0, 0, 0
    for i in range(200):
        x = rng.normal(size=(15, 1)) * 0.9 + rng.normal(size=(15, 20)) * 0.45  # correlated heads
        x[:, 0] += 1.0
        adjusted = stats.max_t(x, seed=i, n_resamples=300)
        single = stats.sign_flip_test(x, seed=i, n_resamples=300)
        false += np.any(adjusted[1:] <= 0.05)
        found_max += adjusted[0] <= 0.05
        found_holm += stats.holm(single)[0] <= 0.05
    assert false / 200 <= 0.09
    assert found_max > found_holm


def brute_max_t(x):
    """Step-down by definition: all flips, all subsets in order of the statistic."""
    n = len(x)
    flips = np.array(list(itertools.product([-1, 1], repeat=n)))
    scale = np.sqrt((x**2).sum(axis=0))
    scale[scale == 0] = 1
    null, seen = np.abs(flips @ (x / scale)), np.abs((x / scale).sum(axis=0))
    order, p, last = np.argsort(-seen, kind="stable"), np.empty(x.shape[1]), 0.0
    for i, column in enumerate(order):
        last = max(last, np.mean(null[:, order[i:]].max(axis=1) >= seen[column] - 1e-9))
        p[column] = last
    return p


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=small_ints))
@settings(max_examples=60, deadline=None)
def test_max_t_is_exact(x):
    adjusted = stats.max_t(x, seed=0, n_resamples=100)
    assert np.allclose(adjusted, brute_max_t(x))
    assert np.all(adjusted >= stats.sign_flip_test(x, seed=0, n_resamples=100) - 1e-12)


def test_max_t_flips_clusters_together():
    x = np.repeat(draw(6).normal(1, 1, size=(8, 3)), 4, axis=0)
    labels = np.repeat(np.arange(8), 4)
    assert np.allclose(stats.max_t(x, clusters=labels, seed=0), stats.max_t(x[::4], seed=0))


@given(st.lists(small_ints, min_size=1, max_size=40), small_ints)
@settings(max_examples=80, deadline=None)
def test_empirical_p(null, value):
    n = len(null)
    greater, less = stats.empirical_p(value, null), stats.empirical_p(value, null, "less")
    assert greater == (1 + sum(v >= value for v in null)) / (n + 1) > 0
    assert less == (1 + sum(v <= value for v in null)) / (n + 1) > 0
    assert stats.empirical_p(value, null, "two-sided") == min(1.0, 2 * min(greater, less))
    assert stats.empirical_p([value, value + 1], null)[1] <= greater


def test_empirical_p_holds_its_level():
    rng = draw(7)
    p = np.array([stats.empirical_p(rng.normal(), rng.normal(size=39)) for _ in range(3000)])
    assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.012)


def auc_by_pairs(x, y):
    x, y = np.asarray(x), np.asarray(y)
    return np.mean((x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :]))


scores = st.lists(small_ints, min_size=2, max_size=15)


@given(scores, scores)
@settings(max_examples=80, deadline=None)
def test_auc_is_the_share_of_pairs(x, y):
    e, swapped = stats.auc(x, y), stats.auc(y, x)
    assert e.value == pytest.approx(auc_by_pairs(x, y))
    assert 0 <= e.low <= e.value + 1e-12 and e.value - 1e-12 <= e.high <= 1 and e.low < e.high
    assert np.allclose([1 - swapped.value, 1 - swapped.high, 1 - swapped.low], [e.value, e.low, e.high])


@pytest.mark.parametrize(("separation", "m", "n"), [(0.0, 20, 20), (1.0, 15, 40), (2.5, 20, 20)])
def test_auc_interval_covers(separation, m, n):
    rng = draw(m)
    truth = sps.norm.cdf(separation / math.sqrt(2))
    hits = []
    for _ in range(1000):
        e = stats.auc(rng.normal(separation, 1, m), rng.normal(0, 1, n))
        hits.append(e.low <= truth <= e.high)
    assert np.mean(hits) >= 0.91


def test_auc_of_classes_apart_is_not_certain():
    e = stats.auc([3.0, 4.0, 5.0], [0.0, 1.0, 2.0])
    assert e.value == 1 and e.high == 1 and 0.3 < e.low < 0.8 and "Newcombe" in e.method
    assert stats.auc(np.arange(50) + 100.0, np.arange(50)).low > 0.9
    assert not stats.auc([1.0], [0.0, 2.0]).has_interval


def test_power_rises_and_stays_at_the_level_without_effect():
    none, some, much = (stats.power_sign_flip(r, 10, n_simulations=400) for r in (0.0, 0.6, 1.5))
    assert none.low <= 0.05 and none.value <= 0.09
    assert none.value < some.value < much.value and much.value > 0.95
    exact = sps.nct.sf(sps.t.ppf(0.975, 9), 9, 0.6 * math.sqrt(10))
    assert some.value == pytest.approx(exact, abs=0.08)
    with pytest.raises(ConfigError):
        stats.power_sign_flip(math.nan, 10)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [-math.inf]])
def test_bad_samples_are_refused(bad):
    for make in (
        lambda: stats.sign_flip_test(bad, seed=0),
        lambda: stats.cluster_sign_flip(bad, range(len(bad)), seed=0),
        lambda: stats.paired_permutation(bad, bad, seed=0),
        lambda: stats.max_t([bad], seed=0),
        lambda: stats.empirical_p(0.0, bad),
        lambda: stats.auc(bad, [1.0]),
        lambda: stats.auc([1.0], bad),
    ):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(ConfigError, match="value"):
        stats.empirical_p(math.nan, [1.0])
    with pytest.raises(ConfigError, match="alternative"):
        stats.empirical_p(1.0, [1.0], "bigger")  # type: ignore[call-overload]


def test_chunks_do_not_change_the_answer(monkeypatch):
    from symbolic_residue.stats import _tests

    x = draw(8).normal(0.2, 1, size=(10, 6))
    whole, family = stats.sign_flip_test(x, seed=3), stats.max_t(x, seed=3)
    monkeypatch.setattr(_tests, "CHUNK", 100)
    assert np.array_equal(whole, stats.sign_flip_test(x, seed=3)) and np.array_equal(family, stats.max_t(x, seed=3))
