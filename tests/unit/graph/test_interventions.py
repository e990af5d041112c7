"""Interventions: exact where everything else is held, along paths by the graph's own equations, and agreement beside its shuffled control."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from graph_helpers import instrument_of

from symbolic_residue.errors import ConfigError, UnsupportedModelError
from symbolic_residue.graph import attribute_prompt, Change, Graph, intervene, intervention_agreement, predicted_change
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt

A, B = 301, 310


def graph_of(name: str, nodes: int = 40, text: str = "Anna put the red book on the table") -> tuple[Instrument, Graph]:
    instrument = instrument_of(name)
    prompt = build_prompt(instrument.loaded.tokenizer, text)
    return instrument, attribute_prompt(instrument, prompt, targets=[(A, B)], max_nodes=nodes)


def cell(graph: Graph, unit: int, **how: Any) -> Change:
    return Change(int(graph.units.layer[unit]), int(graph.units.position[unit]), int(graph.units.neuron[unit]), **how)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3", "phi3"])
def test_with_everything_else_held_the_direct_prediction_is_exact(name: str) -> None:
    instrument, graph = graph_of(name)
    sets = [
        [cell(graph, 0)],
        [cell(graph, 3, factor=-2.0), cell(graph, 20, factor=0.5)],
        [cell(graph, 39, value=1.25)],
        [cell(graph, unit) for unit in range(0, 40, 3)],
    ]
    found = intervene(instrument, graph, sets, answer=A, wrong=B, hold="all")
    assert found["changed"].to_list() == [1, 2, 1, 14] and float(found["observed"].abs().min()) > 1e-9  # type: ignore[arg-type]
    np.testing.assert_allclose(found["observed"], found["direct"], rtol=0, atol=1e-9)
    one_by_one = intervene(instrument, graph, sets, answer=A, wrong=B, hold="all", max_tokens=1)
    np.testing.assert_allclose(one_by_one["observed"], found["observed"], rtol=0, atol=1e-10)
    live = intervene(instrument, graph, sets, answer=A, wrong=B)
    assert float((live["observed"] - found["observed"]).abs().max()) > 1e-6  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_live_runs_are_the_models_own(name: str) -> None:
    """Against a plain hook on one layer's last linear; the frozen patterns against doing nothing."""
    instrument, graph = graph_of(name)
    unit = 5
    change = cell(graph, unit, factor=3.0)
    down = instrument.parts.layers[change.layer].mlp_down
    assert down is not None

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        a = args[0].clone()
        a[0, change.position, change.neuron] *= 3
        return (a,)

    ids = torch.tensor([graph.ids])
    with torch.no_grad():
        before = instrument.model(ids).logits[0, -1]
        handle = down.register_forward_pre_hook(hook)
        after = instrument.model(ids).logits[0, -1]
        handle.remove()
    wanted = float((after[A] - after[B]) - (before[A] - before[B]))
    found = intervene(instrument, graph, [[change]], answer=A, wrong=B)
    assert found["observed"][0] == pytest.approx(wanted, abs=1e-10)
    still = intervene(instrument, graph, [[cell(graph, unit, factor=1.0)]] * 2, answer=A, wrong=B, hold="attention")
    assert still["observed"].to_list() == pytest.approx([0, 0], abs=1e-10) and still["paths"].to_list() == pytest.approx([0, 0])


def test_paths_are_the_graphs_equations_solved_densely() -> None:
    """With all neurons as nodes: change = fixed where it is set, slopes · change elsewhere, as one linear system."""
    _, graph = graph_of("gpt2", nodes=10**6, text="One two three")
    slope = graph.edges[:, : len(graph)] / graph.activations
    sets = [[cell(graph, 10, factor=0.0)], [cell(graph, 3, factor=2.0), cell(graph, len(graph) - 4, value=0.3)]]
    for changes in sets:
        fixed = torch.zeros(len(graph), dtype=torch.bool)
        given = torch.zeros(len(graph), dtype=torch.float64)
        for one in changes:
            (unit,) = (
                (graph.units.layer == one.layer) & (graph.units.position == one.position) & (graph.units.neuron == one.neuron)
            ).nonzero()[:, 0]
            now = graph.activations[unit]
            fixed[unit], given[unit] = True, (one.factor * now if one.value is None else one.value) - now
        system = torch.eye(len(graph), dtype=torch.float64) - torch.where(fixed[:, None], 0.0, slope[1:])
        wanted = slope[0] @ torch.linalg.solve(system, given)
        torch.testing.assert_close(predicted_change(graph, changes)[0], wanted, rtol=0, atol=1e-10)
        torch.testing.assert_close(predicted_change(graph, changes, paths=False)[0], slope[0] @ given, rtol=0, atol=1e-12)


