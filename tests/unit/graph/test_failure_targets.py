"""Targets of failures: what they compare is what their definition says, a planted cause is found, and what cannot be asked is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graph_helpers import instrument_of
from hypothesis import given
from hypothesis import strategies as st
from study_folder import write_model

from symbolic_residue.cli import main
from symbolic_residue.errors import ConfigError
from symbolic_residue.graph import (
    attribute_pair,
    attribute_prompt,
    Collapse,
    Contrast,
    failure_contrast,
    FAILURES,
    Graph,
    Refusal,
    Repeat,
    repeated,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt, COMPLIANCE_OPENINGS, Prompt, REFUSAL_OPENINGS

TEXT = "Anna put the red book under the table. Anna put the red book"


def prompt_of(instrument: Instrument, text: str = TEXT) -> Prompt:
    return build_prompt(instrument.loaded.tokenizer, text)


def logits_of(instrument: Instrument, prompt: Prompt) -> torch.Tensor:
    return instrument.run(torch.tensor([prompt.ids])).logits[0, -1].double()


def graph_of(instrument: Instrument, prompt: Prompt, target: object, nodes: int = 20) -> Graph:
    return attribute_prompt(instrument, prompt, targets=[target], max_nodes=nodes)  # type: ignore[list-item]


def first(instrument: Instrument, text: str) -> int:
    return int(instrument.loaded.tokenizer(text, add_special_tokens=False)["input_ids"][0])


# -- repetition --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(2, 6))
def test_what_would_repeat_is_what_followed_the_longest_earlier_copy(ids: list[int], at_least: int) -> None:
    """Against every pair of places, by slices."""
    n, copies = len(ids), []
    for length in range(1, n):
        copies += [(length, end) for end in range(length - 1, n - 1) if ids[end + 1 - length : end + 1] == ids[n - length :]]
    found = repeated(ids, at_least)
    if not copies or max(copies)[0] + 1 < at_least:
        assert found is None
        return
    length, end = max(copies)
    assert found == (ids[end + 1], length + 1)


def test_the_longest_copy_counts_before_the_latest_and_the_latest_of_equals() -> None:
    assert repeated([5, 6, 7, 8, 1, 6, 7, 9, 5, 6, 7]) == (8, 4)
    assert repeated([6, 7, 8, 1, 6, 7, 9, 2, 6, 7]) == (9, 3)
    assert repeated([4, 4, 4]) == (4, 3)  # copies may overlap
    assert repeated([1, 2, 3, 4]) is None and repeated([1, 2, 1], 3) is None and repeated([1, 2, 1], 2) == (2, 2)
    with pytest.raises(ConfigError, match="no n-gram"):
        repeated([1, 1], 1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_every_failure_is_the_difference_of_logits_that_it_is_said_to_be(name: str) -> None:
    """Against the model's own logits; where they are capped, the cap is taken off."""
    instrument = instrument_of(name)
    prompt = prompt_of(instrument)
    logits = logits_of(instrument, prompt)
    cap = instrument.parts.logit_softcap
    logits = logits if cap is None else cap * torch.atanh(logits / cap)
    token = prompt.ids[prompt.ids.index(prompt.ids[-1]) + 1]  # what followed "book" the first time
    assert prompt.ids.count(prompt.ids[-1]) == 2
    others = logits.clone()
    others[token] = -torch.inf
    best = logits.topk(2).values
    decode = instrument.loaded.tokenizer.decode
    spaced = {one: first(instrument, f" {one}") for one in (*REFUSAL_OPENINGS, *COMPLIANCE_OPENINGS)}
    own = {one: token if decode([token]).strip() else first(instrument, one) for one, token in spaced.items()}
    refuse, comply = ([own[one] for one in side] for side in (REFUSAL_OPENINGS, COMPLIANCE_OPENINGS))
    sides = [sorted(set(one) - set(other)) for one, other in ((refuse, comply), (comply, refuse))]
    truths = {
        "repeat": float(logits[token] - others.max()),
        "repeat:4": float(logits[token] - others.max()),
        "collapse": float(best[0] - best[1]),
        "refusal": float(logits[sides[0]].mean() - logits[sides[1]].mean()),
    }
    assert set(FAILURES) - {"silence"} <= set(truths)
    for target, truth in truths.items():
        graph = graph_of(instrument, prompt, target)
        assert graph.targets[0].value == pytest.approx(truth, rel=1e-7, abs=1e-9), target
        assert graph.check().worst < 1e-12


