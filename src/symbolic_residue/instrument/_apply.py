"""Applying edits: indices resolved, values fitted, the tensor at one point changed.

1. An index names entries of one axis: negative counts from the end, ``None`` is all of them, empty is none (the edit then does nothing). What is
   out of range is refused by name; an index named twice counts once, except where a tensor holds one value for each entry (refused).
2. A value takes the device and the dtype of the tensor that it changes. NaN and infinity are refused, also those that appear when a value is too
   large for a narrower dtype.
3. A value broadcasts over the selected entries ``[batch, row, …]``, as NumPy broadcasts; what does not fit is refused with both shapes.
4. The tensor is copied once and its selected entries are changed edit by edit, in the order given; the input is left alone.

This module knows the shape of an edit, not its kinds: what an edit does to the entries is its own ``act`` (``_edits``).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Protocol, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import EditError
from symbolic_residue.types import HEAD_POINTS, Point

if TYPE_CHECKING:
    from symbolic_residue.instrument._edits import Positions
    from symbolic_residue.models import Parts

__all__ = ["TensorEdit", "apply_tensor_edits", "as_index", "check_finite", "fit", "model_positions", "resolve"]


class TensorEdit(Protocol):
    """An edit of the tensor at one point."""

    @property
    def rows(self) -> Sequence[int] | None: ...
    @property
    def heads(self) -> Sequence[int] | None: ...
    @property
    def batch(self) -> Sequence[int] | None: ...
    def act(self, chosen: Tensor, point: Point) -> Tensor:
        """The selected entries ``[batch, row, …]`` after the edit."""
        ...


def as_index(index: Any, what: str) -> tuple[int, ...] | None:
    """An index as a tuple of ints, or None; ``what`` names it in messages.

    Raises:
        EditError: a single number, a boolean mask, or anything that holds no integers.
    """
    if index is None:
        return None
    todo = f"Write {what}=(3,) for entry 3, {what}=None for all."
    if isinstance(index, Tensor):
        index = index.tolist()
    try:
        entries = list(index)
        if any(isinstance(i, bool) or type(i).__name__ == "bool" or type(i).__name__ == "bool_" for i in entries):
            raise EditError(f"{what} is a mask of booleans, not an index.", todo=todo)
        return tuple(operator.index(i) for i in entries)
    except TypeError:
        raise EditError(f"{what}={index!r} is no sequence of integers.", todo=todo) from None


def resolve(index: Sequence[int] | None, size: int, what: str) -> list[int]:
    """Indices as non-negative numbers, checked against ``size``.

    Raises:
        EditError: an index that is out of range; ``what`` (``"row"``, ``"head"``) names it.
    """
    if index is None:
        return list(range(size))
    out = []
    for i in index:
        if not -size <= i < size:
            raise EditError(f"An edit names {what} {i}, but there are only {size}.")
        out.append(i % size)
    return out


def check_finite(value: Tensor | float, what: str) -> None:
    """Refuse NaN and infinity in what a user gave.

    Raises:
        EditError: there is some, or the value is no real number.
    """
    tensor = value if isinstance(value, Tensor) else torch.tensor(value)
    if tensor.is_complex():
        raise EditError(f"{what} is complex.", todo="Give real numbers.")
    if not bool(torch.isfinite(tensor).all()):
        raise EditError(f"{what} holds NaN or infinity.")


def fit(value: Tensor | float, chosen: Tensor, point: Point) -> Tensor:
    """A value as a tensor that stands beside the selected entries, ``chosen``'s shape, dtype and device.

    Raises:
        EditError: it does not broadcast (both shapes are named), or it overflows the dtype.
    """
    if isinstance(value, Tensor):
        converted = value.to(device=chosen.device, dtype=chosen.dtype)
    else:
        converted = torch.tensor(float(value), device=chosen.device, dtype=chosen.dtype)
    if not bool(torch.isfinite(converted).all()):
        raise EditError(f"The value for {point} is NaN, infinite, or too large for {chosen.dtype}.")
    try:
        return converted.expand(chosen.shape)
    except RuntimeError:
        raise EditError(
            f"A value of shape {tuple(converted.shape)} does not fit {point}, where {tuple(chosen.shape)} entries are selected.",
            why="A value broadcasts over [batch, row, d], or over [batch, row, head, d_head] at z, q, k and v.",
        ) from None


def apply_tensor_edits(tensor: Tensor, edits: Sequence[TensorEdit], point: Point) -> Tensor:
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
    for edit in edits:
        index = _selection(edit, out, point)
        chosen = out[index]
        if chosen.numel():
            out[index] = edit.act(chosen, point)
    return out


def _selection(edit: TensorEdit, tensor: Tensor, point: Point) -> tuple[Tensor, ...]:
    """The edit's entries as an outer product of indices, one tensor for each of batch, row and (at a head point) head."""
    axes = [(edit.batch, "sequence"), (edit.rows, "row")]
    if point.kind in HEAD_POINTS:
        axes.append((edit.heads, "head"))
    elif edit.heads is not None:
        raise EditError(f"{point} has no heads.", todo="Name heads only at z, q, k or v.")
    index = []
    for axis, (given, what) in enumerate(axes):
        found = resolve(given, tensor.shape[axis], what)
        value = getattr(edit, "value", None)
        if len(set(found)) < len(found):
            if isinstance(value, Tensor) and value.dim() > 1:
                raise EditError(
                    f"An edit of {point} names a {what} twice.",
                    why="Its value has entries of their own for each, and only one can stand.",
                )
            found = sorted(set(found))
        shape = [1] * len(axes)
        shape[axis] = -1
        index.append(torch.tensor(found, device=tensor.device, dtype=torch.long).view(shape))
    return tuple(index)


def model_positions(edit: Positions, parts: Parts, batch: int, n_queries: int, device: torch.device) -> Tensor:
    """Position ids as the model shall get them, ``[batch, query]``: integers where all are whole, else float32.

    Rotary positions are angles, ``position · frequency``, so any real number is a position (of the family's own formula). A learned position is a row of a
    table: it must be whole and in the table.

    Raises:
        EditError: a shape that does not fit, fractional positions in a model with learned positions, or positions outside its table.
    """
    if not parts.position_ids:
        raise EditError(
            f"{parts.family} does not look at position ids, so changing them changes nothing.",
            why="Its positions come from the order of the tokens alone (ALiBi, recurrence, or none).",
        )
    ids = edit.position_ids
    if ids.dim() == 1:
        ids = ids[None]
    if ids.dim() != 2 or ids.shape[0] not in (1, batch) or ids.shape[1] != n_queries:
        raise EditError(
            f"Position ids of shape {tuple(edit.position_ids.shape)} do not fit {batch} sequences of {n_queries} tokens.",
            todo="Give [1, query] or [batch, query].",
        )
    ids = ids.to(device)
    whole = not ids.is_floating_point() or bool((ids == ids.round()).all())
    ids = ids.long() if whole else ids.float()
    if parts.position_embed is not None:
        if not whole:
            raise EditError(
                f"{parts.family} has learned positions: there is nothing between two of them.",
                why="Fractional positions are defined where queries and keys are rotated by an angle (rope).",
                todo="Give whole positions.",
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or (parts.max_context is not None and high >= parts.max_context):
            raise EditError(
                f"Positions run from {low} to {high}; {parts.family} has learned positions 0 to {(parts.max_context or 0) - 1}."
            )
    return ids.expand(batch, -1)
