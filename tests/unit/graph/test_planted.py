"""A circuit that is put into a random model by hand is what the graph finds."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import instrument_of
from planted_features import ANSWER as SAID
from planted_features import plant, WRONG

from symbolic_residue.graph import attribute_prompt, promoted_tokens
from symbolic_residue.prompts import build_prompt

A, B = (0, 17), (1, 40)  # (layer, neuron)
ANSWER = 301


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_planted_chain_of_two_neurons_is_found(name: str) -> None:
    """Neuron A of layer 0 reads one token's embedding and writes an axis, neuron B of layer 1 reads that axis and writes the answer's unembedding."""
    instrument = instrument_of(name, scale=0.5)
    prompt = build_prompt(instrument.loaded.tokenizer, "Anna put the red book under the table")
    parts = instrument.parts
    ids = torch.tensor([prompt.ids])
    last = len(prompt.ids) - 1
    reads = instrument.run(ids, reads=["mlp_in.0"])
    answer = parts.final_norm.gain() * (parts.w_u[ANSWER] - parts.w_u.mean(0)).detach()
    axis = torch.zeros(64, dtype=torch.float64)
    axis[11] = 1.0
    with torch.no_grad():
        for (layer, neuron), toward, write, strength in (
            (A, reads["mlp_in.0"][0, last], axis, 3.0),
            (B, axis, answer / answer.norm(), 100.0),
        ):
            mlp = parts.layers[layer].mlp
            toward = toward / toward.norm()
            if name == "llama":
                mlp.gate_proj.weight[neuron] = toward
                mlp.up_proj.weight[neuron] = toward
                mlp.down_proj.weight[:, neuron] = strength * write
            else:
                mlp.c_fc.weight[:, neuron] = toward
                mlp.c_fc.bias[neuron] = 0
                mlp.c_proj.weight[neuron] = strength * write
    assert int(instrument.run(ids).logits[0, -1].argmax()) == ANSWER
    graph = attribute_prompt(instrument, prompt, targets=[ANSWER], max_nodes=30)
    cells = list(zip(graph.units.layer.tolist(), graph.units.position.tolist(), graph.units.neuron.tolist(), strict=True))
    by_effect = sorted(range(30), key=lambda u: -abs(float(graph.effects[u])))
    assert {cells[u] for u in by_effect[:2]} == {(A[0], last, A[1]), (B[0], last, B[1])}
    a, b = cells.index((A[0], last, A[1])), cells.index((B[0], last, B[1]))
    row = graph.edges[graph.n_targets + b]
    assert int(row.argmax()) == a and float(row[a]) > 0.5 * graph.activations[b]  # B is there because of A
    assert float(graph.edges[0, b]) > 0.5 * graph.targets[0].value  # the answer because of B
    kept = graph.prune(0.5, 0.9)
    assert bool(kept.columns[a]) and bool(kept.columns[b]) and int(kept.columns[: len(graph)].sum()) < 15
    words = promoted_tokens(parts, instrument.loaded.tokenizer, graph.units, graph.activations)
    assert words[b][0] == instrument.loaded.tokenizer.decode([ANSWER])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["transcoders", "skip", "clt"])
def test_a_planted_chain_of_two_features_is_found_and_not_where_it_is_not(kind: str, seed: int) -> None:
    instrument, pair, dictionary, truth = plant(kind, seed, threshold=0.25)
    last = len(pair.clean.ids) - 1
    graph = attribute_prompt(instrument, pair.clean, targets=[(SAID, WRONG)], max_nodes=30, units=dictionary)
    cells = list(zip(graph.units.layer.tolist(), graph.units.position.tolist(), graph.units.neuron.tolist(), strict=True))
    by_effect = sorted(range(len(graph)), key=lambda u: -abs(float(graph.effects[u])))
    assert {cells[u] for u in by_effect[:2]} == {(layer, last, feature) for layer, feature in truth}
    a, b = (cells.index((layer, last, feature)) for layer, feature in sorted(truth))
    row = graph.edges[graph.n_targets + b]
    assert int(row.argmax()) == a and float(row[a]) > 0.5 * graph.activations[b]  # B is there because of A
    assert float(graph.edges[0, b]) > 0.5 * graph.targets[0].value  # the answer because of B
    kept = graph.prune()
    assert bool(kept.columns[a]) and bool(kept.columns[b])
    other = attribute_prompt(instrument, pair.corrupted, targets=[(SAID, WRONG)], max_nodes=30, units=dictionary)
    there = set(zip(other.units.layer.tolist(), other.units.position.tolist(), other.units.neuron.tolist(), strict=True))
    found = {cell for cell in there if (cell[0], cell[2]) in truth and cell[1] == last}
    strong = max(
        (
            abs(float(other.effects[i]))
            for i, cell in enumerate(zip(*(x.tolist() for x in vars(other.units).values()), strict=True))
            if cell in found
        ),
        default=0.0,
    )
    assert strong < 0.1 * abs(float(graph.effects[b]))  # nothing of it where the token is another
