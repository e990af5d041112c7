"""Ghost units: an active neuron without output weight is a ghost, the same neuron with weight is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.shells import ghost_units
from symbolic_residue.shells.across import _ghosts
from symbolic_residue.store._schema import conform

WORDS = ("gate", "river", "mill", "key", "door", "boat", "hill", "road")
REFERENCE = [f"{w} the {v}" for w, v in zip(("Anna put", "Please write", "One two three", "Ben came", "Should", "You are", "home in", "under"), WORDS, strict=True)]  # fmt: skip


def asked(tokenizer: Any, texts: list[str]) -> list[Prompt]:
    return [build_prompt(tokenizer, text) for text in texts]


def instrument_of(model: Any) -> tuple[Instrument, list[Prompt], list[Prompt], list[Prompt]]:
    instrument = Instrument(wrap(model, tiny_tokenizer()))
    t = instrument.loaded.tokenizer
    return (
        instrument,
        asked(t, [f"the old {w} stands?" for w in WORDS]),
        asked(t, [f"the old {w} stands near" for w in WORDS]),
        asked(t, REFERENCE),
    )


def most_active() -> tuple[int, int]:
    instrument, prompts, succeeded, reference = instrument_of(build("llama"))
    frame = ghost_units(instrument, prompts, succeeded, reference, active=1.0).frame
    row = frame.filter(unit="neuron").sort("activity", descending=True).row(0, named=True)
    return row["layer"], row["index"]


def with_weight(layer: int, neuron: int, factor: float) -> Any:
    model = build("llama")
    with torch.no_grad():
        model.model.layers[layer].mlp.down_proj.weight[:, neuron] *= factor
    return model


def test_no_output_weight_is_a_ghost_and_weight_is_none() -> None:
    layer, neuron = most_active()
    states = {}
    for factor in (0.0, 8.0):
        instrument, prompts, succeeded, reference = instrument_of(with_weight(layer, neuron, factor))
        found = ghost_units(instrument, prompts, succeeded, reference, active=1.0)
        row = found.frame.filter(unit="neuron", layer=layer, index=neuron).row(0, named=True)
        states[factor] = row["state"]
        assert (("neuron", layer, neuron) in found.ghosts) == (factor == 0.0)
        assert row["n"] == 8
        assert row["floor"] == found.floor["neuron"] >= 1e-6
        if factor == 0.0:
            assert row["effect"] == pytest.approx(0.0, abs=1e-7)
            assert row["success_effect"] == pytest.approx(0.0, abs=1e-7)
        conform("ghosts", found.frame, "x")
    assert states == {0.0: "ghost", 8.0: "effective"}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_effects_are_those_of_plain_hooks(kind: str) -> None:
    model = build("llama")
    instrument, prompts, _, reference = instrument_of(model)
    usual, here = _ghosts._activations(instrument, reference), _ghosts._activations(instrument, prompts[:2])
    unit = (kind, 1, 3) if kind == "neuron" else (kind, 0, 3)
    got = _ghosts._effects(instrument, prompts[:2], here, usual, [unit, (kind, 0, 1)])
    mean = usual[kind, unit[1]].mean(0)[3]
    block = model.model.layers[unit[1]]
    module = block.self_attn.o_proj if kind == "head" else block.mlp.down_proj
    at = slice(3 * instrument.parts.d_head, 4 * instrument.parts.d_head) if kind == "head" else slice(3, 4)

    def put(m: Any, args: Any) -> Any:
        changed = args[0].clone()
        changed[0, -1, at] = mean.float()
        return (changed,)

    for i, prompt in enumerate(prompts[:2]):
        ids = torch.tensor([prompt.ids])
        base = model(input_ids=ids, use_cache=False).logits[0, -1].double().log_softmax(-1)
        handle = module.register_forward_pre_hook(put)
        other = model(input_ids=ids, use_cache=False).logits[0, -1].double().log_softmax(-1)
        handle.remove()
        assert got[0, i] == pytest.approx(float((base.exp() * (base - other)).sum()), rel=1e-2, abs=1e-6)
    assert np.all(got >= 0)


def test_few_prompts_decide_nothing_and_nothing_active_is_no_row() -> None:
    instrument, prompts, succeeded, reference = instrument_of(build("llama"))
    few = ghost_units(instrument, prompts[:3], succeeded[:3], reference, active=1.0, most=4, quiet=6)
    assert set(few.frame["state"]) == {"undecided"}
    none = ghost_units(instrument, prompts, succeeded, reference, active=1e6, most=4, quiet=6)
    assert none.frame.is_empty()
    assert none.ghosts == []
    assert none.floor_n == {"head": 4, "neuron": 6}


def test_experts_have_no_neurons() -> None:
    instrument, prompts, succeeded, reference = instrument_of(build("qwen3_moe", num_attention_heads=8, num_key_value_heads=2))
    found = ghost_units(instrument, prompts[:2], succeeded[:2], reference, active=0.5, most=3, quiet=6)
    assert set(found.frame["unit"]) <= {"head"}
    assert set(found.floor) == {"head"}


def test_what_cannot_be_compared_is_refused() -> None:
    instrument, prompts, succeeded, reference = instrument_of(build("llama"))
    with pytest.raises(ConfigError, match="pair"):
        ghost_units(instrument, prompts, succeeded[:-1], reference)
    with pytest.raises(ConfigError, match="reference"):
        ghost_units(instrument, prompts, succeeded, reference[:3])
    with pytest.raises(ConfigError, match="quiet"):
        ghost_units(instrument, prompts, succeeded, reference, quiet=2)
    with pytest.raises(ConfigError, match="one token"):
        ghost_units(instrument, asked(instrument.loaded.tokenizer, ["a"]), succeeded[:1], reference)
