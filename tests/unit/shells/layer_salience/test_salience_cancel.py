"""CANCEL against plain transformers with masks of our own, and its controls by property."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.shells import LayerSalienceShell
from symbolic_residue.shells.layer_salience import _cancel
from symbolic_residue.shells.layer_salience._cancel import BLOCK, cancel, effects, exchanged, moved_to

TEXT = "The mill stands where the river turns, and the miller keeps the key to the gate."


@torch.no_grad()
def masked(model: Any, ids: list[int], hidden: dict[int, list[int]]) -> torch.Tensor:
    """Log-probabilities of the next token in float64, each layer with its own plain mask (llama)."""
    n = len(ids)
    handles = []
    for i, layer in enumerate(model.model.layers):
        seen = torch.ones(n, n, dtype=torch.bool).tril()
        for key in hidden.get(i, []):
            seen[key + 1 :, key] = False
        mask = torch.zeros(1, 1, n, n, dtype=torch.float64).masked_fill(~seen, float("-inf"))

        def hook(module: Any, args: Any, kwargs: Any, mask: torch.Tensor = mask) -> Any:
            return args, kwargs | {"attention_mask": mask}

        handles.append(layer.self_attn.register_forward_pre_hook(hook, with_kwargs=True))
    model.double()
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    model.float()
    for handle in handles:
        handle.remove()
    return torch.log_softmax(logits.double(), -1)


@pytest.fixture(scope="module")
def llama() -> LayerSalienceShell:
    return LayerSalienceShell(build("llama"), tiny_tokenizer())


def test_exactly_these_keys_in_exactly_these_layers(llama: LayerSalienceShell) -> None:
    ids = llama.tokenizer.encode(TEXT)
    under = {0: [3, 4, 9], 1: [4]}
    base, after = masked(llama.loaded.model, ids, {}), masked(llama.loaded.model, ids, under)
    answer = int(base.argmax())
    found = llama.cancel_operation(TEXT, under)
    assert found.cells == 4
    assert found.kl == pytest.approx(float((base.exp() * (base - after)).sum()), abs=1e-4)
    assert found.fall == pytest.approx(float(base[answer] - after[answer]), abs=1e-4)
    assert found.before == pytest.approx(float(base[answer].exp()), abs=1e-5)
    assert found.after == pytest.approx(float(after[answer].exp()), abs=1e-5)
    assert found.kl > 1e-3
    other = llama.cancel_operation(TEXT, {0: [3, 4, 9], 1: [5]})
    assert other.kl != pytest.approx(found.kl, abs=1e-4)


def test_many_sets_in_one_forward_are_those_one_by_one(llama: LayerSalienceShell, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = llama._prompt(TEXT, None, False)
    rng = np.random.default_rng(1)
    sets = [rng.random((2, len(prompt))) < 0.3 for _ in range(5)]
    for cells in sets:
        cells[:, [0, -1]] = False
    sets += [sets[0].copy(), np.zeros_like(sets[0])]
    together = cancel(llama.instrument, prompt, sets)
    monkeypatch.setattr(_cancel, "_TOKENS_AT_ONCE", 1)
    alone = cancel(llama.instrument, prompt, sets)
    np.testing.assert_allclose(together.numpy(), alone.numpy(), atol=2e-4)
    assert torch.equal(alone[0], alone[5])  # equal sets are run once
    for i in (0, 3):
        hidden = {layer: np.flatnonzero(sets[i][layer]).tolist() for layer in (0, 1)}
        np.testing.assert_allclose(alone[i].numpy(), masked(llama.loaded.model, prompt.ids, hidden).numpy(), atol=2e-3)
    np.testing.assert_allclose(alone[6].numpy(), masked(llama.loaded.model, prompt.ids, {}).numpy(), atol=2e-3)
    assert len(cancel(llama.instrument, prompt, [])) == 0


def test_weight_names_the_positions_and_cancel_takes_them(llama: LayerSalienceShell) -> None:
    salience = llama.sense_operation(TEXT)
    under = llama.weight_operation(0.5, of=salience)
    assert under == llama.weight_operation(0.5, of=TEXT)
    for place, layer in enumerate(salience.layers):
        want = [j for j in range(1, len(salience.tokens) - 1) if salience.relative[place, j] < 0.5]
        assert under[layer] == want
    assert any(under.values())
    less = llama.weight_operation(0.2, of=salience)
    assert all(set(less[layer]) <= set(under[layer]) for layer in under)
    assert llama.cancel_operation(TEXT, under).cells == sum(map(len, under.values()))
    assert llama.cancel_operation(TEXT, {}).kl == pytest.approx(0.0, abs=1e-9)


def test_what_cannot_be_cancelled_is_refused(llama: LayerSalienceShell) -> None:
    n = len(llama.tokenizer.encode(TEXT))
    for under in ({7: [3]}, {0: [0]}, {0: [n - 1]}, {0: [n]}, {0: [-1]}):
        with pytest.raises(ConfigError):
            llama.cancel_operation(TEXT, under)
    with pytest.raises(ConfigError):
        llama.weight_operation(0.0, of=TEXT)
    with pytest.raises(PromptError):
        llama.cancel_operation(TEXT, {}, answer=10**6)


@given(st.integers(6, 30), st.integers(0, 10_000), st.sampled_from([None, BLOCK]))
def test_controls_hide_as_many_positions_in_every_layer(n: int, seed: int, block: int | None) -> None:
    rng = np.random.default_rng(seed)
    counted = [j for j in range(1, n - 1) if rng.random() < 0.9] or [1]
    cells = np.zeros((3, n), bool)
    cells[:, counted] = rng.random((3, len(counted))) < 0.4
    for moved in exchanged(cells, counted, rng, 4, block=block):
        assert (moved.sum(1) == cells.sum(1)).all()
        outside = [j for j in range(n) if j not in counted]
        assert not moved[:, outside].any()
        assert sorted(moved[:, j].tobytes() for j in counted) == sorted(cells[:, j].tobytes() for j in counted)


def test_matched_controls_stay_near() -> None:
    counted = list(range(1, 31))
    rng = np.random.default_rng(3)
    for j in counted:
        cells = np.zeros((1, 32), bool)
        cells[0, j] = True
        places = [int(np.flatnonzero(m[0])[0]) for m in exchanged(cells, counted, rng, 20, block=BLOCK)]
        assert max(abs(p - j) for p in places) < BLOCK
        assert len(set(places)) > 1
    cells = np.zeros((2, 8), bool)
    cells[1, 3] = True
    first, second = moved_to(cells, 3, [5, 2])
    assert first[1].tolist() == [False] * 5 + [True, False, False]
    assert second[:, 2].tolist() == [False, True]


@given(st.integers(2, 30), st.integers(0, 1000))
def test_kl_is_not_negative_and_the_fall_is_that_of_the_answer(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.log_softmax(torch.randn(n, generator=generator, dtype=torch.float64), -1)
    found = torch.log_softmax(torch.randn(3, n, generator=generator, dtype=torch.float64), -1)
    found[2] = base
    kl, fall = effects(base, found, 1)
    assert (kl >= 0).all()
    assert kl[2] == 0
    assert fall[0] == pytest.approx(float(base[1] - found[0, 1]))
