"""The one door: the attention function that transformers calls while the instrument is attached.

1. ``install()`` registers ``"residue"`` with transformers' attention and mask interfaces. The mask is the one that SDPA would get.
2. A forward in progress is a ``Session``; each attention module maps to at most one. The function looks its module up, so several models
   and nested sessions do not meet.
3. The layer's output is always the model's own SDPA call, so an attached forward without edits has bit-identical logits.
4. Rows whose scores are edited (bias, mask) are computed again by the blocked path and put in place.
5. The asked statistics are read beside it: ``flash`` for all rows of plain causal attention, ``blocks`` for everything else.

Source of the interfaces: transformers' AttentionInterface and AttentionMaskInterface (public since version 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn, Tensor

from symbolic_residue.errors import AttentionError, EditError
from symbolic_residue.instrument._edits import AttentionBias, resolve
from symbolic_residue.instrument.attention._request import AttentionRead, RegionMap
from symbolic_residue.instrument.attention._torch import block_stats, flash_stats, max_stats

__all__ = ["DOOR", "Session", "attention_forward", "install"]

DOOR = "residue"
_FLASH_STATS = {"mass", "entropy", "lse", "distance"}
_sessions: dict[int, Session] = {}


@dataclass
class Session:
    """What one attached forward reads and edits in attention."""

    modules: dict[int, int]
    """id(attention module) → layer."""
    read: AttentionRead | None
    regions: RegionMap | None
    biases: Sequence[AttentionBias]
    tensor_hook: Callable[[str, int, Tensor], Tensor]
    """(kind, layer, tensor [batch, head, query, d_head]) → the tensor after edits; it also records reads of q, k, v."""
    cached_keys: int | None = None
    values: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)
    backend: str = "none"
    valid: Tensor | None = None
    rows: Tensor | None = None

    def __enter__(self) -> Session:
        for key in self.modules:
            if key in _sessions:
                raise AttentionError("An instrument is already attached to this model.", todo="Leave the outer one first.")
        _sessions.update(dict.fromkeys(self.modules, self))
        return self

    def __exit__(self, *exc: object) -> None:
        for key in self.modules:
            _sessions.pop(key, None)


def install() -> None:
    """Register the door with transformers; doing it again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(DOOR, attention_forward)
    AttentionMaskInterface.register(DOOR, sdpa_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: SDPA's output, with the session's edits and readouts.

    Args:
        module: the attention module that calls.
        query: ``[batch, head, query, d_head]``; ``key`` and ``value``: ``[batch, kv_head, key, d]``.
        attention_mask: None (causal), or bool/additive ``[batch or 1, 1, query, key]``.
        scaling: factor on the scores; ``d_head ** -0.5`` when None.
        dropout: refused unless 0 (readouts of a training forward are not defined).

    Raises:
        AttentionError: a variant that the readout does not serve (softcap, sink logits, position bias, cached keys, dropout).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    session = _sessions.get(id(module))
    if session is None:
        raise AttentionError(
            f"{type(module).__name__} reached the instrument's attention without an instrument attached.",
            todo="Call model.set_attn_implementation('sdpa').",
        )
    layer = session.modules[id(module)]
    session.calls[layer] = session.calls.get(layer, 0) + 1
    _refuse_unserved(module, query, key, dropout, kwargs, session)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query = session.tensor_hook("q", layer, query)
    key = session.tensor_hook("k", layer, key)
    value = session.tensor_hook("v", layer, value)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)

    biases = [b for b in session.biases if b.layers is None or layer in resolve(b.layers, len(session.modules), "layer")]
    keep = _keep(attention_mask)
    edited = torch.zeros(0, dtype=torch.long)
    if biases:
        edited = torch.tensor(sorted({r for b in biases for r in resolve(b.rows, query.shape[2], "row")}), device=query.device)
        add = _bias(biases, query, key)
        again = block_stats(query, key, value, edited, None, scale, {"lse"}, keep=keep, bias=add)
        _refuse_empty_rows(
            again.stats["lse"], block_stats(query, key, None, edited, None, scale, {"lse"}, keep=keep).stats["lse"], layer
        )
        output = output.clone()
        assert again.output is not None
        output[:, edited] = again.output.transpose(1, 2)
    if session.read is not None and (
        session.read.layers is None or layer in resolve(session.read.layers, len(session.modules), "layer")
    ):
        session.values[layer] = _read(session, query, key, attention_mask, scale, keep, biases, edited)
    return output, None


def _refuse_unserved(
    module: nn.Module, query: Tensor, key: Tensor, dropout: float, kwargs: dict[str, Any], session: Session
) -> None:
    for name, what in (("softcap", "softcapped scores"), ("s_aux", "sink logits"), ("position_bias", "an additive position bias")):
        if kwargs.get(name) is not None:
            raise AttentionError(f"{type(module).__name__} uses {what}, which the readout does not serve yet.")
    if dropout:
        raise AttentionError("The model is in training mode (attention dropout).", todo="Call model.eval().")
    looks_at_keys = session.read is not None or bool(session.biases)
    if looks_at_keys and key.shape[2] != (session.cached_keys or query.shape[2]):
        raise AttentionError(
            f"{key.shape[2]} keys for {query.shape[2]} queries: a key-value cache is in use.",
            why="Cached keys may be a window whose first key is not position 0.",
            todo="Run the whole sequence with use_cache=False.",
        )
    if not getattr(module, "is_causal", True):
        raise AttentionError(f"{type(module).__name__} is not causal.", why="The readouts are defined for decoders.")


