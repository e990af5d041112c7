"""Ghosts, supernodes and the rest's influence: each finds what was planted, and does not find it where it is not."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import instrument_of

from symbolic_residue.errors import ConfigError
from symbolic_residue.graph import attribute_prompt, Columns, Graph, Rows, TargetInfo, Units, validate_neuronpedia
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt, Prompt

TEXT = "Please write the answer in one word. The answer is"
PAIR = (7, 9)


def prompt_for(instrument: Instrument) -> Prompt:
    return build_prompt(instrument.loaded.tokenizer, TEXT)


def planted(towards: bool) -> tuple[Instrument, int]:
    """Llama whose last layer has one neuron, active at the last position, that writes much: along the target, or at right angles to it."""
    instrument = instrument_of("llama")
    graph = attribute_prompt(instrument, prompt_for(instrument), targets=[PAIR], max_nodes=10**6)
    last = (graph.units.layer == 1) & (graph.units.position == len(graph.ids) - 1)
    neuron = int(graph.units.neuron[int(torch.where(last, graph.activations.abs(), 0).argmax())])
    direction = graph.target_rows.direction[0]
    direction = direction / direction.norm()
    write = direction if towards else torch.randn(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if not towards:
        write = write - (write @ direction) * direction
    with torch.no_grad():
        instrument.model.model.layers[1].mlp.down_proj.weight[:, neuron] = 5 * write / write.norm()
    return instrument, neuron


@pytest.mark.parametrize("towards", [False, True])
def test_a_large_neuron_is_a_ghost_where_it_writes_past_the_target_and_only_there(towards: bool) -> None:
    instrument, neuron = planted(towards)
    graph = attribute_prompt(instrument, prompt_for(instrument), targets=[PAIR], max_nodes=20)
    found = graph.ghosts(instrument, count=200)
    at = found.table.filter(
        (found.table["neuron"] == neuron) & (found.table["layer"] == 1) & (found.table["position"] == len(graph.ids) - 1)
    )
    row = at.row(0, named=True)
    assert row["ghost"] is not towards and (row["ratio"] > 2 if towards else row["ratio"] < 1e-6)
    assert row["size"] == pytest.approx(5 * abs(row["activation"])) and row["size"] >= found.table["size"][10]
    assert found.table["size"].is_sorted(descending=True) and len(found.table) == 200
    able = found.table.filter(found.table["reaches"])
    assert found.share == pytest.approx(able["ghost"].mean()) and 0 < len(able) < 200
    stuck = found.table.filter(~found.table["reaches"])
    assert (stuck["layer"] == 1).all() and (stuck["position"] < len(graph.ids) - 1).all() and not stuck["ghost"].any()
    again = graph.ghosts(instrument, count=200)
    assert again.table.equals(found.table) and again.control == found.control


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_of_a_direction_that_means_nothing_95_percent_are_ghosts(name: str) -> None:
    """The floor is what it says: of each random direction's effects about 5 % are above it. Sizes pass the norm after the MLP, where there is one."""
    instrument = instrument_of(name)
    graph = attribute_prompt(instrument, prompt_for(instrument), targets=[PAIR, "top:2"], max_nodes=5)
    found = graph.ghosts(instrument, count=300, directions=40)
    mean, low, high = found.control
    assert 0.92 < mean < 0.97 and low <= mean <= high <= 1
    from symbolic_residue.graph import freeze

    local = freeze(instrument, torch.tensor(graph.ids))
    for row in found.table.head(20).iter_rows(named=True):
        cell = (
            torch.tensor([row["neuron"]]),
            torch.tensor([row["position"]]),
            torch.tensor([row["activation"]], dtype=torch.float64),
        )
        assert row["size"] == pytest.approx(float(local.layers[row["layer"]].written(*cell).norm()), rel=1e-9)


def test_ghosts_of_another_model_or_without_a_floor_are_refused() -> None:
    instrument = instrument_of("llama")
    graph = attribute_prompt(instrument, prompt_for(instrument), targets=[PAIR], max_nodes=20)
    for other in (instrument_of("llama", seed=1), instrument_of("gpt2")):
        with pytest.raises(ConfigError, match="not the model"):
            graph.ghosts(other)
    for options in ({"directions": 2}, {"count": 0}):
        with pytest.raises(ConfigError, match="no floor"):
            graph.ghosts(instrument, **options)


