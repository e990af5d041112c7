"""Edits: what may be changed in a forward, as data.

1. Every edit is a frozen dataclass that names a place, the rows it acts on, and the value. The instrument applies them; nothing else does.
2. At one place, edits act in the order given. Reads at that place see the edited value.
3. Rows, heads and keys are chosen by index (negative counts from the end); ``None`` means all. ``batch`` restricts an edit to some sequences
   of the batch, so that many different edits run in one forward.

Positions count in the padded sequence that the model receives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from symbolic_residue.errors import EditError
from symbolic_residue.types import HEAD_POINTS, Point

__all__ = [
    "Add",
    "AttentionBias",
    "AttentionMask",
    "Edit",
    "HeadReplace",
    "HeadScale",
    "Positions",
    "Replace",
    "Scale",
    "apply_tensor_edits",
]

Index = Sequence[int] | None


@dataclass(frozen=True)
class _TensorEdit:
    """An edit of the tensor at one point: ``[batch, query, d]``, or ``[batch, query, head, d_head]`` at z, q, k, v."""

    point: str
    rows: Index = None
    heads: Index = None
    batch: Index = None


@dataclass(frozen=True)
class Add(_TensorEdit):
    """Add ``value`` (broadcast over the selected entries), e.g. a steering vector ``[d_model]``."""

    value: Tensor | float = 0.0


@dataclass(frozen=True)
class Replace(_TensorEdit):
    """Put ``value`` there (broadcast over the selected entries): activation patching, zero and mean ablation."""

    value: Tensor | float = 0.0


@dataclass(frozen=True)
class Scale(_TensorEdit):
    """Multiply by ``factor``."""

    factor: float = 1.0


def HeadScale(layer: int, head: int, factor: float, *, rows: Index = None, batch: Index = None) -> Scale:
    """Scale one head's output (``z``); 0 knocks it out, 1 does nothing."""
    return Scale(f"z.{layer}", rows=rows, heads=(head,), batch=batch, factor=factor)


def HeadReplace(layer: int, head: int, value: Tensor, *, rows: Index = None, batch: Index = None) -> Replace:
    """Replace one head's output (``z``, ``[d_head]`` or ``[batch, row, 1, d_head]``): mean ablation with its mean, patching with another run's."""
    return Replace(f"z.{layer}", rows=rows, heads=(head,), batch=batch, value=value)


@dataclass(frozen=True)
class AttentionBias:
    """Add ``value`` to the scores (before softmax) of chosen rows on chosen keys; +ln c multiplies the odds of a key by c."""

    value: float
    keys: Sequence[int]
    rows: Index = None
    layers: Index = None
    heads: Index = None
    batch: Index = None


def AttentionMask(
    keys: Sequence[int], *, rows: Index = None, layers: Index = None, heads: Index = None, batch: Index = None
) -> AttentionBias:
    """Hide keys from rows: the bias −∞. A row's own key may be hidden, but never every key that it can see."""
    return AttentionBias(float("-inf"), keys, rows, layers, heads, batch)


@dataclass(frozen=True)
class Positions:
    """Override the position ids, ``[batch or 1, query]`` (a jump in positions without any text)."""

    position_ids: Tensor


Edit = Add | Replace | Scale | AttentionBias | Positions


def resolve(index: Index, size: int, what: str) -> list[int]:
    """Indices as non-negative numbers, checked against ``size``."""
    if index is None:
        return list(range(size))
    out = []
    for i in index:
        if not -size <= i < size:
            raise EditError(f"An edit names {what} {i}, but there are only {size}.")
        out.append(i % size)
    return out


def apply_tensor_edits(tensor: Tensor, edits: Sequence[_TensorEdit], point: Point) -> Tensor:
    """The tensor after all edits, as a new tensor; the input is left alone.

    Args:
        tensor: ``[batch, query, d]`` or, at a head point, ``[batch, query, head, d_head]``.
        edits: those for this point, in order.
        point: where, for messages.

    Raises:
        EditError: an index out of range, heads named at a point without heads, or a value that does not broadcast.
    """
    if not edits:
        return tensor
    out = tensor.clone()
    has_heads = point.kind in HEAD_POINTS
    for edit in edits:
        if edit.heads is not None and not has_heads:
            raise EditError(f"{point} has no heads.", todo="Name heads only at z, q, k or v.")
        batch = torch.tensor(resolve(edit.batch, out.shape[0], "sequence"), device=out.device)
        rows = torch.tensor(resolve(edit.rows, out.shape[1], "row"), device=out.device)
        index: tuple[Tensor, ...] = (batch[:, None], rows[None])
        if has_heads:
            heads = torch.tensor(resolve(edit.heads, out.shape[2], "head"), device=out.device)
            index = (batch[:, None, None], rows[None, :, None], heads[None, None])
        chosen = out[index]
        if isinstance(edit, Scale):
            out[index] = chosen * edit.factor
            continue
        value = edit.value  # type: ignore[attr-defined]
        value = value.to(out) if isinstance(value, Tensor) else torch.tensor(float(value), device=out.device, dtype=out.dtype)
        if not bool(torch.isfinite(value).all()):
            raise EditError(f"The value for {point} holds NaN or infinity.")
        try:
            value = value.expand(chosen.shape)
        except RuntimeError:
            raise EditError(
                f"A value of shape {tuple(value.shape)} does not fit {point}, where {tuple(chosen.shape)} entries are selected."
            ) from None
        out[index] = chosen + value if isinstance(edit, Add) else value
    return out
