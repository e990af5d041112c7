"""Rows and columns of a graph's edges, and how they are packed for the sweeps (``_sweep``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._mlp import Rule
from symbolic_residue.graph._units import layer_units

__all__ = ["Columns", "Rows", "Sources", "Units", "buckets", "layer_sources", "make_columns", "unit_rows", "unit_values"]

_ALIKE, _SMALL = 0.9, 512
"""Numbers of one chunk need at least this share of its positions; unless it holds fewer number-positions than this, where products are slow for being small."""


@dataclass(frozen=True, eq=False)
class Units:
    """Chosen neurons (or features, in the layers of a dictionary), ``[unit]`` each, in order of layer, then position, then number."""

    layer: Tensor
    position: Tensor
    neuron: Tensor
    """Number of the neuron or feature."""

    def __len__(self) -> int:
        return len(self.layer)

    def to(self, device: torch.device | str) -> Units:
        """The same on a device."""
        return Units(self.layer.to(device), self.position.to(device), self.neuron.to(device))

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
    """What is explained: directions ``[row, d_model]`` of the residual stream at a place and position, with constants ``[row]``.

    ``place``: 2l before block l (what its attention reads, and its MLP in a parallel block), 2l + 1 between its attention and its MLP, 2 · layers at the end.
    """

    direction: Tensor
    constant: Tensor
    place: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.place)

    def to(self, device: torch.device | str) -> Rows:
        """The same on a device."""
        return Rows(*(getattr(self, name).to(device) for name in ("direction", "constant", "place", "position")))

    def __add__(self, other: Rows) -> Rows:
        """These rows and then the others."""
        return Rows(
            *(torch.cat([getattr(self, name), getattr(other, name)]) for name in ("direction", "constant", "place", "position"))
        )


@dataclass(frozen=True)
class Columns:
    """Where each kind of column begins: ``[units | rest | embeddings | bias | constant]``.

    Attributes:
        n_units, n_layers, n_positions: how many.
        biased: whether the architecture has constants.
        by_position: whether a layer's rest (and bias) is a column a position, or one for all positions together.
    """

    n_units: int
    n_layers: int
    n_positions: int
    biased: bool
    by_position: bool = True

    @property
    def spread(self) -> int:
        """Columns of one layer's rest."""
        return self.n_positions if self.by_position else 1

    @property
    def rest(self) -> slice:
        """REST nodes, layer by layer."""
        return slice(self.n_units, self.n_units + self.n_layers * self.spread)

    @property
    def embeddings(self) -> slice:
        """One a position."""
        return slice(self.rest.stop, self.rest.stop + self.n_positions)

    @property
    def bias(self) -> slice:
        """BIAS nodes, layer by layer; empty where the architecture has no constants."""
        return slice(self.embeddings.stop, self.embeddings.stop + (self.n_layers * self.spread if self.biased else 0))

    @property
    def constant(self) -> int:
        """The row's own constant."""
        return self.bias.stop

    def __len__(self) -> int:
        return self.constant + 1


def unit_rows(local: LocalModel, units: Units, rule: Rule) -> Rows:
    """The chosen units as rows."""
    directions = torch.zeros(len(units), local.embedded.shape[1], dtype=local.dtype)
    constants = torch.zeros(len(units), dtype=local.dtype)
    for i in range(len(local.layers)):
        at = units.at(i)
        if len(at):
            directions[at], constants[at] = layer_units(local, i).read_by(units.neuron[at], units.position[at], rule)
    places = torch.tensor([local.mlp_place(i) for i in range(len(local.layers))], dtype=torch.long)
    return Rows(directions, constants, places[units.layer], units.position)


@dataclass(frozen=True, eq=False)
class Sources:
    """What one layer's columns write."""

    at: Tensor
    """Units that write into the layer's MLP output, by number, in order of position."""

    write: Tensor
    """``[unit, d_model]``."""

    runs: tuple[tuple[int, int, int], ...]
    """(position, first, last + 1) of the units that share a position."""

    whole: Tensor
    """``[position, d_model]``: what the layer's MLP writes, by units and rest."""

    position: Tensor
    """``[unit]``."""

    @property
    def rest(self) -> Tensor:
        """``[position, d_model]``: what is no unit's. Made when it is asked for: those of all layers are as much as the residual stream of all."""
        return self.whole.index_add(0, self.position, -self.write)


def layer_sources(local: LocalModel, units: Units) -> list[Sources]:
    """The columns' writes, layer by layer."""
    values = unit_values(local, units)
    found = []
    for j, layer in enumerate(local.layers):
        kinds = [(i, one) for i in range(j + 1) if j in (one := layer_units(local, i)).writes]
        at = torch.cat([units.at(i) for i, _ in kinds]) if kinds else torch.zeros(0, dtype=torch.long)
        parts = [one.written(units.neuron[own], units.position[own], values[own], j) for i, one in kinds for own in (units.at(i),)]
        write = torch.cat(parts) if parts else local.embedded[:0]
        order = torch.argsort(units.position[at], stable=True)
        at, write = at[order], write[order]
        position = units.position[at]
        whole = layer.neurons_write() if layer.written_by_units is None else layer.written_by_units
        where, counts = torch.unique_consecutive(position, return_counts=True)
        ends = counts.cumsum(0).tolist()
        runs = tuple(zip(where.tolist(), [0, *ends[:-1]], ends, strict=True)) if len(at) else ()
        found.append(Sources(at, write, runs, whole, position))
    return found


def unit_values(local: LocalModel, units: Units) -> Tensor:
    """Activations of the chosen units, ``[unit]``."""
    found = torch.zeros(len(units), dtype=local.dtype, device=local.device)
    for i in range(len(local.layers)):
        at = units.at(i)
        if len(at):
            found[at] = layer_units(local, i).at(units.position[at], units.neuron[at])
    return found


def buckets(need: Tensor, order: Tensor, budget: int) -> Iterator[tuple[int, Tensor]]:
    """Numbers in chunks of at most ``budget`` number-positions (at least one number), each with the positions that the chunk carries.

    A chunk holds numbers that need nearly as many positions, so that little is carried that nobody needs; where that would make it small, of half as many too.

    Args:
        need: ``[n]``: positions that each needs, at least 1.
        order: ``[n]``: inside a chunk, smallest first; ties by number.
        budget: number-positions a chunk.
    """
    by = torch.argsort(order, stable=True)
    by = by[torch.argsort(need[by], descending=True, stable=True)]
    needs = need[by].tolist()
    first = 0
    while first < len(needs):
        width = needs[first]
        stop = min(len(needs), first + max(1, budget // width))
        last = first + 1
        while last < stop and (needs[last] >= _ALIKE * width or ((last - first) * width < _SMALL and 2 * needs[last] >= width)):
            last += 1
        chunk = by[first:last].sort().values
        yield width, chunk[torch.argsort(order[chunk], stable=True)]
        first = last


def make_columns(local: LocalModel, units: Units, by_position: bool) -> Columns:
    """The columns of a graph with these units."""
    biased = any(bool((one.attn_constant != 0).any()) or bool((one.mlp_constant != 0).any()) for one in local.layers)
    return Columns(len(units), len(local.layers), len(local), biased, by_position)
