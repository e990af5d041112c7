"""Heads kept with a graph: chosen by what they carry, complete, and the same in a folder, in the exchanged file and in the graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionary_files import random_dictionary
from graph_helpers import instrument_of

from symbolic_residue.errors import ConfigError, DamagedFileError, ReadError, RecordError, WriteError
from symbolic_residue.graph import (
    attribute_prompt,
    freeze,
    Graph,
    GraphHeads,
    influential_edges,
    load_graph,
    load_heads,
    read_neuronpedia,
    save_heads,
    validate_neuronpedia,
    write_neuronpedia,
)
from symbolic_residue.graph._heads import arrived, routes
from symbolic_residue.graph._qk import score_sides
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt

TEXT = "Please write the answer in one word. The answer is"


def graph_of(instrument: Instrument, **options: Any) -> Graph:
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    return attribute_prompt(instrument, prompt, **({"targets": ["top:2"], "max_nodes": 40} | options))


@pytest.fixture(scope="module")
def made() -> tuple[Instrument, Graph, GraphHeads]:
    instrument = instrument_of("llama")
    graph = graph_of(instrument)
    return instrument, graph, graph.heads(instrument, edges=120, looks=3, terms=5)


@pytest.mark.parametrize("count", [20, 150])
def test_the_edges_are_those_that_hold_most_influence(made: tuple[Instrument, Graph, GraphHeads], count: int) -> None:
    """By the definition: an edge's share of its row's absolute sum, times the row's influence; the rest by position among them, constants not."""
    _, graph, _ = made
    edges, strength, share = influential_edges(graph, count)
    kept, influence = graph.prune(), graph.influence()
    scores: dict[tuple[int, int], float] = {}
    for r, c in kept.edges.nonzero().tolist():
        if c >= graph.columns.embeddings.stop:
            continue
        size = graph.edges[r].abs().sum()
        weight = (
            graph.targets[r].weight / sum(t.weight for t in graph.targets)
            if r < graph.n_targets
            else float(influence[r - graph.n_targets])
        )
        scores[r, c] = float(graph.edges[r, c].abs() / size) * weight
    best = sorted(scores, key=lambda edge: -scores[edge])[:count]
    assert len(scores) > 150
    assert {tuple(edge) for edge in edges.tolist()} == set(best)
    assert strength.tolist() == pytest.approx([scores[r, c] for r, c in edges.tolist()])
    assert share == pytest.approx(sum(scores[e] for e in best) / sum(scores.values())) and 0 < share < 1
    assert influential_edges(graph, 10**6)[2] == pytest.approx(1)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2"])
def test_a_heads_part_is_the_sum_over_the_queries_that_it_serves(name: str) -> None:
    instrument = instrument_of(name)
    graph = graph_of(instrument)
    edges, _, _ = influential_edges(graph, 12)
    loadings = graph.head_loadings(instrument, edges).loadings
    local = freeze(instrument, torch.tensor(graph.ids))
    for layer in range(2):
        heads = torch.tensor([[layer, e % 4] for e in range(len(edges))])
        found = routes(local, graph, edges, heads)
        wanted = loadings[torch.arange(len(edges)), heads[:, 0], heads[:, 1]]
        torch.testing.assert_close(found.sum(1), wanted, rtol=0, atol=1e-12 * float(loadings.abs().max()))


