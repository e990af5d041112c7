"""Caches of keys and values: of whole sequences, and of sequences whose beginnings are run once.

The cache keeps every key of every layer, also where the family has sliding windows (the mask hides what the window hides), so key j is always position j of the
padded sequence.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from symbolic_residue.errors import EditError, InstrumentError
from symbolic_residue.instrument._edits import AttentionMask, Edit
from symbolic_residue.instrument._instrument import cache_name, Instrument

__all__ = ["fresh", "hide", "masks", "positions_of", "prefill", "shared_prefill", "shortened", "side_by_side", "taken"]


def prefill(instrument: Instrument, ids: Tensor, mask: Tensor, positions: Tensor) -> tuple[Any, Tensor]:
    """Cache of every key, and the last row's logits ``[batch, vocab]``."""
    from transformers import DynamicCache

    # Without the config every layer keeps every key, also under a window. Layers that keep a state instead need the config to have a place for it.
    hybrid = any(layer.mixer is not None for layer in instrument.parts.layers)
    cache = DynamicCache(config=instrument.model.config) if hybrid else DynamicCache()  # type: ignore[arg-type]
    call = {cache_name(instrument.model): cache, "use_cache": True, "logits_to_keep": 1}
    with torch.no_grad():
        out = instrument.model(input_ids=ids, attention_mask=mask, position_ids=positions, **call)
    return cache, out.logits[:, -1]


