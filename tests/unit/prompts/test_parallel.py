"""The prompts that token trees grow from: six categories of twelve, each worded by itself, open at its end."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

from symbolic_residue.prompts import natural_prompts, parallel_prompts

ROOT = Path(__file__).parents[3]


def test_six_categories_of_twelve() -> None:
    prompts = parallel_prompts()
    counts = Counter(p.category for p in prompts)
    assert len(prompts) == 72 and len(counts) == 6 and set(counts.values()) == {12}
    assert len({p.prompt for p in prompts}) == len({p.id for p in prompts}) == 72
    assert all(p.id.rpartition("-")[0] == p.category for p in prompts)


def test_every_prompt_is_open() -> None:
    for p in parallel_prompts():
        assert not p.prompt.endswith((" ", "!", "?")) and (p.category == "list" or not p.prompt.endswith(".")), p.id
        assert 6 <= len(p.prompt.split()) <= 32, p.id


def test_no_two_share_a_pattern() -> None:
    """No two share five words in a row, nor the first three; none is taken from the natural prompts."""
    runs = {}
    for p in [*parallel_prompts(), *natural_prompts()]:
        words = p.prompt.lower().split()
        runs[p.category, p.id] = {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
    ours = [(p.category, p.id) for p in parallel_prompts()]
    assert not [(a, b) for a in ours for b in runs if a != b and runs[a] & runs[b]]
    starts = [tuple(p.prompt.lower().split()[:3]) for p in parallel_prompts()]
    assert not [(a, b) for a, b in combinations(starts, 2) if a == b]


def test_the_file_is_what_its_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("parallel_prompts_script", ROOT / "benchmarks" / "items" / "parallel_prompts.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    lines = [json.loads(line) for line in script.TARGET.read_text("utf-8").splitlines()]
    assert [(x["category"], x["prompt"]) for x in lines] == [(c, p) for c, prompts in script.PROMPTS.items() for p in prompts]
    card = script.TARGET.with_suffix(".md").read_text("utf-8")
    assert all(category in card for category in script.PROMPTS)