def test_candidates_lead_by_their_logits_and_the_first_token_of_each_counts() -> None:
    instrument = instrument_of("llama")
    prompt = prompt_of(instrument)
    logits = logits_of(instrument, prompt)
    order = sorted((40, 50, 60), key=lambda t: -float(logits[t]))
    found = graph_of(instrument, prompt, Collapse((40, 50, 60)))
    assert found.targets[0].value == pytest.approx(float(logits[order[0]] - logits[order[1]])) and found.targets[0].value > 0
    long = " table and the book"
    name = graph_of(instrument, prompt, Collapse((long, 40))).targets[0].name
    assert "first tokens" in name and "first tokens" not in found.targets[0].name
    with pytest.raises(ConfigError, match="begin with one token"):
        graph_of(instrument, prompt, Collapse((long, first(instrument, long))))
    with pytest.raises(ConfigError, match="no token 9999"):
        graph_of(instrument, prompt, Collapse((9999, 3)))
    with pytest.raises(ConfigError, match="shows something"):
        graph_of(instrument, prompt, Collapse(("", 3)))


def test_openings_that_begin_alike_are_left_out_on_both_sides() -> None:
    instrument = instrument_of("llama")
    prompt, logits = prompt_of(instrument), torch.zeros(384)
    found = failure_contrast(instrument, prompt.ids, logits, Refusal((40, 50), (50, 60, 70)))
    assert found.plus == (40,) and found.minus == (60, 70)
    with pytest.raises(ConfigError, match="No opening that refuses"):
        failure_contrast(instrument, prompt.ids, logits, Refusal((50,), (50, 60)))
    with pytest.raises(ConfigError, match="No opening that complies"):
        failure_contrast(instrument, prompt.ids, logits, Refusal((40, 50), (50,)))


def test_packaged_openings_follow_a_space_only_where_text_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    instrument = instrument_of("llama")
    tokenizer = instrument.loaded.tokenizer
    logits = torch.zeros(384)
    monkeypatch.setattr("symbolic_residue.graph._failure_targets.REFUSAL_OPENINGS", ("table", "Xx"))  # no " X" in the tokenizer
    monkeypatch.setattr("symbolic_residue.graph._failure_targets.COMPLIANCE_OPENINGS", ("book",))
    goes_on = failure_contrast(instrument, prompt_of(instrument).ids, logits, Refusal())
    begins = failure_contrast(instrument, prompt_of(instrument, "Answer:\n").ids, logits, Refusal())
    special = failure_contrast(instrument, [40, tokenizer.all_special_ids[0]], logits, Refusal())
    assert first(instrument, " book") != first(instrument, "book") and not tokenizer.decode([first(instrument, " Xx")]).strip()
    assert goes_on.minus == (first(instrument, " book"),) and begins.minus == special.minus == (first(instrument, "book"),)
    assert set(goes_on.plus) == {first(instrument, " table"), first(instrument, "Xx")} and begins == special


def test_what_cannot_be_asked_is_refused() -> None:
    instrument = instrument_of("llama")
    prompt = prompt_of(instrument, "Anna put the red book")
    for target, said in (
        ("repeat", "Nothing of 3 tokens or more would repeat"),
        (Repeat(12), "Nothing of 12 tokens"),
        ("repeat:x", "no length"),
        ("repeat:1", "no n-gram"),
        (Contrast("none", (), (3,)), "a side without tokens"),
        (Contrast("same", (3, 4), (4,)), "a token on both sides"),
        (Contrast("far", (9999,), (4,)), "no token 9999"),
    ):
        with pytest.raises(ConfigError, match=said):
            graph_of(instrument, prompt, target)


# -- planted -----------------------------------------------------------------------------------------------------------------