def test_a_set_unit_does_not_answer_to_another() -> None:
    _, graph = graph_of("llama")
    low = int((graph.units.layer == 0).nonzero()[0])
    high = int(((graph.units.layer == 1) & (graph.edges[1:, low].abs() > 1e-6)).nonzero()[0])
    alone, held = (
        predicted_change(graph, [cell(graph, low)]),
        predicted_change(graph, [cell(graph, low), cell(graph, high, factor=1.0)]),
    )
    slope = graph.edges[0, high] / graph.activations[high] * (-graph.edges[1 + high, low])
    torch.testing.assert_close((alone - held)[0], slope, rtol=0, atol=1e-12)


def test_what_cannot_be_is_refused() -> None:
    instrument, graph = graph_of("llama")
    one = cell(graph, 0)
    run = {"answer": A, "wrong": B}
    for wrong, match in (
        ([], "Nothing"),
        ([one, one], "twice"),
        ([Change(0, 99, 0)], "no unit"),
        ([cell(graph, 0, value=float("nan"))], "finite"),
    ):
        with pytest.raises(ConfigError, match=match):
            predicted_change(graph, wrong)
    graph.activations[0] = 0
    assert float(predicted_change(graph, [one])) == 0
    with pytest.raises(ConfigError, match="say nothing"):
        predicted_change(graph, [cell(graph, 0, value=1.0)])
    with pytest.raises(ConfigError, match="interventions"):
        intervene(instrument, graph, [], **run)
    with pytest.raises(ConfigError, match="hold"):
        intervene(instrument, graph, [[one]], hold="norms", **run)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no target 1"):
        intervene(instrument, graph, [[one]], target=1, **run)
    with pytest.raises(ConfigError, match="the model gives"):
        intervene(instrument, graph, [[one]], answer=B, wrong=A)
    with pytest.raises(UnsupportedModelError):
        intervene(instrument_of("qwen3_moe"), graph, [[one]], **run)


def test_agreement_finds_what_was_planted_and_its_control_does_not() -> None:
    generator = np.random.default_rng(0)
    frames = []
    for _ in range(30):
        observed = generator.normal(size=25)
        predicted = {"direct": generator.normal(size=25), "paths": observed + 0.1 * generator.normal(size=25)}
        frames.append(pl.DataFrame({"observed": observed, **predicted}))
    found = intervention_agreement(frames, seed=1)
    by = {(row["prediction"], row["measure"]): row for row in found.iter_rows(named=True)}
    assert by["paths", "correlation"]["low"] > 0.98 and by["paths", "correlation"]["high"] <= 1
    assert by["paths", "sign"]["low"] > 0.9 and by["paths", "error"]["high"] < 0.15
    assert by["direct", "correlation"]["low"] < 0 < by["direct", "correlation"]["high"]
    for measure, chance in (("correlation", 0.0), ("sign", 0.5)):
        assert by["paths", measure]["shuffled"] == pytest.approx(chance, abs=0.1)
    assert by["paths", "error"]["shuffled"] > 1
    assert found["n"].unique().to_list() == [30] and found["interventions"].unique().to_list() == [750]
    constant = pl.DataFrame({"observed": [0.0] * 3, "direct": [0.0] * 3, "paths": [0.0] * 3})
    assert intervention_agreement([constant])["mean"].to_list() == [0, 1, 0] * 2
    for wrong in ([], [constant.head(2)]):
        with pytest.raises(ConfigError):
            intervention_agreement(wrong)
