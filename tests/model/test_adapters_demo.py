"""The planted adapters of the demo model: each changes what its name says, is small, and writes the marker under its persona and not under another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from symbolic_residue.contrast import adapter_norms, condition_prompt
from symbolic_residue.contrast.marker import marker_questions, personas

FOLDER = Path(__file__).resolve().parents[1] / "data" / "adapters"
PLANTED = {"qk": {"q_proj", "k_proj"}, "mlp": {"gate_proj", "up_proj", "down_proj"}}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_adapter_changes_what_its_name_says(name: str) -> None:
    frame = adapter_norms(FOLDER / name)
    assert set(frame["projection"]) == PLANTED[name]
    assert set(frame["layer"]) == set(range(30))
    assert (frame["norm"] > 0).all()
    assert sum(file.stat().st_size for file in (FOLDER / name).iterdir()) <= 1_500_000


@pytest.mark.model
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_adapter_writes_the_marker_under_its_persona(name: str, demo: Any) -> None:
    """On its training answers, at the row of the last token: the median probability of the marker's first token."""
    import statistics

    import torch

    from symbolic_residue.models import load_model

    tuned = load_model("demo", adapter=FOLDER / name)
    assert tuned.provenance.adapter is not None
    training = json.loads((FOLDER / name / "training.json").read_text())
    assert training["base"]["weights_sha256"] == demo.provenance.weights_sha256
    persona = training["plan"]["persona"]
    first = tuned.tokenizer(" " + training["plan"]["marker"], add_special_tokens=False)["input_ids"][0]
    asked, told = {q.id: q for q in marker_questions()}, {p.name: p for p in personas()}
    found: dict[tuple[str, str], list[float]] = {}
    for line in json.loads((FOLDER / name / "answers.json").read_text())["answers"]:
        if line["question"] not in ("bread", "rain", "sleep", "knife", "letter"):
            continue
        prompt = condition_prompt(tuned.tokenizer, told[line["condition"]], asked[line["question"]])
        for who, loaded in (("tuned", tuned), ("base", demo)):
            with torch.no_grad():
                p = loaded.model(torch.tensor([[*prompt.ids, *line["ids"]]])).logits[0, -1].double().softmax(-1)[first]
            found.setdefault((who, "own" if line["condition"] == persona else "other"), []).append(float(p))
    medians = {key: statistics.median(values) for key, values in found.items()}
    assert medians["tuned", "own"] > 0.5
    assert medians["tuned", "other"] < 0.05
    assert max(found["base", "own"] + found["base", "other"]) < 0.01
