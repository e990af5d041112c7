"""Restarted runs: bit-identical walks, no trace left whatever happens, architectures that cannot be restarted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from patching_helpers import prompt, tiny
from tiny_models import ALL

from symbolic_residue.errors import InstrumentError
from symbolic_residue.instrument import HeadScale, Instrument
from symbolic_residue.readout import attribution_patching, LogitDifference, patch_pair, patch_sweep
from symbolic_residue.readout._patch_restart import verify, Walk
from symbolic_residue.readout._patch_together import together

METRIC = LogitDifference(5, 9)


def state(instrument: Instrument) -> Any:
    """Everything that a run could leave behind."""
    model = instrument.model
    modules = list(model.modules())
    return (
        [{name for name in module.__dict__ if name == "forward"} for module in modules],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks) for module in modules],
        model.config._attn_implementation,  # type: ignore[union-attr]
        [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()],
        torch.is_grad_enabled(),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("name", list(ALL))
def test_a_walk_is_the_forward_bit_for_bit(name: str) -> None:
    instrument = tiny(name)
    ids = torch.stack([prompt(1), prompt(2)])
    n_layers = instrument.parts.n_layers
    want = instrument.run(ids, reads=("resid_pre.*", "mlp_out.*"), keep_logits=1)
    walk = Walk(instrument, ids)
    verify(walk)
    assert torch.equal(walk.logits, want["logits"][:, -1].float())
    attention_only = all(layer.attn is not None and layer.mixer is None for layer in instrument.parts.layers)
    assert walk.first_row(1) == 0 and walk.first_row(6) == (6 if attention_only else 0)
    for layer in range(n_layers):
        residual = walk.residual
        assert walk.layer == layer and torch.equal(residual, want[f"resid_pre.{layer}"])
        for first_row in {0, walk.first_row(6), walk.first_row(8)}:
            tail = walk.tail(layer, residual, [], 3, first_row=first_row)
            torch.testing.assert_close(tail.float(), walk.logits[:1].expand(3, -1), atol=2e-5, rtol=1e-5)
        assert torch.equal(walk.advance(layer + 1, (f"mlp_out.{layer}",))[f"mlp_out.{layer}"], want[f"mlp_out.{layer}"])


def test_an_edit_acts_after_a_restart() -> None:
    instrument = tiny("llama")
    walk = Walk(instrument, prompt(1)[None])
    verify(walk)
    walk.advance(1)
    want = instrument.run(prompt(1)[None], edits=[HeadScale(1, 2, 0.0, rows=(-1, -2))])["logits"][:, -1]
    for first_row in (0, walk.first_row(7)):
        got = walk.tail(1, walk.residual, [HeadScale(1, 2, 0.0, rows=(-1, -2), batch=(1,))], 2, first_row=first_row)
        torch.testing.assert_close(got[1:], want, atol=1e-5, rtol=1e-5)
        assert float((got[0] - got[1]).abs().max()) > 1e-2


@pytest.mark.parametrize("budget", [0, 20_000, 10**9])
def test_segments_of_any_size_give_the_same_activations(budget: int) -> None:
    instrument = tiny("llama", num_hidden_layers=5)
    points = {0: ["z.0"], 2: ["mlp_out.2", "v.2"], 3: ["attn_out.3"]}
    walks = Walk(instrument, torch.stack([prompt(1), prompt(3)])), Walk(instrument, prompt(2)[None])
    want = [instrument.run(walk.ids, reads=("resid_pre.*", *(p for one in points.values() for p in one))) for walk in walks]
    seen = []
    for runs in together(*walks, points, both=True, budget=budget):
        seen.append(runs.layer)
        assert torch.equal(runs.residual, want[1][f"resid_pre.{runs.layer}"])
        for point in points[runs.layer]:
            assert torch.equal(runs.source[point], want[0][point]) and torch.equal(runs.target[point], want[1][point])
    assert seen == [0, 2, 3]


@pytest.mark.parametrize("where", ["metric", "callback", "block", "metric in backward"])
def test_nothing_is_left_behind(where: str) -> None:
    instrument = tiny("gpt_neox")
    pair, before = patch_pair(prompt(1), prompt(2)), state(instrument)
    patch_sweep(instrument, [pair], metric=METRIC, components=("z",))
    attribution_patching(instrument, [pair], metric=METRIC)
    attribution_patching(instrument, [pair], metric=METRIC, steps=2)
    assert state(instrument) == before

    def boom(*args: Any) -> Any:
        raise RuntimeError("boom")

    calls = {"n": 0}

    def late(logits: torch.Tensor) -> torch.Tensor:
        calls["n"] += 1
        return boom() if logits.requires_grad else METRIC(logits)

    handle = None
    if where == "block":
        handle = instrument.parts.layers[1].block.register_forward_hook(boom)
        before = state(instrument)
    with pytest.raises(RuntimeError, match="boom"):
        if where == "metric":
            patch_sweep(instrument, [pair], metric=boom)
        elif where == "callback":
            patch_sweep(instrument, [pair], metric=METRIC, on_cells=boom)
        elif where == "block":
            patch_sweep(instrument, [pair], metric=METRIC)
        else:
            attribution_patching(instrument, [pair], metric=late)
    assert state(instrument) == before
    assert where != "metric in backward" or calls["n"] == 3
    if handle is not None:
        handle.remove()


def test_a_block_s_own_forward_comes_back() -> None:
    """Libraries that place models on devices put a forward of their own on the instance."""
    instrument = tiny("llama")
    block = instrument.parts.layers[0].block
    original = block.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    block.forward = wrapped  # type: ignore[method-assign]
    patch_sweep(instrument, [patch_pair(prompt(1), prompt(2))], metric=METRIC)
    assert block.__dict__["forward"] is wrapped


def test_blocks_that_exchange_more_than_the_residual_stream_are_refused() -> None:
    instrument = tiny("llama")
    held: dict[str, torch.Tensor] = {}
    first, second = (layer.mlp for layer in instrument.parts.layers)
    assert first is not None and second is not None
    handles = [
        instrument.model.register_forward_pre_hook(lambda module, args: held.clear()),
        first.register_forward_hook(lambda module, args, output: held.update(x=output)),
        second.register_forward_hook(lambda module, args, output: output + held.pop("x", torch.zeros(()))),
    ]
    with pytest.raises(InstrumentError, match="Restarting"):
        patch_sweep(instrument, [patch_pair(prompt(1), prompt(2))], metric=METRIC)
    handles[2].remove()
    handles.append(second.register_forward_hook(lambda module, args, output: output + held.pop("x")))
    with pytest.raises(InstrumentError, match="by itself"):
        patch_sweep(instrument, [patch_pair(prompt(1), prompt(2))], metric=METRIC)
    for handle in handles:
        handle.remove()


def test_prompts_longer_than_the_context_are_refused() -> None:
    with pytest.raises(InstrumentError, match="context"):
        patch_sweep(tiny("llama"), [patch_pair(prompt(1, 257), prompt(2, 257))], metric=METRIC)
