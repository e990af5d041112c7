"""Replacement and completeness scores against numbers by hand and the whole matrix; a dictionary that is the MLP against a random one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dictionary_files import random_dictionary
from graph_helpers import instrument_of
from hypothesis import given, settings
from hypothesis import strategies as st

from symbolic_residue.dictionaries import Activation, LayerDictionary, Transcoders
from symbolic_residue.graph import attribute_prompt, Columns, Graph, graph_scores, Rows, TargetInfo, Units
from symbolic_residue.prompts import build_prompt


def graph_from(edges: torch.Tensor, units: Units, columns: Columns, weights: list[float]) -> Graph:
    n = len(weights)
    targets = tuple(
        TargetInfo(f"t{i}", float(edges[i].sum()), columns.n_layers, 0, w, 0, None, None) for i, w in enumerate(weights)
    )
    rows = Rows(torch.zeros(n, 2), torch.zeros(n), torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long))
    values = edges[n:].sum(1)
    return Graph((0,), ("a",), targets, units, values, values, edges, columns, "half", False, 0.0, rows)


def test_the_scores_of_a_graph_of_one_unit() -> None:
    """Target: half from the unit, a quarter each from REST and the token; unit: 3/4 from the token, 1/4 from REST. Constants do not count."""
    columns = Columns(1, 1, 1, True)
    edges = torch.tensor(
        [[2.0, -1.0, 1.0, 50.0, 7.0], [0.0, 1.0, 3.0, -9.0, 4.0]], dtype=torch.float64
    )  # unit rest emb bias constant
    found = graph_scores(graph_from(edges, Units.of(torch.tensor([[0, 0, 3]])), columns, [0.2]))
    token, rest = 0.25 + 0.5 * 0.75, 0.25 + 0.5 * 0.25
    assert found.replacement == pytest.approx(token / (token + rest))
    assert found.completeness == pytest.approx((1 * 0.75 + 0.5 * 0.75 + token + rest) / (1 + 0.5 + token + rest))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_scores_are_those_of_the_whole_matrix(data: st.DataObject) -> None:
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    n_layers, n, count, n_targets = (data.draw(st.integers(1, k)) for k in (4, 3, 10, 3))
    cells = torch.cartesian_prod(torch.arange(n_layers), torch.arange(n), torch.arange(3))
    units = Units.of(cells[torch.randperm(len(cells), generator=g)[:count]])
    columns = Columns(len(units), n_layers, n, data.draw(st.booleans()))
    edges = torch.randn(n_targets + len(units), len(columns), generator=g, dtype=torch.float64)
    edges[n_targets:, : len(units)] *= units.layer[None] < units.layer[:, None]
    weights = (torch.rand(n_targets, generator=g) + 0.1).tolist()
    graph = graph_from(edges, units, columns, weights)
    c = columns.embeddings.stop
    a = torch.zeros(
        c + n_targets, c + n_targets, dtype=torch.float64
    )  # nodes: units, rests, tokens, targets; rows are what is explained
    a[c:, :c], a[: len(units), :c] = edges[:n_targets, :c].abs(), edges[n_targets:, :c].abs()
    a = a / a.sum(1, keepdim=True).clamp(min=1e-30)
    w = torch.zeros(len(a), dtype=torch.float64)
    w[c:] = torch.tensor(weights, dtype=torch.float64)
    influence = w @ (torch.linalg.inv(torch.eye(len(a), dtype=torch.float64) - a) - torch.eye(len(a), dtype=torch.float64))
    token, error = influence[columns.embeddings].sum(), influence[columns.rest].sum()
    output = influence + w
    complete = ((1 - a[:, columns.rest].sum(1)) * output).sum() / output.sum()
    found = graph_scores(graph)
    assert found.replacement == pytest.approx(float(token / (token + error)), abs=1e-9)
    assert found.completeness == pytest.approx(float(complete), abs=1e-9)


def test_the_mlp_itself_scores_one_and_a_random_dictionary_less() -> None:
    instrument = instrument_of("opt", activation_function="relu")
    prompt = build_prompt(instrument.loaded.tokenizer, "The answer is")
    layers = {}
    for i, layer in enumerate(instrument.parts.layers):
        block = layer.block
        layers[i] = LayerDictionary(
            i, block.fc1.weight.detach(), block.fc1.bias.detach(), {i: block.fc2.weight.detach().T}, block.fc2.bias.detach(),  # type: ignore[union-attr]
            Activation(), "mlp_in", "mlp",
        )  # fmt: skip
    perfect = graph_scores(attribute_prompt(instrument, prompt, targets=["top:3"], max_nodes=10**6, units=Transcoders(layers)))
    assert perfect.replacement == pytest.approx(1, abs=1e-9) and perfect.completeness == pytest.approx(1, abs=1e-9)
    random = random_dictionary(2, d_model=64, features=40, dtype=torch.float64)
    graph = attribute_prompt(instrument, prompt, targets=["top:3"], max_nodes=10**6, units=random)
    found = graph_scores(graph)
    assert found.replacement < 0.8 and found.completeness < 0.95
    nothing = replace(graph, edges=graph.edges * 0)
    assert graph_scores(nothing).replacement == 0
