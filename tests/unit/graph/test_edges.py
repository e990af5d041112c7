"""Edges of a graph: rows sum to their values, both sweeps agree, and every edge is what the model itself does when the source's write is changed."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import frozen_edits, IDS, instrument_of, top_units, with_logit
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES

import symbolic_residue.graph._freeze as freeze_module
from symbolic_residue.errors import UnsupportedModelError, VerificationError
from symbolic_residue.graph import direct_edges, freeze, relevance, unit_rows, Units
from symbolic_residue.graph._maps import attend, attend_back, attend_back_from, attend_from
from symbolic_residue.instrument import Add

REFUSED = {"gpt_oss", "olmo"}
"""gpt_oss: clamped experts with biases; olmo as tested here clips its values."""
GRAPHED = [name for name in FAMILIES if name not in REFUSED]


def values_of(local, units):
    """The activations of units, ``[unit]``."""
    return torch.stack(
        [local.layers[i].activations[t, n] for i, t, n in zip(units.layer, units.position, units.neuron, strict=True)]
    )


@pytest.mark.parametrize("rule", ["half", "gate"])
@pytest.mark.parametrize("name", GRAPHED)
def test_every_row_sums_to_its_value(name: str, rule: str) -> None:
    local = freeze(instrument_of(name), IDS)
    assert local.error < 1e-12
    logits = local.uncapped_logits()
    weights = torch.zeros(len(logits), dtype=local.dtype)
    weights[7], weights[9] = 1, -1
    units = top_units(local, local.logit_direction(weights)[0], 60, rule)
    rows = with_logit(local, units, 7, 9, rule)
    wanted = torch.cat([(logits[7] - logits[9])[None], values_of(local, units)])
    edges, columns = direct_edges(local, rows, units, budget=40)
    assert edges.shape == (61, len(columns))
    torch.testing.assert_close(edges.sum(1), wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma2", "qwen2", "opt"])
def test_both_sweeps_give_the_same_edges_whatever_the_budget(name: str) -> None:
    local = freeze(instrument_of(name), IDS)
    weights = torch.zeros(local.vocab_size, dtype=local.dtype)
    weights[7] = 1
    units = top_units(local, local.logit_direction(weights)[0], 50)
    rows = with_logit(local, units, 7, 9)
    finest, columns = direct_edges(local, rows, units, direction="down", budget=10**6)
    for by_position in (True, False):
        found = [
            direct_edges(local, rows, units, direction=way, budget=budget, by_position=by_position)[0]
            for way in ("down", "up")
            for budget in (1, 33, 8192)
        ]
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=0, atol=1e-12)
        if by_position:
            torch.testing.assert_close(found[0], finest, rtol=0, atol=1e-12)
        else:
            summed = finest[:, columns.rest].unflatten(1, (len(local.layers), -1)).sum(-1)
            torch.testing.assert_close(found[0][:, len(units) : len(units) + len(local.layers)], summed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox", "gemma2", "phi3", "mistral", "stablelm_parallel"])
def test_an_edge_is_what_the_frozen_model_does_when_the_write_is_taken_away(name: str) -> None:
    """The oracle is the transformers model itself: with patterns, norms and MLP outputs held, taking a source's write away changes what each row reads by
    exactly its edge."""
    instrument = instrument_of(name)
    local = freeze(instrument, IDS)
    weights = torch.zeros(local.vocab_size, dtype=local.dtype)
    weights[7], weights[9] = 1, -1
    units = top_units(local, local.logit_direction(weights)[0], 30)
    rows = with_logit(local, units, 7, 9)
    edges, columns = direct_edges(local, rows, units)
    held = frozen_edits(instrument)
    reads = [f"mlp_in.{i}" for i in range(len(local.layers))]
    plain = instrument.run(IDS[None], reads=reads, edits=held)

    def change(write: torch.Tensor, point: str, position: int) -> torch.Tensor:
        """What every row loses, ``[row]``, when a write at a position is taken away."""
        trace = instrument.run(IDS[None], reads=reads, edits=[*held, Add(point=point, value=-write, rows=(position - len(IDS),))])
        lost = []
        cap = local.parts.logit_softcap
        before, after = (t.logits[0, -1] if cap is None else cap * torch.atanh(t.logits[0, -1] / cap) for t in (plain, trace))
        lost.append((before - after)[7] - (before - after)[9])
        for i, t, n in zip(units.layer.tolist(), units.position.tolist(), units.neuron.tolist(), strict=True):
            layer = local.layers[i]
            moved = (plain[f"mlp_in.{i}"] - trace[f"mlp_in.{i}"])[0, t]
            c_g, c_u = layer.mlp.coefficients(*layer.pre_activations_of(n, t), "half")
            value = c_g * (moved @ layer.mlp.gate[:, n]) if c_g is not None else 0
            lost.append(value + (c_u * (moved @ layer.mlp.up[:, n]) if c_u is not None else 0))
        return torch.stack([torch.as_tensor(x) for x in lost])

    for u in range(0, 30, 7):
        i, t, n = int(units.layer[u]), int(units.position[u]), int(units.neuron[u])
        one = torch.tensor([n]), torch.tensor([t])
        write = local.layers[i].written(*one, local.layers[i].activations[t, n][None])[0]
        torch.testing.assert_close(edges[:, u], change(write, f"mlp_out.{i}", t), rtol=0, atol=1e-10)
    for t in (0, 5, 11):
        lost = change(local.embedded[t], "resid_pre.0", t)
        torch.testing.assert_close(edges[:, columns.embeddings.start + t], lost, rtol=0, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_choice_of_units_keeps_the_sums(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["llama", "gpt2", "gemma3", "mixtral"]))
    local = freeze(instrument_of(name, data.draw(st.integers(0, 3))), IDS[: data.draw(st.integers(1, 12))])
    sizes = (len(local.layers), len(local), local.layers[0].n_neurons)
    cell = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    chosen = data.draw(st.lists(cell, min_size=0, max_size=12, unique=True))
    units = Units.of(torch.tensor(chosen, dtype=torch.long).reshape(-1, 3))
    rows = with_logit(local, units, 3, 4)
    way = data.draw(st.sampled_from(["up", "down"]))
    edges, _ = direct_edges(local, rows, units, direction=way, budget=data.draw(st.integers(1, 50)))
    logits = local.uncapped_logits()
    wanted = torch.cat([(logits[3] - logits[4])[None], values_of(local, units) if len(units) else logits[:0]])
    scale = max(float(edges.abs().sum(1).max()), 1e-9)
    torch.testing.assert_close(edges.sum(1), wanted, rtol=0, atol=1e-12 * scale)


def test_units_that_are_later_or_higher_have_no_edge_into_a_row() -> None:
    local = freeze(instrument_of("llama"), IDS)
    weights = torch.zeros(local.vocab_size, dtype=local.dtype)
    weights[7] = 1
    units = top_units(local, local.logit_direction(weights)[0], 60)
    edges, _ = direct_edges(local, unit_rows(local, units, "half"), units)
    below = units.layer[None] < units.layer[:, None]
    before = units.position[None] <= units.position[:, None]
    assert not edges[:, : len(units)][~(below & before)].any()
    assert edges[:, : len(units)][below & before].abs().min() > 0


def test_direct_relevance_is_the_row_of_edges_and_total_relevance_adds_the_paths() -> None:
    """Solved as a graph: with every neuron a node, the total effect is the sum over all paths, (I − A)⁻¹."""
    local = freeze(instrument_of("gpt2"), IDS[:3])
    n_layers, n, size = len(local.layers), 3, local.layers[0].n_neurons
    every = torch.cartesian_prod(torch.arange(n_layers), torch.arange(n), torch.arange(size))
    units = Units.of(every)
    rows = with_logit(local, units, 7, 9)
    edges, columns = direct_edges(local, rows, units)
    weights = torch.zeros(local.vocab_size, dtype=local.dtype)
    weights[7], weights[9] = 1, -1
    direction, _ = local.logit_direction(weights)
    direct = relevance(local, direction, total=False)
    torch.testing.assert_close(torch.stack(direct.neurons).flatten(), edges[0, : len(units)], rtol=0, atol=1e-12)
    torch.testing.assert_close(direct.embeddings, edges[0, columns.embeddings], rtol=0, atol=1e-12)
    values = values_of(local, units)
    share = edges[1:, : len(units)] / values  # what a unit's activation is worth to another
    paths = torch.linalg.solve(torch.eye(len(units), dtype=local.dtype) - share.T, edges[0, : len(units)] / values)
    total = relevance(local, direction)
    torch.testing.assert_close(torch.stack(total.neurons).flatten(), paths * values, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["bamba", "falcon_h1", "qwen3_next", "gpt_oss"])
def test_what_is_not_linear_given_its_patterns_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError):
        freeze(instrument_of(name), IDS)


def test_an_architecture_that_clips_its_values_is_refused_by_its_numbers() -> None:
    with pytest.raises(VerificationError, match="attention writes"):
        freeze(instrument_of("olmo"), IDS)


def test_half_precision_is_refused() -> None:
    instrument = instrument_of("llama")
    instrument.model.to(torch.bfloat16)
    with pytest.raises(UnsupportedModelError, match="float32"):
        freeze(instrument, IDS)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral", "falcon_alibi"])
@pytest.mark.parametrize("kept", [True, False])
def test_rows_that_begin_at_one_position_pass_attention_as_all_do(name: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:
        monkeypatch.setattr(freeze_module, "_PATTERNS", 0)
    local = freeze(instrument_of(name), torch.arange(3, 14))
    layer, n = local.layers[1], len(local)
    weights, generator = layer.attention_weights(), torch.Generator().manual_seed(0)
    at = torch.tensor([0, 3, 3, n - 1])
    begun = torch.zeros(4, n, local.embedded.shape[1], dtype=local.dtype)
    begun[torch.arange(4), at] = torch.randn(4, begun.shape[2], generator=generator, dtype=local.dtype)
    down, quick = begun.clone(), begun.clone()
    attend_back(layer, weights, down)
    attend_back_from(layer, weights, quick, at)
    torch.testing.assert_close(quick, down, rtol=0, atol=1e-12)
    up, quick = begun[:, 2:].clone(), begun[:, 2:].clone()
    at = torch.tensor([0, 1, 1, n - 3])
    up[0], quick[0] = 0.0, 0.0
    up[0, 0] = quick[0, 0] = begun[0, 0]
    attend(layer, weights, up, 2)
    attend_from(layer, weights, quick, at, 2)
    torch.testing.assert_close(quick, up, rtol=0, atol=1e-12)
    assert float(up[1:, 2:].abs().max()) > 0
