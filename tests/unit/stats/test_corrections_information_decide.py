"""Corrections, divergences, criteria and verdicts."""

import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings
from scipy import stats as sps

from symbolic_residue import stats
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import Estimate

p_values = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1))


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@given(p_values, st.randoms(use_true_random=False))
def test_corrections_are_monotone_larger_and_keep_order(p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    for correct in (stats.benjamini_hochberg, stats.holm):
        adjusted = correct(p)
        assert np.all(adjusted >= p) and np.all(adjusted <= 1)
        assert np.all(np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0)
        assert np.array_equal(correct(p[order]), adjusted[order])
    assert np.all(stats.holm(p) >= stats.benjamini_hochberg(p) - 1e-12)


@given(p_values)
def test_benjamini_hochberg_agrees_with_scipy(p):
    assert np.allclose(stats.benjamini_hochberg(p), sps.false_discovery_control(p, method="bh"))


@given(p_values, st.floats(0.01, 0.5))
def test_holm_rejects_as_its_steps_do(p, alpha):
    order, rejected = np.argsort(p, kind="stable"), np.zeros(len(p), bool)
    assume(all(abs(p[i] * (len(p) - j) - alpha) > 1e-9 for j, i in enumerate(order)))
    for step, index in enumerate(order):
        if p[index] * (len(p) - step) > alpha:
            break
        rejected[index] = True
    assert np.array_equal(stats.holm(p) <= alpha, rejected)


def test_false_discoveries_and_family_wise_errors_are_held():
    rng = draw(1)
    fdr, fwer, power = [], [], []
    for _ in range(600):
        z = rng.normal(size=60)
        z[:15] += 3.5
        p = 2 * sps.norm.sf(np.abs(z))
        called = stats.benjamini_hochberg(p) <= 0.1
        fdr.append(called[15:].sum() / max(1, called.sum()))
        power.append(called[:15].mean())
        fwer.append(np.any(stats.holm(p)[15:] <= 0.1))
    assert np.mean(fdr) <= 0.1 and np.mean(fwer) <= 0.13
    assert np.mean(power) > 0.7 and np.mean(fdr) > 0.04  # neither holds by never calling anything


@pytest.mark.parametrize("bad", [[], [0.5, math.nan], [-0.1], [1.1]])
def test_corrections_refuse_what_is_no_probability(bad):
    for correct in (stats.benjamini_hochberg, stats.holm):
        with pytest.raises(ConfigError, match="p "):
            correct(bad)


@st.composite
def distributions(draw_, count: int = 2):
    n = draw_(st.integers(1, 12))
    weights = [draw_(hnp.arrays(np.float64, n, elements=st.floats(0, 1) | st.just(0.0))) for _ in range(count)]
    for w in weights:
        assume(w.sum() > 1e-6)
    return [w / w.sum() for w in weights]


@given(distributions())
@settings(max_examples=200)
def test_divergence_bounds(pq):
    p, q = pq
    js = stats.js_divergence(p, q)
    assert 0 <= js <= math.log(2) and js == pytest.approx(stats.js_divergence(q, p), abs=1e-15)
    assert stats.js_divergence(p, p) == 0 and stats.kl_divergence(p, p) == 0
    assert 0 <= stats.entropy(p) <= math.log(len(p))
    assert stats.kl_divergence(p, q) >= 2 * (np.abs(p - q).sum() / 2) ** 2 - 1e-9  # Pinsker
    m = (p + q) / 2
    assert js == pytest.approx(float(stats.entropy(m) - (stats.entropy(p) + stats.entropy(q)) / 2), abs=1e-9)


def test_divergence_known_values_and_axes():
    p, q = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.25, 0.75]])
    assert stats.js_divergence(p, q).shape == (2,) and stats.js_divergence(p, q)[0] == pytest.approx(math.log(2))
    assert stats.kl_divergence(p, q)[0] == math.inf
    assert stats.kl_divergence(p, q)[1] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75))
    assert stats.entropy(np.full((2, 3, 4), 0.25)).shape == (2, 3)
    assert stats.js_divergence(p, [0.5, 0.5]).shape == (2,)
    assert stats.js_divergence([5e-324, 1.0], [0.0, 1.0]) == pytest.approx(0.0, abs=1e-300)


