"""One forward over slots: the model called with positions and a mask of our own, cached or whole."""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.parallel._layout import additive, Layout, Mode

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["call_model", "model_dtype", "model_positions"]


def model_dtype(instrument: Instrument) -> torch.dtype:
    """The model's dtype, which its masks have."""
    return instrument.parts.embed.weight.dtype  # type: ignore[union-attr, return-value]


def model_positions(positions: Tensor) -> Tensor:
    """Position ids as the model takes them: integers where all are whole, else float32."""
    return positions.long() if bool((positions == positions.round()).all()) else positions.float()


def call_model(
    instrument: Instrument,
    layout: Layout,
    *,
    mode: Mode,
    rows: slice = slice(None),
    cache: Any = None,
    bias: float = 0.0,
    embedding: Tensor | None = None,
    visible: Tensor | None = None,
    keep_logits: int = 0,
) -> Any:
    """The model's output for some rows of a layout; rows before them must be in the cache.

    Args:
        instrument: of the model.
        layout: every slot so far.
        mode: what a sibling sees of its set.
        rows: the slots to run, up to the last one.
        cache: keys and values of the slots before; None runs without a cache.
        bias: added to siblings' scores as later rows see them.
        embedding: ``[d_model]``, added to what the embedding gives for siblings.
        visible: ``[batch, row, key]``, in place of the mode's own.
        keep_logits: logits of the last n rows only; 0 keeps all.
    """
    parts = instrument.parts
    ids, positions = layout.ids[:, rows], layout.position[:, rows]
    call: dict[str, Any] = {"position_ids": model_positions(positions)}
    seen = layout.visible(mode, rows) if visible is None else visible
    # One row that sees everything needs no mask, and runs as fast as ordinary decoding.
    plain = ids.shape[1] == 1 and cache is not None and not bias and not any(parts.windows) and bool(seen.all())
    call["attention_mask"] = None if plain else additive(seen, layout, parts, rows=rows, bias=bias, dtype=model_dtype(instrument))
    if cache is not None:
        call |= {instrument.cache_name: cache, "use_cache": True}
    else:
        call["use_cache"] = False
    if keep_logits:
        call["logits_to_keep"] = keep_logits
    among = layout.siblings()[:, rows]
    if embedding is not None and bool(among.any()):
        embedded = parts.embed(ids)
        call["inputs_embeds"] = torch.where(among[..., None], embedded + embedding.to(embedded), embedded)
    else:
        call["input_ids"] = ids
    return instrument.model(**call)