def _keep(mask: Tensor | None) -> Callable[[Tensor], Tensor] | None:
    """rows → additive mask ``[batch or 1, 1, row, key]``, a slice at a time."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        return lambda rows: torch.zeros((), device=mask.device).masked_fill(~mask[:, :, rows], float("-inf"))
    # Additive masks use the dtype's minimum for "hidden"; as −inf it is hidden exactly.
    floor = torch.finfo(mask.dtype).min / 2
    return lambda rows: mask[:, :, rows].float().masked_fill(mask[:, :, rows] < floor, float("-inf"))


def _bias(biases: Sequence[AttentionBias], query: Tensor, key: Tensor) -> Callable[[Tensor], Tensor]:
    """rows → additive bias ``[batch, head, row, key]``."""
    batch, n_heads, n_queries = query.shape[:3]
    n_keys = key.shape[2]
    plans = []
    for b in biases:
        if b.value != b.value or b.value == float("inf"):
            raise EditError(f"An attention bias of {b.value} is not defined.")
        plans.append(
            (
                b.value,
                torch.tensor(resolve(b.batch, batch, "sequence")),
                torch.tensor(resolve(b.heads, n_heads, "head")),
                set(resolve(b.rows, n_queries, "row")),
                torch.tensor(resolve(b.keys, n_keys, "key")),
            )
        )

    def make(rows: Tensor) -> Tensor:
        out = torch.zeros(batch, n_heads, len(rows), n_keys, device=query.device)
        for value, in_batch, heads, chosen, keys in plans:
            local = torch.tensor([i for i, r in enumerate(rows.tolist()) if r in chosen], dtype=torch.long)
            if len(local):
                index = (
                    in_batch[:, None, None, None],
                    heads[None, :, None, None],
                    local[None, None, :, None],
                    keys[None, None, None],
                )
                out[index] = out[index] + value
        return out

    return make


def _refuse_empty_rows(after: Tensor, before: Tensor, layer: int) -> None:
    emptied = torch.isneginf(after) & ~torch.isneginf(before)
    if bool(emptied.any()):
        batch, head, _ = emptied.nonzero()[0].tolist()
        raise EditError(
            f"An attention mask hides every key that a row can see (layer {layer}, head {head}, sequence {batch}).",
            why="Attention over nothing is not defined.",
            todo="Leave at least one visible key a row, for instance the row's own.",
        )


def _read(
    session: Session,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scale: float,
    keep: Callable[[Tensor], Tensor] | None,
    biases: Sequence[AttentionBias],
    edited: Tensor,
) -> dict[str, Tensor]:
    read = session.read
    assert read is not None
    want: set[str] = {*read.stats, *(("weights",) if read.weights else ())}
    if read.split_self and "mass" in want:
        want.add("self")
    indicator = session.regions.indicator if session.regions is not None else None
    n_queries = query.shape[2]
    rows = torch.tensor(resolve(read.rows, n_queries, "row"), device=query.device)
    session.rows = rows
    if session.valid is None:
        session.valid = _valid_rows(mask, query, rows)
    add = _bias(biases, query, key) if biases else None
    plain = mask is None and read.rows is None and "weights" not in want and key.shape[2] == n_queries
    if plain and len(edited) < n_queries:
        session.backend = "flash"
        stats = _flash(query, key, indicator, scale, want)
        if len(edited):
            patch = block_stats(query, key, None, edited, indicator, scale, want, bias=add).stats
            for name, values in patch.items():
                if name in stats:
                    stats[name] = stats[name].index_copy(2, edited, values.to(stats[name].dtype))
    else:
        session.backend = "blocks"
        stats = block_stats(query, key, None, rows, indicator, scale, want, keep=keep, bias=add).stats
    if read.split_self and "mass" in stats and indicator is not None:
        stats["mass"] = _split_self(stats["mass"], stats["self"], indicator, rows)
    return {name: values for name, values in stats.items() if name in read.stats or name == "weights"}


def _flash(query: Tensor, key: Tensor, indicator: Tensor | None, scale: float, want: set[str]) -> dict[str, Tensor]:
    stats = flash_stats(query, key, indicator, scale, want & _FLASH_STATS)
    if want & {"max", "argmax"}:
        stats |= max_stats(query, key, stats["lse"], scale)
    if "self" in want:
        groups = query.shape[1] // key.shape[1]
        own = torch.einsum("bkgtd,bktd->bkgt", query.float().unflatten(1, (-1, groups)), key.float()).flatten(1, 2)
        stats["self"] = torch.exp(own * scale - stats["lse"])
    return stats


def _split_self(mass: Tensor, own: Tensor, indicator: Tensor, rows: Tensor) -> Tensor:
    """Move each row's own weight out of its key's region into a last region ``self``."""
    home = indicator[:, rows][:, None]
    return torch.cat([(mass - own[..., None] * home).clamp_min(0.0), own[..., None]], -1)


def _valid_rows(mask: Tensor | None, query: Tensor, rows: Tensor) -> Tensor:
    """``[batch, row]``: rows that may see their own key (padding rows may not)."""
    batch = query.shape[0]
    if mask is None:
        return torch.ones(batch, len(rows), dtype=torch.bool, device=query.device)
    own = mask[:, 0, rows, rows]
    seen = own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2
    return seen.expand(batch, -1)