def test_the_rest_falls_to_nothing_as_neurons_become_nodes() -> None:
    instrument = instrument_of("gpt2")
    shares = []
    for count in (0, 40, 10**6):
        graph = attribute_prompt(instrument, prompt_for(instrument), targets=[PAIR], max_nodes=count)
        errors, influence = graph.errors(), graph.influence()
        assert errors["layer"].to_list() == [0, 1]
        sources = float(errors["influence"].sum()) + float(influence[graph.columns.embeddings.start :].sum())
        assert sources == pytest.approx(1, abs=1e-9)
        assert errors["below"].to_list() == pytest.approx([errors["influence"][0], errors["influence"].sum()])
        shares.append(errors["influence"].sum())
    assert shares[0] > shares[1] > shares[2] and shares[2] < 1e-9


def families(alike: bool) -> Graph:
    """18 neurons, in three families that read one source and are read by one reader each; or edges of chance."""
    generator = torch.Generator().manual_seed(5)
    n_layers, n, size = 3, 4, 6
    low = [(0, t, k) for t in range(3) for k in range(size)]
    units = Units.of(torch.tensor([*low, (2, 3, 0), (2, 3, 1), (2, 3, 2)]))
    columns = Columns(len(units), n_layers, n, False)
    edges = torch.zeros(1 + len(units), len(columns), dtype=torch.float64)
    noise = torch.rand(edges.shape, generator=generator, dtype=torch.float64)
    for u in range(18):
        family = u % 3
        edges[1 + u, columns.embeddings] = noise[1 + u, columns.embeddings] * (0.05 if alike else 1)
        if alike:
            edges[1 + u, columns.embeddings.start + family] += 1
        for reader in range(3):
            edges[19 + reader, u] = (1.0 if reader == family else 0.02) if alike else float(noise[19 + reader, u])
    edges[0, 18:21] = torch.tensor([1.0, 1.1, 1.2], dtype=torch.float64)
    sums = edges.sum(1)
    rows = Rows(torch.zeros(1, 1), torch.zeros(1), torch.tensor([6]), torch.tensor([3]))
    return Graph(
        (1, 2, 3, 4), ("a", "b", "c", "d"), (TargetInfo("t", float(sums[0]), 3, 3, 1.0, 0, None, None),), units, sums[1:], sums[1:], edges,
        columns, "half", False, 0.0, rows, {}, tuple((f"word {u % 3}", "common") if u < 18 else ("reader",) for u in range(21)),
    )  # fmt: skip


def test_families_are_found_and_named_and_chance_has_none() -> None:
    graph = families(alike=True)
    found = graph.supernodes(node_threshold=1, edge_threshold=1)
    groups = {frozenset(group) for group in found.members}
    assert {frozenset(u for u in range(18) if u % 3 == family) for family in range(3)} <= groups
    assert found.silhouette > found.control and found.silhouette > 0.5
    for label, group in zip(found.labels, found.members, strict=True):
        if len(group) == 6:
            assert f"'word {group[0] % 3}'" in label and "L0 ×6" in label
    assert graph.supernodes(node_threshold=1, edge_threshold=1).members == found.members
    data = graph.to_neuronpedia(supernodes=found.rows(graph), node_threshold=1, edge_threshold=1)
    assert len(validate_neuronpedia(data).view.supernodes) == len(found)
    none = families(alike=False).supernodes(node_threshold=1, edge_threshold=1)
    assert len(none) == 0 and none.silhouette <= none.control


def test_a_graph_of_a_few_neurons_has_no_groups() -> None:
    instrument = instrument_of("llama")
    graph = attribute_prompt(instrument, prompt_for(instrument), targets=[PAIR], max_nodes=2)
    assert len(graph.supernodes()) == 0
    with pytest.raises(ConfigError, match="too few"):
        graph.supernodes(most=1)
