"""Features set in the model: exact where everything else is held, and live runs are the transformers model with the dictionary in its MLPs' place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dictionary_files import perfect, random_dictionary
from graph_helpers import instrument_of
from swapped import Swapped

from symbolic_residue.dictionaries import Transcoders
from symbolic_residue.errors import ConfigError, UnsupportedModelError
from symbolic_residue.graph import attribute_prompt, Change, Graph, intervene, predicted_change
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import build_prompt

A, B = 301, 310
KINDS: dict[str, dict[str, Any]] = {
    "transcoders": {"kind": "jumprelu", "reads": "mlp_in"},
    "skip": {"kind": "topk", "reads": "mlp_in", "predicts": "mlp", "skip": True},
    "clt": {"kind": "relu", "reads": "resid_mid", "clt": True},
    "clt skip": {"kind": "signed", "reads": "normalized", "clt": True, "skip": True},
    "mixed": {"kind": "relu", "reads": "mlp_in", "only": (0, 2), "skip": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def graph_of(name: str, kind: str, **how: Any) -> tuple[Instrument, Graph, Transcoders]:
    types = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]} if name == "gemma2" else {}
    instrument = instrument_of(name, num_hidden_layers=3, **types)
    dictionary = random_dictionary(3, d_model=64, features=40, dtype=torch.float64, **KINDS[kind])
    prompt = build_prompt(instrument.loaded.tokenizer, "Anna put the red book on the table")
    return (
        instrument,
        attribute_prompt(instrument, prompt, targets=[(A, B)], units=dictionary, **({"max_nodes": 60} | how)),
        dictionary,
    )


def cell(graph: Graph, unit: int, **how: Any) -> Change:
    return Change(int(graph.units.layer[unit]), int(graph.units.position[unit]), int(graph.units.neuron[unit]), **how)


@each_kind
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_with_everything_else_held_the_direct_prediction_is_exact(name: str, kind: str) -> None:
    instrument, graph, dictionary = graph_of(name, kind)
    n = len(graph)
    sets = [
        [cell(graph, 0)],
        [cell(graph, 3, factor=-2.0), cell(graph, n // 2, factor=0.5)],
        [cell(graph, n - 1, value=1.25)],
        [cell(graph, unit) for unit in range(0, n, 3)],
    ]
    found = intervene(instrument, graph, sets, answer=A, wrong=B, hold="all", dictionary=dictionary)
    assert float(found["observed"].abs().max()) > 1e-3  # type: ignore[arg-type]
    np.testing.assert_allclose(found["observed"], found["direct"], rtol=0, atol=1e-9)
    one_by_one = intervene(instrument, graph, sets, answer=A, wrong=B, hold="all", dictionary=dictionary, max_tokens=1)
    np.testing.assert_allclose(one_by_one["observed"], found["observed"], rtol=0, atol=1e-10)


@each_kind
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2"])
def test_live_runs_are_the_model_with_the_dictionary_in_it(name: str, kind: str) -> None:
    """The oracle's features, errors and MLPs are its own; a feature that is set stays set, the others answer."""
    instrument, graph, dictionary = graph_of(name, kind)
    ids = torch.tensor([graph.ids])
    features = [u for u in range(len(graph)) if int(graph.units.layer[u]) in dictionary.layers]
    first, second = features[2], features[len(features) // 2]
    changes = [cell(graph, first, factor=3.0), cell(graph, second)]
    neuron = next((u for u in range(len(graph)) if int(graph.units.layer[u]) not in dictionary.layers), None)
    if neuron is not None:
        changes.append(cell(graph, neuron, factor=-1.0))

    def change(i: int, acts: torch.Tensor) -> torch.Tensor:
        out = acts.clone()
        for one in changes:
            if one.layer == i:
                at = int(
                    graph.units.at(i)[
                        (graph.units.position[graph.units.at(i)] == one.position)
                        & (graph.units.neuron[graph.units.at(i)] == one.neuron)
                    ]
                )
                out[0, one.position, one.neuron] = one.factor * graph.activations[at]
        return out

    plain = Swapped(instrument, dictionary)
    errors = plain.errors(ids)
    with torch.no_grad():
        before = instrument.model(ids).logits[0, -1]
        same = plain.run(lambda i, a: a, errors, input_ids=ids)[0]
        after = plain.run(change, errors, change, input_ids=ids)[0]
    torch.testing.assert_close(same, before, rtol=0, atol=1e-10)
    cap = instrument.parts.logit_softcap
    raw = [x if cap is None else cap * torch.atanh(x / cap) for x in (after, before)]
    wanted = float((raw[0][A] - raw[0][B]) - (raw[1][A] - raw[1][B]))
    found = intervene(instrument, graph, [changes], answer=A, wrong=B, dictionary=dictionary)
    assert abs(wanted) > 1e-4 and found["observed"][0] == pytest.approx(wanted, abs=1e-9)
    for how in ({}, {"hold": "attention"}, {"hold": "all"}, {"mlps": "model"}):
        if how == {"mlps": "model"} and kind == "skip" and name == "gemma2":
            continue
        still = intervene(
            instrument, graph, [[cell(graph, first, factor=1.0)]] * 2, answer=A, wrong=B, dictionary=dictionary, **how
        )
        assert still["observed"].to_list() == pytest.approx([0, 0], abs=1e-7 if name == "gemma2" else 1e-9)  # softmax in float32


@pytest.mark.parametrize("kind", ["transcoders", "skip", "clt"])
def test_the_models_own_mlps_may_answer(kind: str) -> None:
    """As a plain hook adds the decoder rows to the MLPs' outputs."""
    instrument, graph, dictionary = graph_of("llama", kind)
    unit = next(u for u in range(len(graph)) if int(graph.units.layer[u]) == 0)
    one = cell(graph, unit, factor=2.0)
    handles = []
    for j, decoder in dictionary.layers[0].decoders.items():

        def hook(m: Any, a: Any, out: torch.Tensor, row: torch.Tensor = decoder[one.neuron]) -> torch.Tensor:
            out = out.clone()
            out[0, one.position] += graph.activations[unit] * row  # from once to twice its value
            return out

        handles.append(instrument.parts.layers[j].mlp.register_forward_hook(hook))  # type: ignore[union-attr]
    ids = torch.tensor([graph.ids])
    with torch.no_grad():
        after = instrument.model(ids).logits[0, -1]
        for handle in handles:
            handle.remove()
        before = instrument.model(ids).logits[0, -1]
    wanted = float((after - before)[A] - (after - before)[B])
    found = intervene(instrument, graph, [[one]], answer=A, wrong=B, dictionary=dictionary, mlps="model")
    assert found["observed"][0] == pytest.approx(wanted, abs=1e-9)
    stands = intervene(instrument, graph, [[one]], answer=A, wrong=B, dictionary=dictionary)
    assert abs(stands["observed"][0] - wanted) > 1e-6


def test_a_dictionary_that_is_the_mlp_gives_the_neurons_interventions() -> None:
    instrument = instrument_of("opt", activation_function="relu")
    prompt = build_prompt(instrument.loaded.tokenizer, "Anna put the red book on the table")
    mlp = perfect(instrument)
    neurons, features = (attribute_prompt(instrument, prompt, targets=[(A, B)], max_nodes=40, units=u) for u in ("neurons", mlp))  # type: ignore[arg-type]
    for hold in ("nothing", "attention", "all"):
        sets = [[cell(neurons, 3)], [cell(neurons, 7, factor=2.0), cell(neurons, 30)]]
        one = intervene(instrument, neurons, sets, answer=A, wrong=B, hold=hold)  # type: ignore[arg-type]
        two = intervene(instrument, features, sets, answer=A, wrong=B, hold=hold, dictionary=mlp)  # type: ignore[arg-type]
        for column in ("observed", "direct", "paths"):
            np.testing.assert_allclose(one[column], two[column], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["clt skip", "mixed"])
def test_paths_are_the_graphs_equations_solved_densely(kind: str) -> None:
    _, graph, _ = graph_of("llama", kind, max_nodes=10**6)
    slope = graph.edges[:, : len(graph)] / torch.where(graph.activations == 0, 1.0, graph.activations)
    unit = next(u for u in range(len(graph)) if int(graph.units.layer[u]) == 0)
    given = torch.zeros(len(graph), dtype=torch.float64)
    given[unit] = -graph.activations[unit]
    fixed = given != 0
    system = torch.eye(len(graph), dtype=torch.float64) - torch.where(fixed[:, None], 0.0, slope[1:])
    wanted = slope[0] @ torch.linalg.solve(system, given)
    torch.testing.assert_close(predicted_change(graph, [cell(graph, unit)])[0], wanted, rtol=0, atol=1e-9)


def test_what_cannot_be_is_refused() -> None:
    instrument, graph, dictionary = graph_of("gemma2", "skip")
    one, run = cell(graph, 0), {"answer": A, "wrong": B}
    for how, said in (
        ({}, "not given"),
        ({"dictionary": random_dictionary(3, d_model=64, features=40, dtype=torch.float64)}, "not the graph's"),
        ({"dictionary": dictionary, "mlps": "none"}, "not defined"),
        ({"dictionary": dictionary, "mlps": "model", "hold": "all"}, "not defined"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            intervene(instrument, graph, [[one]], **run, **how)
        assert error.value.todo
    with pytest.raises(UnsupportedModelError, match="norm after its MLP"):
        intervene(instrument, graph, [[one]], **run, dictionary=dictionary, mlps="model")
    off = Change(one.layer, one.position, next(f for f in range(40) if not bool(((graph.units.layer == one.layer) & (graph.units.position == one.position) & (graph.units.neuron == f)).any())))  # fmt: skip
    with pytest.raises(ConfigError, match="no unit of the graph"):
        intervene(instrument, graph, [[off]], **run, dictionary=dictionary)


def test_experts_are_no_obstacle_where_a_dictionary_stands_for_them() -> None:
    instrument, graph, dictionary = graph_of("qwen3_moe", "clt")
    sets = [[cell(graph, 0)], [cell(graph, len(graph) - 1, factor=2.0)]]
    found = intervene(instrument, graph, sets, answer=A, wrong=B, hold="all", dictionary=dictionary)
    np.testing.assert_allclose(found["observed"], found["direct"], rtol=0, atol=1e-9)
    instrument, graph, dictionary = graph_of("qwen3_moe", "mixed")
    with pytest.raises(UnsupportedModelError):
        intervene(instrument, graph, sets[:1], answer=A, wrong=B, dictionary=dictionary)
