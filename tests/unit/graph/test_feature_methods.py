"""What works with neurons works with features: given nodes, two graphs, ghosts; each against the neurons' own where the dictionary is the MLP, or what was planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionary_files import perfect, random_dictionary
from graph_helpers import instrument_of

from symbolic_residue.dictionaries import Transcoders
from symbolic_residue.errors import ConfigError
from symbolic_residue.graph import (
    attribute_pair,
    attribute_prompt,
    error_influence,
    freeze,
    Graph,
    head_loadings,
    load_graph,
    save_graph,
    TokenPair,
    unit_values,
    Units,
    with_dictionary,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt, CounterfactualPair, Prompt

TEXT = "Please write the answer in one word. The answer is"
PAIR = (7, 9)
KINDS: dict[str, dict[str, Any]] = {
    "transcoders": {"kind": "jumprelu", "reads": "mlp_in"},
    "skip": {"kind": "topk", "reads": "mlp_in", "predicts": "mlp", "skip": True},
    "clt": {"kind": "relu", "reads": "resid_mid", "clt": True},
    "clt skip": {"kind": "jumprelu", "reads": "normalized", "clt": True, "skip": True},
    "mixed": {"kind": "relu", "reads": "mlp_in", "only": (1,), "skip": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str = "transcoders", **how: Any) -> Transcoders:
    return random_dictionary(2, d_model=64, features=40, dtype=torch.float64, **(KINDS[kind] | how))


def prompts(instrument: Instrument) -> tuple[Prompt, Prompt]:
    a = build_prompt(instrument.loaded.tokenizer, TEXT)
    ids = [11 + i if i in (3, 8, len(a.ids) - 1) else one for i, one in enumerate(a.ids)]
    return a, replace(a, ids=ids, tokens=[x if i == j else "other" for x, i, j in zip(a.tokens, ids, a.ids, strict=True)])


def triples(units: Units) -> set[tuple[int, int, int]]:
    return set(zip(units.layer.tolist(), units.position.tolist(), units.neuron.tolist(), strict=True))


def some(graph: Graph, every: int) -> Units:
    return Units.of(torch.stack([graph.units.layer, graph.units.position, graph.units.neuron], 1)[::every])


@each_kind
def test_given_features_are_the_nodes_and_their_edges_are_those_of_the_graph_of_all(kind: str) -> None:
    instrument, dictionary = instrument_of("llama"), made(kind)
    prompt, _ = prompts(instrument)
    every = attribute_prompt(instrument, prompt, targets=[PAIR], max_nodes=10**6, units=dictionary)
    units = some(every, 17)
    found = attribute_prompt(instrument, prompt, targets=[PAIR], units=dictionary, nodes=units)
    assert triples(found.units) == triples(units) and found.check().worst < 1e-12 and found.dictionary == every.dictionary
    there = torch.tensor([cell in triples(units) for cell in zip(*(x.tolist() for x in vars(every.units).values()), strict=True)])
    rows = torch.cat([torch.tensor([True]), there])
    torch.testing.assert_close(found.edges[:, : len(units)], every.edges[rows][:, : len(every)][:, there], rtol=0, atol=1e-11)
    layer = max(dictionary.layers)
    off = next(f for f in range(40) if (layer, 2, f) not in triples(every.units))
    with pytest.raises(ConfigError, match=f"Feature {off} of layer {layer} is not active at position 2") as error:
        attribute_prompt(instrument, prompt, targets=[PAIR], units=dictionary, nodes=Units.of(torch.tensor([[layer, 2, off]])))
    assert error.value.why and "graph.nodes()" in error.value.todo
    silent = attribute_prompt(
        instrument, prompt, targets=[PAIR], units=dictionary, nodes=Units.of(torch.tensor([[layer, 2, off]])), off=True
    )
    assert silent.activations.tolist() == [0] and not silent.edges[1].any() and not silent.edges[:, 0].any()
    assert silent.check().passed and silent.dictionary == every.dictionary  # what is off counts in no l0
    for cell in ([layer, 99, 0], [layer, 0, 40], [layer, 0, -1], [2, 0, 0]):
        for how in ({}, {"off": True}):
            with pytest.raises(ConfigError):
                attribute_prompt(instrument, prompt, units=dictionary, nodes=Units.of(torch.tensor([cell])), **how)


@each_kind
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_two_prompts_are_compared_on_the_union_and_what_is_off_in_one_has_no_edges_there(name: str, kind: str) -> None:
    instrument, dictionary = instrument_of(name), made(kind)
    a, b = prompts(instrument)
    found = attribute_pair(instrument, a, b, targets=[PAIR], max_nodes=200, units=dictionary)
    assert triples(found.a.units) == triples(found.b.units) and found.check().worst < 1e-12
    torch.testing.assert_close(found.edges().sum(1), found.values(), rtol=0, atol=1e-10)
    local = with_dictionary(freeze(instrument, torch.tensor(b.ids)), dictionary)
    off = found.b.activations == 0
    on = Units(*(x[~off] for x in vars(found.b.units).values()))
    assert int(off.sum()) > 2 and set(found.b.units.layer[off].tolist()) <= set(dictionary.layers)
    torch.testing.assert_close(found.b.activations[~off], unit_values(local, on), rtol=0, atol=1e-12)
    for i, t, n in zip(*(x[off].tolist() for x in vars(found.b.units).values()), strict=True):
        with pytest.raises(ConfigError, match="not active"):
            local.units[i].at(torch.tensor([t]), torch.tensor([n]))
    assert not found.b.edges[1:][off].any() and not found.b.edges[:, : len(off)][:, off].any()
    alone = attribute_prompt(instrument, b, targets=[PAIR], units=dictionary, nodes=on)
    rows, columns = (
        torch.cat([torch.tensor([True]), ~off]),
        torch.cat([~off, torch.ones(len(found.b.columns) - len(off), dtype=torch.bool)]),
    )
    torch.testing.assert_close(found.b.edges[rows][:, columns], alone.edges, rtol=0, atol=1e-11)
    loads = head_loadings(instrument, found.b, dictionary=dictionary)  # other methods know such nodes
    assert loads.error < 1e-9
    assert set(found.nodes()["kind"]) == ({"feature"} if kind != "mixed" else {"feature", "neuron"})


@pytest.mark.parametrize("kind", ["skip", "clt", "mixed"])
def test_kept_graphs_of_features_are_compared_on_common_ones_and_other_dictionaries_refused(tmp_path: Path, kind: str) -> None:
    """Folded into REST as attribution would; of a CLT's feature all goes into the REST of the layer that it reads, whichever layers it writes into."""
    instrument, dictionary = instrument_of("gpt2"), made(kind)
    a, b = prompts(instrument)
    one, two = (attribute_prompt(instrument, p, targets=[PAIR], max_nodes=50, units=dictionary) for p in (a, b))
    found = load_graph(save_graph(one, tmp_path / "a")).diff(load_graph(save_graph(two, tmp_path / "b")))
    common = triples(one.units) & triples(two.units)
    assert 0 < len(common) < 50 and triples(found.a.units) == common and len(common) < len(one) and found.check().worst < 1e-12
    anew = attribute_prompt(instrument, a, targets=[PAIR], units=dictionary, nodes=Units.of(torch.tensor(sorted(common))))
    edges, wanted, rest = found.a.edges, anew.edges, anew.columns.rest
    if kind == "clt":
        over = [
            torch.cat([e[:, : rest.start], e[:, rest].unflatten(1, (2, -1)).sum(1), e[:, rest.stop :]], 1) for e in (edges, wanted)
        ]
        assert not torch.allclose(edges, wanted)
        edges, wanted = over
    torch.testing.assert_close(edges, wanted, rtol=0, atol=1e-11)
    assert not one.diff(one).edges().any()
    for other in (attribute_prompt(instrument, b, targets=[PAIR], max_nodes=5, units=made(kind, seed=1)),
                  attribute_prompt(instrument, b, targets=[PAIR], max_nodes=5)):  # fmt: skip
        with pytest.raises(ConfigError, match="differ in dictionary"):
            one.diff(other)


