"""What a neuron writes, in tokens: its decoder row, times the sign of its activation, read by the unembedding.

The row passes the gain of a norm after the MLP and of the final norm, not their scales, which change no order. It is the direct path only: what later layers
make of the write is in the edges. A label is a hint at what a neuron does, and no evidence for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from symbolic_residue.graph._columns import Units
from symbolic_residue.graph._mlp import find_mlp
from symbolic_residue.graph._norm import FrozenNorm
from symbolic_residue.models import Parts

__all__ = ["promoted_tokens"]


def promoted_tokens(parts: Parts, tokenizer: Any, units: Units, activations: Tensor, k: int = 3) -> list[list[str]]:
    """The ``k`` tokens that each unit's write raises most, against the mean over the vocabulary."""
    found: list[list[str]] = [[] for _ in range(len(units))]
    one = torch.ones(1, parts.d_model)
    final = FrozenNorm.of(parts.final_norm, one, torch.float32)
    unembed = parts.w_u.float()
    unembed = final.fold(unembed - unembed.mean(0))
    for i, layer in enumerate(parts.layers):
        at = units.at(i)
        if not len(at):
            continue
        rows = find_mlp(layer, torch.float32).down[units.neuron[at]] * activations[at].float().sign()[:, None]
        after = FrozenNorm.of(layer.post_mlp_norm, one, torch.float32)
        if after.gain is not None:
            rows = (rows - rows.mean(-1, keepdim=True) if after.centred else rows) * after.gain
        best = (rows @ unembed.T).topk(k, dim=1).indices
        for unit, ids in zip(at.tolist(), best.tolist(), strict=True):
            found[unit] = _words(tokenizer, ids)
    return found


def _words(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [tokenizer.decode([token]) for token in ids]