def test_divergence_takes_float32_softmax():
    x = np.exp(draw(0).normal(size=50_000).astype(np.float32))
    p = x / x.sum(dtype=np.float32)
    assert p.dtype == np.float32
    assert stats.js_divergence(p, p * np.float32(1.0002)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("bad", [[0.5, 0.6], [1.5, -0.5], [math.nan, 1.0], [], 1.0, [0.0, 0.0]])
def test_divergence_refuses_what_is_no_distribution(bad):
    for make in (stats.entropy, lambda v: stats.js_divergence(v, [0.5, 0.5]), lambda v: stats.kl_divergence([0.5, 0.5], v)):
        with pytest.raises(ConfigError):
            make(bad)


def test_divergence_refuses_unlike_shapes():
    with pytest.raises(ConfigError, match="outcomes"):
        stats.js_divergence([1.0], [0.5, 0.5])
    with pytest.raises(ConfigError, match="axes before the last"):
        stats.js_divergence(np.full((2, 2), 0.5), np.full((3, 2), 0.5))


@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=st.integers(-9, 9).map(float)),
    st.floats(0, 0.99),
    st.sampled_from(["above", "below"]),
)
@settings(max_examples=200)
def test_criterion_is_exceeded_by_at_most_the_rate_and_is_the_smallest_such(null, rate, direction):
    threshold = stats.quantile_criterion(null, rate, direction=direction)
    x, t = (null, threshold) if direction == "above" else (-null, -threshold)
    allowed = math.floor(rate * len(null) + 1e-9)
    assert threshold in null and np.sum(x > t) <= allowed
    assert all(np.sum(x > smaller) > allowed for smaller in x[x < t])


def test_criterion_counts_products_that_binary_rounds_down():
    assert np.sum(np.arange(100.0) > stats.quantile_criterion(np.arange(100.0), 0.29)) == 29


@pytest.mark.parametrize("n", [10, 20, 59, 200])
def test_criterion_keeps_its_promise_on_new_data(n):
    rng = draw(n)
    null, new = rng.normal(size=(4000, n)), rng.normal(size=4000)
    thresholds = np.array([stats.quantile_criterion(row, 0.05) for row in null])
    promise = (math.floor(0.05 * n) + 1) / (n + 1)
    assert np.mean(new > thresholds) == pytest.approx(promise, abs=3.3 * math.sqrt(promise / 4000))


@pytest.mark.parametrize(("null", "rate"), [([], 0.05), ([math.nan], 0.05), ([1.0], 1.0), ([1.0], -0.1), ([1.0], math.nan)])
def test_criterion_refuses(null, rate):
    with pytest.raises(ConfigError):
        stats.quantile_criterion(null, rate)


@pytest.mark.parametrize(
    ("low", "high", "direction", "outcome"),
    [
        (1.1, 2.0, "above", "fires"),
        (0.1, 0.9, "above", "absent"),
        (0.9, 1.1, "above", "undecided"),
        (1.0, 1.1, "above", "undecided"),
        (1.1, 2.0, "below", "absent"),
        (0.1, 0.9, "below", "fires"),
        (0.9, 1.0, "below", "undecided"),
        (math.nan, math.nan, "above", "undecided"),
        (math.nan, math.nan, "below", "undecided"),
    ],
)
def test_decide(low, high, direction, outcome):
    assert stats.decide(Estimate(5.0, low, high, 9), 1.0, direction) == outcome


def test_decide_refuses():
    e = Estimate(1.0, 0.5, 1.5, 9)
    with pytest.raises(ConfigError, match="criterion"):
        stats.decide(e, math.nan)
    with pytest.raises(ConfigError, match="direction"):
        stats.decide(e, 1.0, "up")  # type: ignore[arg-type]


def test_verdicts_on_null_runs_fire_at_most_at_the_rate():
    rng = draw(11)
    fired = 0
    for i in range(300):
        criterion = stats.quantile_criterion(rng.normal(size=(99, 12)).mean(axis=1), 0.05)
        fired += stats.decide(stats.bootstrap_mean(rng.normal(size=12), seed=i, n_resamples=200), criterion) == "fires"
    assert fired / 300 <= 0.05
