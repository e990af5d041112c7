"""All direct edges among chosen neurons, embeddings, rests and targets: sweeps of matrix products through the frozen layers, without autograd.

A *row* is what is explained: a target, or a chosen neuron as the linear map that stands for it (``_mlp``). A *column* is what explains. An edge is the direct
effect: what the column's write, carried by the residual stream and the frozen attention but through no other MLP, adds to the row.

1. Columns: the chosen neurons; one REST a layer and position (what the layer's other neurons write together); one embedding a position; one BIAS a layer
   and position (attention's and the MLP's constants), where the architecture has any; and the row's own constant. So every row sums to its value.
2. ``down`` pulls every row's direction down from where it reads; every column is read off as the layers pass. A row of position t needs positions 0 … t, and
   layers below its own.
3. ``up`` pushes every neuron's and every embedding's write up; a column of position t needs positions t …, and layers above its own. Rests and biases are
   spread over all positions, and cost a pass each: they are pushed layer by layer together only where that is asked (``rest="layer"``).
4. Rows (columns) are packed into buckets of 1, 2, 4, … positions, so that none carries more than twice the positions it needs; inside a bucket they are
   sorted by layer, so that those alive at a layer are a prefix; and they are cut into chunks of ``budget`` row-positions, so that memory depends on the
   budget and not on their number.

The sum ``Σ layer · (t + 1)`` over rows against ``Σ (layers above) · (T − t)`` over columns says which way is less work: neurons that matter sit late.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._maps import attend_back
from symbolic_residue.graph._mlp import Rule

__all__ = ["Columns", "Rows", "Units", "sweep_down", "unit_rows"]


@dataclass(frozen=True, eq=False)
class Units:
    """Chosen neurons, ``[unit]`` each, in order of layer, then position, then neuron."""

    layer: Tensor
    position: Tensor
    neuron: Tensor

    def __len__(self) -> int:
        return len(self.layer)

    def at(self, layer: int) -> Tensor:
        """Which units lie in a layer, by number."""
        return (self.layer == layer).nonzero()[:, 0]

    @classmethod
    def of(cls, triples: Tensor) -> Units:
        """From ``[unit, (layer, position, neuron)]`` in any order.

        Raises:
            ValueError: a neuron named twice.
        """
        rows = sorted(map(tuple, triples.tolist()))
        if len(set(rows)) < len(rows):
            raise ValueError("A neuron is named twice.")
        layer, position, neuron = (torch.tensor([row[i] for row in rows], dtype=torch.long) for i in range(3))
        return cls(layer, position, neuron)


@dataclass(frozen=True, eq=False)
class Rows:
    """What is explained: directions ``[row, d_model]`` at a layer and position, with constants ``[row]``.

    ``layer``: the row reads what that layer's MLP reads; the number of layers: the last residual stream.
    """

    direction: Tensor
    constant: Tensor
    layer: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.layer)


@dataclass(frozen=True)
class Columns:
    """Where each kind of column begins: ``[units | rest (layer, position) | embeddings | bias (layer, position) | constant]``."""

    n_units: int
    n_layers: int
    n_positions: int
    biased: bool

    @property
    def rest(self) -> slice:
        """REST nodes, layer by layer."""
        return slice(self.n_units, self.n_units + self.n_layers * self.n_positions)

    @property
    def embeddings(self) -> slice:
        """One a position."""
        return slice(self.rest.stop, self.rest.stop + self.n_positions)

    @property
    def bias(self) -> slice:
        """BIAS nodes, layer by layer; empty where the architecture has no constants."""
        return slice(self.embeddings.stop, self.embeddings.stop + (self.n_layers * self.n_positions if self.biased else 0))

    @property
    def constant(self) -> int:
        """The row's own constant."""
        return self.bias.stop

    def __len__(self) -> int:
        return self.constant + 1


def unit_rows(local: LocalModel, units: Units, rule: Rule) -> Rows:
    """The chosen neurons as rows."""
    directions = torch.zeros(len(units), local.embedded.shape[1], dtype=local.dtype)
    constants = torch.zeros(len(units), dtype=local.dtype)
    for i, layer in enumerate(local.layers):
        at = units.at(i)
        if len(at):
            directions[at], constants[at] = layer.read_by(units.neuron[at], units.position[at], rule)
    return Rows(directions, constants, units.layer, units.position)


@dataclass(frozen=True, eq=False)
class _Sources:
    """What one layer's columns write."""

    at: Tensor
    """Units of the layer, by number, in order of position."""

    write: Tensor
    """``[unit, d_model]``."""

    runs: tuple[tuple[int, int, int], ...]
    """(position, first, last + 1) of the units that share a position."""

    rest: Tensor
    """``[position, d_model]``."""


