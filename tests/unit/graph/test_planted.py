"""A circuit that is put into a random model by hand is what the graph finds."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import instrument_of

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
