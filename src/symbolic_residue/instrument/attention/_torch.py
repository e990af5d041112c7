"""Exact attention statistics in plain torch, beside the model's own attention and without the T×T matrix.

With scores ``s_ij = scale · q_i·k_j (+ bias)`` and ``p_ij = exp(s_ij − L_i)``, ``L_i`` the row's log-sum-exp:

1. **flash**: one fused attention call whose *values* are ``[K | R | j]`` (keys, region indicators, key index) returns, for all rows at once,
   ``Σ_j p_ij k_j``, the region masses ``Σ_j p_ij R_jr``, the mean attended key ``Σ_j p_ij j``, and ``L_i``.
   Entropy follows in closed form: ``H_i = −Σ p ln p = L_i − scale · q_i·(Σ_j p_ij k_j)``. Queries and keys are zero-padded to the width
   of the values, which changes no score. K is never repeated for grouped queries. Masks go into the fused call as they are.
2. **maxima**: the largest score and its key in one matmul per block of rows; ``max p = exp(max s − L)``. Plain causal attention only.
3. **sink logits** only rescale: with ``f = 1 / (1 + exp(sink − L))`` every weight is ``f·p``, so masses are ``f·mass``, the entropy over keys is
   ``f·(H − ln f)``, the output is ``f·output``, and ``1 − f`` goes to the sink.

Half-precision inputs are read in float32: the numbers are exact for the q and k that the model really used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from symbolic_residue.instrument.attention._call import Call, MaskCache
from symbolic_residue.instrument.attention._request import RegionMap

__all__ = ["FLASH_STATS", "attend_fused", "cannot_fuse"]

FLASH_STATS = frozenset({"mass", "entropy", "lse", "distance", "max", "argmax", "self", "sink"})
BLOCK = 128
_WIDEST_MASK = 4096 * 4096
"""Entries of an additive mask that may be built for the fused call; beyond, blocks need less memory."""


def cannot_fuse(call: Call, want: set[str]) -> str | None:
    """Why the fused call does not serve this attention, or None."""
    if call.softcap is not None:
        return "softcapped scores"
    if call.bias is not None and "entropy" in want:
        return "an additive bias (its part of the entropy is not in the fused product)"
    if not want <= FLASH_STATS:
        return ", ".join(sorted(want - FLASH_STATS))
    if call.causal:
        return None
    if want & {"max", "argmax"}:
        return "maxima under a mask"
    if call.q.device.type != "cpu":
        return "masks on this device"
    if call.n_queries * call.n_keys > _WIDEST_MASK:
        return "a mask of this size"
    return None


def attend_fused(
    call: Call, regions: RegionMap | None, want: set[str], *, output: bool, masks: MaskCache | None = None
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Statistics of every row from one fused call.

    Args:
        call: an attention for which :func:`cannot_fuse` gives None.
        regions: of its keys.
        want: statistics among ``FLASH_STATS``.
        output: whether the attention output is wanted too (one more fused call).
        masks: additive masks built before in this forward.

    Returns:
        Output ``[batch, query, head, d_value]`` (or None) and statistics ``[batch, head, query]`` (``mass [..., region]``).
    """
    dtype = call.compute_dtype
    q, k = call.q.to(dtype), call.k.to(dtype)
    batch, n_kv, n_keys, d_head = k.shape
    columns: list[Tensor] = []
    if "entropy" in want:
        columns.append(k)
    extra: list[Tensor] = []
    n_regions = 0
    if "mass" in want and regions is not None:
        extra.append(regions.indicator(dtype))
        n_regions = len(regions.names)
    if "distance" in want:
        # Indices are scaled to [0, 1] so that the column has the magnitude of the others in the fused product.
        extra.append((torch.arange(n_keys, device=k.device, dtype=dtype) / max(n_keys, 1)).view(1, n_keys, 1))
    if extra:
        joined = torch.cat([e.expand(batch, -1, -1) for e in extra], -1)
        columns.append(joined[:, None].expand(batch, n_kv, -1, -1))
    width = sum(c.shape[-1] for c in columns)
    # The fused kernel wants q, k and v of one width; a multiple of 8 keeps it on vector paths.
    full = -(-max(width, d_head) // 8) * 8
    values = F.pad(torch.cat(columns, -1), (0, full - width)) if columns else k.new_zeros(batch, n_kv, n_keys, full)
    mask = None if call.causal else _additive(call, dtype, masks)
    out, lse = _fused(F.pad(q, (0, full - d_head)), F.pad(k, (0, full - d_head)), values, call.scale, mask)
    empty = None if call.causal else ~call.sees_any().expand(batch, q.shape[1], -1)
    kept = torch.ones_like(lse) if call.sinks is None else torch.sigmoid(lse - call.sinks.to(dtype)[None, :, None])
    result: dict[str, Tensor] = {}
    at = 0
    if "entropy" in want:
        # A row that puts everything on one key has entropy 0; rounding may leave −1e-7.
        entropy = (lse - call.scale * (q * out[..., :d_head]).sum(-1)).clamp_min(0.0)
        result["entropy"] = entropy if call.sinks is None else kept * (entropy - kept.log())
        at = d_head
    if n_regions:
        # A copy, so that the wide product is freed: kept as views, all layers' products would stay alive.
        result["mass"] = out[..., at : at + n_regions] * kept[..., None]
        at += n_regions
    if "distance" in want:
        own = torch.arange(call.n_queries, device=k.device, dtype=dtype) + call.offset
        result["distance"] = own - out[..., at] * n_keys
    if "sink" in want:
        result["sink"] = 1 - kept
    if want & {"max", "argmax"}:
        top, result["argmax"] = _maxima(q, k)
        result["max"] = torch.exp(top * call.scale - lse).clamp_max(1.0) * kept
    if "self" in want:
        result["self"] = _own(call, q, k, lse, mask) * kept
    total = lse if call.sinks is None else torch.logaddexp(lse, call.sinks.to(dtype)[None, :, None])
    if "lse" in want:
        result["lse"] = total
    if empty is not None and bool(empty.any()):
        for name, stat in result.items():
            fill = (
                -1
                if name == "argmax"
                else float("-inf")
                if name == "lse" and call.sinks is None
                else 1.0
                if name == "sink"
                else 0.0
            )
            fill = 0.0 if name == "sink" and call.sinks is None else fill
            result[name] = stat.masked_fill(empty if stat.dim() == 3 else empty[..., None], fill)
    mixed = None
    if output:
        mixed = F.scaled_dot_product_attention(
            q,
            k,
            call.v.to(dtype),
            attn_mask=mask,
            is_causal=call.causal,
            scale=call.scale,
            enable_gqa=q.shape[1] != n_kv,
        )
        mixed = mixed * kept[..., None]
        if empty is not None:
            mixed = mixed.masked_fill(empty[..., None], 0.0)
        mixed = mixed.transpose(1, 2).to(call.v.dtype)
    return mixed, result


def _additive(call: Call, dtype: torch.dtype, masks: MaskCache | None) -> Tensor:
    """The mask as numbers to add, ``[batch, 1 or head, query, key]``; rows that see nothing see everything here and are put right afterwards."""

    def make() -> Tensor:
        every = torch.arange(call.n_queries, device=call.q.device)
        seen = call.visible(every, 0, call.n_keys)
        if seen is None:
            seen = torch.ones(1, 1, call.n_queries, call.n_keys, dtype=torch.bool, device=call.q.device)
        seen = seen | ~call.sees_any()[..., None]
        mask = torch.zeros(seen.shape, dtype=dtype, device=call.q.device).masked_fill(~seen, float("-inf"))
        if call.bias is not None:
            mask = mask + call.bias.to(dtype)
        return mask.expand(call.q.shape[0], -1, -1, -1)

    more = (dtype, None if call.keep is None else call.keep.data_ptr(), None if call.bias is None else call.bias.data_ptr())
    return make() if masks is None or call.bias is not None else masks.get(call.low, make, *more)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention output ``[batch, head, query, width]`` with its log-sum-exp ``[batch, head, query]`` (nats)."""
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, mask is None, attn_mask=mask, scale=scale)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:  # the memory-efficient CUDA kernel has no grouped form
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, True, scale=scale)
    return out, lse[..., : q.shape[2]]


def _own(call: Call, q: Tensor, k: Tensor, lse: Tensor, mask: Tensor | None) -> Tensor:
    """Weight of each row's own key (before any sink)."""
    groups = q.shape[1] // k.shape[1]
    keys = k[:, :, call.offset :]
    score = torch.einsum("bkgtd,bktd->bkgt", q.unflatten(1, (-1, groups)), keys).flatten(1, 2) * call.scale
    if mask is not None:
        score = score + mask[..., call.offset :].diagonal(dim1=-2, dim2=-1)
    return torch.exp(score - lse)


def _maxima(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Largest ``q·k`` and its key for every row of plain causal attention, ``[batch, head, query]``."""
    batch, n_heads, n_rows, d_head = q.shape
    n_kv = k.shape[1]
    groups = n_heads // n_kv
    keys_t = k.mT
    future = torch.full((BLOCK, BLOCK), float("-inf"), device=q.device, dtype=q.dtype).triu(1)
    top = torch.empty(batch, n_kv, groups, n_rows, device=q.device, dtype=q.dtype)
    where = torch.empty(batch, n_kv, groups, n_rows, device=q.device, dtype=torch.long)
    grouped = q.view(batch, n_kv, groups, n_rows, d_head) if q.is_contiguous() else q.reshape(batch, n_kv, groups, n_rows, d_head)
    for start in range(0, n_rows, BLOCK):
        stop = min(start + BLOCK, n_rows)
        m = stop - start
        rows = grouped[:, :, :, start:stop].reshape(batch, n_kv, groups * m, d_head)
        scores = torch.matmul(rows, keys_t[..., :stop]).view(batch, n_kv, groups, m, stop)
        scores[..., start:stop] += future[:m, :m]
        best = scores.max(-1)
        top[..., start:stop], where[..., start:stop] = best.values, best.indices
    return top.view(batch, n_heads, n_rows), where.view(batch, n_heads, n_rows)