def test_looks_are_of_the_heads_that_carry_most_and_complete(made: tuple[Instrument, Graph, GraphHeads]) -> None:
    instrument, graph, heads = made
    edges, _, _ = influential_edges(graph, 120)
    assert torch.equal(heads.loadings.row, edges[:, 0]) and torch.equal(heads.loadings.column, edges[:, 1])
    assert len(heads.looks) == 3 and [look.carries for look in heads.looks] == sorted(
        (x.carries for x in heads.looks), reverse=True
    )
    for look in heads.looks:
        assert 0 < look.key < look.query
        whole = graph.qk(instrument, look.layer, look.head, look.query, look.key)
        assert look.score == pytest.approx(whole.score) and look.weight == pytest.approx(whole.weight)
        beside = [
            graph.qk(instrument, look.layer, look.head, look.query, t).score for t in range(1, look.query + 1) if t != look.key
        ]
        assert look.others == (pytest.approx(sum(beside) / len(beside)) if beside else None)
        pairs = whole.pairs()
        named = torch.zeros_like(pairs, dtype=torch.bool)
        single = [c for c, _ in look.of_query if c < graph.columns.embeddings.stop]
        named[
            torch.tensor(single)[:, None], torch.tensor([c for c, _ in look.of_key if c < graph.columns.embeddings.stop])[None]
        ] = True
        sizes = (
            (pairs * named)[(pairs * named) != 0].abs().sort(descending=True).values
        )  # in layer 0 there is one pair: the two embeddings
        assert [abs(term) for _, _, term in look.pairs] == pytest.approx(sizes[:5].tolist())
        assert all(term == pytest.approx(float(pairs[q, k])) for q, k, term in look.pairs)
        marginals = ((look.of_query, look.query_left, whole.of_query()), (look.of_key, look.key_left, whole.of_key()))
        for kept, left, values in marginals:
            others = torch.ones(len(values), dtype=torch.bool)
            others[[c for c, _ in kept]] = False
            assert left == pytest.approx(float(values[others].sum()), abs=1e-9)
            assert sum(term for _, term in kept) + left == pytest.approx(look.score, abs=1e-9)
        assert sum(term for *_, term in look.pairs) + look.pairs_left == pytest.approx(look.score, abs=1e-9)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3", "falcon"])
def test_what_arrives_is_what_the_rows_read(name: str) -> None:
    """Oracle: the same edges, pulled down from the rows: all columns' parts of a head's query and key in the second layer."""
    instrument = instrument_of(name)
    graph = graph_of(instrument)
    local = freeze(instrument, torch.tensor(graph.ids))
    whole = graph.qk(instrument, 1, 2, 7, 4, local=local)
    columns = torch.arange(graph.columns.embeddings.stop)
    one = score_sides(instrument, graph, local, 1, 2, 7, 4)
    stream = arrived(local, graph, columns, 1, 8)
    size = float(whole.q.abs().max())
    torch.testing.assert_close(one.q_direction @ stream[:, 7].T, whole.q[:, columns], rtol=0, atol=1e-9 * size)
    torch.testing.assert_close(one.k_direction @ stream[:, 4].T, whole.k[:, columns], rtol=0, atol=1e-9 * size)


def test_what_features_wrote_arrives_through_skips_too() -> None:
    instrument = instrument_of("llama")
    dictionary = random_dictionary(2, clt=True, skip=True, only=None, d_model=64, features=40)
    graph = graph_of(instrument, units=dictionary)
    looks = graph.heads(instrument, looks=2, dictionary=dictionary).looks
    assert looks
    for look in looks:
        pairs = graph.qk(instrument, look.layer, look.head, look.query, look.key, dictionary=dictionary).pairs()
        assert all(term == pytest.approx(float(pairs[q, k]), rel=1e-6) for q, k, term in look.pairs) and look.pairs


def test_a_planted_head_is_the_first_look() -> None:
    """One head of the first layer writes a hundred times more than any other: it carries most, and where it looks is explained first."""
    instrument = instrument_of("llama")
    with torch.no_grad():
        out = instrument.model.model.layers[0].self_attn.o_proj.weight
        out[:, 2 * 16 : 3 * 16] *= 100
    graph = graph_of(instrument)
    looks = graph.heads(instrument, looks=2).looks
    assert (looks[0].layer, looks[0].head) == (0, 2) and looks[0].carries > 0.1
    plain = graph_of(instrument_of("llama"))
    others = plain.heads(instrument_of("llama"), looks=1).looks
    assert others[0].carries < looks[0].carries


