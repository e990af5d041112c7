"""Edits of one layer's attention as pure functions of scores and weights; the door calls them, block of rows by block of rows.

For a row with scores ``s`` over the keys it may see:

1. ``score_bias``: every ``AttentionBias`` adds its value to the scores of its keys, ``s' = s + Σ b``. Biases commute; −∞ (a mask) wins over all.
2. Softmax, by the door: ``p = exp(s' − LSE(s'))``.
3. ``edit_weights``: each ``PatternReplace`` in the order given puts its weights in place of ``p``; then each ``PatternScale`` in the order
   given multiplies weights of its keys, ``p'_j = f_j p_j``, and with ``renormalise`` ``p'' = p' · Σp / Σp'``. On a softmax this equals the
   bias ``ln f`` (``e^{s + ln f} = f e^s``).
4. Everything that is not selected by rows, heads and batch stays what it was, bit for bit.

``touched_rows`` says which rows need this at all: the others keep the output of the fused attention. An edit that is an identity by its value (bias 0,
factor 1) touches no row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from symbolic_residue.errors import EditError
from symbolic_residue.instrument._edits import AttentionBias, AttentionEdit, PatternReplace, PatternScale, resolve

__all__ = ["edit_weights", "edits_of_layer", "score_bias", "touched_rows"]

_E = TypeVar("_E", AttentionBias, PatternScale, PatternReplace, AttentionEdit)


def edits_of_layer(edits: Sequence[_E], layer: int, n_layers: int) -> list[_E]:
    """Those edits that act in a layer, in their order; ``layers`` of each is resolved against ``n_layers``.

    Raises:
        EditError: an edit names a layer that the model does not have.
    """
    return [e for e in edits if layer in resolve(e.layers, n_layers, "layer")]


def touched_rows(edits: Sequence[AttentionEdit], n_queries: int) -> Tensor:
    """Rows that any of a layer's edits acts on: sorted, unique, ``[row]`` in int64 (on the CPU).

    Raises:
        EditError: a row out of range.
    """
    touched = torch.zeros(n_queries, dtype=torch.bool)
    for edit in edits:
        rows = resolve(edit.rows, n_queries, "row")
        if not _is_identity(edit):
            touched[rows] = True
    return touched.nonzero()[:, 0]


def score_bias(
    edits: Sequence[AttentionBias], batch: int, n_heads: int, n_queries: int, n_keys: int, device: torch.device | str
) -> Callable[[Tensor], Tensor | None]:
    """What the biases and masks of one layer add to the scores.

    Args:
        edits: those of this layer.
        batch: sequences; with n_heads, n_queries and n_keys the sizes that indices are checked against.
        n_heads: query heads.
        n_queries: rows of this forward.
        n_keys: keys, cached ones included.
        device: of the result.

    Returns:
        rows ``[row]`` (query indices, not negative) → float32 ``[batch, head, row, key]`` to be added before softmax, or None where no edit touches these
        rows. Axes along which nothing differs are expanded views: add it, do not write into it.

    Raises:
        EditError: an index out of range.
    """
    plans: list[tuple[float, Tensor, Tensor, Tensor, Tensor]] = []
    all_batch, all_heads = torch.arange(batch, device=device), torch.arange(n_heads, device=device)
    for edit in edits:
        in_batch = _chosen(edit.batch, batch, "sequence", device)
        heads = _chosen(edit.heads, n_heads, "head", device)
        keys = _chosen(edit.keys, n_keys, "key", device)
        rows = torch.zeros(n_queries, dtype=torch.bool)  # on the CPU: which rows of a block are touched decides what is launched
        rows[resolve(edit.rows, n_queries, "row")] = True
        if not _is_identity(edit):
            plans.append((float(edit.value), in_batch, heads, rows, keys))
    # A bias for every sequence, or every head, needs no axis of its own.
    one_batch = all(len(p[1]) == batch for p in plans)
    one_head = all(len(p[2]) == n_heads for p in plans)

    def make(rows: Tensor) -> Tensor | None:
        asked = rows.cpu()
        out: Tensor | None = None
        for value, in_batch, heads, chosen, keys in plans:
            local = chosen[asked].nonzero()[:, 0].to(device)
            if not len(local):
                continue
            if out is None:
                out = torch.zeros(1 if one_batch else batch, 1 if one_head else n_heads, len(asked), n_keys, device=device)
            index = _outer(all_batch[:1] if one_batch else in_batch, all_heads[:1] if one_head else heads, local, keys)
            out[index] += value
        return None if out is None else out.expand(batch, n_heads, -1, -1)

    return make


def edit_weights(
    p: Tensor,
    rows: Tensor,
    edits: Sequence[PatternScale | PatternReplace],
    layer: int,
    *,
    n_queries: int | None = None,
    n_layers: int | None = None,
) -> Tensor:
    """Attention weights after a layer's replacements, then its scalings, as a new tensor.

    Args:
        p: ``[batch, head, row, key]``, weights after softmax (rows that see nothing are zero).
        rows: ``[row]``, the query index of each row of ``p``.
        edits: those of this layer (``edits_of_layer``), in order.
        layer: which of a ``PatternReplace``'s layers is meant.
        n_queries: rows of the whole forward, which negative rows count from; by default as many as keys (no cache).
        n_layers: layers of the model, which negative layers count from; without it they are refused.

    Returns:
        ``[batch, head, row, key]`` in ``p``'s dtype; ``p`` itself where there is no edit.

    Raises:
        EditError: an index out of range, weights that do not fit the selected sequences, heads, rows and keys, or a renormalised row whose every visible
            key is scaled to nothing.
    """
    if not edits:
        return p
    n_queries = p.shape[3] if n_queries is None else n_queries
    out = p.clone()
    for edit in edits:
        if isinstance(edit, PatternReplace):
            _replace(out, rows, edit, _place(edit, layer, n_layers), n_queries)
    for edit in edits:
        if isinstance(edit, PatternScale):
            _scale(out, rows, edit, n_queries)
    return out


def _is_identity(edit: AttentionEdit) -> bool:
    """Whether the edit changes nothing, whatever the scores are."""
    if any(index is not None and not len(index) for index in (edit.rows, edit.layers, edit.heads, edit.batch)):
        return True
    if isinstance(edit, PatternReplace):
        return False
    return not len(edit.keys) or (edit.value == 0.0 if isinstance(edit, AttentionBias) else edit.factor == 1.0)


def _chosen(index: Sequence[int] | None, size: int, what: str, device: torch.device | str) -> Tensor:
    """The selected entries, each once, ``[n]``."""
    return torch.tensor(list(dict.fromkeys(resolve(index, size, what))), dtype=torch.long, device=device)


def _places(index: Sequence[int] | None, size: int, what: str, device: torch.device) -> Tensor:
    """``[size]``: where in the selection each entry stands, −1 where it is not selected.

    Raises:
        EditError: an entry selected twice: a value for each of them cannot stand.
    """
    found = resolve(index, size, what)
    if len(set(found)) < len(found):
        raise EditError(f"A pattern names a {what} twice.", why="It has weights of their own for each, and only one can stand.")
    places = torch.full((size,), -1, dtype=torch.long, device=device)
    places[torch.tensor(found, dtype=torch.long, device=device)] = torch.arange(len(found), device=device)
    return places


def _outer(*axes: Tensor) -> tuple[Tensor, ...]:
    """Indices of the outer product of the selected entries of each axis."""
    return tuple(axis.view([-1 if i == j else 1 for j in range(len(axes))]) for i, axis in enumerate(axes))


def _place(edit: PatternReplace, layer: int, n_layers: int | None) -> int:
    if n_layers is not None:
        layers = resolve(edit.layers, n_layers, "layer")
    elif any(named < 0 for named in edit.layers):
        raise EditError(f"A pattern names layer {min(edit.layers)} where the number of layers is not known.")
    else:
        layers = list(edit.layers)
    if layer not in layers:
        raise EditError(f"A pattern for layers {layers} reached layer {layer}.")
    return layers.index(layer)


def _replace(out: Tensor, rows: Tensor, edit: PatternReplace, place: int, n_queries: int) -> None:
    batch, n_heads, _, n_keys = out.shape
    sequences = _chosen(edit.batch, batch, "sequence", out.device)
    heads = _chosen(edit.heads, n_heads, "head", out.device)
    for index, size, what in ((edit.batch, batch, "sequence"), (edit.heads, n_heads, "head")):
        _places(index, size, what, out.device)  # refuses an entry named twice
    source = _places(edit.rows, n_queries, "row", out.device)[rows.to(out.device)]
    local = (source >= 0).nonzero()[:, 0]
    weights = edit.of_layer(place)
    want = (len(sequences), len(heads), len(resolve(edit.rows, n_queries, "row")), n_keys)
    fits = all(got == size or (got == 1 and axis < 3) for axis, (got, size) in enumerate(zip(weights.shape, want, strict=True)))
    if not fits:
        raise EditError(
            f"An attention pattern of shape {tuple(weights.shape)} does not fit {want} selected sequences, heads, rows and keys (layer {edit.layers[place]})."
        )
    if not len(local):
        return
    if weights.shape[2] > 1:
        weights = weights[:, :, source[local].to(weights.device)]
    weights = weights.to(device=out.device, dtype=out.dtype)
    out[_outer(sequences, heads, local)] = weights.expand(len(sequences), len(heads), len(local), n_keys)


def _scale(out: Tensor, rows: Tensor, edit: PatternScale, n_queries: int) -> None:
    batch, n_heads, _, n_keys = out.shape
    sequences = _chosen(edit.batch, batch, "sequence", out.device)
    heads = _chosen(edit.heads, n_heads, "head", out.device)
    keys = _chosen(edit.keys, n_keys, "key", out.device)
    local = (_chosen(edit.rows, n_queries, "row", rows.device) == rows[:, None]).any(-1).nonzero()[:, 0].to(out.device)
    if _is_identity(edit) or not len(local):
        return
    index = _outer(sequences, heads, local)
    before = out[index]
    factors = torch.ones(n_keys, device=out.device, dtype=out.dtype)
    factors[keys] = edit.factor
    after = before * factors
    if edit.renormalise:
        chosen = torch.zeros(n_keys, device=out.device, dtype=torch.bool)
        if edit.renormalise == "others":
            chosen[keys] = True
            has, taken = (before * ~chosen).sum(-1, keepdim=True), ((before - after) * chosen).sum(-1, keepdim=True)
            had = has + taken
            emptied = (has == 0) & (taken > 0)
        else:
            had, has = before.sum(-1, keepdim=True), after.sum(-1, keepdim=True)
            emptied = (has == 0) & (had > 0)
        if bool(emptied.any()):
            b, h, r, _ = emptied.nonzero()[0].tolist()
            raise EditError(
                f"Scaling leaves row {int(rows[local[r]])} no weight to renormalise (sequence {int(sequences[b])}, head {int(heads[h])}).",
                why="Every key with any weight was scaled to 0.",
                todo="Leave one visible key, or hide the keys before softmax (AttentionMask).",
            )
        after = torch.where(chosen, after, after * (had / has.masked_fill(has == 0, 1.0)))
    out[index] = after
