"""Graphs in the exchanged format: what is written is the pruned graph and nothing else, and what cannot be trusted is refused by name."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_helpers import instrument_of
from hypothesis import given, settings
from hypothesis import strategies as st

from symbolic_residue.cli import main
from symbolic_residue.errors import ConfigError, RecordError, WriteError
from symbolic_residue.graph import (
    attribute_prompt,
    Graph,
    load_graph,
    Neuron,
    promoted_tokens,
    read_neuronpedia,
    save_graph,
    validate_neuronpedia,
    write_neuronpedia,
)
from symbolic_residue.prompts import build_prompt

TEXT = "Please write the answer in one word. The answer is"


def made(name: str = "llama", *, rest: str = "position", targets: Any = ("top:2", (7, 9), "entropy"), nodes: int = 40) -> Graph:
    instrument = instrument_of(name)
    graph = attribute_prompt(
        instrument, build_prompt(instrument.loaded.tokenizer, TEXT), targets=list(targets), max_nodes=nodes, rest=rest
    )
    words = promoted_tokens(instrument.parts, instrument.loaded.tokenizer, graph.units, graph.activations)
    return replace(graph, labels=tuple(map(tuple, words)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return made()


@pytest.mark.parametrize(("name", "rest"), [("llama", "position"), ("gpt2", "position"), ("gpt2", "layer"), ("qwen3_moe", "layer")])
def test_the_file_holds_the_pruned_graph(name: str, rest: str, tmp_path: Path) -> None:
    """An id is read back to the column or row that it names; every kept edge is a link with that edge's weight, and no other link is there."""
    graph = made(name, rest=rest, nodes=8 if name == "qwen3_moe" else 40)
    back = read_neuronpedia(write_neuronpedia(graph.to_neuronpedia(), tmp_path / "g.json"))
    assert back.plain() == graph.to_neuronpedia()
    kept, shape = graph.prune(0.8, 0.98), graph.columns
    units = list(zip(graph.units.layer.tolist(), graph.units.neuron.tolist(), graph.units.position.tolist(), strict=True))
    blocks = {-1: shape.rest, -2: shape.bias}

    def column(name: str) -> int:
        layer, feature, position = name.split("_")
        if layer == "E":
            assert graph.ids[int(position)] == int(feature)
            return shape.embeddings.start + int(position)
        if feature == "-3":
            return shape.constant
        if int(feature) < 0:
            offset = int(layer) * shape.spread + (int(position) if shape.by_position else 0)
            return blocks[int(feature)].start + offset
        return units.index((int(layer), int(feature), int(position)))

    def row(name: str) -> int:
        layer, feature, position = map(int, name.split("_"))
        if layer == shape.n_layers + 1:
            assert position == len(graph.ids) - 1
            return -feature - 1 if feature < 0 else [t.token for t in graph.targets].index(feature)
        return graph.n_targets + units.index((layer, feature, position))

    found = torch.zeros_like(graph.edges)
    for link in back.links:
        found[row(link.target), column(link.source)] = link.weight
    assert len(back.links) == int(kept.edges.sum())
    assert torch.equal(found, graph.edges * kept.edges)
    inner = [node for node in back.nodes if node.feature_type != "logit"]
    there = {column(node.node_id) for node in inner}
    assert there | {shape.constant} == set(kept.columns.nonzero()[:, 0].tolist()) | {shape.constant}
    for node in inner:
        assert node.influence == pytest.approx(float(kept.cumulative[column(node.node_id)]))
        if node.feature_type == "cross layer transcoder":
            layer, neuron, _ = map(int, node.node_id.split("_"))
            assert node.feature == (layer + neuron) * (layer + neuron + 1) // 2 + neuron and node.layer == str(layer)
            assert node.activation == float(graph.activations[column(node.node_id)])
            assert repr(graph.labels[column(node.node_id)][0]) in (node.clerp or "")
    assert any(node.feature_type == "embedding" for node in inner)
    assert any(node.feature_type == "mlp reconstruction error" for node in inner)