def large(kind: str, towards: bool) -> tuple[Instrument, Graph, Transcoders, tuple[int, int]]:
    """A dictionary with one feature, active at the last position, that writes much into the last layer: along the target, or at right angles to it."""
    instrument, dictionary = instrument_of("llama"), made(kind)
    prompt, _ = prompts(instrument)
    graph = attribute_prompt(instrument, prompt, targets=[PAIR], max_nodes=10**6, units=dictionary)
    source = min(dictionary.layers) if "clt" in kind else 1
    here = (graph.units.layer == source) & (graph.units.position == len(graph.ids) - 1)
    feature = int(graph.units.neuron[int(torch.where(here, graph.activations.abs(), 0).argmax())])
    direction = graph.target_rows.direction[0]
    direction = direction / direction.norm()
    write = direction if towards else torch.randn(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if not towards:
        write = write - (write @ direction) * direction
    decoders = {j: rows.clone() for j, rows in dictionary.layers[source].decoders.items()}
    for j, rows in decoders.items():
        rows[feature] = 5 * write / write.norm() if j == 1 else 0
    changed = Transcoders(dict(dictionary.layers) | {source: replace(dictionary.layers[source], decoders=decoders)})
    made_again = attribute_prompt(instrument, prompt, targets=[PAIR], max_nodes=20, units=changed)
    return instrument, made_again, changed, (source, feature)


@pytest.mark.parametrize("towards", [False, True])
@each_kind
def test_a_large_feature_is_a_ghost_where_it_writes_past_the_target_and_only_there(kind: str, towards: bool) -> None:
    instrument, graph, dictionary, (layer, feature) = large(kind, towards)
    found = graph.ghosts(instrument, dictionary=dictionary, count=150)
    last = len(graph.ids) - 1
    (row,) = found.table.filter(
        (found.table["neuron"] == feature) & (found.table["layer"] == layer) & (found.table["position"] == last)
    ).iter_rows(named=True)
    assert row["kind"] == "feature" and row["size"] == pytest.approx(5 * abs(row["activation"]))
    if "clt" not in kind and dictionary.layers[layer].skip is None:  # what passes it is not the write alone, else
        assert row["ghost"] is not towards and (row["ratio"] > 2 if towards else row["ratio"] < 1e-6)
    else:
        assert row["ratio"] > 2 if towards else row["ratio"] < 1e-6
    assert len(found.table) > 100 and found.table["size"].is_sorted(descending=True)
    assert 0.9 < found.control[0] < 0.98


def test_sizes_of_a_clts_features_are_those_of_all_that_they_write_and_the_mlp_itself_has_its_neurons_ghosts() -> None:
    instrument, dictionary = instrument_of("granite"), made("clt")
    prompt, _ = prompts(instrument)
    graph = attribute_prompt(instrument, prompt, targets=[PAIR], max_nodes=20, units=dictionary)
    for row in graph.ghosts(instrument, dictionary=dictionary, count=30).table.iter_rows(named=True):
        writes = [d[row["neuron"]] for d in dictionary.layers[row["layer"]].decoders.values()]
        size = float(torch.cat(writes).norm()) * abs(row["activation"]) * instrument.parts.layers[0].mlp_scale
        assert row["size"] == pytest.approx(size, rel=1e-9)
    instrument = instrument_of("opt", activation_function="relu")
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    mlp = perfect(instrument)
    tables = [
        attribute_prompt(instrument, prompt, targets=[PAIR], max_nodes=20, units=units).ghosts(instrument, count=80, **how).table
        for units, how in (("neurons", {}), (mlp, {"dictionary": mlp}))
    ]
    assert (
        tables[0]
        .drop("kind", "activation", "size", "effect", "floor", "ratio")
        .equals(tables[1].drop("kind", "activation", "size", "effect", "floor", "ratio"))
    )
    for column in ("size", "effect", "floor"):
        assert tables[0][column].to_list() == pytest.approx(tables[1][column].to_list(), abs=1e-9)


def test_ghosts_need_the_graphs_own_dictionary_and_model() -> None:
    instrument, dictionary = instrument_of("llama"), made("mixed")
    prompt, _ = prompts(instrument)
    graph = attribute_prompt(instrument, prompt, targets=[PAIR], max_nodes=20, units=dictionary)
    with pytest.raises(ConfigError, match="not given"):
        graph.ghosts(instrument)
    with pytest.raises(ConfigError, match="not the graph's"):
        graph.ghosts(instrument, dictionary=made("mixed", seed=1))
    for other in (instrument_of("llama", seed=1), instrument_of("gpt2")):
        with pytest.raises(ConfigError, match="not the model"):
            graph.ghosts(other, dictionary=dictionary)


@pytest.mark.parametrize("rest", ["position", "layer"])
@each_kind
def test_errors_are_parted_from_the_features_that_are_no_nodes(kind: str, rest: str) -> None:
    """The errors' edges are those of the graph in which every feature is a node; influence by the textbook's inverse."""
    instrument, dictionary = instrument_of("gpt2"), made(kind)
    prompt, _ = prompts(instrument)
    every = attribute_prompt(instrument, prompt, targets=[PAIR, "top:2"], max_nodes=10**6, units=dictionary, rest=rest)
    whole, plain = error_influence(instrument, every, dictionary), every.errors()
    assert whole["layer"].to_list() == sorted(dictionary.layers)
    of_layers = plain.filter(plain["layer"].is_in(whole["layer"]))
    assert whole["error"].to_list() == pytest.approx(of_layers["influence"].to_list(), abs=1e-9)
    assert float(whole["others"].max()) < 1e-9 and whole["below"].to_list() == pytest.approx(whole["error"].cum_sum().to_list())  # type: ignore[arg-type]
    few = attribute_prompt(instrument, prompt, targets=[PAIR, "top:2"], max_nodes=25, units=dictionary, rest=rest)
    found = error_influence(instrument, few, dictionary)
    mine = triples(few.units)
    there = torch.tensor([cell in mine for cell in zip(*(x.tolist() for x in vars(every.units).values()), strict=True)])
    n, c = len(few), few.columns
    rows = torch.cat([torch.ones(few.n_targets, dtype=torch.bool), there])
    errors = every.edges[rows][:, every.columns.rest].clone()
    errors[:, [s for i in range(2) if i not in dictionary.layers for s in range(i * c.spread, (i + 1) * c.spread)]] = 0
    a = torch.zeros(few.n_targets + n, n + 2 * errors.shape[1] + len(c) - c.rest.stop, dtype=torch.float64)
    a[:] = torch.cat([few.edges[:, :n], errors, few.edges[:, c.rest] - errors, few.edges[:, c.rest.stop :]], 1).abs()
    a = a / a.sum(1, keepdim=True).clamp(min=1e-300)
    weight = torch.tensor([t.weight for t in few.targets], dtype=torch.float64)
    into = torch.linalg.solve(
        torch.eye(n, dtype=torch.float64) - a[few.n_targets :, :n].T, weight / weight.sum() @ a[: few.n_targets, :n]
    )
    influence = weight / weight.sum() @ a[: few.n_targets] + into @ a[few.n_targets :]
    both = influence[n : n + 2 * errors.shape[1]].view(2, 2, c.spread).sum(-1)
    at = sorted(dictionary.layers)
    assert found["error"].to_list() == pytest.approx(both[0][at].tolist(), abs=1e-9)
    assert found["others"].to_list() == pytest.approx(both[1][at].tolist(), abs=1e-9) and float(found["others"].sum()) > 1e-3
    neurons = attribute_prompt(instrument, prompt, targets=[PAIR], max_nodes=5)
    with pytest.raises(ConfigError, match="has no errors"):
        error_influence(instrument, neurons, dictionary)


@each_kind
def test_every_method_of_a_graph_knows_features(kind: str, tmp_path: Path) -> None:
    instrument, dictionary = instrument_of("llama"), made(kind)
    a, b = prompts(instrument)
    graph = attribute_prompt(instrument, a, targets=[PAIR], max_nodes=60, units=dictionary)
    about = CounterfactualPair(id="p", category="facts", frame="f", clean=TEXT, corrupted=f"{TEXT}!", answer=" a", wrong=" b")
    pair = TokenPair(about, a, b, *PAIR)
    assert graph.check().worst < 1e-12 and graph.accounted()["value"].sum() == pytest.approx(graph.targets[0].value)
    kept = graph.prune(1, 1)
    assert 0 < int(kept.columns[: len(graph)].sum()) <= len(graph)
    assert graph.faithfulness(instrument, pair, dictionary=dictionary, points=4, draws=1).curves["n"].max() <= len(graph)  # type: ignore[operator]
    assert graph.head_loadings(instrument, dictionary=dictionary).error < 1e-9
    looks = graph.qk(instrument, 1, 0, len(a.ids) - 1, 2, dictionary=dictionary)
    assert float(looks.pairs().sum()) == pytest.approx(looks.score, abs=1e-9)
    assert len(graph.ghosts(instrument, dictionary=dictionary, count=20).table) == 20
    assert graph.errors()["influence"].sum() < 1 and len(graph.supernodes().labels) >= 0
    names = [name for name, one in zip(graph.column_names(), kept.columns.tolist(), strict=True) if one]
    data = graph.to_neuronpedia(node_threshold=1, edge_threshold=1)
    assert len(data["nodes"]) > 0 and any(" f" in name for name in names)
    assert load_graph(graph.save(tmp_path / "g")).nodes().equals(graph.nodes())
    assert graph.diff(attribute_prompt(instrument, b, targets=[PAIR], max_nodes=60, units=dictionary)).check().passed
