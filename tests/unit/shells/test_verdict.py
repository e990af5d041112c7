"""The verdict: decided by whole intervals, taken back where the control fails as well."""

from __future__ import annotations

import math

import pytest

from symbolic_residue.shells import judge, verdict_frame
from symbolic_residue.stats import Estimate


def verdict(value: Estimate, control: Estimate, **changes):
    options = {
        "quantity": "log-odds",
        "unit": "nats",
        "control": "the same",
        "criterion": 1.0,
        "direction": "below",
        "criterion_source": "a test",
    }
    return judge("shell", "mode", value=value, control_value=control, **(options | changes))


CLEAR = Estimate(3.0, 2.5, 3.5, 13)
BELOW = Estimate(0.4, 0.2, 0.7, 13)
ASTRIDE = Estimate(0.9, 0.6, 1.2, 13)


@pytest.mark.parametrize(("value", "outcome"), [(BELOW, "fires"), (CLEAR, "absent"), (ASTRIDE, "undecided")])
def test_the_whole_interval_decides(value: Estimate, outcome: str) -> None:
    assert verdict(value, CLEAR).outcome == outcome
    mirrored = {"fires": "absent", "absent": "fires", "undecided": "undecided"}
    assert verdict(value, ASTRIDE, direction="above").outcome == mirrored[outcome]


def test_a_control_that_fails_too_takes_the_verdict_back() -> None:
    found = verdict(BELOW, BELOW)
    assert found.outcome == "undecided"
    assert "control" in found.note
    assert verdict(BELOW, BELOW, control_must_be_clear=False).outcome == "fires"
    assert verdict(BELOW, ASTRIDE).outcome == "fires"


def test_without_an_interval_nothing_is_decided() -> None:
    lone = Estimate(0.1, math.nan, math.nan, 1, method="one value")
    found = verdict(lone, CLEAR)
    assert found.outcome == "undecided"
    assert "one value" in found.note
    frame = verdict_frame([found, verdict(BELOW, CLEAR)])
    assert frame["low"].to_list() == [None, 0.2]
    assert frame["n"].to_list() == [1, 13]
