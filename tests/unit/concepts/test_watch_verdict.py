"""Verdicts on watched texts, on made arrays: tokens that depend on each other, planted shifts, none, and texts that differ in every direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from symbolic_residue.concepts._watch_verdict import (
    _rank,
    _run_means,
    _spread,
    _welch,
    judge_watch,
    MARGIN,
    THRESHOLD,
    WatchVerdict,
)
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import wilson

TRACKS, CONTROLS = 6, 99


def text(rng: np.random.Generator, n: int, columns: int, shift: float = 0.0) -> Any:
    """Tokens that follow each other (correlation .8) about a level of the text's own."""
    noise = rng.normal(size=(n, columns))
    z = np.empty_like(noise)
    z[0] = noise[0]
    for i in range(1, n):
        z[i] = 0.8 * z[i - 1] + 0.6 * noise[i]
    return 0.9 * z + 0.4 * rng.normal(size=columns) + shift


def world(
    seed: int, n_prompts: int = 1, draws: int = 1, planted: float = 0.0, general: float = 0.0, tokens: int = 40
) -> list[WatchVerdict]:
    """24 neutral tellings; the concept of track 2 is raised by ``planted``, every direction (controls too) by ``general``."""
    rng = np.random.default_rng(seed)
    neutral = [text(rng, int(rng.integers(40, 60)), TRACKS) for _ in range(24)]
    texts, means, shares = [], [], []
    for _ in range(n_prompts):
        own = text(rng, 1, TRACKS)[0] * 0.3
        rows: Any = ([], [], [])
        for _ in range(draws):
            z = text(rng, tokens, TRACKS) + own + general
            z[:, 2] += planted
            control = text(rng, tokens, TRACKS * CONTROLS).reshape(tokens, TRACKS, CONTROLS) + general
            rows[0].append(z)
            rows[1].append(control.mean(0))
            rows[2].append((control >= THRESHOLD).mean((0, 2)))
        texts.append(rows[0])
        means.append(rows[1])
        shares.append(rows[2])
    return judge_watch(neutral, texts, means, shares)


@pytest.mark.parametrize(("n_prompts", "draws"), [(1, 1), (8, 1), (5, 2), (1, 8)])
def test_without_a_concept_few_are_above_and_a_planted_one_is(n_prompts: int, draws: int) -> None:
    """Null: 60 worlds of 6 tracks, a world is false with any track above. Planted: 3 sd of a token in one prompt, 1.8 in several."""
    null = [world(seed, n_prompts, draws) for seed in range(60)]
    false = sum(any(v.outcome == "above" for v in one) for one in null)
    assert wilson(false, 60).low <= 0.05
    assert sum(v.outcome == "not above" for one in null for v in one) > (120 if n_prompts > 1 else 250)
    shift = 3.0 if n_prompts == 1 else 1.8
    planted = [world(1000 + seed, n_prompts, draws, planted=shift) for seed in range(20)]
    assert sum(one[2].outcome == "above" for one in planted) >= 16
    assert sum(v.outcome == "above" for one in planted for t, v in enumerate(one) if t != 2) <= 6
    assert all(one[2].outcome != "not above" for one in planted)
    first = planted[0][2]
    assert first.n == n_prompts and first.n_scenarios == 24
    assert first.n_counts == ("prompts" if n_prompts > 1 else "text" if draws == 1 else "prompt (8 draws averaged)")
    assert (first.low is None) == (n_prompts == 1)


def test_a_text_that_differs_in_every_direction_is_no_finding() -> None:
    found = [world(seed, n, general=2.5) for seed in range(20) for n in (1, 6)]
    assert wilson(sum(any(v.outcome == "above" for v in one) for one in found), 40).low <= 0.05
    said = [v.reason for one in found for v in one if v.outcome == "undecided"]
    assert sum("permuted labels rise as much" in reason for reason in said) > 150 and len(said) > 220


def test_tokens_are_no_samples() -> None:
    """200 tokens of one text say no more about it than 40: the runs of neutral tellings are as long as they can be."""
    short, long = world(3, tokens=40, planted=1.0)[2], world(3, tokens=200, planted=1.0)[2]
    assert short.n == long.n == 1 and long.p_family is not None and long.p_family >= 1 / 25


