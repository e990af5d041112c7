"""Pairs of tiny models (a base and a copy that was changed in a known way) and random examples with an event."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.contrast import Example
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap

TOKENIZER = tiny_tokenizer()
TOKEN = 77
"""First token of the behaviour in every example."""


def tool(model: Any) -> Instrument:
    return Instrument(wrap(model, TOKENIZER))


def pair(family: str = "llama", change: Callable[[Any], None] | None = None, **options: Any) -> tuple[Instrument, Instrument]:
    """(tuned, base): two instruments of one model, the first after ``change``."""
    base = build(family, **options)
    tuned = copy.deepcopy(base)
    if change is not None:
        with torch.no_grad():
            change(tuned)
    return tool(tuned), tool(base)


def noise(model: Any, size: float = 0.02, seed: int = 1) -> None:
    """Every matrix of the blocks a little different."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and not any(part in name for part in ("embed", "lm_head", "wte", "wpe")):
            weight.add_(size * torch.randn(weight.shape, generator=generator))


def examples(
    n: int = 6, *, clusters: int = 3, prompt: int = 9, answer: int = 16, token: int = TOKEN, seed: int = 0
) -> list[Example]:
    """Random ids of different lengths; the event is the behaviour's token, two tokens before the end."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        ids = rng.integers(5, 70, prompt + answer + i % 4).tolist()
        event = len(ids) - 3
        ids[event] = token
        out.append(
            Example(f"kind/q{i % clusters}/{i}", "kind", f"q{i % clusters}", i, 0, tuple(ids), prompt, event, True, None, "eos", "")
        )
    return out


def labels(example: Example) -> list[str]:
    """Buckets of every token: sink, system, user, assistant_header, answer."""
    own = ["sink", "system", "system", "system", "user", "user", "user", "assistant_header", "assistant_header"]
    return own + ["answer"] * (len(example.ids) - len(own))


def taught(model: Any, some: list[Example], names: tuple[str, ...], *, steps: int = 12, rate: float = 0.02) -> None:
    """Raise log P of the behaviour's token at the emitting rows by gradient steps on the named weights alone."""
    chosen = [weight for name, weight in model.named_parameters() if any(part in name for part in names)]
    assert chosen
    with torch.enable_grad():
        for _ in range(steps):
            log_p = sum(
                torch.log_softmax(model(torch.tensor([one.ids[: one.event]])).logits[0, -1], -1)[one.ids[one.event or 0]]
                for one in some
            )
            grads = torch.autograd.grad(log_p, chosen)  # pyright: ignore[reportArgumentType]
            with torch.no_grad():
                for weight, grad in zip(chosen, grads, strict=True):
                    weight.add_(rate * grad / grad.norm() * weight.norm())


class Dense:
    """A plain transformers model (llama or gpt2) in float64 with eager attention, whose parts can be replaced by hooks of our own: the oracle."""

    def __init__(self, model: Any, ids: tuple[int, ...]) -> None:
        self.model = copy.deepcopy(model).double()
        self.model.set_attn_implementation("eager")
        self.ids = torch.tensor([ids])
        self.llama = hasattr(self.model, "model")
        self.blocks = self.model.model.layers if self.llama else self.model.transformer.h
        self.seen: dict[tuple[str, int], torch.Tensor] = {}
        self.log_p(TOKEN)

    def attention(self, i: int) -> Any:
        return self.blocks[i].self_attn if self.llama else self.blocks[i].attn

    def write(self, i: int, weights: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """What attention of layer i writes with these patterns ``[1, head, row, key]`` on this normed input."""
        attn = self.attention(i)
        if self.llama:
            v = attn.v_proj(hidden).view(*hidden.shape[:2], -1, attn.head_dim).transpose(1, 2)
            v = v.repeat_interleave(weights.shape[1] // v.shape[1], 1)
            return attn.o_proj((weights @ v).transpose(1, 2).flatten(2))
        v = attn.c_attn(hidden).chunk(3, -1)[2].view(*hidden.shape[:2], weights.shape[1], -1).transpose(1, 2)
        return attn.c_proj((weights @ v).transpose(1, 2).flatten(2))

    def log_p(
        self,
        token: int,
        residual: dict[int, Callable[[torch.Tensor], torch.Tensor]] | None = None,
        mlp: dict[int, Callable[[torch.Tensor], torch.Tensor]] | None = None,
        attn: dict[int, Callable[[torch.Tensor], torch.Tensor]] | None = None,
        pattern: dict[int, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    ) -> float:
        """log P of the token at the last row with tensors changed by functions of them; a run without changes is remembered in ``seen``."""
        plain, handles = not (residual or mlp or attn or pattern), []

        def see(kind: str, i: int, tensor: torch.Tensor) -> None:
            if plain or kind == "attn":
                self.seen[kind, i] = tensor

        def on_attention(i: int) -> Any:
            def hook(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
                hidden = args[0] if args else kwargs["hidden_states"]
                out, weights = output[0], output[1]
                if plain:
                    self.seen["hidden", i], self.seen["weights", i] = hidden, weights
                if pattern and i in pattern:
                    out = self.write(i, pattern[i](weights), hidden)
                if attn and i in attn:
                    out = attn[i](out)
                see("attn", i, out)
                return (out, *output[1:])

            return hook

        def on_block(i: int) -> Any:
            def hook(module: Any, args: Any, output: Any) -> Any:
                out = output[0] if isinstance(output, tuple) else output
                if residual and i in residual:
                    out = residual[i](out)
                see("residual", i, out)
                return (out, *output[1:]) if isinstance(output, tuple) else out

            return hook

        def on_mlp(i: int) -> Any:
            def hook(module: Any, args: Any, output: Any) -> Any:
                out = mlp[i](output) if mlp and i in mlp else output
                see("mlp", i, out)
                return out

            return hook

        for i, block in enumerate(self.blocks):
            handles += [
                self.attention(i).register_forward_hook(on_attention(i), with_kwargs=True),
                block.mlp.register_forward_hook(on_mlp(i)),
                block.register_forward_hook(on_block(i)),
            ]
        with torch.no_grad():
            logits = self.model(self.ids, output_attentions=True).logits
        for handle in handles:
            handle.remove()
        return float(torch.log_softmax(logits[0, -1], -1)[token])
