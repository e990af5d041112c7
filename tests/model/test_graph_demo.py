"""Attribution graphs of the demo model: they add up, on the command line too, and what is wrong is refused in words."""

from __future__ import annotations

import json

import pytest
import torch

from symbolic_residue.cli import main
from symbolic_residue.graph import (
    attribute,
    direct_edges,
    freeze,
    load_graph,
    load_heads,
    load_supernodes,
    read_neuronpedia,
    relevance,
    Rows,
    unit_rows,
    validate_pairs,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import counterfactual_pairs
from symbolic_residue.shells import config_class, make_shell
from symbolic_residue.shells.across import aim, explain_failure, failing_prompts, worst_of

pytestmark = pytest.mark.model


def test_the_capital_of_france_adds_up(demo):
    graph = attribute(demo.model, demo.tokenizer, "The capital of France is", targets=["top", (" Paris", " Rome")], max_nodes=300)
    assert demo.tokenizer.decode([graph.targets[0].token]) == " Paris"
    assert graph.check().worst < 1e-5 and graph.local_error < 1e-4
    split = graph.accounted()
    split = split.filter(split["target"] == "' Paris'")
    assert len(split) >= 3 and split["value"].sum() == pytest.approx(graph.targets[0].value, abs=1e-3)


def test_both_sweeps_agree_on_a_longer_text(demo):
    instrument = Instrument(demo)
    ids = torch.tensor(
        demo.tokenizer("The mill stands where the river turns, and the miller keeps the key to the gate.")["input_ids"]
    )
    with torch.no_grad():
        local = freeze(instrument, ids)
        weights = torch.zeros(local.vocab_size)
        weights[int(local.logits_at().argmax())] = 1
        direction, constant = local.logit_direction(weights)
        units = relevance(local, direction).top(100)
        rows = Rows(direction[None], constant[None], torch.tensor([local.end]), torch.tensor([len(ids) - 1]))
        rows = rows + unit_rows(local, units, "half")
        down, up = (direct_edges(local, rows, units, direction=way, by_position=False)[0] for way in ("down", "up"))
    size = down.abs().sum(1, keepdim=True)
    assert float(((down - up).abs() / size).max()) < 1e-5


def test_the_command_keeps_a_graph_and_shows_it_again(tmp_path, capsys):
    folder = tmp_path / "g"
    line = [
        "graph",
        "The opposite of hot is",
        "--target",
        " cold",
        "--against",
        " warm",
        "--nodes",
        "100",
        "-o",
        str(folder),
        "--json",
    ]
    texts = tmp_path / "texts.txt"
    texts.write_text("The opposite of hot is cold.\nThe opposite of big is small.\n", "utf-8")
    assert main([*line, "--contexts", str(texts)]) == 0
    said = json.loads(capsys.readouterr().out)
    labelled = said["supernodes"]["groups"]
    assert len(labelled) > 1 and all(one["fires"]["n"] <= 2 * one["units"] for one in labelled)
    kept = load_supernodes(load_graph(folder), folder)
    assert kept is not None and [one["label"] for one in labelled] == list(kept.labels)
    assert said["nodes"] == 100 and said["adds_up"]["worst"] < 1e-5 and said["targets"][0]["name"] == "' cold' − ' warm'"
    again = load_graph(folder)
    assert again.rule == "half"
    nodes = again.nodes()
    first = nodes.filter(nodes["position"] == 0)
    assert said["first_position"]["units"] == len(first) > 0
    assert said["first_position"]["influence"] == pytest.approx(first["influence"].sum() / nodes["influence"].sum())
    assert said["most_influential"] == nodes.filter(nodes["position"] > 0).head(15).to_dicts()
    heads = load_heads(load_graph(folder), folder)
    assert heads is not None and len(heads) == said["heads"]["edges"] > 100 and len(heads.looks) == 2
    assert [look["head"] for look in said["heads"]["looks"]] == [look.head for look in heads.looks]
    assert main(["graph", "--show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "groups of neurons fed and read alike" in shown and "random neurons" in shown
    assert f"Head {heads.looks[0].layer}.{heads.looks[0].head} at" in shown
    assert main(["graph", "export", str(folder)]) == 0
    exported = read_neuronpedia(folder / "neuronpedia.json").plain()
    assert [group[0] for group in exported["qParams"]["supernodes"]] == list(kept.labels)
    links = exported["links"]
    assert sum("residue_heads" in link for link in links) == len(heads)
    assert capsys.readouterr().out
    assert "Every row adds up" in shown and "most influential neurons" in shown
    assert f"has {len(first)} of the 100 neurons" in " ".join(shown.split())
    assert main(line) == 5
    assert "holds a graph already" in capsys.readouterr().err


def test_with_a_corrupted_prompt_it_says_what_is_causal(tmp_path, capsys):
    folder = tmp_path / "circuit"
    line = [
        "graph",
        "The capital of France is",
        "-t",
        " Paris",
        "--against",
        " Rome",
        "--corrupted",
        "The capital of Italy is",
        "-n",
        "200",
    ]
    assert main([*line, "-o", str(folder), "--json", "--heads", "0"]) == 0
    said = json.loads(capsys.readouterr().out)["circuit"]
    assert said["kept"] == 200 and said["recovered"] > 0.7 and max(said["random"]) < 0.1 and said["clean_difference"] > 5
    assert "Kept alone, all other neurons" in (folder / "report.html").read_text("utf-8")
    assert main(["graph", "--show", str(folder)]) == 0
    assert "the 200 of" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["x", "--show", "y"], 2, "Give a prompt"),
        (["hot", "--corrupted", "cold"], 2, "--against"),
        (["hot", "-t", " a", "--against", " b", "--corrupted", " "], 2, "--corrupted is empty"),
        (["hot", "-t", " a", "--against", " b", "--corrupted", "hot"], 2, "Both prompts are the same"),
        (["hot", "-t", " a", "--against", " a", "--corrupted", "cold"], 2, "same"),
        (["hot", "-t", " a", "--against", " b", "--corrupted", "cold", "--position", "0"], 2, "last position"),
        (["hot", "-t", " a", "--against", " b", "--corrupted", "it is not hot at all"], 2, "tokens"),
        (["--show", "nowhere"], 3, "no readable graph"),
        (["hot", "-t", "not one token"], 2, "tokens in this tokenizer"),
        (["hot", "-t", "#99999999"], 2, "no token"),
        (["hot", "--against", " a"], 2, "--against"),
        (["hot", "--rule", "third"], 2, "half or gate"),
        (["hot", "--rest", "none"], 2, "not known"),
        (["hot", "--contexts", "nowhere.txt"], 2, "cannot be read"),
        (["hot", "--position", "7"], 2, "no position"),
        (["hot", "--dtype", "bfloat16"], 3, "float32"),
        (["  "], 2, "whitespace"),
        (["hot", "--model", "no/such-model"], 3, "no/such-model"),
    ],
)
def test_what_cannot_be_is_refused_in_words(options, code, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["graph", *options]) == code
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not list(tmp_path.rglob("graph.json"))


