"""Every failure mode, planted: where it is known to be, the whole shell says so; where it is known not to be, it says that it is absent."""

from __future__ import annotations

import pytest

from symbolic_residue.shells import config_class, SHELLS

from . import cases_instruction, cases_layer_salience, cases_memtrace, cases_temporal, cases_value_collapse  # noqa: F401  (they register themselves)
from .registry import Case, CASES, OUTCOME

_RUN: dict[object, object] = {}


@pytest.mark.parametrize("case", CASES, ids=[c.id for c in CASES])
def test_the_verdict_is_the_planted_truth(case: Case) -> None:
    if case.make not in _RUN:
        _RUN[case.make] = case.make()
    verdict = _RUN[case.make].verdict(case.mode)  # type: ignore[attr-defined]
    assert verdict.outcome == OUTCOME[case.truth], verdict
    assert verdict.value.has_interval or not verdict.value.n, "a planted truth is decided by an interval"


@pytest.mark.parametrize("shell", list(SHELLS))
def test_every_mode_of_every_shell_is_planted_and_ruled_out(shell: str) -> None:
    modes = set(config_class(shell)().criteria.thresholds)  # type: ignore[attr-defined]
    for truth in ("present", "absent"):
        assert {c.mode for c in CASES if c.shell == shell and c.truth == truth} == modes
