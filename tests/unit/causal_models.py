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
