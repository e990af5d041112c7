"""Intervals are tested for what they promise: coverage, invariance, and refusal of what has no meaning."""

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from symbolic_residue import stats
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import Estimate

finite = st.floats(-1e6, 1e6, allow_nan=False)


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def covered(estimates: list[Estimate], truth: float) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in estimates]))


def test_estimate_sides():
    e = Estimate(1.0, 0.5, 1.5, 10)
    assert e.above(0.4) and not e.above(0.5) and not e.below(1.5) and e.below(1.6)
    assert e.excludes(0.4) and e.excludes(1.6) and not e.excludes(1.0)
    none = Estimate(1.0, math.nan, math.nan, 1)
    assert not none.has_interval and not (none.above(0) or none.below(9) or none.excludes(9))


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (math.nan, 1.0), (1.0, math.nan)])
def test_estimate_refuses_half_intervals(low, high):
    with pytest.raises(ConfigError, match="no interval"):
        Estimate(1.0, low, high, 3)


@pytest.mark.parametrize("n", [2, 3, 5, 6, 20])
def test_mean_intervals_cover_normal_means(n):
    x = draw(n).normal(3.0, 2.0, size=(n, 4000))
    value, low, high = stats.bootstrap_columns(x, seed=1, n_resamples=1000)
    assert np.allclose(value, x.mean(axis=0))
    assert 0.91 <= np.mean((low <= 3) & (high >= 3)) <= 0.99
    assert 0.93 <= covered([stats.t_interval(column) for column in x.T[:1500]], 3.0) <= 0.97


def test_mean_interval_covers_skewed_means():
    x = draw(5).exponential(1.0, size=(30, 4000))
    _, low, high = stats.bootstrap_columns(x, seed=1, n_resamples=1000)
    assert np.mean((low <= 1) & (high >= 1)) >= 0.91


def test_level_is_the_coverage():
    x = draw(6).normal(0.0, 1.0, size=(40, 4000))
    for level in (0.5, 0.8, 0.99):
        _, low, high = stats.bootstrap_columns(x, seed=1, level=level)
        assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(level, abs=0.03)


@pytest.mark.parametrize("n", [6, 9, 25])
def test_median_interval_covers(n):
    rng = draw(n)
    estimates = [stats.bootstrap_median(rng.standard_t(3, size=n), seed=i, n_resamples=400) for i in range(400)]
    assert covered(estimates, 0.0) >= 0.91


