"""What stands for a layer's MLP in a graph: its neurons, or the features of a dictionary (``_features``).

A kind of units says which of them can be nodes, how each reads the residual stream (an affine map that gives back its activation), and what it writes, into its
own layer's MLP output or, in a cross-layer transcoder, into later ones too. What all units of a layer do not explain goes into REST.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, TYPE_CHECKING

from torch import Tensor

from symbolic_residue.graph._norm import FrozenNorm

if TYPE_CHECKING:
    from symbolic_residue.graph._local import LocalLayer, LocalModel
    from symbolic_residue.graph._mlp import Rule

__all__ = ["LayerUnits", "LinearPath", "NeuronUnits", "UnitKind", "layer_units"]

UnitKind = Literal["neurons", "features"]


class LayerUnits(Protocol):
    """The units of one layer on a prompt."""

    @property
    def kind(self) -> UnitKind:
        """In a word."""
        ...

    @property
    def writes(self) -> tuple[int, ...]:
        """Layers whose MLP output they are part of."""
        ...

    def cells(self) -> tuple[Tensor, Tensor] | None:
        """Position and number of every unit that can be a node, ``[candidate]`` each, sorted; None: every number at every position."""
        ...

    def values(self) -> Tensor:
        """Activations of the candidates: ``[candidate]``, or ``[position, number]`` where every number is one."""
        ...

    def at(self, positions: Tensor, numbers: Tensor) -> Tensor:
        """Activations of some units, ``[unit]``."""
        ...

    def read_by(self, numbers: Tensor, positions: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
        """Directions ``[unit, d_model]`` of the residual stream and constants ``[unit]``: activation = x · direction + constant."""
        ...

    def written(self, numbers: Tensor, positions: Tensor, values: Tensor, layer: int) -> Tensor:
        """What some units write into the residual stream after a layer's MLP, ``[unit, d_model]``."""
        ...

    def slopes(self, g: Tensor, layer: int) -> Tensor:
        """Directions ``g [position, d_model]`` after a layer's MLP, read by what each candidate writes there per unit of activation; as ``values``."""
        ...

    def back(self, slopes: Tensor, rule: Rule) -> Tensor:
        """Slopes of the candidates pulled back to the residual stream that they read, ``[position, d_model]``."""
        ...


@dataclass(frozen=True, eq=False)
class NeuronUnits:
    """A layer's neurons: every one at every position."""

    layer: LocalLayer

    @property
    def kind(self) -> UnitKind:
        """In a word."""
        return "neurons"

    @property
    def writes(self) -> tuple[int, ...]:
        """The own layer."""
        return (self.layer.parts.index,)

    def cells(self) -> None:
        """All."""
        return

    @cached_property
    def _pre(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.layer.pre_activations()

    def values(self) -> Tensor:
        """``[position, neuron]``."""
        return self.layer.mlp.respond(*self._pre)

    def at(self, positions: Tensor, numbers: Tensor) -> Tensor:
        """``[unit]``."""
        return self.layer.activations_of(numbers, positions)

    def read_by(self, numbers: Tensor, positions: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
        """By the rule for gated neurons."""
        return self.layer.read_by(numbers, positions, rule)

    def written(self, numbers: Tensor, positions: Tensor, values: Tensor, layer: int) -> Tensor:
        """``[unit, d_model]``."""
        return self.layer.written(numbers, positions, values)

    def slopes(self, g: Tensor, layer: int) -> Tensor:
        """``[position, neuron]``."""
        return self.layer.out_back(g) @ self.layer.mlp.down.T

    def back(self, slopes: Tensor, rule: Rule) -> Tensor:
        """``[position, d_model]``."""
        return self.layer.neurons_back(slopes, rule, self._pre)


@dataclass(frozen=True, eq=False)
class LinearPath:
    """A dictionary's skip connection: the residual stream that an MLP reads, through the frozen norm before it, a matrix and the frozen norm after it.

    It is linear and has no activation of its own, so it is a path that edges go along, as attention is, and no node: a node of d_model numbers could not be a
    row that adds up to one value.
    """

    reader: FrozenNorm
    matrix: Tensor
    writer: FrozenNorm
    factor: float

    def push(self, x: Tensor, positions: Tensor | slice) -> Tensor:
        """What perturbations ``[..., position, d_model]`` at these positions add after the MLP."""
        return self.writer.linear(self.reader.linear(x, positions) @ self.matrix, positions) * self.factor

    def pull(self, g: Tensor, positions: Tensor | slice) -> Tensor:
        """Its transpose on directions ``[..., position, d_model]``."""
        return self.reader.back(self.writer.back(g * self.factor, positions) @ self.matrix.T, positions)


def layer_units(local: LocalModel, layer: int) -> LayerUnits:
    """The units that stand for a layer's MLP: those of a dictionary, where it has the layer."""
    found = local.units.get(layer)
    return NeuronUnits(local.layers[layer]) if found is None else found