def layer_sources(local: LocalModel, units: Units) -> list[_Sources]:
    """The columns' writes, layer by layer."""
    found = []
    for i, layer in enumerate(local.layers):
        at = units.at(i)
        at = at[torch.argsort(units.position[at], stable=True)]
        position, neuron = units.position[at], units.neuron[at]
        write = layer.written(neuron, position, layer.activations[position, neuron])
        rest = layer.neurons_write().index_add(0, position, -write)
        where, counts = torch.unique_consecutive(position, return_counts=True)
        ends = counts.cumsum(0).tolist()
        runs = tuple(zip(where.tolist(), [0, *ends[:-1]], ends, strict=True)) if len(at) else ()
        found.append(_Sources(at, write, runs, rest))
    return found


def buckets(need: Tensor, order: Tensor, budget: int) -> Iterator[tuple[int, Tensor]]:
    """Numbers in chunks of at most ``budget`` number-positions, each with the positions that its bucket carries.

    Args:
        need: ``[n]``: positions that each needs, at least 1.
        order: ``[n]``: inside a bucket, smallest first.
        budget: number-positions a chunk.
    """
    width, below, most = 1, 0, int(need.max()) if len(need) else 0
    while below < most:
        width = min(width, most)
        chosen = ((need > below) & (need <= width)).nonzero()[:, 0]
        chosen = chosen[torch.argsort(order[chosen], stable=True)]
        for chunk in chosen.split(max(1, budget // width)) if len(chosen) else ():
            yield width, chunk
        below, width = width, width * 2


def sweep_down(
    local: LocalModel, rows: Rows, units: Units, *, budget: int = 8192, sources: list[_Sources] | None = None
) -> tuple[Tensor, Columns]:
    """Every edge, pulled down from the rows.

    Args:
        local: the replacement model.
        rows: what is explained.
        units: the chosen neurons, as columns.
        budget: row-positions held at a time: ``budget · d_model`` numbers, a few times over.
        sources: of :func:`layer_sources`, where the caller has them.

    Returns:
        ``[row, column]`` and what the columns are.
    """
    n, n_layers = len(local), len(local.layers)
    biased = any(bool((one.attn_constant != 0).any()) or bool((one.mlp_constant != 0).any()) for one in local.layers)
    columns = Columns(len(units), n_layers, n, biased)
    edges = torch.zeros(len(rows), len(columns), dtype=local.dtype)
    edges[:, columns.constant] = rows.constant
    sources = layer_sources(local, units) if sources is None else sources
    for width, chunk in buckets(rows.position + 1, -rows.layer, budget):
        g = torch.zeros(len(chunk), width, rows.direction.shape[1], dtype=local.dtype)
        part = torch.zeros(len(chunk), len(columns), dtype=local.dtype)
        layer_of, position = rows.layer[chunk], rows.position[chunk]
        alive = int((layer_of == n_layers).sum())
        g[torch.arange(alive), position[:alive]] = rows.direction[chunk[:alive]]
        for i in reversed(range(min(n_layers, int(layer_of[0]) + 1))):
            layer, source = local.layers[i], sources[i]
            born = int((layer_of >= i).sum())
            rest = columns.rest.start + i * n
            bias = columns.bias.start + i * n
            if alive:
                for at, first, last in source.runs:
                    if at >= width:
                        break
                    part[:alive, source.at[first:last]] = g[:alive, at] @ source.write[first:last].T
                part[:alive, rest : rest + width] = _products(g[:alive], source.rest[:width])
                if biased:
                    part[:alive, bias : bias + width] = _products(g[:alive], layer.mlp_constant[:width])
            if not layer.parallel:
                alive = _enter(g, rows, chunk, alive, born)
            if alive:
                if biased:
                    part[:alive, bias : bias + width] += _products(g[:alive], layer.attn_constant[:width])
                attend_back(layer, layer.attention_weights(), g[:alive])
            if layer.parallel:
                alive = _enter(g, rows, chunk, alive, born)
        part[:, columns.embeddings.start : columns.embeddings.start + width] = _products(g, local.embedded[:width])
        part[:, columns.constant] = rows.constant[chunk]
        edges[chunk] = part
    return edges, columns


def _enter(g: Tensor, rows: Rows, chunk: Tensor, alive: int, born: int) -> int:
    """Rows ``alive … born`` begin here."""
    if born > alive:
        new = chunk[alive:born]
        g[torch.arange(alive, born), rows.position[new]] = rows.direction[new]
    return born


def _products(g: Tensor, write: Tensor) -> Tensor:
    """``[row, position]``: g · write at each position."""
    return torch.einsum("npd,pd->np", g, write.expand(g.shape[1], -1))