def clustered(rng: np.random.Generator, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise around 0 where most of the spread is shared by a cluster; clusters of 1 to 9 values."""
    sizes = rng.integers(1, 10, size=n_clusters)
    labels = np.repeat(np.arange(n_clusters), sizes)
    return rng.normal(0, 1, n_clusters)[labels] + rng.normal(0, 0.3, len(labels)), labels


@pytest.mark.parametrize("n_clusters", [4, 12, 40])
def test_cluster_intervals_hold_where_naive_ones_fail(n_clusters):
    rng = draw(n_clusters)
    data = [clustered(rng, n_clusters) for _ in range(400)]
    clusterwise = [stats.cluster_bootstrap(x, c, seed=i, n_resamples=400) for i, (x, c) in enumerate(data)]
    naive = [stats.bootstrap_mean(x, seed=i, n_resamples=400) for i, (x, _) in enumerate(data)]
    assert covered(clusterwise, 0.0) >= (0.9 if n_clusters < 6 else 0.91)
    assert covered(naive, 0.0) < 0.75
    assert all(e.n == n_clusters for e in clusterwise)


def test_cluster_median_covers():
    rng = draw(3)
    data = [clustered(rng, 30) for _ in range(300)]
    assert covered([stats.cluster_bootstrap(x, c, seed=1, statistic="median", n_resamples=300) for x, c in data], 0.0) >= 0.91


def test_columns_know_clusters():
    rng = draw(9)
    x, labels = clustered(rng, 15)
    value, low, high = stats.bootstrap_columns(np.stack([x, -x], axis=1), clusters=labels, seed=4)
    one = stats.cluster_bootstrap(x, labels, seed=4)
    assert value[0] == pytest.approx(one.value) and low[0] == pytest.approx(one.low) and high[0] == pytest.approx(one.high)
    assert value[1] == -value[0] and low[1] == pytest.approx(-high[0], abs=0.05)


def test_one_unit_has_no_interval():
    for e in (
        stats.t_interval([2.0]),
        stats.bootstrap_mean([2.0], seed=0),
        stats.bootstrap_median([2.0], seed=0),
        stats.cluster_bootstrap([2.0, 2.0, 2.0], ["a", "a", "a"], seed=0),
    ):
        assert e.value == 2 and e.n == 1 and math.isnan(e.low) and math.isnan(e.high) and e.method.startswith("none")
    assert stats.bootstrap_median([1.0, 2.0, 3.0], seed=0).method.startswith("none: 3 values")
    _, low, high = stats.bootstrap_columns([[1.0, 2.0]], seed=0)
    assert np.isnan(low).all() and np.isnan(high).all()


@given(hnp.arrays(np.float64, st.integers(1, 30), elements=finite), st.randoms(use_true_random=False), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_order_of_values_does_not_matter(x, random, seed):
    order = list(range(len(x)))
    random.shuffle(order)
    labels = np.array([i % 3 for i in range(len(x))])
    for make in (
        lambda i: stats.bootstrap_mean(x[i], seed=seed, n_resamples=100),
        lambda i: stats.bootstrap_median(x[i], seed=seed, n_resamples=100),
        lambda i: stats.cluster_bootstrap(x[i], labels[i], seed=seed, n_resamples=100),
        lambda i: stats.t_interval(x[i]),
    ):
        a, b = make(np.arange(len(x))), make(np.array(order))
        assert np.allclose([a.value, a.low, a.high], [b.value, b.low, b.high], rtol=1e-9, atol=1e-6, equal_nan=True)


@given(hnp.arrays(np.float64, st.integers(6, 30), elements=finite), st.floats(-100, 100), st.floats(0.1, 10))
@settings(max_examples=50, deadline=None)
def test_intervals_move_with_the_values(x, shift, scale):
    for make in (stats.bootstrap_mean, stats.bootstrap_median):
        a, b = make(x, seed=2, n_resamples=100), make(x * scale + shift, seed=2, n_resamples=100)
        assert np.allclose([b.value, b.low, b.high], np.array([a.value, a.low, a.high]) * scale + shift, rtol=1e-7, atol=1e-4)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_weighted_median_is_the_median_of_the_repeated_values(weights, seed):
    from symbolic_residue.stats._bootstrap import _weighted_median

    x = np.sort(draw(seed).normal(size=len(weights)))
    w = np.array(weights) - (1 if max(weights) > 1 else 0)  # some weights 0, but not all
    expected = np.median(np.repeat(x, w))
    assert _weighted_median(x, w[None, :].astype(float))[0] == pytest.approx(expected)


@pytest.mark.parametrize("p", [0.02, 0.5, 0.97])
def test_wilson_covers_near_the_ends(p):
    rng = draw(1)
    estimates = [stats.wilson(int(k), 40) for k in rng.binomial(40, p, size=2000)]
    assert covered(estimates, p) >= 0.91
    assert all(0 <= e.low <= e.value <= e.high <= 1 for e in estimates)


def test_wilson_known_value():
    e = stats.wilson(8, 10)  # from the formula by hand, z = 1.959964
    assert (round(e.low, 4), round(e.high, 4)) == (0.4902, 0.9433)


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf, 1.0], [[1.0], [2.0]], ["a"], 3.0])
def test_what_is_no_sample_is_refused(bad):
    for make in (
        stats.t_interval,
        lambda v: stats.bootstrap_mean(v, seed=0),
        lambda v: stats.bootstrap_median(v, seed=0),
        lambda v: stats.cluster_bootstrap(v, [0, 1], seed=0),
    ):
        with pytest.raises(ConfigError, match="values"):
            make(bad)


def test_refusal_says_how_many_values_are_bad():
    with pytest.raises(ConfigError, match="2 of 3 values that are NaN or infinite"):
        stats.bootstrap_mean([1.0, math.nan, math.inf], seed=0)


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 0.5}, {"seed": True}, {"level": 1.0}, {"level": 0}, {"n_resamples": 9}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError):
        stats.bootstrap_mean([1.0, 2.0, 3.0], **({"seed": 0} | options))


def test_cluster_labels_must_match():
    with pytest.raises(ConfigError, match="label"):
        stats.cluster_bootstrap([1.0, 2.0], ["a"], seed=0)
    with pytest.raises(ConfigError, match="label is NaN"):
        stats.cluster_bootstrap([1.0, 2.0], [0.0, math.nan], seed=0)
    with pytest.raises(ConfigError, match="statistic"):
        stats.cluster_bootstrap([1.0, 2.0], ["a", "b"], seed=0, statistic="mode")  # type: ignore[arg-type]
    for successes, n in ((1, 0), (-1, 3), (4, 3), (0.5, 3)):
        with pytest.raises(ConfigError, match="proportion"):
            stats.wilson(successes, n)


def test_large_samples_are_chunked_alike(monkeypatch):
    from symbolic_residue.stats import _bootstrap, _units

    x = draw(0).normal(size=(50, 7))
    whole = stats.bootstrap_columns(x, seed=3, n_resamples=500)
    for module in (_bootstrap, _units):
        monkeypatch.setattr(module, "CHUNK", 1000)
    for a, b in zip(whole, stats.bootstrap_columns(x, seed=3, n_resamples=500), strict=True):
        assert np.allclose(a, b)


# ------------------------------------------------------------------ ratios of means


def test_a_ratio_covers_the_true_share() -> None:
    rng = np.random.default_rng(0)
    for n in (4, 12):
        hits = 0
        for seed in range(300):
            total = rng.normal(5, 1, n)
            part = 0.4 * total + rng.normal(0, 0.5, n)
            _, low, high = stats.bootstrap_ratio(part[:, None], total, seed=seed, n_resamples=300)
            hits += bool(low[0] <= 0.4 <= high[0])
        assert 0.91 <= hits / 300 <= 0.985


def test_a_ratio_by_hand_and_without_a_total() -> None:
    x, y = np.array([[1.0, 2.0], [3.0, 6.0]] * 4), np.array([2.0, 6.0] * 4)
    value, low, high = stats.bootstrap_ratio(x, y, seed=0)
    assert value.tolist() == [0.5, 1.0]
    assert low == pytest.approx([0.5, 1.0])
    assert high == pytest.approx([0.5, 1.0])
    few = stats.bootstrap_ratio(x[:3] + np.array([[0.1], [0], [0]]), y[:3] + 4, seed=0)
    assert few[1][0] < few[0][0] < few[2][0]
    for total in (np.array([1.0, -1.0] * 4), np.array([0.1, 3, -2, 1, 0, -1, 2, 0])):
        assert np.isnan(stats.bootstrap_ratio(x, total, seed=0)).all()
    assert np.isnan(stats.bootstrap_ratio(x, y, seed=0, clusters=["a"] * 8)).all()
    doubled = stats.bootstrap_ratio(2 * x, 2 * y, seed=0)
    assert doubled[0] == pytest.approx(value)
    with pytest.raises(ConfigError, match="numerators"):
        stats.bootstrap_ratio(x, y[:3], seed=0)


@given(st.floats(allow_nan=True), st.floats(-10, 0), st.floats(0, 10))
def test_a_bound_is_null_or_within_its_range(x, least, most):
    found = stats.bound(np.float64(x), least, most)
    if math.isnan(x):
        assert found is None
    else:
        assert isinstance(found, float)
        assert found == (x if least <= x <= most else least if x < least else most)
        assert stats.bound(x) == x
