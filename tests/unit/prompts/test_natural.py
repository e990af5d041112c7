"""The natural prompts: twelve categories of eight, each prompt worded by itself, open at its end."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_models import tiny_tokenizer

from symbolic_residue.prompts import build_prompt, natural_prompts, NaturalPrompt

ROOT = Path(__file__).parents[3]


def test_twelve_categories_of_eight() -> None:
    prompts = natural_prompts()
    assert set(Counter(p.category for p in prompts).values()) == {8} and len(prompts) == 96
    assert len({p.prompt for p in prompts}) == len({p.id for p in prompts}) == 96
    assert all(p.id.rpartition("-")[0] == p.category for p in prompts)


def test_every_prompt_is_open_and_can_be_read() -> None:
    tokenizer = tiny_tokenizer()
    for p in natural_prompts():
        assert p.category in ("code", "list") or not p.prompt.endswith((" ", ".", "!")), p.id
        assert len(build_prompt(tokenizer, p.prompt)) >= 8


def test_prompts_of_a_category_share_no_pattern() -> None:
    """No two share five words in a row: they are units of their own."""
    runs = {}
    for p in natural_prompts():
        words = p.prompt.lower().split()
        runs[p.id] = {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
    assert not [(a, b) for a, b in combinations(runs, 2) if runs[a] & runs[b]]


def test_the_file_is_what_its_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("natural_prompts_script", ROOT / "benchmarks" / "items" / "natural_prompts.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    lines = [json.loads(line) for line in script.TARGET.read_text("utf-8").splitlines()]
    assert [(x["category"], x["prompt"]) for x in lines] == [(c, p) for c, prompts in script.PROMPTS.items() for p in prompts]
    card = script.TARGET.with_suffix(".md").read_text("utf-8")
    assert all(category in card for category in script.PROMPTS)


def test_an_empty_prompt_is_none() -> None:
    with pytest.raises(ValidationError):
        NaturalPrompt(id="a", category="b", prompt="  ")
