"""Shares of clustered answers: what n answers are worth, and what the interval covers."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import clustered_wilson, effective_n, wilson


def covered(questions: int, each: int, share: float, alike: float, draws: int = 600) -> tuple[float, float]:
    """Coverage of the share over questions, clustered and as if independent; ``alike`` is the correlation within a question."""
    rng = np.random.default_rng(questions * 100 + each)
    labels = np.repeat(np.arange(questions), each)
    held = np.zeros(2)
    for _ in range(draws):
        own = rng.beta(share * (1 - alike) / alike, (1 - share) * (1 - alike) / alike, size=questions)
        hit = rng.random(len(labels)) < own[labels]
        for i, found in enumerate((clustered_wilson(hit, labels), wilson(int(hit.sum()), len(hit)))):
            held[i] += found.low <= share <= found.high
    return float(held[0]) / draws, float(held[1]) / draws


@pytest.mark.parametrize(("questions", "each", "share"), [(32, 2, 0.2), (12, 4, 0.5), (20, 4, 0.2), (8, 2, 0.5)])
def test_the_interval_covers_where_answers_hang_together(questions: int, each: int, share: float) -> None:
    alike, apart = covered(questions, each, share, 0.7), covered(questions, each, share, 0.02)
    assert alike[0] >= 0.92  # 600 draws: the standard error of 95 % is .9 points
    assert alike[1] < 0.92
    assert alike[1] < alike[0]
    assert apart[0] >= 0.93


def test_rare_hits_in_few_questions_are_the_weak_point() -> None:
    """The docstring says how weak: 87 %."""
    low, naive = covered(32, 8, 0.05, 0.6)
    assert 0.84 <= low <= 0.92
    assert naive < 0.65


def test_by_hand() -> None:
    # 1, 0, 2 and 0 hits of 2 each: p = 3/8; residuals 1/4, -3/4, 5/4, -3/4; variance 4/3 · 11/4 / 64.
    answers, labels = [1, 0, 0, 0, 1, 1, 0, 0], np.repeat(list("abcd"), 2)
    robust = 4 / 3 * (1 / 16 + 9 / 16 + 25 / 16 + 9 / 16) / 64
    worth = 3 / 8 * 5 / 8 / robust * (2.364624 / 3.182446) ** 2
    assert worth < 4  # fewer than one a question, which is the least
    assert effective_n(answers, labels) == 4
    # The same hits spread: 1, 1, 1, 0. Residuals 1/4 three times and -3/4; more than 8 independent answers, which is the most.
    assert effective_n([1, 0, 1, 0, 0, 1, 0, 0], labels) == pytest.approx(8)
    # Six answers each to four questions, 5, 3, 1, 3 hits: between the two.
    answers, labels = [int(i < k) for k in (5, 3, 1, 3) for i in range(6)], np.repeat(range(4), 6)
    robust = 4 / 3 * (4 + 0 + 4 + 0) / 24**2
    worth = 0.25 / robust * (2.0686576 / 3.1824463) ** 2
    assert 4 < worth < 24
    assert effective_n(answers, labels) == pytest.approx(worth, rel=1e-6)
    found = clustered_wilson(answers, labels)
    assert (found.value, found.n) == (0.5, 4)
    z2 = 1.9599640**2
    assert found.high - 0.5 == pytest.approx(np.sqrt(z2) * np.sqrt(0.25 / worth + z2 / (4 * worth**2)) / (1 + z2 / worth), rel=1e-6)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40), st.floats(0.5, 0.99))
@settings(max_examples=80, deadline=None)
def test_worth_and_interval_stay_in_their_range(rows: list[tuple[int, bool]], level: float) -> None:
    labels, hits = [row[0] for row in rows], [row[1] for row in rows]
    worth, found = effective_n(hits, labels, level=level), clustered_wilson(hits, labels, level=level)
    sizes = np.unique(labels, return_counts=True)[1]
    assert len(rows) ** 2 / (sizes**2).sum() - 1e-9 <= worth <= len(rows) + 1e-9
    assert 0 <= found.low <= found.value <= found.high <= 1
    plain = wilson(sum(hits), len(hits), level)
    assert found.high - found.low >= plain.high - plain.low - 1e-12
    assert clustered_wilson(hits[::-1], labels[::-1], level=level) == found
    # No and yes are the same question.
    other = clustered_wilson([not hit for hit in hits], labels, level=level)
    assert (1 - other.high, 1 - other.low) == pytest.approx((found.low, found.high))


@given(st.lists(st.booleans(), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_one_answer_a_question_is_wilson(hits: list[bool]) -> None:
    found, plain = clustered_wilson(hits, range(len(hits))), wilson(sum(hits), len(hits))
    assert (found.low, found.high, found.n) == pytest.approx((plain.low, plain.high, plain.n))


@pytest.mark.parametrize("hits", [0, 12])
def test_without_both_kinds_of_answers_one_counts_a_question(hits: int) -> None:
    found = clustered_wilson([1.0] * hits + [0.0] * (12 - hits), np.repeat(range(4), 3))
    plain = wilson(hits // 3, 4)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high))
    # One question: as one answer.
    assert effective_n([0, 1, 1], ["q"] * 3) == pytest.approx(1)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="neither 0 nor 1"):
        clustered_wilson([0.5], ["a"])
    with pytest.raises(ConfigError, match="one label a row"):
        clustered_wilson([0, 1], ["a"])
    with pytest.raises(ConfigError, match="empty"):
        effective_n([], [])
    with pytest.raises(ConfigError, match="level"):
        effective_n([0, 1], ["a", "a"], level=1.0)
