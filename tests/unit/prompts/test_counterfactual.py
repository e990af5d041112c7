"""The packaged counterfactual pairs: enough of each category, distinct, made by their script."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from symbolic_residue.prompts import counterfactual_pairs, CounterfactualPair, data_card, PAIR_CATEGORIES

ROOT = Path(__file__).parents[3]


def test_there_are_enough_pairs_of_each_category_and_no_prompt_stands_in_two_of_a_frame() -> None:
    pairs = counterfactual_pairs()
    count = Counter(pair.category for pair in pairs)
    assert len(pairs) >= 120 and set(count) == set(PAIR_CATEGORIES) and min(count.values()) >= 20
    prompts = [(pair.frame, text) for pair in pairs for text in (pair.clean, pair.corrupted)]
    assert len(set(prompts)) == len(prompts)
    for pair in pairs:
        assert pair.answer.startswith(" ") and pair.wrong.startswith(" ") and pair.clean == pair.clean.rstrip()
    assert counterfactual_pairs("induction") == [pair for pair in pairs if pair.category == "induction"]


def test_every_packaged_pair_is_one_of_the_candidates_of_the_script() -> None:
    spec = importlib.util.spec_from_file_location("pairs_script", ROOT / "benchmarks" / "items" / "counterfactual_pairs.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written = {tuple(sorted(one.items())) for one in script.candidates()}
    for pair in counterfactual_pairs():
        assert tuple(sorted(pair.model_dump(exclude={"id"}).items())) in written
    most = Counter((pair.category, pair.frame) for pair in counterfactual_pairs())
    assert max(most.values()) <= script.MOST


def test_the_card_says_what_was_dropped() -> None:
    card = data_card("counterfactual-pairs")
    pairs = counterfactual_pairs()
    for category in PAIR_CATEGORIES:
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {category} |")]
        mine = [pair for pair in pairs if pair.category == category]
        cells = [cell.strip() for cell in row.split("|")]
        assert int(cells[3]) == len(mine) <= int(cells[2]) and cells[4].startswith(f"{len({pair.frame for pair in mine})} of ")
    assert "selection" in card and f"| {len(pairs)} |" in card


def test_a_pair_of_two_equal_prompts_or_answers_is_refused() -> None:
    good = {"id": "a", "category": "facts", "clean": "x", "corrupted": "y", "answer": " a", "wrong": " b"}
    CounterfactualPair(**good)
    for change in ({"corrupted": "x"}, {"wrong": " a"}, {"clean": " "}, {"answer": ""}, {"more": "z"}):
        with pytest.raises(ValidationError):
            CounterfactualPair(**good | change)
