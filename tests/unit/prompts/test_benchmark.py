"""The packaged benchmark: balance of its items, and refusal of damaged ones."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest
from pydantic import ValidationError

from symbolic_residue.errors import ConfigError, PromptFileError
from symbolic_residue.prompts import _benchmark
from symbolic_residue.prompts._benchmark import benchmark, BenchmarkItem, BENCHMARKS

NAME = "value-ambiguity"
GOOD: dict[str, Any] = {
    "id": "tie-01",
    "kind": "tie",
    "split": "calibration",
    "prompt": "Five want tea. Five want milk. They want",
    "control": "Five want tea. Five got milk. They want",
    "candidates": [" milk", " tea"],
    "answer": " tea",
}


@pytest.fixture(scope="module")
def items() -> list[BenchmarkItem]:
    return benchmark(NAME)


@pytest.fixture(scope="module")
def conflicts(items: list[BenchmarkItem]) -> list[BenchmarkItem]:
    return [item for item in items if not item.null]


def test_every_benchmark_loads_and_has_a_card() -> None:
    for name in BENCHMARKS:
        assert benchmark(name)
        card = files("symbolic_residue.prompts").joinpath("data", f"{name.replace('-', '_')}.md").read_text(encoding="utf-8")
        assert name in card and "Apache-2.0" in card


def test_sizes(items: list[BenchmarkItem], conflicts: list[BenchmarkItem]) -> None:
    assert len(conflicts) >= 60 and len({item.kind for item in conflicts}) >= 6
    assert len(items) - len(conflicts) >= 60
    assert len(items) - len(conflicts) + sum(item.control is not None for item in conflicts) >= 120


def test_every_text_is_new(items: list[BenchmarkItem]) -> None:
    texts = [text for item in items for text in (item.prompt, item.control) if text is not None]
    assert len(set(texts)) == len(texts)


def test_splits_are_even_within_each_kind(items: list[BenchmarkItem]) -> None:
    counts = Counter((item.kind, item.split) for item in items)
    for kind in {item.kind for item in items}:
        assert counts[kind, "calibration"] == counts[kind, "held-out"] > 0


@pytest.mark.parametrize("split", ["calibration", "held-out"])
def test_no_position_gives_the_answer_away(conflicts: list[BenchmarkItem], split: str) -> None:
    chosen = [item for item in conflicts if item.split == split]
    first = sum(item.answer == item.mentioned()[0] for item in chosen)
    listed = sum(item.candidates is not None and item.answer == item.candidates[0] for item in chosen)
    last = sum(
        item.prompt.rindex(item.answer or "") > max(item.prompt.rindex(c) for c in item.mentioned() if c != item.answer)
        for item in chosen
    )
    for count in (first, listed, last):
        assert 0.4 <= count / len(chosen) <= 0.6


def test_planted_prompts_mention_both_equally_often(conflicts: list[BenchmarkItem]) -> None:
    for item in conflicts:
        a, b = (len(re.findall(rf"{re.escape(candidate)}\b", item.prompt)) for candidate in item.mentioned())
        assert a == b >= 1, item.id


def test_the_control_favours_its_answer(conflicts: list[BenchmarkItem]) -> None:
    for item in conflicts:
        (other,) = {*item.mentioned()} - {item.answer}
        assert item.control is not None and item.answer is not None
        assert item.control.count(item.answer) >= item.control.count(other)
        assert item.control.split()[-1] == item.prompt.split()[-1]


def test_the_list_is_a_copy() -> None:
    benchmark(NAME).clear()
    assert benchmark(NAME)


def test_mentioned_follows_the_text() -> None:
    assert BenchmarkItem.model_validate(GOOD).mentioned() == (" tea", " milk")
    with pytest.raises(ConfigError):
        BenchmarkItem(id="null-1", kind="null", split="held-out", prompt="One, two,").mentioned()


@pytest.mark.parametrize(
    "change",
    [
        {"answer": " beer"},
        {"candidates": [" tea", " tea"]},
        {"candidates": ["tea", "milk"]},
        {"candidates": [" tea", " beer"]},
        {"control": None},
        {"control": GOOD["prompt"]},
        {"control": "Five want tea. Five got milk. They got"},
        {"control": "Five want milk. Five got milk. They want"},
        {"control": "Five of the ten people want tea. Five got milk. They want"},
        {"prompt": GOOD["prompt"] + " "},
        {"kind": "null"},
        {"split": "test"},
        {"extra": 1},
    ],
)
def test_an_item_that_is_no_matched_pair_is_refused(change: dict[str, Any]) -> None:
    BenchmarkItem.model_validate_json(json.dumps(GOOD))
    with pytest.raises(ValidationError):
        BenchmarkItem.model_validate_json(json.dumps({**GOOD, **change}))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "no items"), ("{", "line 1"), (json.dumps(GOOD) + "\n" + json.dumps(GOOD), "line 2.*used twice")],
)
def test_a_damaged_file_is_refused(text: str, reason: str) -> None:
    with pytest.raises(PromptFileError, match=reason):
        _benchmark._parse(NAME, text, BenchmarkItem)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="value-ambiguity"):
        benchmark("no-such")


def test_a_missing_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "no-such", "never written")
    with pytest.raises(PromptFileError, match="cannot be read"):
        benchmark("no-such")