def test_numbers_are_those_of_their_definitions() -> None:
    rng = np.random.default_rng(5)
    neutral = [rng.normal(size=(9, 2)) for _ in range(4)]
    z = rng.normal(size=(6, 2)) + 1
    control = rng.normal(size=(2, 7))
    found = judge_watch(neutral, [[z]], [[control]], [[np.array([0.1, 0.2])]])
    runs = [np.array([n[i : i + 6].mean(0) for i in range(4)]) for n in neutral]
    centre = np.mean([r.mean(0) for r in runs], axis=0)
    sd = np.sqrt(sum(((r - centre) ** 2).mean(0) for r in runs) / 3)
    for t, v in enumerate(found):
        assert v.mean_z == pytest.approx(z[:, t].mean()) and v.difference == pytest.approx((z[:, t].mean() - centre[t]) / sd[t])
        assert v.p_control == pytest.approx((1 + sum(control.max(0) >= z[:, t].mean())) / 8)
        assert v.share == pytest.approx((z[:, t] >= THRESHOLD).mean()) and v.control_share == pytest.approx((0.1, 0.2)[t])
        assert v.neutral_share == pytest.approx(np.mean([(n[:, t] >= THRESHOLD).mean() for n in neutral]))
        assert 0 <= v.neutral_share_low <= v.neutral_share <= v.neutral_share_high <= 1
        rank = 0.0
        for s in range(4):
            rest = [r for i, r in enumerate(runs) if i != s]
            c = np.mean([r.mean(0) for r in rest], axis=0)
            d = np.sqrt(sum(((r - c) ** 2).mean(0) for r in rest) / 2)
            rank += (((runs[s] - c) / d).max(1) >= (z[:, t].mean() - centre[t]) / sd[t]).mean()
        assert v.p_family == pytest.approx((1 + rank) / 5) and v.p is not None and v.p <= v.p_family + 1e-12


def test_welch_is_scipys() -> None:
    from scipy import stats as sps

    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(5, 3)) + 0.4, rng.normal(size=(24, 3)) * 2
    p, low, high = _welch(a, b, np.array([1.0, 2.0, 0.5]))
    expected = sps.ttest_ind(a, b, equal_var=False, alternative="greater")
    np.testing.assert_allclose(p, expected.pvalue)
    interval = sps.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(low, interval.low / [1.0, 2.0, 0.5])
    np.testing.assert_allclose(high, interval.high / [1.0, 2.0, 0.5])


@given(
    arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=st.floats(-5, 5, width=32)),
    st.integers(1, 40),
)
@settings(deadline=None)
def test_runs_cover_a_text(z: Any, length: int) -> None:
    found = _run_means(z, length)
    k = min(length, len(z))
    assert found.shape == (len(z) - k + 1, z.shape[1])
    np.testing.assert_allclose(found[0], z[:k].mean(0), atol=1e-9)
    np.testing.assert_allclose(found[-1], z[-k:].mean(0), atol=1e-9)


@given(st.integers(0, 10_000), st.floats(0.1, 5), st.floats(-3, 3))
@settings(deadline=None, max_examples=30)
def test_another_scale_and_zero_of_a_track_change_no_rank(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    runs = [rng.normal(size=(4, 3)) for _ in range(6)]
    mean = rng.normal(size=3)
    moved = np.array([scale, 1.0, 1.0]), np.array([shift, 0.0, 0.0])
    for a, b in zip(_rank(runs, mean), _rank([r * moved[0] + moved[1] for r in runs], mean * moved[0] + moved[1]), strict=True):
        np.testing.assert_allclose(a, b)
    assert _spread(runs)[1].min() > 0


def test_short_texts_are_left_out_and_counted_and_what_cannot_be_judged_is_refused() -> None:
    rng = np.random.default_rng(7)
    neutral = [rng.normal(size=(20, 2)) for _ in range(5)]
    none = judge_watch(neutral, [[rng.normal(size=(4, 2))]], [[np.zeros((2, 9))]], [[np.zeros(2)]])
    assert all(v.outcome == "undecided" and v.n == 0 and v.left_out == 1 and v.mean_z is None for v in none)
    some = judge_watch(
        neutral,
        [[rng.normal(size=(4, 2)), rng.normal(size=(9, 2)) + 9]],
        [[np.zeros((2, 99)), np.zeros((2, 99))]],
        [[np.zeros(2)] * 2],
    )
    assert all(v.n == 1 and v.left_out == 1 and v.outcome == "undecided" for v in some)
    assert "5 neutral scenarios cannot show" in some[0].reason
    with pytest.raises(ConfigError, match="2 neutral scenarios"):
        judge_watch(neutral[:2], [[rng.normal(size=(9, 2))]], [[np.zeros((2, 9))]], [[np.zeros(2)]])
    assert MARGIN == 1.0
