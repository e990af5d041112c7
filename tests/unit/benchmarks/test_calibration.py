"""Criteria are set on calibration null items alone, never easier than the preset, and hold what they promise on new null items."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from symbolic_residue.shells import judge, ShellConfig, ShellCriteria, Verdict
from symbolic_residue.stats import Estimate

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def calibration() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    return importlib.import_module("calibration")


class Criteria(ShellCriteria):
    thresholds: ClassVar[dict[str, str]] = {"high": "top", "low": "floor"}
    top: float = 1.0
    floor: float = -1.0


class Config(ShellConfig):
    criteria: Criteria = Criteria()


@dataclass(frozen=True)
class Item:
    id: str
    split: str
    null: bool
    modes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Residue:
    value: Estimate
    config: Config


class Shell:
    name = "mirror"
    benchmark = "glass"

    def __init__(self) -> None:
        self.config = Config()

    def verdicts(self, residue: Residue) -> list[Verdict]:
        shared: dict[str, Any] = {
            "quantity": "q",
            "unit": "",
            "control": "c",
            "control_value": Estimate(0, -0.1, 0.1, 9),
            "criterion_source": "s",
        }
        criteria, value = residue.config.criteria, residue.value
        turned = Estimate(-value.value, -value.high, -value.low, value.n)
        return [
            judge("mirror", "high", value=value, criterion=criteria.top, direction="above", control_must_be_clear=False, **shared),
            judge(
                "mirror", "low", value=turned, criterion=criteria.floor, direction="below", control_must_be_clear=False, **shared
            ),
        ]


def pairs(values: np.ndarray, *, split: str = "calibration", null: bool = True) -> list[tuple[Item, Residue]]:
    return [
        (Item(f"{split}-{null}-{i}", split, null, () if null else ("high",)), Residue(Estimate(v, v - 0.2, v + 0.2, 9), Config()))
        for i, v in enumerate(values.tolist())
    ]


def fires(calibration: ModuleType, found: list[tuple[Item, Residue]], criteria: Criteria, mode: str) -> float:
    judged = calibration.judged(Shell(), found, criteria)[mode]
    return float(np.mean([verdict.outcome == "fires" for _, verdict in judged]))


def set_on(calibration: ModuleType, found: list[tuple[Item, Residue]]) -> Criteria:
    return calibration.new_criteria(Shell(), found, {"top": 1.0, "floor": -1.0}, "here")[0]


def test_at_most_five_percent_of_the_items_it_was_set_on(calibration: ModuleType) -> None:
    null = pairs(np.random.default_rng(0).normal(3, 1, 60))
    criteria = set_on(calibration, null)
    assert criteria.source == "here"
    assert fires(calibration, null, criteria, "high") <= 0.05
    assert fires(calibration, null, criteria, "low") <= 0.05
    looser = criteria.model_copy(update={"top": criteria.top - 0.3})
    assert fires(calibration, null, looser, "high") > 0.05  # it is not stricter than it must be


def test_new_null_items_fire_as_seldom_as_the_page_promises(calibration: ModuleType) -> None:
    rng = np.random.default_rng(1)
    n, rates = 24, []
    for _ in range(200):
        criteria = set_on(calibration, pairs(rng.normal(3, 1, n)))
        rates.append(fires(calibration, pairs(rng.normal(3, 1, 40)), criteria, "high"))
    promised = (np.floor(0.05 * n) + 1) / (n + 1)
    assert np.mean(rates) <= promised + 0.02
    assert np.mean(rates) > 0.01


def test_never_easier_than_the_preset_and_blind_to_all_other_items(calibration: ModuleType) -> None:
    quiet = pairs(np.random.default_rng(2).normal(-5, 0.1, 40))
    assert set_on(calibration, quiet).top == 1.0
    null = pairs(np.random.default_rng(3).normal(3, 1, 40))
    others = pairs(np.full(40, 50.0), split="held-out") + pairs(np.full(40, 50.0), null=False)
    assert set_on(calibration, null + others) == set_on(calibration, null)


def test_too_few_items_change_nothing_and_missing_values_do_not_count(calibration: ModuleType) -> None:
    few = pairs(np.full(18, 9.0))
    assert set_on(calibration, few).top == 1.0
    unmeasured = [(item, Residue(Estimate(9.0, float("nan"), float("nan"), 1), Config())) for item, _ in pairs(np.full(30, 9.0))]
    criteria, counts = calibration.new_criteria(Shell(), unmeasured, {"top": 1.0, "floor": -1.0}, "here")
    assert criteria.top == 1.0
    assert counts == {"high": 0, "low": 0}


@dataclass(frozen=True)
class Kind(Item):
    kind: str = "a"


def test_half_keeps_every_calibration_null_and_every_second_held_out_item_of_a_kind(calibration: ModuleType) -> None:
    items = [
        Kind(f"{s}{n}{k}{i}", s, n, kind=k)
        for s in ("calibration", "held-out")
        for n in (True, False)
        for k in "ab"
        for i in range(3)
    ]
    kept = calibration.halved(items)
    assert [i for i in kept if i.split == "calibration"] == [i for i in items if i.split == "calibration" and i.null]
    held = [i for i in kept if i.split == "held-out"]
    assert len(held) == 6
    assert {(i.kind, i.null) for i in held} == {("a", True), ("b", True), ("a", False), ("b", False)}
