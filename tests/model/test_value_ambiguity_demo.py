"""The benchmark value-ambiguity on the demo model: its candidates are tokens, planted prompts are torn, the others are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from symbolic_residue.prompts._benchmark import benchmark

pytestmark = pytest.mark.model


def test_every_candidate_is_one_token(demo: Any) -> None:
    for item in benchmark("value-ambiguity"):
        for candidate in item.candidates or ():
            assert len(demo.tokenizer(candidate, add_special_tokens=False).input_ids) == 1, (item.id, candidate)


def test_planted_prompts_are_torn_and_controls_are_not(demo: Any) -> None:
    gaps: dict[str, list[float]] = {"planted": [], "control": []}
    right = []
    with torch.no_grad():
        for item in benchmark("value-ambiguity"):
            if item.split != "calibration" or item.candidates is None or item.control is None or item.answer is None:
                continue
            ids = {c: demo.tokenizer(c, add_special_tokens=False).input_ids[0] for c in item.candidates}
            for role, text in (("planted", item.prompt), ("control", item.control)):
                logits = demo.model(**demo.tokenizer(text, return_tensors="pt")).logits[0, -1]
                top = logits.topk(2)
                gaps[role].append(float(top.values[0] - top.values[1]))
                if role == "control":
                    right.append(int(top.indices[0]) == ids[item.answer])
    median = {role: sorted(values)[len(values) // 2] for role, values in gaps.items()}
    assert median["planted"] < 1.5 < 2.5 < median["control"]
    assert sum(right) / len(right) >= 0.95