def test_the_packaged_pairs_hold_on_the_model_that_they_were_chosen_on(demo):
    pairs = counterfactual_pairs()
    found = validate_pairs(Instrument(demo), pairs)
    assert found["holds"].all() and len(found) == len(pairs) >= 120
    assert (found["corrupted"] < 0).all()  # both sides are answered


def test_a_prompt_torn_between_two_words_is_explained_beside_the_one_that_settles_it(demo):
    """One prompt, no interval: what is asked here is that the parts add up and that the control is the settled one."""
    shell = make_shell("value-collapse", demo, config_class("value-collapse").quick(top_heads=0))
    item = next(item for item in shell.items() if item.id == "witnesses-10")
    prompts = [one for failure in shell.failures(item, "flatness") for one in failing_prompts(failure, "flatness", shell.name)]
    (worst,) = worst_of(aim(shell.instrument, prompts)[0], 1)
    found = explain_failure(shell.instrument, worst, nodes=30)
    assert worst.kind == "collapse" and found.compared == "difference" and found.healthy and found.worst_row < 1e-5
    assert abs(worst.value) < 1.9 < -found.control_value  # the criterion of flatness
    for side, whole in (("value", worst.value), ("control_value", found.control_value)):
        for split in ("span", "place", "layer", "kind"):
            assert found.parts.filter(found.parts["split"] == split)[side].sum() == pytest.approx(whole, abs=2e-3)
    words = {row["part"]: row for row in found.parts.filter(found.parts["split"] == "span").to_dicts()}
    assert words["says another"]["value"] > 0 > words["says the right answer"]["value"]