def test_heads_come_back_from_a_folder_and_damage_is_seen(made: tuple[Instrument, Graph, GraphHeads], tmp_path: Path) -> None:
    instrument, graph, heads = made
    with pytest.raises(WriteError, match="graph there first"):
        save_heads(heads, tmp_path)
    graph.save(tmp_path)
    again = load_graph(tmp_path)
    assert load_heads(again, tmp_path) is None
    save_heads(heads, tmp_path)
    back = load_heads(again, tmp_path)
    assert back is not None and back.looks == heads.looks and (back.share, back.refused) == (heads.share, "")
    assert torch.equal(back.loadings.loadings, heads.loadings.loadings) and torch.equal(back.loadings.bypass, heads.loadings.bypass)
    assert again.to_neuronpedia(heads=back) == graph.to_neuronpedia(heads=heads)
    text = (tmp_path / "heads.json").read_text()

    def changed(**fields: Any) -> None:
        (tmp_path / "heads.json").write_text(json.dumps(json.loads(text) | fields))

    look = json.loads(text)["looks"][0]
    for fields, said in (
        ({"format": 9}, "format 9"),
        ({"tensors_sha256": "0"}, "heads.safetensors"),
        ({"graph_sha256": "0"}, "graph.safetensors"),
        ({"looks": [look | {"pairs_left": look["pairs_left"] + 1}]}, "add up"),
        ({"looks": [look | {"key": 99}]}, "do not fit"),
        ({"looks": [{"layer": 1}]}, "not readable"),
    ):
        changed(**fields)
        with pytest.raises(DamagedFileError, match=said):
            load_heads(again, tmp_path)
    (tmp_path / "heads.json").write_text("{")
    with pytest.raises(DamagedFileError, match="not readable"):
        load_heads(again, tmp_path)
    graph_of(instrument, targets=["top:1"]).save(tmp_path)  # another graph in the place of the first
    (tmp_path / "heads.json").write_text(text)
    with pytest.raises(DamagedFileError, match=r"graph\.safetensors"):
        load_heads(load_graph(tmp_path), tmp_path)


def test_the_exchanged_file_holds_links_as_sums_and_looks_as_scores(
    made: tuple[Instrument, Graph, GraphHeads], tmp_path: Path
) -> None:
    _, graph, heads = made
    data = graph.to_neuronpedia(heads=heads)
    back = read_neuronpedia(write_neuronpedia(data, tmp_path / "g.json"))
    assert back.plain() == data
    split = [link for link in data["links"] if "residue_heads" in link]
    assert len(split) == len(heads)
    for link in split:
        one = link["residue_heads"]
        whole = sum(part for _, _, part in one["heads"]) + one["others"] + one["no_attention"]
        assert whole == pytest.approx(link["weight"], abs=1e-9) and len(one["heads"]) <= 3
    known = [node["node_id"] for node in data["nodes"]]
    only = data.get("qk_only_nodes", {})
    assert len({*known, *only}) == len(known) + len(only)
    looks = data["metadata"]["residue"]["looks"]
    names = graph.column_names()
    for look, kept in zip(looks, heads.looks, strict=True):
        assert sum(term for *_, term in look["pairs"]) + look["pairs_left"] == pytest.approx(look["score"])
        for (q, k, _), (i, j, _) in zip(look["pairs"], kept.pairs, strict=True):
            for name, number in ((q, i), (k, j)):
                if number < len(graph):
                    layer, neuron, position = name.split("_")
                    assert names[number] == f"L{layer} #{neuron} @{position}"
        node = next(node for node in data["nodes"] if node["node_id"] == look["target"])
        assert "qk_tracing_results" in node
    first = next(node for node in data["nodes"] if node["node_id"] == looks[0]["target"])["qk_tracing_results"]
    assert first["pair_wise_contributors"] == looks[0]["pairs"] and first["top_k_marginal_contributors"] == looks[0]["of_key"]
    assert set(only) == {
        n for look in looks for *ids, _ in (*look["pairs"], *look["of_query"], *look["of_key"]) for n in ids
    } - set(known)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pair_wise_contributors": [["9_9_9", "E_1_1", 1.0]]}, "'9_9_9', which no node is"),
        ({"top_q_marginal_contributors": [["E_1_1"]]}, "not 1 ids and a number"),
        ({"top_k_marginal_contributors": [[1.0, "E_1_1"]]}, "not 1 ids and a number"),
        ({"pair_wise_contributors": "x"}, "pair_wise_contributors"),
    ],
)
def test_terms_from_elsewhere_that_name_nothing_are_refused(
    made: tuple[Instrument, Graph, GraphHeads], change: dict[str, Any], said: str
) -> None:
    data = made[1].to_neuronpedia()
    data["nodes"][0]["qk_tracing_results"] = change
    with pytest.raises(RecordError, match=said):
        validate_neuronpedia(data)


