"""Features of a dictionary as a graph's units: transcoders and cross-layer transcoders (``dictionaries``) in the place of neurons.

1. On a prompt each layer's features are computed from what its MLP reads (the stream, the normed stream, or the normed stream without the norm's
   weight). The active ones are candidates, at all positions, the first included.
2. An active feature equals its pre-activation, so that given which are active ``a = w_enc · x + b`` is linear in what is read: through the frozen norm
   that is a direction of the residual stream and a constant.
3. A layer's MLP output is then: what features write (their own layer's and, in a cross-layer transcoder, those of earlier layers), the decoder's bias, the skip
   connection if there is one (a linear path, see ``LinearPath``), and what is left: the error. Error and features that are no nodes are the REST of the layer
   and position; so every row still adds up, however bad the dictionary is.
4. Layers that the dictionary does not have keep their neurons.
5. A feature that is not active can stand among the units where another prompt's graph has it (``silenced``): off, it has no linear map and writes nothing, so
   that all its edges are 0 and its row adds up to its activation, 0.

Source: Ameisen et al. 2025 (Circuit Tracing) for cross-layer transcoders in the local replacement model; Dunefsky et al. 2024 (Transcoders Find Interpretable
LLM Feature Circuits).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary, LayerDictionary, Reads, require_model
from symbolic_residue.errors import ConfigError, DictionaryError
from symbolic_residue.graph._columns import Units
from symbolic_residue.graph._device import on
from symbolic_residue.graph._freeze import freeze
from symbolic_residue.graph._local import LocalLayer, LocalModel
from symbolic_residue.graph._mlp import Rule
from symbolic_residue.graph._norm import FrozenNorm
from symbolic_residue.graph._units import LinearPath, UnitKind

if TYPE_CHECKING:
    from symbolic_residue.graph._graph import Graph
    from symbolic_residue.instrument import Instrument

__all__ = ["FeatureUnits", "describe", "local_of", "require_dictionary", "silenced", "with_dictionary"]

_BLOCK = 4096
"""Rows of a decoder that are held at a time."""


@dataclass(frozen=True, eq=False)
class Writer:
    """From a dictionary's prediction of an MLP's output to the residual stream: a frozen norm after it (or none) and a constant factor."""

    norm: FrozenNorm
    factor: float

    def push(self, rows: Tensor, positions: Tensor | slice) -> Tensor:
        """``[unit, d_model]`` at these positions, the norm's bias not in it."""
        return self.norm.linear(rows, positions) * self.factor

    def pull(self, g: Tensor) -> Tensor:
        """Its transpose on ``[position, d_model]``."""
        return self.norm.back(g * self.factor)


