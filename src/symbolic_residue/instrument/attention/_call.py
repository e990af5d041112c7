"""One attention call, understood: which keys each row may see, and what else shapes its scores.

1. Whatever mask transformers hands over (none, bool, additive; padding on either side, windows, packed sequences, a caller's own 4-D mask) is turned into
   *intervals*: row i sees the keys ``low_i ≤ j < high_i``. Causal masks, windows, padding and packing are all of this form, so no backend needs a T×T mask.
   A mask with holes keeps its dense form (``keep``) beside the interval that contains it.
2. An additive mask that holds more than "hidden" (ALiBi, a position bias, a caller's own numbers) leaves its finite part in ``bias``.
3. A static cache hands over more keys than exist: they are cropped. A sliding-window cache hands over the last keys only: ``first_key`` is the
   position of key 0. After that the rows are always the last ones: row i's own key is ``i + n_keys − n_queries``.

The score of row i and key j is ``softcap(scale · q_i·k_j) + bias_ij``; a head's sink logit, where there is one, joins the denominator and takes mass to no key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn, Tensor

from symbolic_residue.errors import AttentionError

__all__ = ["Call", "MaskCache", "understand"]

_ROWS = 256
"""Rows of a dense mask looked at together."""


@dataclass
class Call:
    """Queries ``[batch, head, query, d_head]``, keys ``[batch, kv_head, key, d_head]``, values ``[batch, kv_head, key, d_value]``, and who sees whom."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    low: Tensor
    """``[batch or 1, query]`` int32: first key that the row sees."""
    high: Tensor
    """``[batch or 1, query]`` int32: one past the last key that the row sees; equal to ``low`` where it sees nothing."""
    causal: bool = False
    """Every row sees all keys up to its own, and there are as many keys as rows."""
    keep: Tensor | None = None
    """``[batch or 1, 1 or head, query, key]`` bool: False hides a key inside the interval."""
    bias: Tensor | None = None
    """``[batch or 1, 1 or head, 1 or query, key]`` float32, finite."""
    softcap: float | None = None
    sinks: Tensor | None = None
    """``[head]`` sink logits."""
    first_key: int = 0
    """Position of key 0 in the padded sequence."""

    @property
    def n_queries(self) -> int:
        """Rows of this call."""
        return self.q.shape[2]

    @property
    def n_keys(self) -> int:
        """Keys of this call."""
        return self.k.shape[2]

    @property
    def offset(self) -> int:
        """Row i's own key is ``i + offset``."""
        return self.n_keys - self.n_queries

    @property
    def compute_dtype(self) -> torch.dtype:
        """float64 for a float64 model, else float32: half-precision inputs are read in float32."""
        return torch.float64 if self.q.dtype == torch.float64 else torch.float32

    def sees_any(self) -> Tensor:
        """``[batch or 1, 1 or head, query]``: rows that see a key at all."""
        interval = (self.high > self.low)[:, None]
        return interval if self.keep is None else interval & self.keep.any(-1)

    def visible(self, rows: Tensor, start: int, stop: int) -> Tensor | None:
        """``[batch or 1, 1 or head, row, key]`` for keys ``start`` to ``stop``: False is hidden; None when the rows see all of them."""
        low, high = self.low[:, rows], self.high[:, rows]
        if self.keep is None and bool((low <= start).all()) and bool((high >= stop).all()):
            return None
        key = torch.arange(start, stop, device=low.device, dtype=low.dtype)
        seen = ((key >= low[..., None]) & (key < high[..., None]))[:, None]
        return seen if self.keep is None else seen & self.keep[:, :, rows, start:stop]


@dataclass
class MaskCache:
    """Masks understood so far in this forward: the layers of one kind share a mask, so each is looked at once.

    The tensors are kept alive, so an address cannot come back as another mask.
    """

    _seen: dict[tuple[Any, ...], tuple[Tensor, Any]] = field(default_factory=dict)

    def get(self, mask: Tensor, make: Any, *more: Any) -> Any:
        """``make()`` for this mask, or what it gave before."""
        key = (mask.data_ptr(), tuple(mask.shape), mask.stride(), mask.dtype, mask._version, *more)
        if key not in self._seen:
            self._seen[key] = (mask, make())
        return self._seen[key][1]


@dataclass
class _Understood:
    low: Tensor
    high: Tensor
    keep: Tensor | None
    bias: Tensor | None
    causal: bool