def test_looks_that_do_not_add_up_are_refused(made: tuple[Instrument, Graph, GraphHeads]) -> None:
    data = made[1].to_neuronpedia(heads=made[2])
    look = data["metadata"]["residue"]["looks"][0]
    for change, said in (
        ({"pairs_left": look["pairs_left"] + 1}, "not to its score"),
        ({"key": 99}, "from position"),
        ({"of_key": [["9_9_9", 1.0]]}, "'9_9_9', which no node is"),
        ({"pairs": [["E_1_1", 1.0]]}, "not 2 ids and a number"),
    ):
        data["metadata"]["residue"]["looks"][0] = look | change
        with pytest.raises(RecordError, match=said):
            validate_neuronpedia(data)


def test_nodes_beside_the_graph_that_are_in_it_are_refused(made: tuple[Instrument, Graph, GraphHeads]) -> None:
    data = made[1].to_neuronpedia()
    name = data["nodes"][0]["node_id"]
    for only, said in (({name: {"node_id": name}}, "is a node too"), ({"a": {"node_id": "b"}}, "'b' under 'a'")):
        with pytest.raises(RecordError, match=said):
            validate_neuronpedia(data | {"qk_only_nodes": only})


def test_no_edges_no_looks_and_what_cannot_be(made: tuple[Instrument, Graph, GraphHeads], monkeypatch: pytest.MonkeyPatch) -> None:
    instrument, graph, _ = made
    none = graph.heads(instrument, edges=0)
    assert len(none) == 0 and none.looks == () and none.share == 0
    assert not any("residue_heads" in link for link in graph.to_neuronpedia(heads=none)["links"])
    assert graph.heads(instrument, edges=20, looks=0).looks == ()
    for options in ({"edges": -1}, {"looks": -1}, {"terms": 0}):
        with pytest.raises(ConfigError):
            graph.heads(instrument, **options)

    def refuse(*_: Any, **__: Any) -> None:
        raise ReadError("queries are no affine map.")

    monkeypatch.setattr("symbolic_residue.graph._carried.score_sides", refuse)
    refused = graph.heads(instrument, edges=20)
    assert refused.looks == () and "no affine map" in refused.refused and len(refused) == 20
    assert "no affine map" in graph.to_neuronpedia(heads=refused)["metadata"]["residue"]["heads"]["refused"]


def test_rests_by_layer_are_not_split() -> None:
    instrument = instrument_of("gpt2")
    graph = graph_of(instrument, rest="layer")
    heads = graph.heads(instrument, looks=1)
    rest = graph.columns.rest
    assert len(heads) and not ((heads.loadings.column >= rest.start) & (heads.loadings.column < rest.stop)).any()
    graph.to_neuronpedia(heads=heads)


def test_a_graph_has_what_is_promised_as_methods(made: tuple[Instrument, Graph, GraphHeads], tmp_path: Path) -> None:
    instrument, graph, _ = made
    names = "check prune faithfulness head_loadings qk ghosts errors supernodes to_neuronpedia save diff heads"
    assert all(callable(getattr(graph, name)) for name in names.split())
    assert graph.check().passed and load_graph(graph.save(tmp_path)).nodes().equals(graph.nodes())
    edges = influential_edges(graph, 5)[0]
    assert graph.head_loadings(instrument, edges).error < 1e-12
    assert graph.qk(instrument, 1, 0, 3, 2).error < 1e-11
