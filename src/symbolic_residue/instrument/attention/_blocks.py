"""Any attention at all, a block of rows at a time: masks with holes, windows, softcap, sink logits, biases, edits, any choice of rows.

1. Scores of a block of rows against the range of keys that the block can see, ``[batch, head, row, key]``; keys are never repeated for grouped queries.
2. Softcap, then biases (the model's, then edits'), then the mask; the row's log-sum-exp (with the sink logit, where there is one); ``p = exp(s − lse)``.
3. Edits of the pattern change ``p``; then output and statistics are read off by their definitions.

Memory is O(block · T). The same code with one block of all rows is the dense computation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from symbolic_residue.instrument.attention._call import Call
from symbolic_residue.instrument.attention._request import RegionMap

__all__ = ["Rework", "attend_rows", "reduce_weights", "row_weights"]

BLOCK = 128
"""Rows handled at a time."""


@dataclass(frozen=True)
class Rework:
    """What edits do to the scores and weights of chosen rows.

    Attributes:
        bias: rows → additive bias ``[batch, head, row, key]``, or None where no edit adds one.
        weights: (weights ``[batch, head, row, key]``, rows) → the weights to use.
        has_weights: whether ``weights`` does anything; it then needs every key's column.
    """

    bias: Callable[[Tensor], Tensor | None]
    weights: Callable[[Tensor, Tensor], Tensor]
    has_weights: bool


def attend_rows(
    call: Call,
    rows: Tensor | None,
    regions: RegionMap | None,
    want: set[str],
    *,
    output: bool,
    rework: Rework | None = None,
    block: int = BLOCK,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Attention of chosen rows.

    Args:
        call: the attention.
        rows: ``[row]`` query indices; None is all.
        regions: of this call's keys.
        want: statistics (see ``STATS``), and ``weights``.
        output: whether the attention output is wanted.
        rework: edits.
        block: rows at a time.

    Returns:
        Output ``[batch, row, head, d_value]`` in the model's dtype (or None), and statistics ``[batch, head, row, …]``.
    """
    dtype = call.compute_dtype
    q, k = call.q.to(dtype), call.k.to(dtype)
    v = call.v.to(dtype) if output else None
    batch, n_heads, n_queries, d_head = q.shape
    n_kv, n_keys = k.shape[1:3]
    groups = n_heads // n_kv
    rows = torch.arange(n_queries, device=q.device) if rows is None else rows
    indicator = regions.indicator(dtype) if regions is not None and "mass" in want else None
    pieces: list[dict[str, Tensor]] = []
    outputs: list[Tensor] = []
    received = torch.zeros(batch, n_heads, n_keys, device=q.device, dtype=dtype) if "received" in want else None
    # Largest block first: what it frees is reused, where growing blocks would leave the heap in pieces.
    for r in reversed(rows.split(block)):
        m = len(r)
        start, stop = _range(call, r)
        if "weights" in want or (rework is not None and rework.has_weights):
            start, stop = 0, n_keys
        part = (
            q[:, :, r].view(batch, n_kv, groups * m, d_head)
            if m == n_queries
            else q[:, :, r].reshape(batch, n_kv, groups * m, d_head)
        )
        scores = torch.matmul(part * call.scale, k[:, :, start:stop].mT).view(batch, n_heads, m, stop - start)
        if call.softcap is not None:
            scores = torch.tanh(scores / call.softcap) * call.softcap
        if call.bias is not None:
            scores = scores + (call.bias if call.bias.shape[2] == 1 else call.bias[:, :, r])[..., start:stop].to(dtype)
        added = rework.bias(r) if rework is not None else None
        if added is not None:
            scores = scores + added[..., start:stop].to(dtype)
        seen = call.visible(r, start, stop)
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        lse = torch.logsumexp(scores, -1) if stop > start else scores.new_full((batch, n_heads, m), float("-inf"))
        if call.sinks is not None:
            lse = torch.logaddexp(lse, call.sinks.to(dtype)[None, :, None])
        # A row that may see nothing (padding) has lse = −inf; its weights are zero.
        p = torch.exp(scores - lse.clamp_min(torch.finfo(dtype).min)[..., None])
        if rework is not None and rework.has_weights:
            p = rework.weights(p, r)
        pieces.append(reduce_weights(p, lse, r + call.offset, start, None if indicator is None else indicator[:, start:stop], want))
        if received is not None:
            received[..., start:stop] += p.sum(2)
        if v is not None:
            mixed = torch.matmul(p.view(batch, n_kv, groups * m, stop - start), v[:, :, start:stop])
            outputs.append(mixed.view(batch, n_heads, m, v.shape[-1]).transpose(1, 2))
    pieces.reverse()
    outputs.reverse()
    stats = {name: torch.cat([piece[name] for piece in pieces], 2) for name in pieces[0]}
    if received is not None:
        stats["received"] = received
    stats = {name: t.float() if t.is_floating_point() else t for name, t in stats.items()} if dtype == torch.float32 else stats
    return (torch.cat(outputs, 1).to(call.v.dtype) if v is not None else None), stats


