"""Overlap of what shells blame: exact null against enumeration, false positives, planted overlap."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.shells.across import leading, overlap_in_a_row, overlap_of_leaders, overlap_of_several, overlap_within_layers
from symbolic_residue.shells.across._overlap import blamed


def mask(n: int, *at: int) -> np.ndarray:
    out = np.zeros(n, bool)
    out[list(at)] = True
    return out


def test_the_exact_null_is_the_enumerated_one() -> None:
    """Two layers of four and three units: every placement of the second set with the same numbers in each layer."""
    layers = [0, 0, 0, 0, 1, 1, 1]
    first, second = mask(7, 0, 1, 4, 5), mask(7, 0, 2, 5)
    counts = [
        int(first[[*a, *b]].sum()) for a in combinations(range(4), 2) for b in combinations(range(4, 7), 1)
    ]  # fmt: skip
    got = overlap_within_layers(first, second, layers)
    assert got.shared == 2
    assert got.expected == pytest.approx(np.mean(counts))
    assert got.p == pytest.approx(np.mean([c >= 2 for c in counts]))
    assert got.low <= got.expected <= got.high


def test_one_layer_is_the_hypergeometric_test() -> None:
    first, second = mask(20, *range(6)), mask(20, *range(3, 9))
    assert overlap_within_layers(first, second, [0] * 20).p == pytest.approx(float(sps.hypergeom.sf(2, 20, 6, 6)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 8))
def test_the_test_is_symmetric_and_its_p_is_a_probability(seed: int, n_layers: int, n_heads: int) -> None:
    rng = np.random.default_rng(seed)
    n = n_layers * n_heads
    layers = np.repeat(np.arange(n_layers), n_heads).tolist()
    first, second = rng.random(n) < 0.3, rng.random(n) < 0.3
    a, b = overlap_within_layers(first, second, layers), overlap_within_layers(second, first, layers)
    assert a.p == pytest.approx(b.p)
    assert 0 <= a.p <= 1 + 1e-9
    ring = overlap_in_a_row(first, second)
    assert ring.p == pytest.approx(overlap_in_a_row(second, first).p)
    assert ring.p >= 1 / n - 1e-12
    assert ring.expected == pytest.approx(first.sum() * second.sum() / n)


def late_scores(rng: np.random.Generator, n_layers: int = 12, n_heads: int = 8) -> np.ndarray:
    """Scores of unrelated shells that all grow with depth, as heads' outputs do."""
    depth = np.repeat(np.arange(n_layers), n_heads)
    return rng.gamma(1.0, 1.0, n_layers * n_heads) * np.exp(0.4 * depth)


def test_false_positive_rate_where_every_shell_blames_late_layers() -> None:
    """At most 5 % over 400 pairs that share nothing but depth; the same pairs look shared to a test without layers."""
    rng = np.random.default_rng(0)
    layers = np.repeat(np.arange(12), 8).tolist()
    within, plain = [], []
    for _ in range(400):
        sets = [blamed(late_scores(rng), 0.1) for _ in range(2)]
        within.append(overlap_within_layers(*sets, layers).p)
        plain.append(overlap_within_layers(*sets, [0] * 96).p)
    assert np.mean(np.array(within) <= 0.05) <= 0.05
    assert np.mean(np.array(plain) <= 0.05) > 0.3


def test_false_positive_rate_of_three_shells_together_and_of_a_row() -> None:
    rng = np.random.default_rng(1)
    layers = np.repeat(np.arange(12), 8).tolist()
    several = [
        overlap_of_several([blamed(late_scores(rng), 0.1) for _ in range(3)], layers, seed=i, n_draws=499).p for i in range(200)
    ]
    assert np.mean(np.array(several) <= 0.05) <= 0.08  # 5 % and its binomial spread at 200
    ring = []
    for _ in range(400):  # smooth profiles with a random peak
        profiles = [np.convolve(rng.random(60), np.ones(5), "same")[10:50] for _ in range(2)]
        ring.append(overlap_in_a_row(*(blamed(p, 0.2) for p in profiles)).p)
    assert np.mean(np.array(ring) <= 0.05) <= 0.075


def test_planted_overlap_is_found() -> None:
    rng = np.random.default_rng(2)
    layers = np.repeat(np.arange(12), 8).tolist()
    common = rng.permutation(96)[:6]
    sets = []
    for _ in range(3):
        score = late_scores(rng)
        score[common] += 1e6
        sets.append(blamed(score, 0.1))
    assert overlap_within_layers(sets[0], sets[1], layers).p < 0.01
    assert overlap_of_several(sets, layers, seed=0, n_draws=999).p < 0.01
    assert overlap_in_a_row(mask(30, 3, 4, 5), mask(30, 3, 4, 5)).p == pytest.approx(1 / 30)


