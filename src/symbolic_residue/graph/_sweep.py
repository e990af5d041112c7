"""All direct edges among chosen neurons, embeddings, rests and targets: sweeps of matrix products through the frozen layers, without autograd.

A *row* is what is explained: a target, or a chosen neuron as the linear map that stands for it (``_mlp``). A *column* is what explains. An edge is the direct
effect: what the column's write, carried by the residual stream and the frozen attention but through no other MLP, adds to the row.

1. Columns: the chosen neurons; one REST a layer and position (what the layer's other neurons write together); one embedding a position; one BIAS a layer
   and position (attention's and the MLP's constants), where the architecture has any; and the row's own constant. So every row sums to its value.
2. ``down`` pulls every row's direction down from where it reads; every column is read off as the layers pass. A row of position t needs positions 0 … t, and
   layers below its own.
3. ``up`` pushes every neuron's and every embedding's write up; a column of position t needs positions t …, and layers above its own. Rests and biases are
   spread over all positions, and cost a pass each: they are pushed layer by layer together only where that is asked (``rest="layer"``).
4. Rows (columns) are packed into chunks of ``budget`` row-positions that need nearly as many positions each, so that memory depends on the budget and not on
   their number; inside a chunk they are sorted by layer, so that those alive at a layer are a prefix.

A parallel block's attention and MLP read the same stream; in a sequential one its MLP reads what its attention added. A dictionary's skip connection is
one more linear map, beside the MLP (``_units.LinearPath``); a feature of a cross-layer transcoder goes on to write at later layers.

The sum ``Σ layer · (t + 1)`` over rows against ``Σ (layers above) · (T − t)`` over columns says which way is less work: neurons that matter sit late.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from symbolic_residue.graph._columns import buckets, Columns, layer_sources, make_columns, Rows, Units
from symbolic_residue.graph._device import on
from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._maps import attend, attend_back, attend_back_from, attend_from

__all__ = ["direct_edges", "sweep_down", "sweep_up", "work"]

_BUDGET, _AT_LEAST = 4096, 16
"""Row-positions held at a time: those of 4096 stay in the caches of two cores (16,384 are a third slower); rows that share a pattern computed for them."""

_SHORT, _FOLDED = 128, 128 * 2**20
"""Positions, and bytes of folded weights, up to which these are kept."""

Direction = Literal["auto", "down", "up"]
Visit = Callable[[int, Tensor, Tensor], None]


def work(rows: Rows, units: Units, columns: Columns) -> tuple[int, int]:
    """Layer-positions that ``down`` and ``up`` carry: see the module's text."""
    n, n_layers = columns.n_positions, columns.n_layers
    down = int(((rows.place + 1) // 2 * (rows.position + 1)).sum())
    up = int(((n_layers - 1 - units.layer) * (n - units.position)).sum()) + n_layers * n * (n + 1) // 2
    kinds = 2 if columns.biased else 1
    each = n * (n + 1) // 2 if columns.by_position else n
    return down, up + kinds * each * n_layers * (n_layers - 1) // 2


def direct_edges(
    local: LocalModel,
    rows: Rows,
    units: Units,
    *,
    by_position: bool = True,
    direction: Direction = "auto",
    budget: int | None = None,
) -> tuple[Tensor, Columns]:
    """Every edge, by whichever sweep is less work.

    Args:
        local: the replacement model.
        rows: what is explained.
        units: the chosen neurons, as columns.
        by_position: a REST (and BIAS) a layer and position, or a layer.
        direction: ``down``, ``up``, or the one with less work.
        budget: row-positions held at a time: ``budget · d_model`` numbers, a few times over; None: as many as stay in a processor's cache, and at least 16
            rows where patterns are computed anew for every chunk.

    Returns:
        ``[row, column]`` and what the columns are.
    """
    with on(local.device):
        columns = make_columns(local, units, by_position)
        if direction == "auto":
            down, up = work(rows, units, columns)
            direction = "down" if down <= up else "up"
        return (sweep_down if direction == "down" else sweep_up)(local, rows, units, columns, budget=budget), columns


def sweep_down(
    local: LocalModel, rows: Rows, units: Units, columns: Columns, *, budget: int | None = None, visit: Visit | None = None
) -> Tensor:
    """Every edge, pulled down from the rows, ``[row, column]``; arguments as of :func:`direct_edges`.

    Args:
        visit: called before each layer's attention is passed, with (layer, rows' numbers, their directions ``[row, position, d_model]``).
    """
    n_layers = len(local.layers)
    edges = torch.zeros(len(rows), len(columns), dtype=local.dtype)
    sources = layer_sources(local, units)
    weights_of = _weights(local)
    constant_reads = [columns.biased and bool(one.attn_constant.any()) for one in local.layers]
    for width, chunk in buckets(rows.position + 1, -rows.place, _budget(local, budget)):
        g = torch.zeros(len(chunk), width, rows.direction.shape[1], dtype=local.dtype)
        part = torch.zeros(len(chunk), len(columns), dtype=local.dtype)
        place = rows.place[chunk]
        passed = 0  # rows that have been through an attention; the others hold one position
        alive = _enter(g, rows, chunk, 0, int((place == 2 * n_layers).sum()))
        for i in reversed(range(min(n_layers, int(place[0]) // 2 + 1))):
            layer, source = local.layers[i], sources[i]
            if alive:
                live = g[:alive]
                for at, first, last in source.runs:
                    if at >= width:
                        break
                    part[:alive, source.at[first:last]] += live[:, at] @ source.write[first:last].T
                _read_spread(part[:alive], live, source.rest, columns.rest, i, columns)
                if columns.biased:
                    _read_spread(part[:alive], live, layer.mlp_constant, columns.bias, i, columns)
            skipped = layer.skip.pull(g[:alive], slice(width)) if layer.skip is not None and alive else None
            if skipped is not None and not layer.parallel:
                g[: len(skipped)] += skipped
            alive = _enter(g, rows, chunk, alive, int((place > 2 * i).sum()))
            if alive:
                if constant_reads[i]:
                    _read_spread(part[:alive], g[:alive], layer.attn_constant, columns.bias, i, columns)
                if visit is not None:
                    visit(i, chunk[:alive], g[:alive])
                weights = weights_of(i)
                if passed:
                    attend_back(layer, weights, g[:passed])
                if alive > passed:
                    attend_back_from(layer, weights, g[passed:alive], rows.position[chunk[passed:alive]])
                passed = alive
            if skipped is not None and layer.parallel:
                g[: len(skipped)] += skipped
            alive = _enter(g, rows, chunk, alive, int((place >= 2 * i).sum()))
        part[:, columns.embeddings.start : columns.embeddings.start + width] = _products(g, local.embedded)
        part[:, columns.constant] = rows.constant[chunk]
        edges[chunk] = part
    return edges


def _enter(g: Tensor, rows: Rows, chunk: Tensor, alive: int, born: int) -> int:
    """Rows ``alive … born`` begin here."""
    if born > alive:
        new = chunk[alive:born]
        g[torch.arange(alive, born), rows.position[new]] = rows.direction[new]
    return born


def _products(g: Tensor, write: Tensor) -> Tensor:
    """``[row, position]``: g · write at each position that g has."""
    width = g.shape[1]
    return (g * write.expand(max(width, len(write)), -1)[:width]).sum(-1)


def _read_spread(part: Tensor, g: Tensor, write: Tensor, block: slice, layer: int, columns: Columns) -> None:
    """Add what a layer's write at all positions gives, to its columns."""
    found = _products(g, write)
    if columns.by_position:
        first = block.start + layer * columns.n_positions
        part[:, first : first + found.shape[1]] += found
    else:
        part[:, block.start + layer] += found.sum(1)


def sweep_up(local: LocalModel, rows: Rows, units: Units, columns: Columns, *, budget: int | None = None) -> Tensor:
    """The same edges, pushed up from the columns, ``[row, column]``; arguments as of :func:`direct_edges`."""
    n, n_layers = len(local), len(local.layers)
    edges = torch.zeros(len(rows), len(columns), dtype=local.dtype)
    edges[:, columns.constant] = rows.constant
    sources = layer_sources(local, units)
    by_place = torch.argsort(rows.place * n + rows.position, stable=True)
    directions = rows.direction[by_place]
    runs = _runs(rows.place[by_place], rows.position[by_place], 2 * n_layers + 1)
    weights_of = _weights(local)
    born_at, start = _births(units, columns)
    at_one = torch.full((len(born_at),), columns.by_position)
    at_one[: columns.n_units] = at_one[columns.embeddings] = True
    for width, chunk in buckets(n - start, born_at, _budget(local, budget)):
        first = n - width
        f = torch.zeros(len(chunk), width, local.embedded.shape[1], dtype=local.dtype)
        part = torch.zeros(len(rows), len(chunk), dtype=local.dtype)
        born = born_at[chunk]
        passed = 0  # columns that have been through an attention; the others hold one position, unless they are spread over all
        alive = _begin(f, chunk, 0, int((born < 0).sum()), local.embedded, columns.embeddings, start, first, False)
        for i in range(max(0, int(born[0]) // 2), n_layers):
            layer, source = local.layers[i], sources[i]
            with_bias = int((born <= 2 * i).sum())
            _read_rows(part, directions, f[:alive], runs[2 * i], first)
            skip, here = layer.skip, slice(first, n)
            skipped = skip.push(f[:alive], here) if skip is not None and layer.parallel and alive else None
            if alive:
                weights = weights_of(i)
                if passed:
                    attend(layer, weights, f[:passed], first)
                for low, high, one in _same(at_one[chunk[passed:alive]], passed):
                    if one:
                        attend_from(layer, weights, f[low:high], start[chunk[low:high]] - first, first)
                    else:
                        attend(layer, weights, f[low:high], first)
                passed = alive
            before = alive
            if with_bias > alive:
                alive = _begin(f, chunk, alive, with_bias, layer.attn_constant, columns.bias, start, first, not columns.by_position)
            _read_rows(part, directions, f[:alive], runs[2 * i + 1], first)
            if skip is not None and not layer.parallel and alive:
                skipped = skip.push(f[:alive], here)
            if skipped is not None:
                f[: len(skipped)] += skipped
            if alive > before:  # the same column goes on to hold the MLP's constant
                _begin(f, chunk, before, alive, layer.mlp_constant, columns.bias, start, first, not columns.by_position)
            end = int((born <= 2 * i + 1).sum())
            spread = alive + int((chunk[alive:end] < columns.n_units).sum())  # units come before rests
            place = torch.full((len(columns),), -1)
            place[source.at] = torch.arange(len(source.at))
            slot = place[chunk[:end]]
            single = (slot >= 0).nonzero()[:, 0]  # units that write here: born here, or features of layers below
            f[single, units.position[chunk[single]] - first] += source.write[slot[single]]
            if end > spread:
                _begin(f, chunk, spread, end, source.rest, columns.rest, start, first, not columns.by_position)
            alive = end
        _read_rows(part, directions, f[:alive], runs[2 * n_layers], first)
        edges[by_place[:, None], chunk[None]] = part
    return edges


def _same(values: Tensor, first: int) -> list[tuple[int, int, bool]]:
    """(start, end, value) of neighbours that are equal, counted from ``first``."""
    found, low = [], first
    for value, group in itertools.groupby(values.tolist()):
        high = low + sum(1 for _ in group)
        found.append((low, high, value))
        low = high
    return found


def _births(units: Units, columns: Columns) -> tuple[Tensor, Tensor]:
    """For every column but the constant: when it begins (−1 embeddings, 2l biases of layer l, 2l + 1 its neurons and rest) and its first position."""
    n, n_layers, spread = columns.n_positions, columns.n_layers, columns.spread
    layer = torch.arange(n_layers).repeat_interleave(spread)
    where = torch.arange(n).repeat(n_layers) if columns.by_position else torch.zeros(n_layers, dtype=torch.long)
    born = [2 * units.layer + 1, 2 * layer + 1, torch.full((n,), -1)]
    start = [units.position, where, torch.arange(n)]
    if columns.biased:
        born.append(2 * layer)
        start.append(where)
    return torch.cat(born), torch.cat(start)


def _begin(
    f: Tensor, chunk: Tensor, low: int, high: int, write: Tensor, block: slice, start: Tensor, first: int, everywhere: bool
) -> int:
    """Columns ``low … high`` of the chunk, all of one block, get what they write added: at their position, or everywhere."""
    write = write.expand(first + f.shape[1], -1)
    if high > low and everywhere and block.stop - block.start and not bool((chunk[low:high] < block.start).any()):
        f[low:high] += write[first:]
    elif high > low:
        at = start[chunk[low:high]]
        f[torch.arange(low, high), at - first] += write[at]
    return high


def _runs(place: Tensor, position: Tensor, n_places: int) -> list[list[tuple[int, int, int]]]:
    """For each place (position, first, last + 1) of the rows that read there at one position; rows are sorted by place, then position."""
    found: list[list[tuple[int, int, int]]] = [[] for _ in range(n_places)]
    both, counts = torch.unique_consecutive(torch.stack([place, position]), dim=1, return_counts=True)
    first = 0
    for at, where, count in zip(*both.tolist(), counts.tolist(), strict=True):
        found[at].append((where, first, first + count))
        first += count
    return found


def _read_rows(part: Tensor, directions: Tensor, f: Tensor, runs: list[tuple[int, int, int]], first: int) -> None:
    """Rows that read here, off the columns ``f [column, position, d_model]``: into ``part [row, column]``."""
    if not len(f):
        return
    for position, low, high in runs:
        if position >= first:
            part[low:high, : len(f)] = directions[low:high] @ f[:, position - first].T


def _weights(local: LocalModel) -> Callable[[int], tuple[Tensor, Tensor]]:
    """A layer's attention weights with the norms' gains in them: kept for short prompts of small models, where folding costs as much as the products."""

    def make(layer: int) -> tuple[Tensor, Tensor]:
        return local.layers[layer].attention_weights()

    parts = local.parts
    size = parts.n_layers * local.embedded.shape[1] * (parts.n_heads + parts.n_kv_heads) * parts.d_head * local.dtype.itemsize
    return cache(make) if len(local) <= _SHORT and size <= _FOLDED else make


def _budget(local: LocalModel, asked: int | None) -> int:
    """Row-positions held at a time."""
    if asked is not None:
        return asked
    kept = all(one.kept is not None for one in local.layers)
    return _BUDGET if kept else max(_BUDGET, _AT_LEAST * len(local))