def row_weights(call: Call, start: int, stop: int) -> Tensor:
    """Attention weights of the call's rows ``start`` to ``stop``, ``[batch, head, row, key]``, in float32 (float64 for a float64 model)."""
    rows = torch.arange(start, stop, device=call.q.device)
    _, stats = attend_rows(call, rows, None, {"weights"}, output=False)
    return stats["weights"]


def _range(call: Call, rows: Tensor) -> tuple[int, int]:
    """The keys that some of the rows can see."""
    start, stop = int(call.low[:, rows].min()), int(call.high[:, rows].max())
    return (start, stop) if stop > start else (0, 0)


def reduce_weights(
    p: Tensor, lse: Tensor, own: Tensor, start: int, indicator: Tensor | None, want: set[str] | Sequence[str]
) -> dict[str, Tensor]:
    """Statistics by their definitions.

    Args:
        p: weights ``[batch, head, row, key]`` of keys ``start`` on; rows sum to 1, or less where a sink or an edit took mass.
        lse: ``[batch, head, row]``.
        own: ``[row]`` each row's own key.
        start: key of the first column.
        indicator: ``[batch, key, region]`` of the same columns, or None.
        want: names.
    """
    batch, n_heads, m, width = p.shape
    out: dict[str, Tensor] = {}
    if "lse" in want:
        out["lse"] = lse
    if "entropy" in want:
        out["entropy"] = torch.special.entr(p).sum(-1)
    if "mass" in want and indicator is not None:
        out["mass"] = torch.matmul(p, indicator[:, None].expand(batch, -1, -1, -1))
    if "distance" in want or "sink" in want:
        total = p.sum(-1)
        if "sink" in want:
            out["sink"] = (1 - total).clamp_min(0.0)
        if "distance" in want:
            # Offsets from the own key keep the numbers small, so that the mean is exact for long sequences.
            away = own.to(p.dtype)[:, None] - torch.arange(start, start + width, device=p.device, dtype=p.dtype)
            out["distance"] = (p * away).sum(-1) / total.clamp_min(torch.finfo(p.dtype).tiny)
    if "max" in want or "argmax" in want:
        if width:
            best = p.max(-1)
            nothing = best.values == 0
            out["max"], out["argmax"] = best.values, (best.indices + start).masked_fill(nothing, -1)
        else:
            out["max"], out["argmax"] = p.new_zeros(batch, n_heads, m), torch.full((batch, n_heads, m), -1, device=p.device)
    if "self" in want:
        inside = (own >= start) & (own < start + width)
        at = (own - start).clamp(0, max(width - 1, 0)).view(1, 1, m, 1).expand(batch, n_heads, m, 1)
        out["self"] = (p.gather(-1, at)[..., 0] if width else p.new_zeros(batch, n_heads, m)) * inside
    if "weights" in want:
        out["weights"] = p
    return out