def positions_of(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp_min(0)


def fresh(cache: Any) -> Any:
    """A copy that can be continued. Keys and values are never written into, only put together anew, so they need no copying; states do."""
    if not _plain(cache):
        return copy.deepcopy(cache)
    out = copy.copy(cache)
    out.layers = [copy.copy(layer) for layer in cache.layers]
    return out


def _plain(cache: Any) -> bool:
    """Whether keys and values are all that the cache holds."""
    return all(type(layer).__name__ == "DynamicLayer" for layer in cache.layers)


def shortened(cache: Any) -> Any | None:
    """The cache without its last column, sharing its memory; None where a layer keeps a state, which cannot be taken back."""
    if not _plain(cache):
        return None
    out = fresh(cache)
    out.crop(-1)
    return out


def taken(cache: Any, at: Tensor) -> Any:
    """The cache of some sequences ``[n]``; neighbours share its memory."""
    out, first = fresh(cache), int(at[0])
    if not _plain(cache) or at.tolist() != list(range(first, first + len(at))):
        out.reorder_cache(at)
        return out
    for layer in out.layers:
        if layer.keys is not None:
            layer.keys, layer.values = (held[first : first + len(at)] for held in (layer.keys, layer.values))
    return out


def side_by_side(caches: Sequence[Any]) -> Any:
    """One cache of several batches, padded on the left to one length.

    Raises:
        InstrumentError: a layer keeps a state, which cannot be padded.
    """
    if not all(map(_plain, caches)):
        raise InstrumentError("Caches that hold more than keys and values cannot be joined.")
    out = fresh(caches[0])
    width = max(cache.get_seq_length() for cache in caches)
    for i, layer in enumerate(out.layers):
        for name in ("keys", "values"):
            parts = [getattr(cache.layers[i], name) for cache in caches]
            if parts[0] is not None:
                setattr(layer, name, torch.cat([pad(part, (0, 0, width - part.shape[2], 0)) for part in parts]))
    return out


def masks(spans: Sequence[tuple[int, int] | None], copies: int = 1) -> list[Edit]:
    """Attention masks, one for all sequences that hide the same keys."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, span in enumerate(spans):
        if span is not None:
            groups.setdefault(span, []).extend(range(i * copies, (i + 1) * copies))
    return [AttentionMask(range(*span), batch=rows) for span, rows in groups.items()]


def hide(
    instrument: Instrument, mask: Tensor, spans: Sequence[tuple[int, int] | None], copies: int = 1
) -> tuple[Tensor, list[Edit]]:
    """The attention mask ``[batch, key]`` (its spans one for every ``copies`` rows) in which the spans are not seen, and edits that hide what it cannot.

    Where positions are given, a hidden key is one more padding key. Where the family counts them off the mask, hiding is an edit of the attention.
    """
    if not instrument.parts.position_ids:
        return mask, masks(spans, copies)
    if any(span is not None for span in spans):
        mask = mask.clone()
    for i, span in enumerate(spans):
        if span is not None:
            mask[i * copies : (i + 1) * copies, span[0] : span[1]] = 0
    return mask, []


def shared_prefill(
    instrument: Instrument, ids: Tensor, mask: Tensor, shared: Sequence[int], hidden: Sequence[tuple[int, int] | None]
) -> Any:
    """Cache of every key but the last token's, each shared beginning run once.

    The beginnings are padded on the left and what follows them on the right, so that real tokens stand side by side in every row; then keys and values are
    moved to where left padding puts them, as windows count columns.
    """
    lengths = mask.sum(-1).tolist()
    tokens = [row[-n:] for row, n in zip(ids.tolist(), lengths, strict=True)]
    if len(shared) != len(tokens) or any(not 0 <= k < n for k, n in zip(shared, lengths, strict=True)):
        raise InstrumentError("A shared beginning must be shorter than its sequence.", todo="Give one number a sequence.")
    for k, span in zip(shared, hidden, strict=True):
        if span is not None and not (0 <= span[0] < span[1] <= k and span != (0, k)):
            raise EditError(f"Tokens {span[0]} to {span[1] - 1} cannot be hidden.", why=f"The shared beginning has {k} tokens.")
    heads = [tuple(t[:k]) for t, k in zip(tokens, shared, strict=True)]
    hybrid = any(layer.mixer is not None for layer in instrument.parts.layers)
    if hybrid or not all(heads):
        if any(span is not None for span in hidden):
            raise EditError("Nothing can be hidden from a part of the rows in a model that keeps a state.")
        return prefill(instrument, ids[:, :-1], mask[:, :-1], positions_of(mask)[:, :-1])[0]
    # A beginning that is a part of a longer one is taken from it.
    unique = sorted(set(heads), key=len, reverse=True)
    unique = [h for i, h in enumerate(unique) if not any(longer[: len(h)] == h for longer in unique[:i])]
    width = max(map(len, unique))
    head_ids = torch.tensor([[0] * (width - len(h)) + list(h) for h in unique], device=ids.device)
    head_mask = torch.tensor([[0] * (width - len(h)) + [1] * len(h) for h in unique], device=ids.device)
    cache, _ = prefill(instrument, head_ids, head_mask, positions_of(head_mask))
    own = [next(i for i, longer in enumerate(unique) if longer[: len(h)] == h) for h in heads]
    start = torch.tensor(list(shared), device=ids.device)
    size = max(shared)
    # Token t stands in column width − len(its beginning) + t, and goes to column size − shared + t.
    offset = [width - len(unique[i]) for i in own]
    _move(cache, own, [o + k - size for o, k in zip(offset, shared, strict=True)], size)
    head_mask = (torch.arange(size, device=ids.device)[None] >= (size - start)[:, None]).to(mask)
    tails = [t[k:-1] for t, k in zip(tokens, shared, strict=True)]
    length = max(map(len, tails))
    if length:
        tail_ids = torch.tensor([t + [0] * (length - len(t)) for t in tails], device=ids.device)
        tail_mask = torch.tensor([[1] * len(t) + [0] * (length - len(t)) for t in tails], device=ids.device)
        positions = start[:, None] + torch.arange(length, device=ids.device)
        limit = instrument.parts.max_context
        positions = positions if limit is None else positions.clamp_max(limit - 1)  # of padding only
        spans = [None if h is None else (size - k + h[0], size - k + h[1]) for h, k in zip(hidden, shared, strict=True)]
        head_mask, edits = hide(instrument, head_mask, spans)
        call = {cache_name(instrument.model): cache, "use_cache": True, "logits_to_keep": 1}
        with torch.no_grad(), instrument.attached(edits=edits) if edits else nullcontext():
            instrument.model(
                input_ids=tail_ids, attention_mask=torch.cat([head_mask, tail_mask.to(mask)], 1), position_ids=positions, **call
            )
    # Token t stands in column size − shared + t now, and goes to column lead + t.
    _move(cache, range(len(tokens)), [size - k - ids.shape[1] + n for k, n in zip(shared, lengths, strict=True)], ids.shape[1] - 1)
    return cache


def _move(cache: Any, own: Sequence[int], first: Sequence[int], size: int) -> None:
    """Make row ``b`` the ``size`` columns of row ``own[b]`` from ``first[b]`` on; columns before 0 or behind the last are padding."""
    for layer in cache.layers:
        for name in ("keys", "values"):
            held = getattr(layer, name)
            if held is None:
                continue
            there = held.shape[2]
            out = held.new_zeros(len(own), held.shape[1], size, held.shape[3])
            for b, (row, start) in enumerate(zip(own, first, strict=True)):
                a, z = max(start, 0), min(start + size, there)
                out[b, :, a - start : z - start] = held[row, :, a:z]
            setattr(layer, name, out)
