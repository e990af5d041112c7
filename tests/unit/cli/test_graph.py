"""``residue graph`` with a dictionary, and what it refuses: every refusal says what, why, and what to do."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionary_files import random_dictionary, save, write_circuit_tracer
from safetensors.torch import load_file
from study_folder import write_model
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import main
from symbolic_residue.dictionaries import open_dictionary, save_dictionary, Transcoders
from symbolic_residue.errors import DictionaryError, NonFiniteWeightsError
from symbolic_residue.graph import attribute, graph_scores, load_circuit, load_graph

TEXT = "Please write the answer in one word. The answer is"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


def of_model(**how: Any) -> Transcoders:
    return random_dictionary(2, d_model=64, features=40, **how)


def kept(dictionary: Transcoders, folder: Path) -> str:
    save_dictionary(dictionary, folder)
    return str(folder)


def refused(capsys: pytest.CaptureFixture[str], code: int, kind: str, *words: str) -> dict[str, str]:
    """What a command says when it refuses, all three parts of it."""
    capsys.readouterr()
    assert main([*words, "--json"]) == code
    out, err = capsys.readouterr()
    said = json.loads(err)
    assert not out and said["error"] == kind and all(said[part] for part in ("what", "why", "todo")), said
    return said


def test_a_graph_of_features_says_what_they_leave(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = kept(of_model(clt=True), tmp_path / "d")
    asked = ["graph", TEXT, "--model", str(model), "--dictionary", folder, "--nodes", "40"]
    assert main([*asked, "-o", str(tmp_path / "g"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    graph = load_graph(tmp_path / "g")
    assert said["scores"] == pytest.approx(vars(graph_scores(graph))) and 0 < said["scores"]["replacement"] < 1
    assert said["rest"] == graph.errors().to_dicts() and len(said["rest"]) == 2
    page = (tmp_path / "g" / "report.html").read_text("utf-8")
    assert "What the dictionary leaves" in page and f"Replacement score {said['scores']['replacement']:.3f}" in page
    for row in said["rest"]:
        assert re.search(rf"<th scope=\"row\">L{row['layer']}</th>.*<td class=\"n\">{row['influence']:.3f}</td></tr>", page)
    assert main(["graph", "--show", str(tmp_path / "g")]) == 0
    text = capsys.readouterr().out
    assert f"Replacement score {said['scores']['replacement']:.3f}" in text and "of the influence" in text and "features" in text


def test_two_prompts_are_compared_by_features(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = kept(of_model(only=(1,)), tmp_path / "d")
    other = TEXT.replace("one", "two")
    asked = ["graph", "diff", TEXT, other, "--model", str(model), "--target", "#7", "--against", "#9", "--nodes", "30"]
    assert main([*asked, "--dictionary", folder, "-o", str(tmp_path / "g"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["adds_up"]["worst"] < 1e-5 and {row["kind"] for row in said["neurons"]} <= {"feature", "neuron"}
    assert load_graph(tmp_path / "g" / "a").feature_layers == {1}
    assert "What the dictionary leaves" not in (tmp_path / "g" / "report.html").read_text("utf-8")
    said = refused(
        capsys, 2, "ConfigError", "graph", "diff", str(tmp_path / "g" / "a"), str(tmp_path / "g" / "b"), "--dictionary", folder
    )
    assert "with kept graphs" in said["what"]


def test_what_corrupted_asks_for_is_checked_and_features_may_be_the_nodes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = kept(of_model(), tmp_path / "d")
    asked = ["graph", TEXT, "--corrupted", TEXT.replace("one", "two"), "--model", str(model), "--nodes", "10"]
    both = ["--target", "a", "--against", "b"]
    for words in ([], ["--target", "#7", "--against", "#9"], [*both, "--position", "3"]):
        assert main([*asked, *words, "-o", str(tmp_path / "x"), "--json"]) == 2
        assert "--corrupted" in json.loads(capsys.readouterr().err)["what"] and not (tmp_path / "x").exists()
    assert main([*asked, *both, "--dictionary", folder, "-o", str(tmp_path / "g"), "--json"]) == 0
    capsys.readouterr()
    graph = load_graph(tmp_path / "g")
    circuit = load_circuit(graph, tmp_path / "g")
    assert (
        circuit is not None and circuit.units == "features" and graph.feature_layers == {0, 1} and len(graph) == circuit.kept == 10
    )


def test_dictionaries_that_cannot_be_used_are_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(kind: str, folder: Path | str) -> str:
        asked = ["graph", TEXT, "--model", str(model), "--dictionary", str(folder), "-o", str(tmp_path / "g")]
        found = refused(capsys, 3, kind, *asked)["what"]
        assert not (tmp_path / "g").exists()
        return found

    wide = kept(random_dictionary(2, d_model=32), tmp_path / "wide")
    assert "width 32" in said("DictionaryError", wide) and "width 64" in said("DictionaryError", wide)
    assert "layer 5" in said("DictionaryError", kept(of_model(only=(5,)), tmp_path / "deep"))
    topk = write_circuit_tracer(of_model(kind="topk"), tmp_path / "topk", k=...)
    assert "TopK needs its k" in said("DictionaryError", topk)
    assert open_dictionary(topk, k=4).layers[0].activation.k == 4
    asked = ["graph", TEXT, "--model", str(model), "--nodes", "5", "--no-report", "--json"]
    assert main([*asked, "--dictionary", str(topk), "-k", "4", "-o", str(tmp_path / "of four")]) == 0
    assert json.loads(capsys.readouterr().out)["dictionary"]["layers"][1]["l0"] <= 4
    assert main([*asked, "-k", "4", "-o", str(tmp_path / "g")]) == 2 and "--dictionary" in capsys.readouterr().err
    broken = write_circuit_tracer(of_model(), tmp_path / "nan")
    tensors = load_file(broken / "layer_1.safetensors")
    tensors["W_dec"][3, 5] = float("nan")
    save(tensors, broken / "layer_1.safetensors")
    assert "Layer 1 of the dictionary has NaN" in said("NonFiniteWeightsError", broken)
    tensors["W_dec"].zero_()
    save(tensors, broken / "layer_1.safetensors")
    assert "All its features are zero" in said("DictionaryError", broken)
    whole = (broken / "layer_0.safetensors").read_bytes()
    (broken / "layer_0.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "layer_0.safetensors cannot be read" in said("DamagedFileError", broken)
    silent = write_circuit_tracer(of_model(), tmp_path / "silent")
    for i in range(2):
        tensors = load_file(silent / f"layer_{i}.safetensors")
        tensors["b_enc"].fill_(-1e6)
        save(tensors, silent / f"layer_{i}.safetensors")
    assert "No feature of the dictionary is active" in said("DictionaryError", silent)
    with pytest.raises(DictionaryError, match="No feature") as error:
        attribute(build("llama"), tiny_tokenizer(), TEXT, units=open_dictionary(silent))
    assert error.value.why and error.value.todo


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] = float("nan")
    with pytest.raises(NonFiniteWeightsError, match=r"layers.1.mlp.down_proj") as error:
        attribute(model, tiny_tokenizer(), TEXT)
    assert error.value.todo
    folder = write_model(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("inf")
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = refused(capsys, 3, "NonFiniteWeightsError", "graph", TEXT, "--model", str(folder), "-o", str(tmp_path / "g"))
    assert "layers.0.mlp.up_proj" in said["what"]


def test_targets_prompts_and_numbers_of_nodes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model", str(model), "-o", str(tmp_path / "g")]
    said = refused(capsys, 2, "ConfigError", "graph", TEXT, "--target", "harbour lights", *asked)
    tokenizer = tiny_tokenizer()
    for token in tokenizer("harbour lights")["input_ids"]:
        assert f"{token} {tokenizer.decode([token])!r}" in said["what"]  # each piece can be chosen
    assert "#123" in said["todo"] and not (tmp_path / "g").exists()
    chosen = tokenizer("harbour lights")["input_ids"][-1]
    assert main(["graph", TEXT, "--target", f"#{chosen}", "--nodes", "5", *asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["targets"][0]["token"] == chosen
    dictionary = kept(of_model(), tmp_path / "d")
    for name, more in (("neurons", []), ("features", ["--dictionary", dictionary])):
        assert len(tokenizer("A")["input_ids"]) == 1
        one = ["graph", "A", "--model", str(model), *more, "-o", str(tmp_path / name), "--nodes", "100000", "--json"]
        assert main(one) == 0  # one token, and all units that there are; the page too
        found = json.loads(capsys.readouterr().out)
        assert len(found["tokens"]) == 1 and found["adds_up"]["worst"] < 1e-5
        assert found["nodes"] == 2 * 96 if name == "neurons" else 0 < found["nodes"] <= 80
        assert (tmp_path / name / "report.html").exists()
    assert main(["graph", " ", "--model", str(model), "--json"]) == 2
    assert "only whitespace" in json.loads(capsys.readouterr().err)["what"]


def test_graphs_that_were_kept_or_come_from_elsewhere(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "g"
    assert main(["graph", TEXT, "--model", str(model), "--nodes", "20", "-o", str(folder), "--json"]) == 0
    assert "What the dictionary leaves" not in (folder / "report.html").read_text("utf-8")  # there is none
    assert main(["graph", "export", str(folder), "-o", str(tmp_path / "g.json"), "--json"]) == 0
    capsys.readouterr()
    assert main(["graph", "--show", str(tmp_path / "g.json"), "-o", str(tmp_path / "page"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    data = json.loads((tmp_path / "g.json").read_text())
    assert said["nodes"] == len(data["nodes"]) and "graph-data" in Path(said["page"]).read_text("utf-8")
    assert main(["graph", "--show", str(tmp_path / "g.json"), "-o", str(tmp_path / "page")]) == 5
    collides = copy.deepcopy(data)
    collides["nodes"][3]["node_id"] = collides["nodes"][1]["node_id"]
    (tmp_path / "two.json").write_text(json.dumps(collides))
    found = refused(capsys, 2, "RecordError", "graph", "--show", str(tmp_path / "two.json"), "-o", str(tmp_path / "none"))
    assert (
        f"nodes 1 and 3 are both {data['nodes'][1]['node_id']!r}" in found["what"] + found["why"]
        and not (tmp_path / "none").exists()
    )
    whole = (folder / "graph.safetensors").read_bytes()
    (folder / "graph.safetensors").write_bytes(whole[:-100])
    for words in (["graph", "--show", str(folder)], ["graph", "export", str(folder), "-o", str(tmp_path / "e.json")],
                  ["graph", "diff", str(folder), str(folder), "-o", str(tmp_path / "f")]):  # fmt: skip
        assert "graph.safetensors" in refused(capsys, 3, "DamagedFileError", *words)["what"]
