"""The signature of a plain prompt, from one forward: no shell, no stress, no control.

1. Prompts go through the model in padded batches of bounded size, read at the last row only: attention statistics, the residual stream of every layer,
   heads' and MLPs' outputs. Only the last row of each point is kept.
2. The logit lens, the next-token distribution, and the direct logit attribution of the two best tokens' log-odds come from those.
3. The components are computed by the same functions as those from tables. Against a shell's run on the same text, ``attention``, ``lens`` and ``output``
   are equal within rounding; ``attribution`` in a run is a mean over variants of the prompt.

"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from symbolic_residue.instrument import AttentionRead, collate, Instrument, Trace
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.readout import direct_logit_attribution, dla_reads, logit_lens
from symbolic_residue.shells._base import Progress, quiet
from symbolic_residue.shells._confirm import in_pieces
from symbolic_residue.shells.signatures._components import NATS_SCALE, squash
from symbolic_residue.shells.signatures._measure import (
    attention_values,
    attribution_values,
    context_values,
    lens_values,
    output_values,
)
from symbolic_residue.shells.signatures._signature import Signature

if TYPE_CHECKING:
    from torch import Tensor

    from symbolic_residue.types import Point

__all__ = ["read_signature", "read_signatures"]

_AT_ONCE = 8
"""Prompts in a batch: each has its own answer, and the lens and the attribution look at all answers of a batch in all its prompts."""


def read_signature(instrument: Instrument, prompt: Prompt | str, *, name: str = "") -> Signature:
    """The signature of one prompt.

    Args:
        instrument: the model's instrument.
        prompt: text without a chat template, or a built prompt.
        name: kept in the signature.

    Raises:
        PromptError: a prompt that is empty or too long.
    """
    return read_signatures(instrument, [prompt], names=[name])[0]


def read_signatures(
    instrument: Instrument, prompts: Sequence[Prompt | str], *, names: Sequence[str] | None = None, progress: Progress = quiet
) -> list[Signature]:
    """The signatures of several prompts, in their order.

    Args:
        instrument: the model's instrument.
        prompts: texts without a chat template, or built prompts.
        names: one each; ``prompt-1`` … when left out.
        progress: told how far it is.

    Raises:
        PromptError: a prompt that is empty or too long.
    """
    tokenizer, limit = instrument.loaded.tokenizer, instrument.parts.max_context
    built = [build_prompt(tokenizer, p, max_tokens=limit) if isinstance(p, str) else p for p in prompts]
    called = list(names) if names is not None else [f"prompt-{i + 1}" for i in range(len(built))]
    found: dict[int, Signature] = {}
    if not built:
        return []
    # Neighbours in length share a batch: less padding.
    order = sorted(range(len(built)), key=lambda i: len(built[i]))
    done = 0
    pieces = [piece[i : i + _AT_ONCE] for piece in in_pieces([built[i] for i in order]) for i in range(0, len(piece), _AT_ONCE)]
    for piece in pieces:
        progress("reading prompts", done / len(built))
        for offset, values in enumerate(_read(instrument, piece)):
            place = order[done + offset]
            found[place] = Signature.of(called[place], values, "reading")
        done += len(piece)
    progress("prompts read", 1.0)
    return [found[i] for i in range(len(built))]


@torch.no_grad()
def _read(instrument: Instrument, prompts: list[Prompt]) -> list[dict[str, float]]:
    parts = instrument.parts
    kept = Trace()

    def keep(point: Point, tensor: Tensor) -> None:
        kept.tensors[point] = tensor[:, -1:].clone()

    reads = dict.fromkeys(("resid_pre.0", *(f"resid_post.{i}" for i in range(parts.n_layers)), *dla_reads(parts)))
    attends = bool(parts.attention_layers)
    read = AttentionRead(stats=("mass", "entropy", "distance"), rows=(-1,), split_self=True) if attends else None
    trace = instrument.run(collate(prompts), reads=tuple(reads), attention=read, keep_logits=1, on_read=keep)
    logits = trace["logits"][:, -1].double()
    kept.logits = trace["logits"][:, -1:]
    p = torch.softmax(logits, -1)
    best = logits.topk(2, -1)
    pairs = [(int(a), int(b)) for a, b in best.indices.tolist()]
    dla = direct_logit_attribution(kept, parts, pairs)
    lens = logit_lens(kept, parts, tokens=tuple(a for a, _ in pairs))
    attention = trace.attention
    out = []
    for i, prompt in enumerate(prompts):
        values = context_values(prompt.ids)
        values |= lens_values(
            lens.top[:, i, 0].tolist(),
            _numpy(lens.top_probability[:, i, 0]),
            _numpy(lens.entropy[:, i, 0]),
            _numpy(lens.log_probability[:, i, 0, i].exp()),
        )
        entropy = float(-(torch.special.xlogy(p[i], p[i])).sum())
        values |= output_values(entropy, float(p[i].max()))
        values["output.log_odds"] = squash(float(best.values[i, 0] - best.values[i, 1]), NATS_SCALE)
        values["output.in_context"] = min(float(p[i, sorted(set(prompt.ids))].sum()), 1.0)
        heads, mlps = _numpy(dla.heads[i, i, 0]), _numpy(dla.mlps[i, i, 0])
        there = ~np.isnan(heads)
        layers = np.broadcast_to(np.arange(parts.n_layers)[:, None], heads.shape)
        values |= attribution_values(layers[there], heads[there], parts.n_layers, mlps[~np.isnan(mlps)])
        if attention is not None:
            mass = attention["mass"][:, i, :, 0]
            names = list(attention.regions)
            n_heads = mass.shape[1]
            values |= attention_values(
                np.repeat(np.array(attention.layers), n_heads),
                parts.n_layers,
                len(prompt),
                total=_numpy(mass.sum(-1)).ravel(),
                sink=_numpy(mass[..., names.index("sink")]).ravel(),
                own=_numpy(mass[..., names.index("self")]).ravel(),
                entropy=_numpy(attention["entropy"][:, i, :, 0]).ravel(),
                distance=_numpy(attention["distance"][:, i, :, 0]).ravel(),
            )
        out.append(values)
    return out


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
