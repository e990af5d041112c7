"""The linear maps of a frozen block on many rows at once, as a few large matrix products.

1. ``attend`` pushes perturbations ``F [row, position, d_model]`` of the residual stream at positions ``start …`` up through a layer's frozen attention.
   ``attend_back`` pulls directions ``G [row, position, d_model]`` at positions ``0 …`` down through it. Both add in place: the stream itself passes on.
2. The head dimension is never expanded to d_model by head: ``[row · position, d_model] @ [d_model, kv · d_head]``, one batched product with the patterns for
   each key-value head, ``@ [head · d_head, d_model]``.
3. A row that is 0 but at one position, as all are where they begin, needs one vector a head from its own position, and ``Σ_h A_h · vector_h`` at the others:
   ``attend_from``, ``attend_back_from``. Where there are fewer positions than heads that would be more numbers, and no less work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from symbolic_residue.graph._local import LocalLayer

__all__ = ["attend", "attend_back", "attend_back_from", "attend_from", "relevance_step"]

_QUERIES = 64
"""Queries whose patterns are used together: keys after a block's last query are left out, which halves the work with patterns in long prompts."""


def attend(layer: LocalLayer, weights: tuple[Tensor, Tensor], rows: Tensor, start: int = 0) -> None:
    """``rows [row, position, d_model] += attention(rows)``, positions ``start`` on."""
    w_v, w_o = weights
    n, p, d = rows.shape
    kv = layer.parts.n_kv_heads
    group = layer.parts.n_heads // kv
    v = (rows.reshape(n * p, d) @ w_v).view(n, p, kv, -1).permute(2, 1, 0, 3).reshape(kv, p, -1)
    z = rows.new_empty(n, p, kv, group, v.shape[2] // n)
    for low in range(0, p, _QUERIES):
        high = min(low + _QUERIES, p)
        a = layer.pattern(start, start + high, start + low).reshape(kv, group * (high - low), high)
        z[:, low:high] = torch.bmm(a, v[:, :high]).view(kv, group, high - low, n, -1).permute(3, 2, 0, 1, 4)
    rows.view(n * p, d).addmm_(z.view(n * p, -1), w_o)


def attend_back(layer: LocalLayer, weights: tuple[Tensor, Tensor], rows: Tensor) -> None:
    """``rows [row, position, d_model] += attentionᵀ(rows)``, positions 0 on."""
    w_v, w_o = weights
    n, p, d = rows.shape
    kv = layer.parts.n_kv_heads
    group = layer.parts.n_heads // kv
    o = (rows.reshape(n * p, d) @ w_o.T).view(n, p, kv, group, -1)
    z = rows.new_zeros(kv, p, n * o.shape[-1])
    for low in range(0, p, _QUERIES):
        high = min(low + _QUERIES, p)
        a = layer.pattern(0, high, low).reshape(kv, group * (high - low), high)
        z[:, :high].baddbmm_(a.mT, o[:, low:high].permute(2, 3, 1, 0, 4).reshape(kv, group * (high - low), -1))
    z = z.view(kv, p, n, -1).permute(2, 1, 0, 3).reshape(n * p, -1)
    rows.view(n * p, d).addmm_(z, w_v.T)


def attend_from(layer: LocalLayer, weights: tuple[Tensor, Tensor], rows: Tensor, at: Tensor, start: int = 0) -> None:
    """As :func:`attend`, of rows that are 0 but at one position each: ``at [row]``, counted from ``start``."""
    if layer.kept is None or rows.shape[1] < layer.parts.n_heads:
        attend(layer, weights, rows, start)
        return
    w_v, w_o = weights
    n, p, d = rows.shape
    kv = layer.parts.n_kv_heads
    group, size = layer.parts.n_heads // kv, w_v.shape[1] // kv
    v = (rows[torch.arange(n), at] @ w_v).view(n, kv, size).transpose(0, 1)
    each = torch.bmm(v, w_o.view(kv, group, size, d).transpose(1, 2).reshape(kv, size, group * d))
    each = each.view(kv, n, group, d).transpose(0, 1).reshape(n, kv * group, d)
    rows.baddbmm_(layer.kept[:, start : start + p, start + at].permute(2, 1, 0), each)


def attend_back_from(layer: LocalLayer, weights: tuple[Tensor, Tensor], rows: Tensor, at: Tensor) -> None:
    """As :func:`attend_back`, of rows that are 0 but at one position each, ``at [row]``."""
    if rows.shape[1] < layer.parts.n_heads:
        attend_back(layer, weights, rows)
        return
    w_v, w_o = weights
    n, p, d = rows.shape
    kv = layer.parts.n_kv_heads
    group, size = layer.parts.n_heads // kv, w_v.shape[1] // kv
    o = (rows[torch.arange(n), at] @ w_o.T).view(n, kv, group, size).transpose(0, 1).reshape(kv, n * group, size)
    each = torch.bmm(o, w_v.T.view(kv, size, d)).view(kv, n, group, d).transpose(0, 1).reshape(n, kv * group, d)
    if layer.kept is not None:
        a = layer.kept[:, at, :p].permute(1, 2, 0)
    else:
        a = rows.new_zeros(n, p, kv * group)
        for position in at.unique().tolist():
            a[at == position, : position + 1] = layer.pattern(0, position + 1, position)[:, 0].T
    rows.baddbmm_(a, each)


def relevance_step(layer: LocalLayer, g: Tensor, through_mlp: Tensor | None) -> Tensor:
    """One block of the relevance backward: ``g [position, d_model]`` at the block's output becomes that at its input.

    Args:
        layer: the block.
        g: directions at ``resid_post``.
        through_mlp: what the MLP's neurons pull back to the residual stream they read, ``[position, d_model]``; None stops at MLPs.
    """
    below = g.clone()[None]
    if through_mlp is None:
        attend_back(layer, layer.attention_weights(), below)
    elif layer.parallel:
        attend_back(layer, layer.attention_weights(), below)
        below[0] += through_mlp
    else:
        below[0] += through_mlp
        attend_back(layer, layer.attention_weights(), below)
    return below[0]