def test_targets_carry_their_probability(graph: Graph) -> None:
    data = graph.to_neuronpedia(slug="mine", scan="gemma-2-2b", prompt="the text")
    logits = [node for node in data["nodes"] if node["feature_type"] == "logit"]
    assert len(logits) == graph.n_targets == 4 and data["qParams"]["pinnedIds"] == [node["node_id"] for node in logits]
    for node, target in zip(logits, graph.targets, strict=True):
        assert f"(p={target.probability or 0:.3f})" in node["clerp"] and node["token_prob"] == (target.probability or 0)
        assert node["clerp"].startswith('Output "') and (target.token is None or not node["clerp"].startswith("Output \"'"))
        assert node["layer"] == "3" and node["activation"] == target.value
    assert [node["is_target_logit"] for node in logits] == [True, False, True, True]
    meta = data["metadata"]
    assert (meta["slug"], meta["scan"], meta["prompt"], meta["schema_version"]) == ("mine", "gemma-2-2b", "the text", 1)
    assert meta["prompt_tokens"] == list(graph.tokens) and meta["node_threshold"] == 0.8
    split = [row["value"] for row in meta["residue"]["accounted"] if row["target"] == graph.targets[0].name]
    assert sum(split) == pytest.approx(graph.targets[0].value)
    assert graph.to_neuronpedia() == graph.to_neuronpedia() and graph.to_neuronpedia()["metadata"]["slug"].startswith(
        "please-write"
    )


def test_more_fields_and_supernodes_go_to_nodes_that_are_there(graph: Graph) -> None:
    first = graph.to_neuronpedia()["nodes"][0]["node_id"]
    data = graph.to_neuronpedia(
        more={first: {"qk_tracing_results": {"top_q_marginal_contributors": []}}}, supernodes=[["one", first]]
    )
    assert data["nodes"][0]["qk_tracing_results"] == {"top_q_marginal_contributors": []}
    assert data["qParams"]["supernodes"] == [["one", first]]
    assert validate_neuronpedia(data).plain() == data
    for options in ({"more": {"9_9_9": {}}}, {"supernodes": [["x", "9_9_9"]]}):
        with pytest.raises(ConfigError, match="9_9_9"):
            graph.to_neuronpedia(**options)
    with pytest.raises(ConfigError, match="2 labels"):
        graph.to_neuronpedia(labels=["a", "b"])


def test_the_same_token_twice_is_refused_by_its_id() -> None:
    twice = made(targets=[7, 7])
    with pytest.raises(ConfigError, match="3_7_"):
        twice.to_neuronpedia()
    assert len(made(targets=[(7, 9), (9, 7), Neuron(1, -1, 5)]).to_neuronpedia()["qParams"]["pinnedIds"]) == 3


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(codec=None)), min_size=1, max_size=3))
def test_any_token_comes_through_a_file(texts: list[str]) -> None:
    """Surrogates, control characters, markup: the file is UTF-8 and gives back what the data said."""
    graph = _base()
    odd = replace(graph, tokens=tuple((texts * len(graph.tokens))[: len(graph.tokens)]), labels=tuple([(texts[0],)] * len(graph)))
    data = odd.to_neuronpedia()
    text = json.dumps(data, ensure_ascii=False).encode("utf-8")
    assert json.loads(text) == data
    for token, shown in zip(odd.tokens, data["metadata"]["prompt_tokens"], strict=True):
        if not any("\ud800" <= c <= "\udfff" for c in token):
            assert shown == token


_kept: list[Graph] = []


def _base() -> Graph:
    if not _kept:
        _kept.append(made(nodes=8))
    return _kept[0]


