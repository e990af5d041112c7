"""Differences of graphs: they add up, they are zero where nothing differs, and they find a planted change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graph_helpers import instrument_of
from study_folder import write_adapter, write_model

from symbolic_residue.cli import main
from symbolic_residue.errors import ConfigError, ModelError, PromptError
from symbolic_residue.graph import attribute_pair, attribute_prompt, Graph, load_graph, save_graph, Units, validate_neuronpedia
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt, Prompt

A, B = "Please write the answer in one word. The answer is", "Please write the answer in two word. The answer is"
PAIR = (7, 9)


def prompts(instrument: Instrument) -> tuple[Prompt, Prompt]:
    a, b = (build_prompt(instrument.loaded.tokenizer, text) for text in (A, B))
    return a, replace(b, ids=[*a.ids[:3], 11, *a.ids[4:]], tokens=[*a.tokens[:3], "other", *a.tokens[4:]])


def triples(units: Units) -> set[tuple[int, int, int]]:
    return set(zip(units.layer.tolist(), units.position.tolist(), units.neuron.tolist(), strict=True))


@pytest.mark.parametrize(
    ("name", "rest"), [("llama", "position"), ("gpt2", "layer"), ("gemma2", "position"), ("qwen3_moe", "position")]
)
def test_a_difference_adds_up_over_the_union_of_both(name: str, rest: str) -> None:
    instrument = instrument_of(name)
    a, b = prompts(instrument)
    found = attribute_pair(instrument, a, b, targets=[PAIR, "top:2"], max_nodes=25, rest=rest)
    alone = [
        attribute_prompt(instrument, p, targets=[PAIR, *(t.token for t in found.a.targets[1:])], max_nodes=10**6, rest=rest)
        for p in (a, b)
    ]
    assert found.chosen == (25, 25) and 25 <= len(found) <= 50
    assert triples(found.a.units) == triples(found.b.units) and found.check().worst < 1e-12
    for r in range(3):  # values are the models' own
        assert float(found.values()[r]) == pytest.approx(alone[0].targets[r].value - alone[1].targets[r].value, abs=1e-9)
    torch.testing.assert_close(found.edges().sum(1), found.values(), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.edges(), found.a.edges - found.b.edges, rtol=0, atol=0)
    graph = found.graph()
    assert graph.check().worst < 1e-9 and graph.tokens[3] == f"{a.tokens[3]} | other" and graph.tokens[2] == a.tokens[2]
    validate_neuronpedia(graph.to_neuronpedia())


def test_given_units_are_the_nodes_and_units_that_are_not_there_are_refused() -> None:
    instrument = instrument_of("llama")
    a, _ = prompts(instrument)
    units = Units.of(torch.tensor([[1, 4, 9], [0, 2, 90]]))
    graph = attribute_prompt(instrument, a, targets=[PAIR], nodes=units)
    assert triples(graph.units) == {(0, 2, 90), (1, 4, 9)} and graph.check().worst < 1e-12
    for bad in ([2, 0, 0], [0, 99, 0], [0, 0, 96]):
        with pytest.raises(ConfigError, match="no neuron"):
            attribute_prompt(instrument, a, targets=[PAIR], nodes=Units.of(torch.tensor([bad])))


@pytest.mark.parametrize(("name", "rest"), [("llama", "position"), ("gpt2", "layer")])
def test_kept_graphs_are_compared_on_common_neurons_without_the_model(name: str, rest: str) -> None:
    """Folding the others into REST gives the very graph that attribution with the common units gives."""
    instrument = instrument_of(name)
    a, b = prompts(instrument)
    one, two = (attribute_prompt(instrument, p, targets=[PAIR], max_nodes=n, rest=rest) for p, n in ((a, 40), (b, 25)))
    found = one.diff(two)
    common = triples(one.units) & triples(two.units)
    assert 0 < len(common) < 25 and triples(found.a.units) == common and found.chosen == (40, 25)
    assert found.check().worst < 1e-12
    units = Units.of(torch.tensor(sorted(common)))
    for aligned, prompt in ((found.a, a), (found.b, b)):
        anew = attribute_prompt(instrument, prompt, targets=[PAIR], nodes=units, rest=rest)
        torch.testing.assert_close(aligned.edges, anew.edges, rtol=0, atol=1e-11)
        torch.testing.assert_close(aligned.effects, anew.effects, rtol=0, atol=1e-12)


def test_nothing_differs_between_a_graph_and_itself() -> None:
    instrument = instrument_of("gpt2")
    a, _ = prompts(instrument)
    graph = attribute_prompt(instrument, a, targets=[PAIR], max_nodes=20)
    same = graph.diff(graph)
    assert not same.edges().any() and same.changed().is_empty() and same.check().worst == 0
    assert not same.nodes()["change"].to_torch().any()


def test_a_changed_neuron_is_the_first_of_what_changed() -> None:
    """Tuned against base: one neuron of the last layer writes three times as much; the same weights give no difference."""
    base, tuned = instrument_of("llama"), instrument_of("llama")
    a, _ = prompts(base)
    graph = attribute_prompt(base, a, targets=[PAIR], max_nodes=10**6)
    last = (graph.units.layer == 1) & (graph.units.position == len(a.ids) - 1)
    at = int(torch.where(last, graph.edges[0, : len(graph)].abs(), 0).argmax())
    neuron = int(graph.units.neuron[at])
    none = attribute_pair(base, a, a, other=tuned, targets=[PAIR], max_nodes=20)
    assert none.changed().is_empty()
    with torch.no_grad():
        tuned.model.model.layers[1].mlp.down_proj.weight[:, neuron] *= 3
    found = attribute_pair(tuned, a, a, other=base, targets=[PAIR], max_nodes=20)
    first = found.changed(1).row(0, named=True)
    assert first["source"] == f"L1 #{neuron} @{len(a.ids) - 1}"
    assert first["change"] == pytest.approx(first["a"] - first["b"]) and 0 < first["share"] <= 1
    assert found.nodes().row(0, named=True)["neuron"] == neuron


def test_what_cannot_be_compared_is_refused() -> None:
    instrument = instrument_of("llama")
    a, b = prompts(instrument)
    short = replace(a, ids=a.ids[:5], tokens=a.tokens[:5])

    def graph(prompt: Prompt = a, **options: object) -> Graph:
        return attribute_prompt(instrument, prompt, **({"targets": [PAIR], "max_nodes": 5} | options))  # type: ignore[arg-type]

    one = graph()
    for other, kind, said in (
        (graph(short), PromptError, f"{len(a.ids)} and 5 tokens.*Reword"),
        (graph(rule="gate"), ConfigError, "rule: half and gate"),
        (graph(rest="layer"), ConfigError, "rest: position and layer"),
        (graph(targets=[7]), ConfigError, "different targets"),
        (graph(position=3), ConfigError, "different targets"),
    ):
        with pytest.raises(kind, match=said):
            one.diff(other)
    with pytest.raises(PromptError, match="tokens"):
        attribute_pair(instrument, a, short)
    with pytest.raises(ConfigError, match="different targets"):
        attribute_pair(instrument, a, b, targets=["entropy"])
    with pytest.raises(ModelError):
        attribute_pair(instrument, a, b, other=instrument_of("gpt2"))


def test_the_command_compares_kept_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    instrument = instrument_of("llama")
    folders = [
        str(save_graph(attribute_prompt(instrument, p, targets=[PAIR], max_nodes=30), tmp_path / name))
        for p, name in zip(prompts(instrument), "ab", strict=True)
    ]
    assert main(["graph", "diff", *folders, "-o", str(tmp_path / "d"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    kept = load_graph(tmp_path / "d" / "a").diff(load_graph(tmp_path / "d" / "b"))
    assert said["nodes"] == len(kept) and said["chosen"] == [30, 30] and said["adds_up"]["worst"] < 1e-9
    assert "Δ" in (tmp_path / "d" / "report.html").read_text("utf-8")
    assert said["changed"][0] == kept.changed(1).row(0, named=True)
    assert main(["graph", "diff", *folders, "-o", str(tmp_path / "e")]) == 0
    assert "difference" in capsys.readouterr().out
    assert main(["graph", "diff", *folders, "-o", str(tmp_path / "d")]) == 5
    assert main(["graph", "diff", folders[0], "-o", str(tmp_path / "f")]) == 2
    assert main(["graph", "diff", folders[0], "a prompt", "-o", str(tmp_path / "f")]) == 2
    capsys.readouterr()
    assert main(["graph", "--help"]) == 0 and "diff" in capsys.readouterr().out


def test_the_command_compares_models_and_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another model, an adapter against its base, two prompts: B is what it should be, and the page is written unless told not to."""
    base, tuned = write_model(tmp_path / "base"), write_model(tmp_path / "tuned", seed=1)
    adapter = write_adapter(tmp_path / "adapter")
    asked = ["--target", "#7", "--against", "#9", "--nodes", "20", "--json"]

    def said(name: str, *words: str) -> dict[str, float]:
        assert main(["graph", "diff", *words, *asked, "-o", str(tmp_path / name)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["adds_up"]["worst"] < 1e-5 and (tmp_path / name / "report.html").exists() == ("--no-report" not in words)
        return found["targets"][0]

    models = said("models", A, "--model", str(tuned), "--model-b", str(base))
    assert main(["graph", A, "--model", str(base), *asked, "-o", str(tmp_path / "g")]) == 0
    alone = json.loads(capsys.readouterr().out)["targets"][0]["value"]
    assert models["b"] == pytest.approx(alone, abs=1e-5) and abs(models["a"] - models["b"]) > 1e-3
    assert "graph-data" in (tmp_path / "g" / "report.html").read_text("utf-8")
    adapted = said("adapted", A, "--model", str(base), "--adapter", str(adapter), "--no-report")
    assert adapted["b"] == pytest.approx(alone, abs=1e-5) and abs(adapted["change"]) > 1e-4
    same = said("same", A, A, "--model", str(base))
    assert same["change"] == 0 and same["a"] == pytest.approx(alone, abs=1e-5)
    assert main(["graph", "diff", A, "One", "--model", str(base), *asked, "-o", str(tmp_path / "x")]) == 2
    assert "tokens" in capsys.readouterr().err
