"""SENSE against plain float64 loops over the model's own eager attention, and its formulas by property."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError
from symbolic_residue.shells import LayerSalienceShell
from symbolic_residue.shells.layer_salience import _sense
from symbolic_residue.shells.layer_salience._sense import effective_number, received, uniform_share, visible

TEXT = "The mill stands where the river turns, and the miller keeps the key to the gate."
WINDOW = {"gemma3": [8, None]}


def eager(model: Any, ids: list[int]) -> list[np.ndarray]:
    """Every layer's attention ``[head, row, key]`` from transformers itself, in float64."""
    before, dtype = model.config._attn_implementation, next(model.parameters()).dtype
    model.set_attn_implementation("eager")
    model.double()
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), use_cache=False, output_attentions=True).attentions
    model.to(dtype)
    model.set_attn_implementation(before)
    return [a[0].double().numpy() for a in found if a is not None]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3"])
def test_the_causal_correction_is_that_of_a_plain_loop(family: str) -> None:
    shell = LayerSalienceShell(build(family), tiny_tokenizer())
    found = shell.sense_operation(TEXT)
    patterns = eager(shell.loaded.model, shell.tokenizer.encode(TEXT))
    n = len(found.tokens)
    for layer, pattern in enumerate(patterns):
        window = WINDOW.get(family, [None, None])[layer] or n
        for key in range(n - 1):
            rows = [row for row in range(key + 1, n) if row - key < window]
            want = sum(pattern[head, row, key] for head in range(4) for row in rows) / (4 * len(rows))
            share = sum(1 / min(row + 1, window) for row in rows) / len(rows)
            assert found.received[layer, key] == pytest.approx(want, abs=1e-5)
            assert found.uniform[layer, key] == pytest.approx(share, abs=1e-12)
        assert np.isnan(found.received[layer, n - 1])
        assert found.sink[layer] == pytest.approx(pattern[:, 1:, 0].mean(), abs=1e-5)
        assert found.own[layer] == pytest.approx(np.mean([pattern[:, i, i].mean() for i in range(1, n)]), abs=1e-5)
        assert found.sink[layer] + found.own[layer] + found.others[layer] == pytest.approx(1.0, abs=1e-5)
    assert 0 not in found.counted
    assert n - 1 not in found.counted


def test_the_value_weighted_twin_is_that_of_a_plain_loop() -> None:
    shell = LayerSalienceShell(build("llama"), tiny_tokenizer())
    found = shell.sense_operation(TEXT)
    model, ids = shell.loaded.model, shell.tokenizer.encode(TEXT)
    patterns, n = eager(model, ids), len(ids)
    values: dict[int, torch.Tensor] = {}
    handles = [
        layer.self_attn.v_proj.register_forward_hook(lambda m, a, out, i=i: values.__setitem__(i, out[0].double()))
        for i, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    for i, layer in enumerate(model.model.layers):
        v, w_o = values[i].view(n, 2, 16), layer.self_attn.o_proj.weight.detach().double()
        length = np.array([[float((w_o[:, h * 16 : h * 16 + 16] @ v[j, h // 2]).norm()) for j in range(n)] for h in range(4)])
        for key in (1, n // 2, n - 2):
            sent = np.mean([patterns[i][h, row, key] * length[h, key] for h in range(4) for row in range(key + 1, n)])
            want = sent / length[:, 1:].mean() / found.uniform[i, key]
            assert found.weighted[i, key] == pytest.approx(want, rel=1e-4)
        last = patterns[i][:, -1] * length
        np.testing.assert_allclose(found.last[i], last, rtol=1e-3, atol=1e-5)


def test_long_texts_are_read_some_layers_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = LayerSalienceShell(build("llama"), tiny_tokenizer())
    whole = shell.sense_operation(TEXT)
    monkeypatch.setattr(_sense, "_WEIGHTS_AT_ONCE", 1)
    again = shell.sense_operation(TEXT)
    np.testing.assert_allclose(again.received, whole.received, atol=1e-7)
    np.testing.assert_allclose(again.weighted, whole.weighted, atol=1e-6)


def test_chosen_layers_keep_their_numbers_and_others_are_refused() -> None:
    shell = LayerSalienceShell(build("qwen3_next"), tiny_tokenizer())
    attend = shell.instrument.attention_layers
    found = shell.sense_operation(TEXT, [attend[-1]])
    assert found.layers == (attend[-1],)
    np.testing.assert_allclose(found.received, shell.sense_operation(TEXT).received[-1:])
    assert np.isnan(found.weighted).all()  # gated heads: keys and values do not give what a head writes
    assert found.frame["layer"].unique().to_list() == [attend[-1]]
    for wrong in ([0], [99], []):
        with pytest.raises(ConfigError):
            shell.sense_operation(TEXT, wrong)


@given(st.integers(2, 24), st.one_of(st.none(), st.integers(2, 9)))
def test_a_row_that_looks_nowhere_in_particular_gives_the_uniform_share(n: int, window: int | None) -> None:
    seen = visible(n, window)
    even = seen / seen.sum(1, keepdims=True)
    share = uniform_share(seen)
    np.testing.assert_allclose(received(even, seen), share)
    assert np.isnan(share[-1])
    if window is None:  # the mean of 1/(i+1) over i = j+1 … n−1
        for j in range(n - 1):
            assert share[j] == pytest.approx(np.mean([1 / (i + 1) for i in range(j + 1, n)]))


@given(st.integers(6, 20), st.integers(0, 1000))
def test_the_effective_number_lies_between_one_and_all_and_forgets_sink_and_self(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = np.tril(rng.random((n, n)))
    weights /= weights.sum(1, keepdims=True)
    found = effective_number(weights)
    assert np.isnan(found[:5]).all()
    assert ((found[5:] >= 1 - 1e-9) & (found[5:] <= np.arange(5, n) - 1 + 1e-9)).all()
    more = weights.copy()
    more[:, 0] += 3.0
    more[np.arange(n), np.arange(n)] += 2.0
    np.testing.assert_allclose(effective_number(more)[5:], found[5:])
    even = np.tril(np.ones((n, n)))
    np.testing.assert_allclose(effective_number(even)[5:], np.arange(5, n) - 1.0)
    one = np.zeros((n, n))
    one[:, 1] = 0.5
    np.testing.assert_allclose(effective_number(one)[5:], 1.0)
    assert (effective_number(np.eye(n))[5:] == 0).all()
