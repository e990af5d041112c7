"""The rule that says "heals" keeps its rate where the edit is no better than its twins, and finds one that is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from symbolic_residue.shells.heal._rule import judge_rules, rate_over_frames, rule_columns
from symbolic_residue.stats import wilson

SIMULATIONS = 300


def outcome(hits: np.ndarray, twins: np.ndarray, frames: list[str], kinds: int = 1) -> str:
    rows = [{"kind": "head", "search_restored": 1, **rule_columns(hits.tolist(), twins.tolist(), frames)}]
    rows += [{"kind": "other", "search_restored": 0}] * (kinds - 1)
    rows = [dict(row) for row in rows]
    judge_rules(rows)
    return rows[0]["outcome"]


@pytest.mark.parametrize(("rate", "shared"), [(0.1, 0.0), (0.5, 0.0), (0.5, 0.5), (0.8, 0.3)])
def test_an_edit_as_good_as_its_twins_is_seldom_said_to_heal(rate: float, shared: float) -> None:
    """Failures of one frame hang together; edit and twins restore at the same rate in each frame."""
    rng = np.random.default_rng(int(100 * rate + 10 * shared))
    frames = [f"frame {i // 2}" for i in range(24)]
    false = 0
    for _ in range(SIMULATIONS):
        p = np.clip(rate + shared * rng.uniform(-1, 1, 12), 0, 1).repeat(2)
        hits = (rng.random(24) < p).astype(float)
        twins = (rng.random((24, 4)) < p[:, None]).astype(float)
        false += outcome(hits, twins, frames) == "heals"
    assert false <= binom.ppf(0.999, SIMULATIONS, 0.05)


def test_an_edit_that_heals_is_said_to() -> None:
    frames = [f"frame {i}" for i in range(10)]
    hits, twins = np.ones(10), np.zeros((10, 4))
    twins[0, 0] = 1
    assert outcome(hits, twins, frames) == "heals"
    assert outcome(np.zeros(10), twins, frames) == "does not heal"
    # One frame has no test, whatever the number of failures.
    assert outcome(hits, twins, ["the same"] * 10) == "undecided"
    # With five kinds, seven frames cannot reach p = 0.05 and eight can.
    assert outcome(hits[:7], twins[3:], frames[:7], kinds=5) == "undecided"
    assert outcome(hits[:8], twins[2:], frames[:8], kinds=5) == "heals"


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 5))
def test_rates_over_frames(hits: list[bool], each: int) -> None:
    values = np.array(hits, float)
    alone = rate_over_frames(values, [f"{i}" for i in range(len(hits))])
    plain = wilson(sum(hits), len(hits))
    assert (alone.value, alone.low, alone.high, alone.n) == pytest.approx((plain.value, plain.low, plain.high, plain.n))
    # The same failures again in their frames are no further evidence.
    again = rate_over_frames(values.repeat(each), [f"{i}" for i in range(len(hits)) for _ in range(each)])
    assert (again.value, again.low, again.high, again.n) == pytest.approx((alone.value, alone.low, alone.high, alone.n))
    assert 0 <= alone.low <= alone.value <= alone.high <= 1
