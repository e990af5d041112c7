"""Dense float64 oracle: what the readouts must equal.

1. Build the whole score matrix of the model's own q and k in float64, ``[batch, head, query, key]``.
2. Mask it with the visibility given explicitly (causal, window, padding), softmax it, and reduce by definition.

It makes the T×T matrix that everything else avoids, so it is for tests and for small inputs only.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dense_stats", "dense_weights", "visible_keys"]


def visible_keys(
    n_queries: int, n_keys: int, *, window: int | None = None, padding: Tensor | None = None, batch: int = 1
) -> Tensor:
    """Which keys each row may see, ``[batch, query, key]`` bool: causal, with a sliding window and a 2-D padding mask."""
    row = torch.arange(n_queries)[:, None] + n_keys - n_queries
    key = torch.arange(n_keys)[None]
    seen = key <= row
    if window is not None:
        seen = seen & (key > row - window)
    seen = seen[None].expand(batch, -1, -1)
    if padding is not None:
        seen = seen & padding.bool()[:, None, :]
    return seen


def dense_weights(
    q: Tensor,
    k: Tensor,
    scale: float,
    visible: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention weights ``[batch, head, query, key]`` in float64; rows that see nothing are NaN (0 where the head has a sink logit).

    Args:
        q: ``[batch, head, query, d_head]``; ``k``: ``[batch, kv_head, key, d_head]``.
        scale: factor on the scores.
        visible: ``[batch, query, key]`` or ``[batch, head, query, key]`` bool.
        bias: added after the softcap.
        softcap: c, for scores ``c·tanh(s / c)``.
        sinks: ``[head]`` logits of a column that is dropped after the softmax.
    """
    groups = q.shape[1] // k.shape[1]
    scores = torch.matmul(q.double(), k.double().repeat_interleave(groups, 1).mT) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.double()
    scores = scores.masked_fill(~(visible[:, None] if visible.dim() == 3 else visible), float("-inf"))
    if sinks is None:
        return torch.softmax(scores, -1)
    column = sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]


def dense_stats(weights: Tensor, indicator: Tensor) -> dict[str, Tensor]:
    """Every statistic by its definition, from dense weights ``[batch, head, query, key]`` and ``indicator [batch, key, region]``."""
    n_queries, n_keys = weights.shape[-2:]
    index = torch.arange(n_keys, dtype=torch.float64)
    row = torch.arange(n_queries) + n_keys - n_queries
    best = weights.max(-1)
    total = weights.sum(-1)
    return {
        "mass": torch.matmul(weights, indicator.double()[:, None]),
        "entropy": torch.special.entr(weights).sum(-1),
        "distance": row - weights @ index / total,
        "max": best.values,
        "argmax": best.indices,
        "self": weights.gather(-1, row.view(1, 1, -1, 1).expand(*weights.shape[:3], 1))[..., 0],
        "sink": 1 - total,
        "received": weights.nan_to_num(0.0).sum(2),
        "weights": weights,
    }