def understand(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None,
    dropout: float,
    total: int | None,
    masks: MaskCache,
    options: dict[str, Any],
) -> Call:
    """What an attention module asks for, as a :class:`Call`.

    Args:
        module: the attention module that calls.
        query: ``[batch, head, query, d_head]``; ``key``, ``value``: ``[batch, kv_head, key, d]``.
        mask: None (causal), bool (True is seen) or additive ``[batch or 1, 1 or head, query, key]``.
        scaling: factor on the scores; ``d_head ** -0.5`` when None.
        dropout: refused unless 0.
        total: tokens so far, cached and new, padding included; None when there is no cache.
        masks: of this forward.
        options: the interface's further arguments (softcap, s_aux, position_bias, is_causal).

    Raises:
        AttentionError: dropout, attention that is not causal, or a mask of an unknown form.
    """
    name = type(module).__name__
    if dropout:
        raise AttentionError("The model is in training mode (attention dropout).", todo="Call model.eval().")
    causal_flag = options.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal_flag is None else causal_flag) and mask is None and query.shape[2] > 1:
        raise AttentionError(f"{name} is not causal.", why="The readouts are defined for decoders.")
    if query.shape[1] % key.shape[1]:
        raise AttentionError(f"{name} has {query.shape[1]} heads for {key.shape[1]} key-value heads.")
    n_queries, total = query.shape[2], key.shape[2] if total is None else total
    bias = options.get("position_bias")
    if key.shape[2] > total:
        # A static cache: the keys after the last token so far do not exist yet.
        key, value = key[:, :, :total], value[:, :, :total]
        mask = None if mask is None else mask[..., :total]
        bias = None if bias is None else bias[..., :total]
    n_keys = key.shape[2]
    if mask is None:
        if 1 < n_queries < n_keys:
            raise AttentionError(
                f"{n_queries} new tokens on {n_keys - n_queries} cached ones came without a mask.",
                why="Which keys each row may see is then not said.",
                todo="Pass attention_mask to the model.",
            )
        own = torch.arange(n_queries, device=query.device, dtype=torch.int32)[None] + (n_keys - n_queries)
        told = _Understood(torch.zeros_like(own), own + 1, None, None, n_queries == n_keys)
    else:
        if mask.dim() != 4 or mask.shape[2] != n_queries or mask.shape[3] != n_keys:
            raise AttentionError(
                f"{name} got a mask of shape {tuple(mask.shape)} for {n_queries} queries and {n_keys} keys.",
                todo="Use attn_implementation='sdpa' or 'eager'.",
            )
        told = masks.get(mask, lambda: _read_mask(mask))
    if told.bias is not None:
        bias = told.bias if bias is None else bias + told.bias
    softcap, sinks = options.get("softcap"), options.get("s_aux")
    return Call(
        query,
        key,
        value,
        query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        told.low,
        told.high,
        told.causal and bias is None,
        told.keep,
        None if bias is None else bias.float(),
        None if softcap is None else float(softcap),
        None if sinks is None else sinks.detach().float(),
        max(total - n_keys, 0),
    )


def _read_mask(mask: Tensor) -> _Understood:
    """Intervals of a dense mask, and what they cannot say."""
    bias = None
    if mask.dtype == torch.bool:
        seen = mask
    else:
        # "Hidden" is written as the dtype's minimum (or a sum that holds it), or as −inf.
        seen = mask > torch.finfo(mask.dtype).min / 2
        rest = mask.masked_fill(~seen, 0.0)
        bias = rest.float() if bool(rest.any()) else None
    n_heads, n_queries, n_keys = seen.shape[1:]
    if n_heads > 1 and bool((seen == seen[:, :1]).all()):
        seen = seen[:, :1]
    index = torch.arange(n_keys, device=seen.device, dtype=torch.int32)
    lows, highs, whole = [], [], True
    for rows in seen.split(_ROWS, 2):
        low = torch.where(rows, index, n_keys).amin((1, 3)).int()
        high = torch.where(rows, index + 1, 0).amax((1, 3)).int()
        high = torch.maximum(low.clamp_max(n_keys), high)
        low = torch.minimum(low, high)
        whole = whole and bool((rows.sum(-1).amin(1) == high - low).all())
        lows.append(low)
        highs.append(high)
    low, high = torch.cat(lows, -1), torch.cat(highs, -1)
    own = torch.arange(n_queries, device=seen.device, dtype=torch.int32) + (n_keys - n_queries)
    nothing = low == high  # such a row stands at its own key, so that it does not widen its block's range of keys
    low, high = torch.where(nothing, own, low), torch.where(nothing, own, high)
    causal = whole and bias is None and n_queries == n_keys and bool((low == 0).all()) and bool((high == own + 1).all())
    return _Understood(low, high, None if whole else seen, bias, causal)
