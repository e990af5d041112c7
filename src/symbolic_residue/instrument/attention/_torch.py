"""Exact attention statistics in plain torch, beside the model's own attention and without the T×T matrix.

With scores ``s_ij = scale · q_i·k_j`` and ``p_ij = exp(s_ij − L_i)``, ``L_i`` the row's log-sum-exp:

1. **flash**: one fused attention call whose *values* are ``[K | R | j]`` (keys, region indicators, key index) returns, for all rows at once,
   ``Σ_j p_ij k_j``, the region masses ``Σ_j p_ij R_jr``, the mean attended key ``Σ_j p_ij j``, and ``L_i``.
   Entropy follows in closed form: ``H_i = −Σ p ln p = L_i − scale · q_i·(Σ_j p_ij k_j)``. Queries and keys are zero-padded to the width
   of the values, which changes no score. K is never repeated for grouped queries.
2. **maxima**: the largest score and its key in one matmul per block of rows; ``max p = exp(max s − L)``.
3. **blocks**: for any mask, bias or choice of rows: a dense softmax over a block of rows at a time. It also returns attention
   *outputs* for rows whose scores were edited.

Half-precision inputs are read in float32: the numbers are exact for the q and k that the model really used.
Memory is O(T · width) for (1) and O(block · T) for (2) and (3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["BlockResult", "block_stats", "flash_stats", "max_stats"]

BLOCK = 128
"""Rows handled at a time by the blocked computations."""


def flash_stats(q: Tensor, k: Tensor, indicator: Tensor | None, scale: float, want: set[str]) -> dict[str, Tensor]:
    """Statistics of every row of plain causal attention, from one fused call.

    Args:
        q: ``[batch, head, query, d_head]``.
        k: ``[batch, kv_head, query, d_head]`` (as many keys as queries).
        indicator: ``[batch or 1, key, region]``, or None.
        scale: factor on the scores.
        want: names of statistics among mass, entropy, lse, distance.

    Returns:
        Statistics ``[batch, head, query]``; ``mass`` ``[batch, head, query, region]``.
    """
    q, k = q.float(), k.float()
    batch, n_kv, n_keys, d_head = k.shape
    columns: list[Tensor] = []
    if "entropy" in want:
        columns.append(k)
    extra: list[Tensor] = []
    if "mass" in want and indicator is not None:
        extra.append(indicator)
    if "distance" in want:
        # Indices are scaled to [0, 1] so that the column has the magnitude of the others in the fused product.
        extra.append((torch.arange(n_keys, device=k.device, dtype=k.dtype) / max(n_keys, 1)).view(1, n_keys, 1))
    if extra:
        joined = torch.cat([e.expand(batch, -1, -1) for e in extra], -1)
        columns.append(joined[:, None].expand(batch, n_kv, -1, -1))
    width = sum(c.shape[-1] for c in columns)
    # The fused kernel wants q, k and v of one width; a multiple of 8 keeps it on vector paths.
    full = -(-max(width, d_head) // 8) * 8
    values = F.pad(torch.cat(columns, -1), (0, full - width)) if columns else k.new_zeros(batch, n_kv, n_keys, full)
    out, lse = _fused(F.pad(q, (0, full - d_head)), F.pad(k, (0, full - d_head)), values, scale)
    result: dict[str, Tensor] = {"lse": lse}
    at = 0
    if "entropy" in want:
        mean_key_vector = out[..., :d_head]
        # A row that puts everything on one key has entropy 0; rounding may leave −1e-7.
        result["entropy"] = (lse - scale * (q * mean_key_vector).sum(-1)).clamp_min(0.0)
        at = d_head
    if "mass" in want and indicator is not None:
        # A copy, so that the wide product is freed: kept as views, all layers' products would stay alive.
        result["mass"] = out[..., at : at + indicator.shape[-1]].clone()
        at += indicator.shape[-1]
    if "distance" in want:
        mean_key = out[..., at] * n_keys
        result["distance"] = torch.arange(n_keys, device=k.device, dtype=k.dtype) - mean_key
    return result


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention output ``[batch, head, query, width]`` with its log-sum-exp ``[batch, head, query]`` (nats)."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=scale)
        return out, lse
    groups = q.shape[1] // k.shape[1]
    if groups > 1:  # the memory-efficient CUDA kernel has no grouped form
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, True, scale=scale)
    return out, lse[..., : q.shape[2]]


def max_stats(q: Tensor, k: Tensor, lse: Tensor, scale: float) -> dict[str, Tensor]:
    """Largest weight and its key for every row of plain causal attention.

    Args:
        q: ``[batch, head, query, d_head]``.
        k: ``[batch, kv_head, query, d_head]``.
        lse: ``[batch, head, query]``, from :func:`flash_stats`.
        scale: factor on the scores.

    Returns:
        ``max`` (a probability) and ``argmax`` (a key index), ``[batch, head, query]``.
    """
    q, k = q.float(), k.float()
    batch, n_heads, n_rows, d_head = q.shape
    n_kv = k.shape[1]
    groups = n_heads // n_kv
    keys_t = k.mT
    future = torch.full((BLOCK, BLOCK), float("-inf"), device=q.device).triu(1)
    top = torch.empty(batch, n_kv, groups, n_rows, device=q.device)
    where = torch.empty(batch, n_kv, groups, n_rows, device=q.device, dtype=torch.long)
    grouped = q.view(batch, n_kv, groups, n_rows, d_head)
    for start in range(0, n_rows, BLOCK):
        stop = min(start + BLOCK, n_rows)
        m = stop - start
        rows = grouped[:, :, :, start:stop].reshape(batch, n_kv, groups * m, d_head)
        scores = torch.matmul(rows, keys_t[..., :stop]).view(batch, n_kv, groups, m, stop)
        scores[..., start:stop] += future[:m, :m]
        best = scores.max(-1)
        top[..., start:stop], where[..., start:stop] = best.values, best.indices
    flat = (batch, n_heads, n_rows)
    return {"max": torch.exp(top.view(flat) * scale - lse).clamp_max(1.0), "argmax": where.view(flat)}


@dataclass
class BlockResult:
    """Statistics ``[batch, head, row, …]`` of the asked rows, and their attention output ``[batch, head, row, d_value]`` when asked."""

    stats: dict[str, Tensor]
    output: Tensor | None


def block_stats(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    rows: Tensor,
    indicator: Tensor | None,
    scale: float,
    want: set[str],
    *,
    keep: Callable[[Tensor], Tensor] | None = None,
    bias: Callable[[Tensor], Tensor | None] | None = None,
) -> BlockResult:
    """Statistics of chosen rows under any mask and bias, a block of rows at a time.

    Args:
        q: ``[batch, head, query, d_head]``.
        k: ``[batch, kv_head, key, d_head]``.
        v: ``[batch, kv_head, key, d_value]`` when outputs are wanted, else None.
        rows: ``[row]`` query positions.
        indicator: ``[batch or 1, key, region]``, or None.
        scale: factor on the scores.
        want: statistics among mass, entropy, lse, distance, max, argmax, self, weights.
        keep: rows → additive mask ``[batch or 1, 1 or head, row, key]`` (0 or −inf); None means causal, queries aligned to the last keys.
        bias: rows → additive bias ``[batch or 1, 1 or head, row, key]``, or None.
    """
    q, k = q.float(), k.float()
    batch, n_heads, n_queries, d_head = q.shape
    n_kv, n_keys = k.shape[1:3]
    groups = n_heads // n_kv
    offset = n_keys - n_queries
    index = torch.arange(n_keys, device=q.device)
    keys_t = k.mT
    pieces: list[dict[str, Tensor]] = []
    outputs: list[Tensor] = []
    for r in rows.split(BLOCK):
        m = len(r)
        block = q[:, :, r].view(batch, n_kv, groups, m, d_head).reshape(batch, n_kv, groups * m, d_head)
        scores = (torch.matmul(block, keys_t) * scale).view(batch, n_heads, m, n_keys)
        if keep is None:
            scores = scores.masked_fill(index[None] > (r + offset)[:, None], float("-inf"))
        else:
            scores = scores + keep(r)
        added = bias(r) if bias is not None else None
        if added is not None:
            scores = scores + added
        lse = torch.logsumexp(scores, -1)
        # A row that may see nothing (padding) has lse = −inf; its weights are set to zero and its statistics dropped by the caller.
        p = torch.exp(scores - lse.clamp_min(torch.finfo(torch.float32).min)[..., None])
        out: dict[str, Tensor] = {}
        if "lse" in want:
            out["lse"] = lse
        if "entropy" in want:
            out["entropy"] = torch.special.entr(p).sum(-1)
        if "mass" in want and indicator is not None:
            out["mass"] = torch.matmul(p, indicator[:, None].expand(batch, -1, -1, -1))
        if "distance" in want:
            out["distance"] = (r + offset) - torch.matmul(p, index.to(p.dtype))
        if "max" in want or "argmax" in want:
            best = p.max(-1)
            out["max"], out["argmax"] = best.values, best.indices
        if "self" in want:
            own = (r + offset).view(1, 1, m, 1).expand(batch, n_heads, m, 1)
            out["self"] = p.gather(-1, own)[..., 0]
        if "weights" in want:
            out["weights"] = p
        pieces.append(out)
        if v is not None:
            mixed = torch.matmul(p.view(batch, n_kv, groups * m, n_keys), v.float())
            outputs.append(mixed.view(batch, n_heads, m, v.shape[-1]))
    stats = {name: torch.cat([p[name] for p in pieces], 2) for name in pieces[0]}
    return BlockResult(stats, torch.cat(outputs, 2).to(v.dtype) if v is not None else None)
