"""Graphs of failures: what fails is named by its rule, the parts add up and are those that the edges give, controls stand beside, a planted cause is found."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
import torch
from graph_helpers import instrument_of

from symbolic_residue.errors import ConfigError, ModelError, PromptError
from symbolic_residue.graph import attribute_pair, attribute_prompt, Graph
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt
from symbolic_residue.shells._failure import Ask, Failure
from symbolic_residue.shells.across import aim, Aimed, explain_failure, failing_prompts, FailingPrompt, prompt_of, worst_of

STRESS, CONTROL = "the old gate stands near the", "the old mill stands near the"
END, RIGHT, WRONG = 2, 40, 50
ALL = 10**6


def ids_of(instrument: Instrument, text: str) -> tuple[int, ...]:
    return tuple(build_prompt(instrument.loaded.tokenizer, text).ids)


def logits_of(instrument: Instrument, ids: tuple[int, ...]) -> torch.Tensor:
    return instrument.run(torch.tensor([ids]))["logits"][0, -1].double()


def prompt(instrument: Instrument, text: str = STRESS, control: str | None = CONTROL, **more: object) -> FailingPrompt:
    beside = None if control is None else ids_of(instrument, control)
    known: dict[str, object] = {"right": RIGHT, "wrong": WRONG, "control": beside, "spans": {"says another": (1, 2)}}
    return FailingPrompt("one", "flatness", "value-collapse", ids_of(instrument, text), **(known | more))  # type: ignore[arg-type]


def aimed(instrument: Instrument, one: FailingPrompt) -> Aimed:
    found, reasons = aim(instrument, [one])
    assert not reasons
    return found[0]


def says(name: str, token: int, where: tuple[int, ...], but: tuple[int, ...] | None = None) -> Instrument:
    """The tiny model with a neuron (1.33) that fires on the last row of one prompt, and not of another, and writes toward a token."""
    instrument = instrument_of(name, scale=0.5)
    parts = instrument.parts
    read = instrument.run(torch.tensor([where]), reads=["mlp_in.1"])["mlp_in.1"][0, -1]
    if but is not None:
        away = instrument.run(torch.tensor([but]), reads=["mlp_in.1"])["mlp_in.1"][0, -1]
        read = read - (read @ away) / (away @ away) * away
    write = parts.final_norm.gain() * (parts.w_u[token] - parts.w_u.mean(0)).detach()
    with torch.no_grad():
        mlp = parts.layers[1].mlp
        if name == "llama":
            mlp.gate_proj.weight[33] = mlp.up_proj.weight[33] = 8.0 * read / read.norm() ** 2
            mlp.down_proj.weight[:, 33] = 4.0 * write / write.norm()
        else:
            mlp.c_fc.weight[:, 33], mlp.c_fc.bias[33] = 8.0 * read / read.norm() ** 2, 0
            mlp.c_proj.weight[33] = 30.0 * write / write.norm()
    assert int(logits_of(instrument, where).argmax()) == token
    return instrument


# -- what fails --------------------------------------------------------------------------------------------------------------


def test_the_wrong_token_stands_against_the_right_one_and_the_value_is_the_models() -> None:
    instrument = instrument_of("llama", scale=0.5)
    one = prompt(instrument)
    logits = logits_of(instrument, one.ids)
    found = aimed(instrument, one)
    assert found.kind == "collapse" and found.contrast.plus == (WRONG,) and found.contrast.minus == (RIGHT,)
    assert found.value == pytest.approx(float(logits[WRONG] - logits[RIGHT]), rel=1e-9)
    other = aimed(instrument, replace(one, shell="memtrace", wrong=None))
    best = int(logits.argmax())
    assert best != RIGHT and other.kind == "wrong" and other.contrast.plus == (best,)
    assert aimed(instrument, replace(one, wrong=None, right=best)).contrast.plus == (int(logits.topk(2).indices[1]),)


def test_silence_comes_before_all_else_and_only_where_the_end_comes_first() -> None:
    plain = instrument_of("llama", scale=0.5)
    one = prompt(plain)
    assert aimed(plain, one).kind == "collapse"
    silent = aimed(says("llama", END, one.ids), one)
    assert silent.kind == "silence" and silent.contrast.plus == (END,) and silent.value > 0
    best = int(logits_of(plain, one.ids).argmax())
    ended, _ = aim(plain, [one], ends=[best])  # the best token is said to be an end
    assert ended[0].kind == "silence" and ended[0].contrast.plus == (best,)


def test_a_refusal_is_one_of_two_instructions_and_a_repetition_needs_no_right_token() -> None:
    text = "Anna put the red book under the table. Anna put the red book"
    base = instrument_of("llama", scale=0.5)
    ids = ids_of(base, text)
    tokenizer = base.loaded.tokenizer
    no = int(tokenizer("No", add_special_tokens=False)["input_ids"][0])
    refusing = says("llama", no, ids)
    for shell, kind in (("instruction-disruption", "refusal"), ("memtrace", "wrong")):
        one = FailingPrompt("one", "nullification", shell, ids, RIGHT, WRONG)
        assert aimed(refusing, one).kind == kind
    assert (
        aimed(refusing, FailingPrompt("one", "", "instruction-disruption", ids, no, WRONG)).kind == "wrong"
    )  # what is right is no refusal
    again = ids[ids.index(ids[-1]) + 1]
    looping = FailingPrompt("one", "", "silence", ids)
    found = aimed(says("llama", again, ids), looping)
    assert found.kind == "repeat" and found.contrast.plus == (again,) and found.value > 0
    none, reasons = aim(refusing, [looping])
    assert not none and "No token is known to be right" in reasons["one"]


def test_the_worst_are_those_of_largest_value_each_failure_once() -> None:
    def at(name: str, value: float) -> Aimed:
        return Aimed(FailingPrompt(name, "", "x", ()), "wrong", None, value)  # type: ignore[arg-type]

    found = worst_of([at("a", 1.0), at("b", 3.0), at("a", 5.0), at("c", 2.0), at("b", 2.5)], 2)
    assert [(one.prompt.id, one.value) for one in found] == [("a", 5.0), ("b", 3.0)]
    assert len(worst_of([at("a", 1.0)], 9)) == 1
    with pytest.raises(ConfigError, match="cannot be chosen"):
        worst_of([at("a", 1.0)], 0)


def test_prompts_of_a_failure_keep_what_is_known_of_them() -> None:
    ask = Ask((1, 2, 3), 7, 8, (1,), (2,), (4, 5), given=(9,), padding=(0,))
    (found,) = failing_prompts(Failure("f", "frame", (ask,)), "mode", "memtrace")
    assert found.ids == (1, 2, 3, 9) and found.control == (4, 5, 9) and (found.right, found.wrong) == (7, 8)
    assert found.spans == {"says the right answer": (1,), "says another": (2,), "padding": (0,)}
    (found,) = failing_prompts(Failure("f", "frame", (ask,)), "mode", "instruction-disruption")
    assert found.spans == {"the instruction that holds": (1,), "the other instruction": (2,)}


# -- what the graph says -----------------------------------------------------------------------------------------------------


def by_paths(graph: Graph) -> torch.Tensor:
    """``[position]``: what each embedding is worth over all paths, from the edges alone; every neuron must be a node."""
    n, targets = len(graph), graph.n_targets
    of = graph.columns.embeddings
    share = torch.zeros(n, graph.columns.n_positions, dtype=torch.float64)
    order = graph.units.layer.argsort(stable=True).tolist()
    for u in order:  # units are read from below
        row = graph.edges[targets + u].double()
        a = graph.activations.double()
        share[u] = row[of] + torch.where(a != 0, row[:n] / a, 0.0) @ share
    row, a = graph.edges[0].double(), graph.activations.double()
    return row[of] + torch.where(a != 0, row[:n] / a, 0.0) @ share


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "gemma2"])
def test_every_division_adds_up_and_is_what_the_edges_say(name: str) -> None:
    instrument = instrument_of(name)
    one = aimed(instrument, prompt(instrument, right=RIGHT))
    assert len(one.prompt.ids) == len(one.prompt.control or ())
    found = explain_failure(instrument, one, nodes=ALL)
    assert found.compared == "difference" and found.worst_row < 1e-11
    for graph, value, ids in ((found.failing, "value", one.prompt.ids), (found.control, "control_value", one.prompt.control)):
        assert graph is not None and ids is not None
        target = float(logits_of(instrument, ids)[WRONG] - logits_of(instrument, ids)[RIGHT])
        if name != "gemma2":  # whose logits are capped
            assert graph.targets[0].value == pytest.approx(target, rel=1e-7)
        sums = found.parts.group_by("split").agg(pl.col(value).sum(), pl.col(value.replace("value", "share")).sum().alias("shares"))
        assert set(sums["split"]) == {"kind", "layer", "place", "span", "token"}
        for row in sums.iter_rows(named=True):
            assert row[value] == pytest.approx(graph.targets[0].value, abs=1e-4 * float(graph.row_sizes()[0]))
            assert row["shares"] == pytest.approx(1.0, abs=2e-5)
        parts = {(r["split"], r["part"]): r[value] for r in found.parts.iter_rows(named=True)}
        paths, n = by_paths(graph), len(ids)
        where = {"first token": [0], "last token": [n - 1], "says another": [1, 2], "elsewhere": list(range(3, n - 1))}
        names = graph.column_names()
        for t, token in enumerate(graph.tokens):
            assert parts["token", f"{t} {token}"] == pytest.approx(float(paths[t]), rel=1e-6, abs=1e-9)
        for span, places in where.items():
            assert parts["span", span] == pytest.approx(float(paths[places].sum()), rel=1e-6, abs=1e-9)
            ends = tuple(f"@{p}" for p in places)
            direct = sum(float(w) for w, column in zip(graph.edges[0], names, strict=True) if column.split()[-1] in ends)
            assert parts["place", span] == pytest.approx(direct, rel=1e-6, abs=1e-9)
        for layer in range(2):
            own = sum(float(w) for w, column in zip(graph.edges[0], names, strict=True) if f"L{layer}" in column.split())
            assert parts["layer", f"layer {layer}"] == pytest.approx(own, rel=1e-6, abs=1e-9)
    constants = found.parts.filter((pl.col("split") == "span") & (pl.col("part") == "constants"))
    assert constants.is_empty() == (name in ("llama", "gemma2"))  # the others have biases


def test_both_sides_have_the_graphs_of_a_pair() -> None:
    instrument = instrument_of("llama")
    one = aimed(instrument, prompt(instrument))
    found = explain_failure(instrument, one, nodes=25)
    a, b = (prompt_of(instrument.loaded.tokenizer, ids) for ids in (one.prompt.ids, one.prompt.control or ()))
    pair = attribute_pair(instrument, a, b, targets=[one.contrast], max_nodes=25)
    assert found.difference is not None and found.control is not None
    torch.testing.assert_close(found.difference.edges(), pair.edges(), rtol=0, atol=1e-11)
    torch.testing.assert_close(found.failing.effects, pair.a.effects, rtol=0, atol=1e-11)
    assert found.healthy == (found.control.targets[0].value < 0) and found.control_value == pair.b.targets[0].value
    both = found.units.filter(pl.col("side") == "failing").row(0, named=True)
    u = int(found.failing.effects.abs().argmax())
    assert both["effect"] == float(pair.a.effects[u]) and both["other_effect"] == float(pair.b.effects[u])
    assert len(both["raises"].split(" ")) >= 3


def test_a_control_of_another_length_stands_beside_with_its_own_nodes_and_the_same_words() -> None:
    instrument = instrument_of("gpt2")
    one = aimed(instrument, prompt(instrument, "Anna put the red book under the table", "Ben had the red book", spans={}))
    ids, control = one.prompt.ids, one.prompt.control or ()
    shared, there = next(
        (i, j) for i in range(1, len(ids) - 2) for j in range(1, len(control) - 2) if ids[i : i + 2] == control[j : j + 2]
    )
    assert len(ids) != len(control) and ids[1:3] not in [control[j : j + 2] for j in range(len(control))]
    one = replace(one, prompt=replace(one.prompt, spans={"says another": (shared, shared + 1), "padding": (1, 2)}))
    found = explain_failure(instrument, one, nodes=15)
    assert found.ghosts == ()  # asked of silence only
    assert found.compared == "side by side" and found.difference is None and found.control is not None
    assert len(found.failing) == len(found.control) == 15 and found.units["other_effect"].null_count() == len(found.units)
    parts = {(r["split"], r["part"]): r for r in found.parts.iter_rows(named=True)}
    alone = attribute_prompt(instrument, prompt_of(instrument.loaded.tokenizer, control), targets=[one.contrast], max_nodes=ALL)
    assert parts["span", "says another"]["control_value"] == pytest.approx(
        float(by_paths(alone)[there : there + 2].sum()), rel=1e-6
    )
    assert parts["span", "padding"]["control_value"] is None and parts["span", "padding"]["value"] is not None
    none = explain_failure(instrument, replace(one, prompt=replace(one.prompt, control=None)), nodes=5)
    assert none.compared == "no control" and none.healthy is None and none.parts["control_value"].null_count() == len(none.parts)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_planted_silence_is_blamed_on_its_neuron_and_its_place_and_not_on_the_control(name: str) -> None:
    base = instrument_of(name, scale=0.5)
    instrument = says(name, END, *(ids_of(base, f"Anna keeps the red {word}") for word in ("book", "table")))
    one = aimed(instrument, prompt(instrument, "Anna keeps the red book", "Anna keeps the red table"))
    assert one.kind == "silence" and len(one.prompt.control or ()) == len(one.prompt.ids)
    found = explain_failure(instrument, one, nodes=30)
    first = found.units.filter((pl.col("side") == "failing") & (pl.col("rank") == 1)).row(0, named=True)
    assert (first["layer"], first["neuron"], first["position"]) == (1, 33, len(one.prompt.ids) - 1)
    parts = {(r["split"], r["part"]): r for r in found.parts.iter_rows(named=True)}
    assert parts["layer", "layer 1"]["value"] > 0.5 * one.value and parts["place", "last token"]["value"] > 0.5 * one.value
    assert abs(first["other_effect"]) < 0.3 * first["effect"]
    assert found.control_value is not None and found.control_value < 0.5 * one.value
    assert found.healthy == (found.control_value < 0)
    own = found.failing.ghosts(instrument, count=500, directions=16)
    assert len(found.ghosts) == 2 and found.ghosts[0] == (own.share, own.control[0]) and 0 <= own.share <= 1


def test_kept_graphs_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    instrument = instrument_of("llama")
    one = aimed(instrument, prompt(instrument))
    made = explain_failure(instrument, one, nodes=10)
    monkeypatch.setattr("symbolic_residue.shells.across._failure_graphs.attribute_prompt", None)
    again = explain_failure(instrument, one, nodes=10, kept=(made.failing, made.control))
    assert again.parts.equals(made.parts) and again.units.equals(made.units)


def test_what_cannot_be_explained_is_refused() -> None:
    instrument = instrument_of("llama")
    one = aimed(instrument, prompt(instrument))
    with pytest.raises(PromptError, match="made up to 4"):
        explain_failure(instrument, one, longest=4)
    clipped = instrument_of("olmo")
    with pytest.raises(ModelError, match="no attribution graph yet"):
        explain_failure(clipped, aimed(clipped, prompt(clipped)))
