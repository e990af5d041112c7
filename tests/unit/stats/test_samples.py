"""Two clustered samples and detectable effects: coverage, power, and the plain cases by hand."""

from __future__ import annotations

import numpy as np
import pytest

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import bootstrap_columns, cluster_sign_flip, detectable_effect, two_sample_columns


def test_the_interval_covers_a_difference_of_clustered_samples() -> None:
    rng, held, n = np.random.default_rng(0), 0, 300
    for seed in range(n):
        shared = rng.normal(0, 1, 14)
        a = np.concatenate([shared[c] + rng.normal(0.5, 0.3, 3) for c in range(14)])[:, None]
        b = np.concatenate([shared[c] + rng.normal(0.0, 0.3, 2) for c in range(14)])[:, None]
        labels = [f"c{c}" for c in range(14) for _ in range(3)], [f"c{c}" for c in range(14) for _ in range(2)]
        value, low, high = two_sample_columns(a, b, clusters=labels, seed=seed, n_resamples=400)
        held += bool(low[0] <= 0.5 <= high[0])
        if seed == 0:
            # Clusters that both share cancel: far narrower than two samples that know nothing of each other.
            _, apart_low, apart_high = two_sample_columns(
                a, b, clusters=(labels[0], [f"d{c}" for c in labels[1]]), seed=0, n_resamples=400
            )
            assert high[0] - low[0] < 0.5 * (apart_high[0] - apart_low[0])
        assert value[0] == pytest.approx(a.mean() - b.mean())
    assert 0.92 <= held / n <= 0.985


@pytest.mark.parametrize("n", [6, 12, 20])
@pytest.mark.parametrize("apart", [0.0, 0.5, 1.0])
def test_coverage_at_few_and_unequal_clusters(n: int, apart: float) -> None:
    """Samples that share all, half or none of their clusters, of 1 to n rows; 2,000 studies: the standard error of 95 % is .5 points."""
    rng = np.random.default_rng(n)
    first, second = np.arange(n), np.arange(n) + int(apart * n)
    a, b = np.repeat(first, np.arange(1, n + 1)), np.repeat(second, np.arange(n, 0, -1))
    both, own = rng.normal(size=(2 * n, 2000)), rng.normal(size=(2, 2 * n, 2000))
    x, y = (0.7 * both[c] + 0.5 * own[i][c] + 0.5 * rng.normal(size=(len(c), 2000)) for i, c in enumerate((a, b)))
    _, low, high = two_sample_columns(x, y, clusters=(a, b), seed=1, n_resamples=1000)
    assert 0.927 <= np.mean((low <= 0) & (high >= 0)) <= 0.985


def test_one_sample_of_zeros_is_the_bootstrap_of_the_other() -> None:
    x = np.random.default_rng(1).normal(size=(40, 2))
    _, low, high = two_sample_columns(x, np.zeros((40, 2)), clusters=(range(40), range(40)), seed=3, n_resamples=4000)
    _, low1, high1 = bootstrap_columns(x, seed=5, n_resamples=4000)
    assert low == pytest.approx(low1, abs=0.05)
    assert high == pytest.approx(high1, abs=0.05)


def test_too_few_clusters() -> None:
    x = np.arange(6.0)[:, None]
    assert np.isnan(two_sample_columns(x, x, clusters=(["a"] * 6, list("bcdefg")), seed=0)[1]).all()
    _, low, high = two_sample_columns(x, x + 1, clusters=(list("aabbcc"), list("ddeeff")), seed=0)
    assert low[0] < -1 < high[0]
    assert np.isnan(detectable_effect(x, clusters=["a"] * 6)).all()


def test_a_detectable_effect_is_detected_in_four_of_five() -> None:
    rng = np.random.default_rng(2)
    n, clusters = 400, np.repeat(np.arange(16), 3)
    noise = rng.normal(0, 1, size=(16, n))[clusters] + rng.normal(0, 0.3, size=(48, n))
    size = np.sqrt(1 + 0.09 / 3) / 4 * (2.131 + 0.866)  # t(.975, 15) + t(.8, 15)
    assert detectable_effect(noise, clusters=clusters).mean() == pytest.approx(size, rel=0.05)
    p = cluster_sign_flip(noise + size, clusters, seed=0, n_resamples=1000)
    assert 0.72 <= (p <= 0.05).mean() <= 0.88


def test_refusals() -> None:
    x = np.ones((4, 2))
    with pytest.raises(ConfigError, match="columns"):
        two_sample_columns(x, np.ones((4, 3)), seed=0)
    with pytest.raises(ConfigError, match="one label a row"):
        two_sample_columns(x, x, clusters=(["a"], ["b"] * 4), seed=0)
    with pytest.raises(ConfigError, match="NaN"):
        detectable_effect(x * np.nan)
    with pytest.raises(ConfigError, match="level"):
        detectable_effect(x, power=1.5)
