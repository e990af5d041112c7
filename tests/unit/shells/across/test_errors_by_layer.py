"""Error accumulation against plain forwards with plain hooks; a perfect replacement has no error; a worse one has more."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.shells import error_accumulation
from symbolic_residue.store._schema import conform

TEXTS = ("the old gate stands near the", "the mill keeps a key to", "One two three four five six", "Anna put the red book", "under the", "a boat")  # fmt: skip


@pytest.fixture(scope="module")
def instrument() -> Instrument:
    return Instrument(wrap(build("llama"), tiny_tokenizer()))


@pytest.fixture(scope="module")
def prompts(instrument: Instrument) -> list[Prompt]:
    return [build_prompt(instrument.loaded.tokenizer, text) for text in TEXTS]


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    a, b = p[0, 1:].double().log_softmax(-1), q[0, 1:].double().log_softmax(-1)
    return float((a.exp() * (a - b)).sum(-1).mean())


@torch.no_grad()
def test_mlps_replaced_by_scaled_ones_are_plain_hooks(instrument: Instrument, prompts: list[Prompt]) -> None:
    model: Any = instrument.model
    mlps = [layer.mlp for layer in model.model.layers]
    found = error_accumulation(
        instrument, prompts[:2], lambda layer, x: mlps[layer](x) * (0.9 - 0.2 * layer), source="mlp_in", target="mlp_out"
    )
    assert found.layers == (0, 1)

    def run(ids: torch.Tensor, layers: tuple[int, ...]) -> torch.Tensor:
        def hook(m: Any, a: Any, out: torch.Tensor, factor: float) -> torch.Tensor:
            return torch.cat([out[:, :1], out[:, 1:] * factor], 1)

        handles = [
            mlps[i].register_forward_hook(lambda m, a, out, i=i: hook(m, a, out, 0.9 - 0.2 * i)) for i in layers
        ]  # fmt: skip
        logits = model(input_ids=ids, use_cache=False).logits
        for handle in handles:
            handle.remove()
        return logits

    for i, prompt in enumerate(prompts[:2]):
        ids = torch.tensor([prompt.ids])
        base = run(ids, ())
        for layer in (0, 1):
            assert found.values["relative error", "injected"][i, layer] == pytest.approx(0.1 + 0.2 * layer, abs=1e-4)
            assert found.values["KL", "injected"][i, layer] == pytest.approx(kl(base, run(ids, (layer,))), rel=1e-2, abs=1e-5)
            want = kl(base, run(ids, tuple(range(layer + 1))))
            assert found.values["KL", "accumulated"][i, layer] == pytest.approx(want, rel=1e-2, abs=1e-5)
    conform("curves", found.frame, "x")


def test_a_perfect_replacement_has_no_error_and_a_worse_one_more(instrument: Instrument, prompts: list[Prompt]) -> None:
    perfect = error_accumulation(instrument, prompts, lambda layer, x: x.clone())
    for value in perfect.values.values():
        assert np.allclose(value, 0.0, atol=1e-6)
    assert (perfect.frame["low"] >= 0).all()
    small, large = (error_accumulation(instrument, prompts, lambda layer, x, f=f: x * f) for f in (0.99, 0.5))
    for key in (("relative error", "accumulated"), ("KL", "control: random error of equal length, injected")):
        assert (large.values[key].mean(0) > small.values[key].mean(0)).all()
    assert np.allclose(small.values["relative error", "injected"], 0.01, atol=1e-5)


def test_modules_by_layer_replace_those_layers_only(instrument: Instrument, prompts: list[Prompt]) -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(64, 64)
    found = error_accumulation(instrument, prompts[:2], {1: module}, control=False)
    assert found.layers == (1,)
    assert np.allclose(found.values["KL", "injected"], found.values["KL", "accumulated"], atol=1e-6)
    assert set(found.frame["series"]) == {"injected", "accumulated"}


@torch.no_grad()
def test_the_lens_is_the_model_without_its_later_layers(instrument: Instrument, prompts: list[Prompt]) -> None:
    found = error_accumulation(instrument, prompts[:1])
    model: Any = instrument.model
    seen: list[torch.Tensor] = []
    handles = [layer.register_forward_hook(lambda m, a, out: seen.append(out if isinstance(out, torch.Tensor) else out[0])) for layer in model.model.layers]  # fmt: skip
    base = model(input_ids=torch.tensor([prompts[0].ids]), use_cache=False).logits
    for handle in handles:
        handle.remove()
    early = model.lm_head(model.model.norm(seen[0]))
    got = found.values["KL", "accumulated"][0]
    assert got[0] == pytest.approx(kl(base, early), rel=1e-3)
    assert got[-1] == pytest.approx(0.0, abs=1e-6)
    error = ((seen[0] - seen[1])[0, 1:].norm(dim=-1) / seen[1][0, 1:].norm(dim=-1)).mean()
    assert found.values["relative error", "accumulated"][0, 0] == pytest.approx(float(error), rel=1e-4)
    # Skipping the last layer alone is the lens before it.
    assert found.values["KL", "injected"][0, -1] == pytest.approx(kl(base, torch.cat([base[:, :1], early[:, 1:]], 1)), rel=1e-2)


def test_the_same_seed_gives_the_same_control(instrument: Instrument, prompts: list[Prompt]) -> None:
    a, b = (error_accumulation(instrument, prompts[:2], lambda layer, x: 0.9 * x, seed=3).frame for _ in range(2))
    assert a.equals(b)
    assert a.filter(pl.col("series").str.starts_with("control"))["n"].to_list() == [2] * 4


def test_what_cannot_be_replaced_is_refused(instrument: Instrument, prompts: list[Prompt]) -> None:
    with pytest.raises(ConfigError, match="two tokens"):
        error_accumulation(instrument, [build_prompt(instrument.loaded.tokenizer, "a")])
    with pytest.raises(ConfigError, match="shape"):
        error_accumulation(instrument, prompts[:1], lambda layer, x: x[..., :3])
    with pytest.raises(ConfigError, match="finite"):
        error_accumulation(instrument, prompts[:1], lambda layer, x: x * float("nan"))
    with pytest.raises(ReadError, match="Layer 7"):
        error_accumulation(instrument, prompts[:1], {7: torch.nn.Identity()})
    with pytest.raises(ReadError):
        error_accumulation(instrument, prompts[:1], lambda layer, x: x, source="nowhere")
    with pytest.raises(ConfigError, match="no layer"):
        error_accumulation(instrument, prompts[:1], {})
