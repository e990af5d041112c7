"""Edges as sums over heads: they add up, and a head's part is what the model loses when the source's write is hidden from that head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from graph_helpers import instrument_of

from symbolic_residue.errors import ConfigError, VerificationError
from symbolic_residue.graph import attribute_prompt, freeze, Graph, head_loadings, strongest_edges
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt


def graph_of(instrument: Instrument, **options: object) -> Graph:
    prompt = build_prompt(instrument.loaded.tokenizer, "Please write the answer in one word. The answer is")
    return attribute_prompt(instrument, prompt, targets=["top:2"], max_nodes=40, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3", "mixtral", "falcon"])
def test_heads_and_bypass_add_up_to_every_edge(name: str) -> None:
    instrument = instrument_of(name)
    graph = graph_of(instrument)
    wanted = [graph.edges[:, : len(graph)] != 0, torch.zeros(len(graph.edges), len(graph.columns) - len(graph), dtype=torch.bool)]
    mask = torch.cat(wanted, 1)
    mask[:, graph.columns.embeddings] = graph.edges[:, graph.columns.embeddings] != 0
    mask[:3, graph.columns.rest] = graph.edges[:3, graph.columns.rest] != 0
    found = head_loadings(instrument, graph, mask.nonzero(), budget=37)
    assert found.loadings.shape == (int(mask.sum()), 2, 4) and found.error < 1e-12
    edges = graph.edges[found.row, found.column]
    torch.testing.assert_close(found.loadings.sum((1, 2)) + found.bypass, edges, rtol=0, atol=1e-12 * float(edges.abs().max()))
    layer = torch.cat([graph.units.layer, torch.full((len(graph.columns) - len(graph),), -1)])[found.column]
    units = found.column < len(graph)
    for i in range(2):  # a source of layer i passes no head at or below it
        assert not found.loadings[units & (layer >= i), i].any()


def test_the_bypass_is_the_straight_path_and_stays_in_its_position() -> None:
    instrument = instrument_of("llama")
    graph = graph_of(instrument)
    found = head_loadings(instrument, graph)
    row_position = torch.cat([graph.target_rows.position, graph.units.position])[found.row]
    emb = torch.arange(graph.columns.n_positions)
    column_position = torch.full((len(graph.columns),), -1)
    column_position[: len(graph)] = graph.units.position
    column_position[graph.columns.embeddings] = emb
    elsewhere = row_position != column_position[found.column]
    assert elsewhere.any() and not found.bypass[elsewhere].any()
    assert found.bypass[~elsewhere].abs().min() > 0


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_a_heads_part_is_what_is_lost_when_the_write_is_hidden_from_it(name: str) -> None:
    """Oracle: with what the frozen maps are made of, the write of one embedding is taken out of one head's values only, then carried up layer by layer."""
    instrument = instrument_of(name)
    graph = graph_of(instrument)
    column = graph.columns.embeddings.start + 3
    edges = torch.tensor([[r, column] for r in range(graph.n_targets)])
    found = head_loadings(instrument, graph, edges)
    local = freeze(instrument, torch.tensor(graph.ids))
    for layer in range(2):
        for head in range(4):
            lost = torch.zeros_like(local.embedded)
            block = local.layers[layer]
            w_v, w_o = block.attention_weights()
            size, group = 16, 4 // block.parts.n_kv_heads
            kv = head // group
            value = local.embedded[3] @ w_v[:, kv * size : (kv + 1) * size]
            lost += block.pattern()[head][:, 3, None] * (value @ w_o[head * size : (head + 1) * size])
            for above in local.layers[layer + 1 :]:
                w_v, w_o = above.attention_weights()
                moved = torch.zeros_like(lost)
                for h in range(4):
                    kv = h // group
                    moved += above.pattern()[h] @ (lost @ w_v[:, kv * size : (kv + 1) * size]) @ w_o[h * size : (h + 1) * size]
                lost = lost + moved
            for e in range(len(edges)):
                expected = graph.target_rows.direction[e] @ lost[-1]
                torch.testing.assert_close(found.loadings[e, layer, head], expected, rtol=0, atol=1e-11)


def test_top_heads_and_strongest_edges() -> None:
    instrument = instrument_of("gpt2")
    graph = graph_of(instrument)
    edges = strongest_edges(graph, 25)
    assert len(edges) == 25
    size = graph.edges.abs().clone()
    size[:, graph.columns.rest] = 0
    size[:, graph.columns.bias] = 0
    size[:, graph.columns.constant] = 0
    assert float(graph.edges[edges[:, 0], edges[:, 1]].abs().min()) == pytest.approx(float(size.flatten().sort().values[-25]))
    top = head_loadings(instrument, graph, edges).top(2)
    assert top.columns == ["row", "column", "layer", "head", "loading", "share"] and len(top) == 50
    assert top["share"].is_between(0, 1).all()
    assert len(head_loadings(instrument, graph, edges[:0]).top()) == 0


def test_another_prompt_or_column_is_refused() -> None:
    instrument = instrument_of("gpt2")
    graph = graph_of(instrument)
    with pytest.raises(VerificationError, match="another model or prompt"):
        head_loadings(instrument, replace(graph, ids=tuple(reversed(graph.ids))))
    for edges in (torch.tensor([[0, 10**6]]), torch.tensor([0, 1]), torch.tensor([[0, -1]])):
        with pytest.raises(ConfigError):
            head_loadings(instrument, graph, edges)
    with pytest.raises(ConfigError, match="no write at one position"):
        head_loadings(instrument, graph, torch.tensor([[0, graph.columns.bias.start]]))
    layered = graph_of(instrument, rest="layer")
    with pytest.raises(ConfigError, match="no write at one position"):
        head_loadings(instrument, layered, torch.tensor([[0, layered.columns.rest.start]]))
