"""Patterns and neurons that are not kept but computed when they are needed give the same graph; units are ranked without holding all effects."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import instrument_of

import symbolic_residue.graph._freeze as freeze_module
from symbolic_residue.errors import EditError
from symbolic_residue.graph import attribute_prompt, freeze, head_loadings, qk_attribution
from symbolic_residue.graph._relevance import effects_at, largest, Relevance, relevance
from symbolic_residue.instrument import AttentionMask, AttentionRead
from symbolic_residue.instrument.attention import Call, row_weights
from symbolic_residue.prompts import build_prompt

TEXT = "Please write the answer in one word. The answer is"


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "falcon_alibi", "gpt_neox", "gpt2", "mixtral", "qwen2_moe"])
def test_a_graph_without_kept_patterns_and_neurons_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instrument = instrument_of(name)
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    kept = attribute_prompt(instrument, prompt, targets=["top:2"], max_nodes=30)
    monkeypatch.setattr(freeze_module, "_PATTERNS", 0)
    monkeypatch.setattr(freeze_module, "_NEURONS", 0)
    local = freeze(instrument, torch.tensor(prompt.ids))
    assert all(layer.kept is None and layer.kept_neurons is None for layer in local.layers)
    lazy = attribute_prompt(instrument, prompt, targets=["top:2"], max_nodes=30)
    assert lazy.units.neuron.tolist() == kept.units.neuron.tolist()
    torch.testing.assert_close(lazy.activations, kept.activations, rtol=0, atol=1e-12)
    torch.testing.assert_close(lazy.edges, kept.edges, rtol=0, atol=1e-12)
    assert head_loadings(instrument, lazy).error < 1e-12
    assert qk_attribution(instrument, lazy, 1, 2, 6, 3).weight == pytest.approx(qk_attribution(instrument, kept, 1, 2, 6, 3).weight)


def test_a_call_gives_the_weights_that_a_read_gives_and_no_edits() -> None:
    instrument = instrument_of("mistral")
    ids = torch.arange(5, 17)[None]
    calls: dict[int, Call] = {}
    read = AttentionRead(stats=(), rows=tuple(range(-12, 0)), weights=True, on_call=calls.__setitem__)
    trace = instrument.run(ids, attention=read)
    for layer, call in calls.items():
        torch.testing.assert_close(row_weights(call, 3, 9), trace.attention["weights"][layer][:, :, 3:9], rtol=0, atol=1e-12)
    assert sorted(calls) == [0, 1]
    with pytest.raises(EditError, match="edited"):
        instrument.run(ids, attention=read, edits=[AttentionMask(layers=(0,), heads=(1,), rows=(5,), keys=(2,))])


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mixtral"])
def test_units_are_those_of_largest_effect_whatever_is_held(name: str) -> None:
    local = freeze(instrument_of(name), torch.arange(3, 12))
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(2, local.embedded.shape[1], generator=generator, dtype=local.dtype)
    groups = [(drawn[0], 8, None), (drawn[1], 5, 1)]
    effects = [relevance(local, direction, position=position, layer=layer) for direction, position, layer in groups]
    sizes = torch.stack([sum(one.neurons[i].abs() for one in effects) for i in range(len(local.layers))])
    for count in (0, 7, 40, 10**6):
        units, first = largest(local, groups, count)
        best = sizes.flatten().argsort(descending=True, stable=True)[:count].sort().values
        width = sizes.shape[2]
        assert (units.layer * len(local) * width + units.position * width + units.neuron).tolist() == best.tolist()
        assert first.tolist() == effects[0].at(units).tolist() == effects_at(local, groups[0], units).tolist()
    units = effects[0].top(9)
    assert units.layer.tolist() == largest(local, groups[:1], 9)[0].layer.tolist()


def test_ties_go_to_the_earlier_layer_position_and_number() -> None:
    same = Relevance((torch.ones(2, 3), -torch.ones(2, 3)), torch.zeros(2))
    units = same.top(8)
    found = list(zip(units.layer.tolist(), units.position.tolist(), units.neuron.tolist(), strict=True))
    assert found == [(0, t, n) for t in range(2) for n in range(3)] + [(1, 0, 0), (1, 0, 1)]
