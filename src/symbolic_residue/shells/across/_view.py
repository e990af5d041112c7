"""QK and OV of chosen heads on one prompt: where they look, and what each key they look at adds to a token.

1. *QK*: the attention rows of the last ``last`` queries, exact.
2. *OV by key*: the last row's logit (difference) that comes through a head from one key, ``s · a_j · (v_j W_O · u)`` with the final norm's scale ``s``
   frozen and ``u`` its unembedding direction. Over keys it sums to the head's direct logit attribution (tested).
3. *OV by head*: that sum, beside the largest singular value of the head's OV circuit (how strongly it can write at all).

Heads whose outputs are gated are refused: there, keys do not give what the head writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import AttentionRead, collate, Instrument
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import fold, frozen_scale, ov_circuit

__all__ = ["AttentionView", "attention_view", "check_heads"]

Pair = tuple[int, int | None]


@dataclass(frozen=True)
class AttentionView:
    """Chosen heads on one prompt.

    Attributes:
        attention: table ``attention_rows``: layer, head, query, key, weight.
        ov_keys: layer, head, position, target, strength (logits, last row).
        ov_heads: layer, head, target, strength, norm (largest singular value of OV).
        tokens: position, token.
    """

    attention: pl.DataFrame = field(repr=False)
    ov_keys: pl.DataFrame = field(repr=False)
    ov_heads: pl.DataFrame = field(repr=False)
    tokens: pl.DataFrame = field(repr=False)

    def tables(self) -> dict[str, pl.DataFrame]:
        """``attention_rows``, ``ov_keys``, ``ov_heads``."""
        return {"attention_rows": self.attention, "ov_keys": self.ov_keys, "ov_heads": self.ov_heads}

    def figure(self, layer: int, head: int, target: str | None = None) -> Any:
        """Heat map and strength by key of one head (needs the ``figures`` extra)."""
        from symbolic_residue.figures import qk_ov

        return qk_ov(self.attention, self.ov_keys, self.tokens, layer=layer, head=head, target=target)


@torch.no_grad()
def attention_view(
    instrument: Instrument, prompt: Prompt, heads: Sequence[tuple[int, int]], targets: Sequence[Pair], *, last: int = 24
) -> AttentionView:
    """Attention rows and OV strength of chosen heads.

    Args:
        instrument: the model's instrument.
        prompt: the prompt.
        heads: (layer, head).
        targets: ``(a, b)`` for logit(a) − logit(b), ``(a, None)`` for logit(a).
        last: how many last queries.

    Raises:
        ConfigError: no heads or targets, a token outside the vocabulary, ``last`` under 1.
        ReadError: no such head, a layer without softmax attention, gated heads.
    """
    parts = instrument.parts
    vocab = parts.w_u.shape[0]
    if not heads or not targets or last < 1:
        raise ConfigError("A view needs heads, targets and at least one query.")
    if wrong := [t for pair in targets for t in pair if t is not None and not 0 <= t < vocab]:
        raise ConfigError(f"Token id {wrong[0]} is outside the vocabulary of {vocab}.")
    check_heads(instrument, heads)
    layers = tuple(sorted({layer for layer, _ in heads}))
    n = len(prompt)
    rows = tuple(range(-min(last, n), 0))
    reads = (*(f"{kind}.{layer}" for layer in layers for kind in ("v", "z")), f"resid_post.{parts.n_layers - 1}")
    read = AttentionRead(stats=("max",), rows=rows, layers=layers, weights=True)
    trace = instrument.run(collate([prompt]), reads=reads, attention=read, keep_logits=1)
    assert trace.attention is not None
    weights = trace.attention["weights"][:, 0].cpu()
    scale = frozen_scale(parts.final_norm, trace[f"resid_post.{parts.n_layers - 1}"][0, -1]).cpu()
    decode = instrument.loaded.tokenizer.decode
    names = [decode([a]) if b is None else f"{decode([a])} − {decode([b])}" for a, b in targets]
    directions = parts.logit_scale * torch.stack(
        [parts.w_u[a].float() - (parts.w_u[b].float() if b is not None else 0.0) for a, b in targets]
    )
    u = fold(parts.final_norm, directions)
    attention, keys, totals = [], [], []
    for layer, head in dict.fromkeys(heads):
        place = layers.index(layer)
        mine = weights[place, head].double()
        for i, row in enumerate(rows):
            attention += [(layer, head, n + row, k, float(mine[i, k])) for k in range(n + row + 1)]
        strength = _by_key(instrument, trace, layer, head, mine[-1], u) * float(scale)
        norm = float(ov_circuit(parts, layer, head).singular(1)[1][0])
        for t, name in enumerate(names):
            keys += [(layer, head, k, name, float(strength[t, k])) for k in range(n)]
            totals.append((layer, head, name, float(strength[t].sum()), norm))
    return AttentionView(
        pl.DataFrame(attention, schema=["layer", "head", "query", "key", "weight"], orient="row"),
        pl.DataFrame(keys, schema=["layer", "head", "position", "target", "strength"], orient="row"),
        pl.DataFrame(totals, schema=["layer", "head", "target", "strength", "norm"], orient="row"),
        pl.DataFrame({"position": list(range(n)), "token": prompt.tokens}),
    )


def check_heads(instrument: Instrument, heads: Sequence[tuple[int, int]]) -> None:
    """Refuse heads that cannot be viewed.

    Raises:
        ReadError: no such head, a layer without softmax attention, gated heads.
    """
    parts = instrument.parts
    for layer, head in heads:
        if layer not in parts.attention_layers or not 0 <= head < parts.n_heads:
            there = f"The model has layers 0 to {parts.n_layers - 1} of {parts.n_heads} heads each."
            raise ReadError(f"There is no head {layer}.{head} with softmax attention.", why=there)
        if parts.layers[layer].qkv_layout == "gated":
            raise ReadError(f"The heads of layer {layer} are gated.", why="What they write is no weighted sum of values.")


def _by_key(instrument: Instrument, trace: Any, layer: int, head: int, weights: Tensor, u: Tensor) -> Tensor:
    """``[target, key]``: what each key adds along the directions, before the final norm's scale."""
    part = instrument.parts.layers[layer]
    inner = 1.0
    if part.post_attn_norm is not None:
        assert part.o_proj is not None
        inner = float(frozen_scale(part.post_attn_norm, part.o_proj(trace[f"z.{layer}"][:, -1].flatten(1)))[0])
        u = fold(part.post_attn_norm, u)
    v = trace[f"v.{layer}"][0].double().cpu()  # [key, kv_head, d_head]
    served = v[:, head // (part.n_heads // v.shape[1])]
    into = (part.w_o(head).double().cpu() @ u.double().cpu().mT) * part.attn_scale * inner
    return weights * (served @ into).mT
