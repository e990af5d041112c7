"""Paired yes-or-no answers: against enumeration, against the published example, and inside the range of a difference."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import mcnemar, paired_difference, sign_flip_test

COUNTS = st.integers(0, 40)


@given(st.integers(0, 25), st.integers(0, 25))
def test_mcnemar_is_the_sum_of_binomial_tails(b: int, c: int) -> None:
    n, few = b + c, min(b, c)
    tail = sum(comb(n, k) for k in range(few + 1)) / 2.0**n
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail) if b != c else 1.0)
    assert mcnemar(b, c) == mcnemar(c, b)


@given(st.integers(1, 6), st.integers(0, 6))
def test_mcnemar_is_the_sign_flip_test_of_the_signed_changes(b: int, c: int) -> None:
    assert mcnemar(b, c) == pytest.approx(sign_flip_test(np.array([1.0] * b + [-1.0] * c), seed=0))


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_interval_holds_the_value_and_stays_in_range(a: int, b: int, c: int, d: int) -> None:
    if a + b + c + d == 0:
        return
    found, back = paired_difference(a, b, c, d), paired_difference(a, c, b, d)
    assert found.value == pytest.approx((c - b) / (a + b + c + d))
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_newcombe_covers_a_planted_difference() -> None:
    rng = np.random.default_rng(0)
    truth, held, n = 0.2, 0, 400
    for _ in range(n):
        both, only_first, only_second, neither = rng.multinomial(40, [0.3, 0.1, 0.3, 0.3])
        found = paired_difference(both, only_first, only_second, neither)
        held += found.low <= truth <= found.high
    assert 0.92 <= held / n <= 0.985


def test_more_agreement_narrows_the_interval() -> None:
    """The same two shares: answers that hang together leave less doubt about the difference."""
    together, apart = paired_difference(18, 2, 6, 14), paired_difference(12, 8, 12, 8)
    assert together.value == apart.value
    assert together.high - together.low < apart.high - apart.low


def test_refusals() -> None:
    for counts in ((-1, 2), (1.5, 2), (True, 2)):
        with pytest.raises(ConfigError):
            mcnemar(*counts)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        paired_difference(0, 0, 0, 0)
    assert mcnemar(0, 0) == 1.0
