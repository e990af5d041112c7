"""Trees of given tokens, and the attention of one probe computed apart: plain transformers, eager, only the tokens that it needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.parallel import PathToken, StepStats, Tree, TreeStep

PROMPT = (5, 9, 120, 33, 47, 200)
SETS = ((61, 90), (17,), (30, 31, 250), (70, 8), (99,))
FAMILIES = ("llama", "qwen3", "gemma3", "gpt_neox", "mistral")


def instrument(name: str, dtype: torch.dtype = torch.float64) -> Instrument:
    return Instrument(wrap(build(name).to(dtype), tiny_tokenizer()))


def tree_of(sets: Sequence[Sequence[int]] = SETS, prompt: Sequence[int] = PROMPT) -> Tree:
    steps, slot = [], len(prompt)
    for s, ids in enumerate(sets):
        p = [0.5 / (i + 1) for i in range(len(ids))]
        tokens = tuple(PathToken(t, f" {t}", p[i], float(len(prompt) + s), slot + i) for i, t in enumerate(ids))
        steps.append(TreeStep(s, tokens, StepStats(0.1, len(ids), sum(p), 1.0, 0.0)))
        slot += len(ids)
    return Tree(tuple(prompt), " ".join(map(str, prompt)), tuple(steps), "steps")


def random_tree(seed: int, steps: int = 6, prompt: int = 8, most: int = 4) -> Tree:
    rng = torch.Generator().manual_seed(seed)
    ids = (torch.randperm(370, generator=rng) + 6).tolist()
    sizes = (1 + torch.randint(most, (steps,), generator=rng)).tolist()
    sizes[0] = max(sizes[0], 2)
    sets, at = [], prompt
    for size in sizes:
        sets.append(ids[at : at + size])
        at += size
    return tree_of(sets, ids[:prompt])


def oracle(
    ins: Instrument, tokens: list[tuple[int, float]], sees: list[list[int]], seats: list[float]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Attention ``[head, row, key]`` of each layer, and logits ``[row, vocab]``, of (id, position) tokens that see ``sees``."""
    model, parts = ins.model, ins.parts
    n = len(tokens)
    seen = torch.zeros(n, n, dtype=torch.bool)
    for row, keys in enumerate(sees):
        seen[row, [*keys, row]] = True
    seat = torch.tensor(seats)

    def mask(window: int | None) -> torch.Tensor:
        near = seen if window is None else seen & ((seat[:, None] - seat[None] < window) | torch.eye(n, dtype=torch.bool))
        return torch.zeros(1, 1, n, n, dtype=torch.float64).masked_fill(~near, torch.finfo(torch.float64).min)

    windows = set(parts.windows)
    masks = (
        mask(windows.pop())
        if len(windows) == 1
        else {"full_attention": mask(None), "sliding_attention": mask(max(w for w in windows if w))}
    )
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor([[t for t, _ in tokens]]),
                position_ids=torch.tensor([[p for _, p in tokens]], dtype=torch.float32),
                attention_mask=masks,
                use_cache=False,
                output_attentions=True,
            )
    finally:
        model.set_attn_implementation(before)
    return [a[0] for a in out.attentions], out.logits[0]
