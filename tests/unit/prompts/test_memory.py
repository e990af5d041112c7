"""The packaged benchmark memory-degradation: its items, its card, its padding."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from symbolic_residue.errors import ConfigError
from symbolic_residue.prompts import data_card, memory_items, MemoryItem, padding_sentences
from symbolic_residue.prompts._padding import NATURAL, REPETITIVE

ROOT = Path(__file__).parents[3]


def test_there_are_enough_of_every_kind_in_both_splits() -> None:
    for split in ("calibration", "held-out"):
        items = [i for i in memory_items() if i.split == split]
        assert sum(i.null for i in items) >= 24
        assert sum(not i.null for i in items) >= 20
        assert {i.token_type for i in items} == {"name", "number", "word"}
        assert {i.padding for i in items if not i.null} == {"natural", "repetitive", "adversarial"}
        modes = Counter(mode for i in items for mode in i.modes)
        assert set(modes) == {"recall decay", "hallucinated reconstruction", "partial recall", "priority collision"}
        assert min(modes.values()) >= 6


def test_splits_share_no_pattern_and_no_thing() -> None:
    one, two = ([i for i in memory_items() if i.split == split] for split in ("calibration", "held-out"))
    assert not {i.frame for i in one} & {i.frame for i in two}
    assert not {i.question for i in one} & {i.question for i in two}


def test_no_answer_stands_in_the_padding() -> None:
    text = " ".join([*NATURAL, *REPETITIVE]).lower()
    words = {w.strip(".,").lower() for w in text.split()}
    for item in memory_items():
        for answer, foils in zip(item.answers, item.foils, strict=True):
            assert not {value.split()[-1].lower() for value in (answer, *foils)} & words, item.id
            value = answer.split()[-1]
            assert all(
                value not in d.split() and value + "." not in d.split() for d in item.distractors if len(item.answers) == 1
            ), item.id
        assert item.rival is None or item.rival_answer in item.foils[0]


def test_the_file_is_what_the_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("items_memtrace", ROOT / "benchmarks/items/memtrace.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = [MemoryItem.model_validate(row) for split in module.FRAMES for row in module.items(split)]
    assert made == memory_items()


def test_the_card_counts_what_is_there() -> None:
    card = data_card("memory-degradation")
    counts = Counter((i.kind, i.split) for i in memory_items())
    for kind in {k for k, _ in counts}:
        assert f"| {kind} | {counts[kind, 'calibration']} | {counts[kind, 'held-out']} |" in card


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"place": "before"}, "before the fact"),
        ({"foils": ((" brown",),)}, "differ"),
        ({"answers": (" purple",)}, "state the answers"),
        ({"rival": "The x is y."}, "needs its answer"),
        ({"padding": "adversarial", "distractors": ()}, "distractors"),
        ({"kind": "other"}, "no kind"),
        ({"question": "\nThe door is "}, "white space"),
        ({"foils": ()}, "foils"),
    ],
)
def test_damaged_items_are_refused(change: dict[str, object], said: str) -> None:
    good = next(i for i in memory_items() if i.kind == "repetitive")
    assert good.answers == (" brown",)
    with pytest.raises(ValidationError, match=said):
        MemoryItem.model_validate(good.model_dump() | change)


def test_padding_is_drawn_by_its_seed() -> None:
    natural = padding_sentences("natural", 100, seed=(0, 1))
    assert natural == padding_sentences("natural", 100, seed=(0, 1)) != padding_sentences("natural", 100, seed=(0, 2))
    assert len(set(natural[: len(NATURAL)])) == len(NATURAL)
    drawn = [padding_sentences("repetitive", 3, seed=(0, d)) for d in range(len(REPETITIVE))]
    assert all(len(set(d)) == 1 for d in drawn)
    assert {d[0] for d in drawn} == set(REPETITIVE)
    assert set(padding_sentences("adversarial", 5, seed=(0, 0), similar=["a.", "b."])) == {"a.", "b."}
    with pytest.raises(ConfigError, match="look like"):
        padding_sentences("adversarial", 5, seed=(0, 0))
    with pytest.raises(ConfigError, match="no padding"):
        padding_sentences("loud", 5, seed=(0, 0))  # type: ignore[arg-type]