DEPTH = np.repeat(np.arange(30), 9)


def test_the_leading_head_is_ranked_over_its_layer() -> None:
    """Layer 1 is a hundred times as large as layer 0; the head that stands out of its own layer leads all the same."""
    first = np.array([1.0, 1.0, 9.0, 100.0, 120.0, 90.0])
    second = np.array([2.0, 2.0, 30.0, 500.0, 400.0, 450.0])
    a, b = leading(first, second, [0, 0, 0, 1, 1, 1])
    assert a.tolist() == b.tolist() == [False, False, True, False, False, False]
    apart = np.array([9.0, 1.0, 1.0, 100.0, 120.0, 90.0])  # first: head 0 leads, then head 4 (1.2), 3 and 1 and 2 (1.0)
    a, b = leading(apart, second, [0, 0, 0, 1, 1, 1])
    assert (a & b).any() and a.sum() >= 2
    none, _ = leading(np.zeros(6), second, [0, 0, 0, 1, 1, 1])
    assert not none.any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_the_chance_of_a_leading_head_is_that_of_drawn_sets(seed: int, k: int) -> None:
    """p against draws of both sets within thirds of the depth."""
    rng = np.random.default_rng(seed)
    first, second = rng.random(270) < k / 270, rng.random(270) < k / 270
    at = int(rng.integers(270))
    first[at] = second[at] = True
    band = DEPTH * 3 // 30
    drawn = []
    for _ in range(400):
        other = np.zeros(270, bool)
        for one in range(3):
            here = np.flatnonzero(band == one)
            other[rng.permutation(here)[: int(second[here].sum())]] = True
        drawn.append((first & other).any())
    found = overlap_of_leaders(first, second, DEPTH.tolist())
    assert abs(found.p - np.mean(drawn)) < 0.09
    assert found.least == pytest.approx(1 / 90) or found.least == found.p
    assert overlap_of_leaders(mask(270, 1), mask(270, 200), DEPTH.tolist()).p == 1.0


def test_false_positive_rate_of_the_leading_head() -> None:
    """At most 5 % where layers differ in size, smoothly or by jumps, and where the tails grow threefold with depth."""
    rng = np.random.default_rng(3)
    jumps = np.exp(rng.normal(0, 1.5, 30))[DEPTH]
    kinds = {
        "growing": lambda: rng.gamma(1, 1, 270) * np.exp(0.15 * DEPTH),
        "jumping": lambda: rng.gamma(1, 1, 270) * jumps,
        "heavier": lambda: np.exp(rng.normal(0, 1, 270) * (0.5 + DEPTH / 30)),
    }
    for name, draw in kinds.items():
        p = []
        for _ in range(300):
            p.append(overlap_of_leaders(*leading(draw(), draw(), DEPTH.tolist()), DEPTH.tolist()).p)
        assert np.mean(np.array(p) <= 0.05) <= 0.075, name  # 5 % and its binomial spread at 300


def test_the_least_p_is_one_that_sets_can_reach() -> None:
    layers = [0] * 9 + [1] * 9
    found = overlap_within_layers(mask(18, 0), mask(18, 1), layers)
    assert (found.shared, found.p, found.least) == (0, 1.0, pytest.approx(1 / 9))
    two = overlap_within_layers(mask(18, 0, 9), mask(18, 0, 9), layers)
    assert two.p == two.least == pytest.approx(1 / 81)
    assert overlap_in_a_row(mask(30, 3), mask(30, 20)).least == pytest.approx(1 / 30)
    assert overlap_within_layers(mask(2, 0), mask(2, 0, 1), [0, 0]).least == 1.0


def test_sets_hold_the_share_and_nothing_that_scored_zero() -> None:
    assert blamed(np.array([3.0, np.nan, 2.0, 0.0, 1.0]), 0.4).tolist() == [True, False, True, False, False]
    assert not blamed(np.zeros(5), 0.4).any()
    assert blamed(np.ones(100), 0.05).sum() == 5
    with pytest.raises(ConfigError):
        blamed(np.ones(5), 1.0)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError):
        overlap_within_layers(mask(4, 0), mask(5, 0), [0] * 4)
    with pytest.raises(ConfigError):
        overlap_of_several([mask(4, 0)], None, seed=0)
    with pytest.raises(ConfigError):
        overlap_in_a_row(np.zeros(0, bool), np.zeros(0, bool))
