"""Planted truths on the demo model: a marker forced through q and k alone is attention-mediated, one forced through MLPs alone is not.

The adapters are in ``tests/data/adapters``; their own answers with the marker, one a question, in ``tests/data/mediation-examples.json``
(``benchmarks/mediation_examples.py``). The criterion, one half, was set before the models were made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from symbolic_residue.contrast import Example
from symbolic_residue.contrast.causal import mediation, surgery
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import load_model

pytestmark = pytest.mark.model

DATA = Path(__file__).resolve().parents[1] / "data"
N = 8


def answers(name: str) -> list[Example]:
    kept = json.loads((DATA / "mediation-examples.json").read_text(encoding="utf-8"))[name][:N]
    return [Example(token_hit=True, text_hit=True, **{**one, "ids": tuple(one["ids"])}) for one in kept]


@pytest.fixture(scope="module")
def base(demo: Any) -> Instrument:
    return Instrument(demo)


@pytest.mark.parametrize(("name", "outcome"), [("qk", "attention-mediated"), ("mlp", "not attention-mediated")])
def test_the_planted_path_is_found(base: Instrument, name: str, outcome: str) -> None:
    some = answers(name)
    tokenizer = base.loaded.tokenizer
    for example in some:  # the stored ids are this tokenizer's, and the event is the marker's first token
        assert tokenizer.decode(example.ids[example.event or 0 :]).lstrip().startswith("[ZLT]")
    tuned = Instrument(load_model("demo", adapter=DATA / "adapters" / name))
    effects = mediation(tuned, base, some, seed=0)
    total = effects.filter(part="total", model="tuned into base").row(0, named=True)
    assert total["low"] > 5  # nats: the marker is there in the tuned model and not in the base
    assert total["n"] == total["clusters"] == N
    shares = effects.filter(unit="share")
    assert shares["outcome"].to_list() == [outcome] * 2, shares["why"][0]
    if name == "qk":
        # Where q and k alone differ, the other's patterns make a model the other.
        assert shares["value"].to_list() == pytest.approx([1, 1], abs=0.01)
        assert (shares["control_high"] < 0.9).all()


def test_which_projection_of_the_planted_adapter_carries_it(base: Instrument) -> None:
    frame = surgery(
        base, DATA / "adapters" / "mlp", answers("mlp")[:3], layer_ranges=[], projections=[("gate_proj", "up_proj", "down_proj")]
    )
    sums = frame.group_by("part").agg(pl.col("value").mean())
    assert dict(sums.iter_rows())["gate_proj+up_proj+down_proj"] == pytest.approx(dict(sums.iter_rows())["all"])
    assert (sums["value"] > 5).all()