def broken(data: dict[str, Any], change: str) -> dict[str, Any]:
    data = copy.deepcopy(data)
    nodes, links = data["nodes"], data["links"]
    if change == "collide":
        nodes[3]["node_id"] = nodes[1]["node_id"]
    elif change == "dangling":
        links[2]["source"] = "7_7_7"
    elif change == "twice":
        links.append(dict(links[0]))
    elif change == "missing":
        del nodes[2]["ctx_idx"]
    elif change == "no links":
        del data["links"]
    elif change == "nan":
        links[0]["weight"] = float("nan")
    elif change == "outside":
        nodes[0]["ctx_idx"] = 99
    elif change == "layer":
        nodes[0]["layer"] = "top"
    elif change == "type":
        nodes[0]["feature_type"] = "magic"
    elif change == "version":
        data["metadata"]["schema_version"] = 2
    elif change == "view":
        data["qParams"]["supernodes"] = ["x"]
    return data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("collide", "nodes 1 and 3 are both '"),
        ("dangling", "link 2 has source '7_7_7'"),
        ("twice", "is there twice"),
        ("missing", r"nodes\[2\].ctx_idx"),
        ("no links", "links: Field required"),
        ("nan", r"links\[0\].weight"),
        ("outside", "position 99 of"),
        ("layer", r"nodes\[0\].layer"),
        ("type", r"nodes\[0\].feature_type"),
        ("version", "metadata.schema_version"),
        ("view", r"qParams.supernodes\[0\]"),
    ],
)
def test_a_graph_from_elsewhere_that_cannot_be_trusted_is_refused(graph: Graph, change: str, said: str, tmp_path: Path) -> None:
    data = broken(graph.to_neuronpedia(), change)
    with pytest.raises(RecordError, match=said):
        validate_neuronpedia(data)
    with pytest.raises(RecordError):
        write_neuronpedia(data, tmp_path / "g.json")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_circuit_tracer_would_write_is_read(tmp_path: Path) -> None:
    """Fields of other tools are kept; what they leave out has its default."""
    node = {"feature": 1, "layer": "0", "ctx_idx": 0, "feature_type": "cross layer transcoder", "jsNodeId": "0_1-0", "clerp": None}
    data = {
        "metadata": {"slug": "s", "scan": "gemma-2-2b", "transcoder_list": [], "prompt_tokens": ["a"], "prompt": "a", "mine": 3},
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [
            node | {"node_id": "0_1_0"},
            node | {"node_id": "E_5_0", "layer": "E", "feature_type": "embedding", "remote": "x"},
        ],
        "links": [{"source": "E_5_0", "target": "0_1_0", "weight": 2}],
        "qk_only_nodes": [],
    }
    path = tmp_path / "g.json"
    path.write_text(json.dumps(data))
    back = read_neuronpedia(path)
    assert back.plain() == data and back.nodes[0].token_prob == 0 and back.nodes[0].influence is None
    for text, said in (
        ("{", "no readable graph"),
        ("[]", "list"),
        (json.dumps(data).replace("2}", "NaN}"), "NaN"),
        ("[" * 9999, "readable graph"),
    ):
        path.write_text(text)
        with pytest.raises(RecordError, match=said):
            read_neuronpedia(path)
    with pytest.raises(RecordError, match="no readable graph"):
        read_neuronpedia(tmp_path / "nowhere.json")
    with pytest.raises(WriteError):
        write_neuronpedia(data, path / "under" / "a.json")


def test_the_command_exports_a_kept_graph(graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_graph(graph, tmp_path / "g")
    assert load_graph(folder).labels == graph.labels
    out = tmp_path / "out.json"
    assert main(["graph", "export", str(folder), "-o", str(out), "--slug", "mine", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    back = read_neuronpedia(out)
    assert said == {"file": str(out), "nodes": len(back.nodes), "links": len(back.links), "slug": "mine"}
    assert main(["graph", "export", str(folder), "-o", str(out)]) == 5 and "exists already" in capsys.readouterr().err
    assert main(["graph", "export", str(folder)]) == 0
    assert read_neuronpedia(folder / "neuronpedia.json").view.supernodes == graph.supernodes().rows(graph)
    assert main(["graph", "export", str(tmp_path / "nowhere")]) == 3
    capsys.readouterr()


def test_the_group_lists_its_commands_and_takes_a_prompt_directly(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "export" in shown and "PROMPT" in shown
    for line in (
        ["graph", "--against", "x", "a prompt"],
        ["graph", "a prompt", "--against", "x"],
        ["graph", "--", "export", "--against"],
    ):
        code = main(line)
        said = capsys.readouterr().err
        assert code == 2 and ("--against goes with one --target" in said or "--against" in line[3:]), said