@dataclass(frozen=True, eq=False)
class FeatureUnits:
    """One layer's active features on a prompt.

    Attributes:
        dictionary: of the layer.
        reader: what is read, as an affine map of the residual stream.
        writers: by target layer.
        position, feature, value: ``[active]``, in order of position and feature.
        n_positions: of the prompt.
        on: ``[active]`` bool: which are active; None: all, unless there are some of :meth:`silenced`.
    """

    dictionary: LayerDictionary
    reader: FrozenNorm
    writers: Mapping[int, Writer]
    position: Tensor
    feature: Tensor
    value: Tensor
    n_positions: int
    on: Tensor | None = None

    def silenced(self, positions: Tensor, features: Tensor) -> FeatureUnits:
        """The same with these among its units, off where they are not active, ``[n]`` each.

        Raises:
            ConfigError: a position or feature that there is not.
        """
        count = self.dictionary.n_features
        off = (positions < 0) | (positions >= self.n_positions) | (features < 0) | (features >= count)
        if bool(off.any()):
            first = int(off.nonzero()[0, 0])
            raise ConfigError(
                f"There is no feature {int(features[first])} in layer {self.dictionary.layer} at position {int(positions[first])}.",
                todo=f"Positions 0 to {self.n_positions - 1}, features 0 to {count - 1}.",
            )
        own = self.position * count + self.feature
        keys = torch.cat([own, positions * count + features]).unique()
        at = torch.searchsorted(keys, own)
        value, on = torch.zeros(len(keys), dtype=self.value.dtype), torch.zeros(len(keys), dtype=torch.bool)
        value[at], on[at] = self.value, True if self.on is None else self.on
        return replace(self, position=keys // count, feature=keys % count, value=value, on=on)

    @property
    def kind(self) -> UnitKind:
        """In a word."""
        return "features"

    @property
    def writes(self) -> tuple[int, ...]:
        """Layers whose MLP output they help to predict."""
        return tuple(sorted(self.writers))

    def cells(self) -> tuple[Tensor, Tensor]:
        """The active features."""
        return self.position, self.feature

    def values(self) -> Tensor:
        """``[active]``."""
        return self.value

    def at(self, positions: Tensor, numbers: Tensor) -> Tensor:
        """``[unit]``.

        Raises:
            ConfigError: a feature that is not active there.
        """
        count = self.dictionary.n_features
        keys, wanted = self.position * count + self.feature, positions * count + numbers
        found = torch.searchsorted(keys, wanted).clamp(max=max(len(keys) - 1, 0))
        missing = torch.ones(len(wanted), dtype=torch.bool) if not len(keys) else keys[found] != wanted
        missing |= (numbers < 0) | (numbers >= count)
        if bool(missing.any()):
            first = int(missing.nonzero()[0, 0])
            raise ConfigError(
                f"Feature {int(numbers[first])} of layer {self.dictionary.layer} is not active at position {int(positions[first])}.",
                why="A feature that is 0 is explained by its threshold, and writes nothing.",
                todo="Name active ones: graph.nodes() of a graph with this dictionary lists them.",
            )
        return self.value[found]

    def read_by(self, numbers: Tensor, positions: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
        """Encoder rows through the frozen norm; the rule is of gated neurons, and changes nothing here.

        Raises:
            ConfigError: a feature that is not active there.
        """
        self.at(positions, numbers)
        rows, constant = self.dictionary.encoder_rows(numbers, self.value.dtype)
        if self.reader.bias is not None:
            constant = constant + rows @ self.reader.bias
        if self.on is not None:
            count = self.dictionary.n_features
            on = self.on[torch.searchsorted(self.position * count + self.feature, positions * count + numbers)]
            rows, constant = rows * on[:, None], constant * on
        return self.reader.back(rows, positions), constant

    def written(self, numbers: Tensor, positions: Tensor, values: Tensor, layer: int) -> Tensor:
        """Value × decoder row for a layer, ``[unit, d_model]``."""
        rows = self.dictionary.decoder_rows(numbers, layer, self.value.dtype)
        return self.writers[layer].push(rows * values[:, None], positions)

    def write(self, layer: int) -> Tensor:
        """What all of them write together into a layer's output, ``[position, d_model]``."""
        total = torch.zeros(self.n_positions, self.dictionary.d_model, dtype=self.value.dtype)
        for part in torch.arange(len(self.value)).split(_BLOCK):
            total.index_add_(0, self.position[part], self.written(self.feature[part], self.position[part], self.value[part], layer))
        return total

    def slopes(self, g: Tensor, layer: int) -> Tensor:
        """``[active]``."""
        h = self.writers[layer].pull(g)
        found = torch.empty_like(self.value)
        for part in torch.arange(len(self.value)).split(_BLOCK):
            rows = self.dictionary.decoder_rows(self.feature[part], layer, self.value.dtype)
            found[part] = (h[self.position[part]] * rows).sum(1)
        return found

    def back(self, slopes: Tensor, rule: Rule) -> Tensor:
        """``[position, d_model]``."""
        into = torch.zeros(self.n_positions, self.dictionary.d_model, dtype=self.value.dtype)
        slopes = slopes if self.on is None else slopes * self.on
        for part in torch.arange(len(self.value)).split(_BLOCK):
            rows, _ = self.dictionary.encoder_rows(self.feature[part], self.value.dtype)
            into.index_add_(0, self.position[part], slopes[part, None] * rows)
        return self.reader.back(into)


def with_dictionary(local: LocalModel, dictionary: Dictionary) -> LocalModel:
    """The same replacement model with a dictionary's features in the place of neurons, in the layers that it has.

    Raises:
        DictionaryError: another width, layers that the model does not have, or no feature that is active on this prompt.
    """
    require_model(dictionary, local.parts)
    writers = {j: _writer(local.layers[j], one) for j, one in dictionary.layers.items()}
    units: dict[int, FeatureUnits] = {}
    for i, one in dictionary.layers.items():
        reader = _reader(local.layers[i], one.reads)
        active = one.active(_read(reader, local.layers[i].stream))
        units[i] = FeatureUnits(one, reader, {j: writers[j] for j in one.decoders}, *active, len(local))
    if not any(len(one.value) for one in units.values()):
        raise DictionaryError(
            "No feature of the dictionary is active on this prompt.",
            why="It was trained on another model, reads another place than it says, or was never trained.",
            todo="Use units='neurons', or check reads= when the dictionary is opened.",
        )
    layers = list(local.layers)
    for j, one in dictionary.layers.items():
        layers[j] = _replaced(local.layers[j], one, writers[j], units)
    return replace(local, layers=tuple(layers), units=units)


def silenced(local: LocalModel, units: Units) -> LocalModel:
    """The same replacement model in which these units can be nodes whether they are active or not; neurons always are.

    Raises:
        ConfigError: a position or feature that there is not.
    """
    found = dict(local.units)
    for i, one in local.units.items():
        at = units.at(i)
        if len(at) and isinstance(one, FeatureUnits):
            found[i] = one.silenced(units.position[at], units.neuron[at])
    return replace(local, units=found)


def describe(local: LocalModel, dictionary: Dictionary) -> dict[str, Any]:
    """What a graph says of its dictionary, plain data: ``sha256 source layers``, and for each layer how it does on this prompt.

    ``fvu``: share of the MLP's write (its variance over positions) that the dictionary leaves unexplained; ``l0``: mean number of active features a position.
    Both without the first position, which holds the attention sink; None where fewer than two positions are left.
    """
    found = []
    for i in sorted(dictionary.layers):
        layer, cells = local.layers[i], local.units[i].cells()
        assert layer.unexplained is not None and layer.written_by_units is not None and cells is not None
        if len(local) < 3:
            found.append({"layer": i, "fvu": None, "l0": None})
            continue
        write = layer.written_by_units + layer.mlp_constant
        if layer.skip is not None:
            write = write + layer.skip.push(layer.stream, slice(None))
        spread = float((write[1:] - write[1:].mean(0)).square().sum())
        fvu = float(layer.unexplained[1:].square().sum()) / spread if spread else None
        found.append({"layer": i, "fvu": fvu, "l0": int((cells[0] > 0).sum()) / (len(local) - 1)})
    return {"sha256": dictionary.sha256, "source": dict(dictionary.source), "layers": found}


def require_dictionary(graph: Graph, dictionary: Dictionary | None) -> None:
    """Whether this is the dictionary that a graph was made with (None: none).

    Raises:
        ConfigError: it is not.
    """
    wanted = graph.dictionary.get("sha256")
    if wanted and dictionary is None:
        raise ConfigError(
            "The graph's units are features of a dictionary, which is not given.",
            why="A graph keeps their numbers, not their weights.",
            todo="Give dictionary=, the one that attribute() was given.",
        )
    if dictionary is not None and dictionary.sha256 != wanted:
        raise ConfigError(
            "The dictionary is not the graph's." if wanted else "The graph was made without a dictionary.",
            why="Its units would be taken for others.",
            todo="Give the dictionary that attribute() was given." if wanted else "Leave dictionary out.",
        )


def local_of(instrument: Instrument, graph: Graph, local: LocalModel | None, dictionary: Dictionary | None) -> LocalModel:
    """The replacement model that a graph was made in: the one given, or made again.

    Raises:
        ConfigError: the graph has a dictionary, and neither it nor a replacement model with its layers is given; or another one is.
    """
    if local is None or dictionary is not None:
        require_dictionary(graph, dictionary)
    if local is None:
        with torch.no_grad():
            local = freeze(instrument, torch.tensor(graph.ids, device=instrument.device))
            if dictionary is None:
                return local
            off = (graph.activations == 0).nonzero()[:, 0]
            units = Units(*(one[off] for one in (graph.units.layer, graph.units.position, graph.units.neuron))).to(local.device)
            with on(local.device):
                return silenced(with_dictionary(local, dictionary), units)
    if set(local.units) != graph.feature_layers:
        raise ConfigError(
            "The replacement model that is given has other units than the graph.", todo="Leave local out, and give dictionary=."
        )
    return local


def _replaced(layer: LocalLayer, one: LayerDictionary, writer: Writer, units: Mapping[int, FeatureUnits]) -> LocalLayer:
    """A layer with the decoder's bias as its constant, the skip as a path, and what remains as what its units and the error write together."""
    dtype, j = layer.dtype, one.layer
    fixed = one.bias.to(layer.stream.device, dtype)
    skip, reader = None, _reader(layer, one.reads)
    if one.skip is not None:
        matrix = one.skip.to(layer.stream.device, dtype)
        skip = LinearPath(reader, matrix, writer.norm, writer.factor)
        if reader.bias is not None:
            fixed = fixed + reader.bias @ matrix
    constant = writer.push(fixed.expand_as(layer.stream), slice(None))
    if writer.norm.bias is not None:
        constant = constant + writer.factor * writer.norm.bias
    written = layer.neurons_write() + layer.mlp_constant - constant
    if skip is not None:
        written = written - skip.push(layer.stream, slice(None))
    left = written
    for one_of in units.values():
        if j in one_of.writers:
            left = left - one_of.write(j)
    return replace(layer, mlp_constant=constant, skip=skip, written_by_units=written, unexplained=left)


def _read(reader: FrozenNorm, stream: Tensor) -> Tensor:
    x = reader.linear(stream)
    return x if reader.bias is None else x + reader.bias


def _reader(layer: LocalLayer, reads: Reads) -> FrozenNorm:
    """What is read, as an affine map of the residual stream."""
    if reads == "resid_mid":
        return FrozenNorm()
    if reads == "mlp_in" or layer.mlp_in.gain is None:
        return layer.mlp_in
    return replace(layer.mlp_in, gain=torch.ones_like(layer.mlp_in.gain), bias=None)


def _writer(layer: LocalLayer, one: LayerDictionary) -> Writer:
    return Writer(layer.mlp_out if one.predicts == "mlp" else FrozenNorm(), layer.mlp_scale)
