"""What a neuron (or feature) writes, in tokens: its decoder row, times the sign of its activation, read by the unembedding.

The row passes the gain of a norm after the MLP and of the final norm, not their scales, which change no order. It is the direct path only: what later layers
make of the write is in the edges. A label is a hint at what a neuron does, and no evidence for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary
from symbolic_residue.graph._columns import Units
from symbolic_residue.graph._mlp import find_mlp
from symbolic_residue.graph._norm import FrozenNorm
from symbolic_residue.models import LayerParts, Parts

__all__ = ["promoted_tokens"]


def promoted_tokens(
    parts: Parts, tokenizer: Any, units: Units, activations: Tensor, k: int = 3, *, dictionary: Dictionary | None = None
) -> list[list[str]]:
    """The ``k`` tokens that each unit's write raises most, against the mean over the vocabulary.

    Args:
        parts, tokenizer: the model's.
        units, activations: of the graph.
        k: how many.
        dictionary: of the graph, where it has one: its layers' units are features; all that a feature writes counts.
    """
    found: list[list[str]] = [[] for _ in range(len(units))]
    one = torch.ones(1, parts.d_model)
    final = FrozenNorm.of(parts.final_norm, one, torch.float32)
    unembed = parts.w_u.float()
    unembed = final.fold(unembed - unembed.mean(0))
    for i, layer in enumerate(parts.layers):
        at = units.at(i)
        if not len(at):
            continue
        found_by = None if dictionary is None else dictionary.layers.get(i)
        if found_by is None:
            rows = _through(layer, find_mlp(layer, torch.float32).down[units.neuron[at]])
        else:
            rows = torch.zeros(len(at), parts.d_model)
            for target in found_by.decoders:
                part = found_by.decoder_rows(units.neuron[at], target, torch.float32)
                after_norm = dictionary is not None and dictionary.layers[target].predicts == "mlp_out"
                rows += part if after_norm else _through(parts.layers[target], part)
        rows = rows * activations[at].float().sign()[:, None]
        best = (rows @ unembed.T).topk(k, dim=1).indices
        for unit, ids in zip(at.tolist(), best.tolist(), strict=True):
            found[unit] = _words(tokenizer, ids)
    return found


def _through(layer: LayerParts, rows: Tensor) -> Tensor:
    """Rows through the gain of the norm after the MLP, if there is one."""
    after = FrozenNorm.of(layer.post_mlp_norm, torch.ones(1, rows.shape[1]), torch.float32)
    if after.gain is None:
        return rows
    return (rows - rows.mean(-1, keepdim=True) if after.centred else rows) * after.gain


def _words(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [tokenizer.decode([token]) for token in ids]
