"""The neurons of a pair as nodes: which they are, what they bring back beside random ones, and how it is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from graph_helpers import instrument_of

from symbolic_residue.errors import ConfigError, DamagedFileError, PromptError, UnsupportedModelError, WriteError
from symbolic_residue.graph import (
    attribute_circuit,
    attribute_prompt,
    graph_faithfulness,
    load_circuit,
    load_graph,
    PairScores,
    run_pair,
    save_circuit,
    token_pair,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import CounterfactualPair


def a_pair(
    instrument: Instrument, first: str = "The answer is one word.", second: str = "The word is one answer."
) -> CounterfactualPair:
    """Two prompts of one length, and the two tokens whose difference they change most."""
    made = CounterfactualPair(id="t", category="t", clean=first, corrupted=second, answer=" a", wrong=" b")
    tokenizer = instrument.loaded.tokenizer
    ids = [tokenizer(text)["input_ids"] for text in (first, second)]
    logits = instrument.run(torch.tensor(ids), keep_logits=1).logits
    assert logits is not None
    change = logits[0, -1] - logits[1, -1]
    order = [
        i
        for i in change.argsort(descending=True).tolist()
        if tokenizer(tokenizer.decode([i]), add_special_tokens=False)["input_ids"] == [i]
    ]
    return made.model_copy(update={"answer": tokenizer.decode([order[0]]), "wrong": tokenizer.decode([order[-1]])})


@pytest.fixture(scope="module")
def instrument() -> Instrument:
    return instrument_of("llama")


def test_nodes_are_the_pairs_neurons_and_bring_back_what_kept_runs_say(instrument: Instrument) -> None:
    pair = token_pair(instrument, a_pair(instrument))
    graph, circuit = attribute_circuit(instrument, pair, max_nodes=20)
    run = run_pair(instrument, pair)
    chosen = PairScores(run).top("mixed", 20)
    assert torch.equal(graph.units.neuron, chosen.neuron) and torch.equal(graph.units.position, chosen.position)
    assert graph.check().worst < 1e-12 and graph.targets[0].value == pytest.approx(circuit.clean_difference, abs=1e-9)
    assert circuit.kept == 20 and circuit.in_play == run.in_play and circuit.reason is None
    (own,) = circuit.recovered()
    same = graph_faithfulness(graph, instrument, pair, draws=1)
    assert own == pytest.approx(
        same.curves.filter((same.curves["score"] == "graph") & (same.curves["n"] == 20))["recovered"][0], abs=1e-9
    )
    others = circuit.recovered("random")
    assert len(others) == 3 and own > max(others)
    assert "bring back" in circuit.said() and "one pair" in circuit.said()


def test_all_neurons_bring_back_all_and_total_effects_choose_others(instrument: Instrument) -> None:
    pair = token_pair(instrument, a_pair(instrument))
    graph, circuit = attribute_circuit(instrument, pair, max_nodes=10**6, rest="layer")
    assert len(graph) == circuit.kept == circuit.in_play
    assert circuit.recovered() == pytest.approx([1.0]) and circuit.recovered("random") == pytest.approx([1.0] * 3)
    few, _ = attribute_circuit(instrument, pair, max_nodes=15)
    plain = attribute_prompt(instrument, pair.clean, targets=[(pair.answer, pair.wrong)], max_nodes=15)
    assert few.units.neuron.tolist() != plain.units.neuron.tolist()
    assert int(few.units.position.min()) >= pair.first  # the same in both runs before


def test_where_prompts_make_no_difference_nothing_is_said_to_come_back(instrument: Instrument) -> None:
    pair = a_pair(instrument)
    other_way = pair.model_copy(update={"answer": pair.wrong, "wrong": pair.answer})
    _, circuit = attribute_circuit(instrument, other_way, max_nodes=9)
    assert circuit.recovered() == circuit.recovered("random") == []
    assert circuit.reason is not None and "nothing to recover" in circuit.said() and "%" not in circuit.said()


def test_a_circuit_comes_back_from_disk_and_damage_is_seen(instrument: Instrument, tmp_path: Path) -> None:
    graph, circuit = attribute_circuit(instrument, a_pair(instrument), max_nodes=9)
    with pytest.raises(WriteError, match="circuit"):
        save_circuit(circuit, tmp_path / "nowhere")
    folder = graph.save(tmp_path / "g")
    assert load_circuit(graph, folder) is None
    save_circuit(circuit, folder)
    back = load_circuit(load_graph(folder), folder)
    assert (
        back is not None
        and back.curves.equals(circuit.curves)
        and (back.clean, back.none_kept) == (circuit.clean, circuit.none_kept)
    )
    assert (back.recovered(), back.said()) == (circuit.recovered(), circuit.said())
    path = folder / "circuit.json"
    kept = json.loads(path.read_text("utf-8"))
    for change in ({"graph_sha256": "0"}, {"format": 9}, {"kept": 8}, {"curves": []}, {"curves": [[1]]}, {"answer": ...}):
        damaged = {name: value for name, value in (kept | change).items() if value is not ...}
        path.write_text(json.dumps(damaged), "utf-8")
        with pytest.raises(DamagedFileError, match=r"circuit\.json"):
            load_circuit(graph, folder)
    path.write_text(path.read_text("utf-8")[:40], "utf-8")
    with pytest.raises(DamagedFileError, match="not readable"):
        load_circuit(graph, folder)


def test_what_cannot_be_is_refused(instrument: Instrument) -> None:
    pair = a_pair(instrument)
    for how in ({"max_nodes": 0}, {"draws": 0}, {"floor": 0.0}):
        with pytest.raises(ConfigError, match="Ask for"):
            attribute_circuit(instrument, pair, **how)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="tokens"):
        attribute_circuit(instrument, pair.model_copy(update={"corrupted": "The answer"}))
    with pytest.raises(UnsupportedModelError):
        mixture = instrument_of("mixtral")
        attribute_circuit(mixture, a_pair(mixture))