def planted(name: str, prompt: Prompt, tokens: tuple[int, ...], neuron: int | None) -> Instrument:
    """A neuron of the last layer that fires on the prompt's last position and writes toward some tokens; none without a number."""
    instrument = instrument_of(name, scale=0.5)
    if neuron is None:
        return instrument
    parts = instrument.parts
    read = instrument.run(torch.tensor([prompt.ids]), reads=["mlp_in.1"])["mlp_in.1"][0, -1]
    write = parts.final_norm.gain() * (parts.w_u[list(tokens)].mean(0) - parts.w_u.mean(0)).detach()
    with torch.no_grad():
        mlp = parts.layers[1].mlp
        toward, strong = read / read.norm(), 40.0 * write / write.norm()
        if name == "llama":
            mlp.gate_proj.weight[neuron] = mlp.up_proj.weight[neuron] = toward
            mlp.down_proj.weight[:, neuron] = strong
        else:
            mlp.c_fc.weight[:, neuron], mlp.c_fc.bias[neuron] = toward, 0
            mlp.c_proj.weight[neuron] = strong
    return instrument


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_neuron_that_makes_the_failure_is_its_first_node_and_is_not_without_the_plant(name: str, failure: str) -> None:
    base = instrument_of(name, scale=0.5)
    prompt = prompt_of(base)
    token = prompt.ids[prompt.ids.index(prompt.ids[-1]) + 1]
    tokens = {
        "silence": (2,),
        "repeat": (token,),
        "collapse": (40,),
        "refusal": failure_contrast(base, prompt.ids, torch.zeros(384), Refusal()).plus,
    }[failure]
    target = Collapse((40, 50)) if failure == "collapse" else failure
    cell = (1, len(prompt.ids) - 1, 33)

    def at(instrument: Instrument) -> tuple[Graph, tuple[int, int, int]]:
        graph = graph_of(instrument, prompt, target, 30)
        unit = int(graph.effects.abs().argmax())
        return graph, (int(graph.units.layer[unit]), int(graph.units.position[unit]), int(graph.units.neuron[unit]))

    without, first_without = at(base)
    with_plant, first_with = at(planted(name, prompt, tokens, 33))
    assert first_with == cell != first_without
    effect = float(with_plant.effects.max())
    assert effect > 0.5 * with_plant.targets[0].value > 0 and effect > 3 * float(without.effects.abs().max())
    value = logits_of(planted(name, prompt, tokens, 33), prompt)
    assert float(value[list(tokens)].mean()) > float(value[50])  # the model fails as the target says


def test_a_pair_is_compared_by_the_tokens_chosen_on_the_first() -> None:
    instrument = instrument_of("llama")
    a = prompt_of(instrument)
    b = replace(a, ids=[*a.ids[:3], 11, *a.ids[4:-2], 21, 22], tokens=[*a.tokens[:-2], "x", "y"])
    for failure in FAILURES:
        chosen = graph_of(instrument, a, failure, 0).targets[0]
        found = attribute_pair(instrument, a, b, targets=[failure], max_nodes=15)
        assert found.a.targets[0].name == found.b.targets[0].name == chosen.name
        assert found.a.targets[0].value == pytest.approx(chosen.value, rel=1e-9) and found.check().worst < 1e-12
    with pytest.raises(ConfigError, match="would repeat"):
        attribute_pair(instrument, b, a, targets=["repeat"], max_nodes=5)


def test_the_command_knows_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_model(tmp_path / "model"))
    words = ["graph", TEXT, "--model", model, "--nodes", "10", "--no-report", "--json"]
    words += [x for name in FAILURES for x in ("--target", name)]
    words += ["--candidate", " table", "--candidate", " book", "--refusal", "#40", "--compliance", "#50", "--compliance", "#60"]
    assert main([*words, "-o", str(tmp_path / "one")]) == 0
    names = [target["name"] for target in json.loads(capsys.readouterr().out)["targets"]]
    assert names[0].startswith("end ") and names[1].startswith("repeat ") and names[2].startswith("candidate ' ")
    assert names[3] == "refusal (1 first tokens) − compliance (2 first tokens)"
    assert (
        main(
            [
                "graph",
                "diff",
                TEXT,
                TEXT,
                "--model",
                model,
                "-t",
                "repeat",
                "--nodes",
                "5",
                "--no-report",
                "-o",
                str(tmp_path / "d"),
            ]
        )
        == 0
    )
    assert "repeat" in capsys.readouterr().out
    for option, name in (("--candidate", "collapse"), ("--refusal", "refusal"), ("--compliance", "refusal")):
        assert main(["graph", TEXT, "--model", model, option, "x", "-o", str(tmp_path / "no")]) == 2
        assert f"--target {name}" in capsys.readouterr().err
