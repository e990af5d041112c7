"""The four verdicts do what they promise: false-positive rate at the criterion, power on planted effects, controls, and the rule that joins two criteria."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from symbolic_residue.shells import Criteria, ValueCollapseConfig, ValueCollapseResidue
from symbolic_residue.shells.value_collapse._judge import MODES, verdicts
from symbolic_residue.shells.value_collapse._residue import Asked

CRITERIA = Criteria(log_odds=2.0, entropy=0.3, returns=2, leader_loss=0.5, fragility=0.1, source="a test")
CONFIG = ValueCollapseConfig.make(criteria=CRITERIA)
CLEAR = {"log_odds": 6.0, "entropy": 0.05, "held": 0.95, "returns.layers": 0.0, "leader_loss.layers": 0.0, "js": 0.01}


def residue(
    prompt: dict[str, np.ndarray], control: dict[str, float] | None = None, control_kind: str = "given"
) -> ValueCollapseResidue:
    rows = [("prompt", v, name, float(x)) for name, values in prompt.items() for v, x in enumerate(values)]
    rows += [("control", v, name, x) for name, x in (CLEAR | (control or {})).items() for v in range(8)]
    rows += [("unrelated", v, "js", 0.6) for v in range(8)]
    measures = pl.DataFrame(rows, schema=["side", "variant", "quantity", "value"], orient="row")
    asked = Asked(
        input_text="",
        messages=None,
        chat=False,
        control_text="",
        control_kind=control_kind,
        candidates=[1, 2],
        candidate_source="mass",
        variants=[],
        control_variants=[],
        seed=0,
    )
    return ValueCollapseResidue(asked, CONFIG, {}, {"measures": measures})


def measured(n: int = 13, **changes: np.ndarray | float) -> dict[str, np.ndarray]:
    """A settled prompt's measures, but for the changes."""
    return {name: np.broadcast_to(np.asarray(changes.get(name, value), dtype=float), (n,)) for name, value in CLEAR.items()}


def outcomes(found: ValueCollapseResidue) -> dict[str, str]:
    return {v.mode: v.outcome for v in verdicts(found)}


def test_a_settled_prompt_shows_nothing() -> None:
    assert outcomes(residue(measured())) == dict.fromkeys(MODES, "absent")


def test_each_verdict_fires_on_its_own_planted_effect() -> None:
    planted = {
        "flatness": {"log_odds": 0.3, "entropy": 0.68},
        "oscillation": {"returns.layers": 3.0},
        "value collapse": {"leader_loss.layers": 0.9},
        "confidence fragility": {"js": 0.4},
    }
    for mode, change in planted.items():
        found = outcomes(residue(measured(**change)))
        assert {m for m, o in found.items() if o == "fires"} == {mode}


def test_two_returns_are_enough_and_one_is_not() -> None:
    assert outcomes(residue(measured(**{"returns.layers": 2.0})))["oscillation"] == "fires"
    assert outcomes(residue(measured(**{"returns.layers": 1.0})))["oscillation"] == "absent"


def test_flatness_needs_both_criteria() -> None:
    assert outcomes(residue(measured(log_odds=0.3, entropy=0.1)))["flatness"] == "absent"
    wide = np.where(np.arange(13) % 2 == 0, 0.05, 0.6)  # the entropy's interval holds its criterion
    assert outcomes(residue(measured(log_odds=0.3, entropy=wide)))["flatness"] == "undecided"


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        ("flatness", {"log_odds": 0.3, "entropy": 0.68}),
        ("oscillation", {"returns.layers": 4.0}),
        ("value collapse", {"leader_loss.layers": 0.9}),
    ],
)
def test_a_control_that_fails_too_leaves_it_undecided(mode: str, change: dict[str, float]) -> None:
    assert outcomes(residue(measured(**change), control=change))[mode] == "undecided"


def test_one_variant_decides_nothing() -> None:
    found = verdicts(residue(measured(n=1, log_odds=0.1, entropy=0.69)))
    assert {v.outcome for v in found} == {"undecided"}
    assert all("interval" in v.note for v in found)


def test_false_positives_at_the_criterion_and_power_beyond_it() -> None:
    """At a true value exactly on the criterion a 95 % interval lies past it in at most about 2.5 % of runs."""
    rng = np.random.default_rng(0)
    runs, fires = 200, {"at": 0, "past": 0, "short": 0}
    for _ in range(runs):
        for name, mean in (("at", 2.0), ("past", 1.3), ("short", 2.7)):
            values = rng.normal(mean, 0.5, size=13)
            fires[name] += outcomes(residue(measured(log_odds=values, entropy=0.6)))["flatness"] == "fires"
    assert fires["at"] / runs <= 0.05
    assert fires["past"] / runs >= 0.95
    assert fires["short"] == 0
