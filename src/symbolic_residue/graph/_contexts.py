"""Where in texts single neurons (or features of a dictionary) act most: one pass over the texts, with memory that does not grow with them.

1. Each text runs once, up to ``max_tokens``. Of every asked neuron its largest activation in the text counts, in the direction asked for (a gated
   neuron can act below 0), at any position but the first, where activations are those of the attention sink.
2. Of each neuron the ``k`` largest stay, each of another text, with the tokens around them: ``[neuron, k, window]`` ids, whatever the number of texts.
   Ties stay with the earlier text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary
from symbolic_residue.errors import ConfigError
from symbolic_residue.graph._device import on
from symbolic_residue.graph._features import with_dictionary
from symbolic_residue.graph._freeze import freeze
from symbolic_residue.graph._mlp import find_mlp

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.types import Point

__all__ = ["Contexts", "activating_contexts"]


@dataclass(frozen=True, eq=False)
class Contexts:
    """The strongest places of each neuron.

    Attributes:
        neurons: ``[neuron, (layer, number, sign)]``.
        values: ``[neuron, k]``: activations, largest first in the sign's direction; nan where it never acted so.
        windows: ``[neuron, k, window]``: token ids around the place; −1 outside the text.
        texts, positions: ``[neuron, k]``: which text, and where; −1 where there is none.
        before: entries of a window in front of the place.
        n_texts, n_tokens: what was read (positions 0 apart).
    """

    neurons: Tensor
    values: Tensor
    windows: Tensor
    texts: Tensor
    positions: Tensor
    before: int
    n_texts: int
    n_tokens: int

    def tokens(self) -> Tensor:
        """``[neuron, k]``: the id at each place; −1 where there is none."""
        return self.windows[:, :, self.before]


def activating_contexts(
    instrument: Instrument,
    neurons: Tensor,
    texts: Iterable[str],
    *,
    k: int = 4,
    before: int = 8,
    after: int = 2,
    max_tokens: int = 256,
    dictionary: Dictionary | None = None,
) -> Contexts:
    """The places where neurons act most.

    Args:
        instrument: the model.
        neurons: ``[neuron, (layer, number, sign)]``, the sign 1 or −1.
        texts: read once, one after another; those of one token say nothing and are passed over.
        k: places a neuron.
        before, after: tokens kept around a place.
        max_tokens: of each text.
        dictionary: in the layers that it has, numbers are of its features, and each text is frozen as a graph's prompt is.

    Raises:
        ConfigError: no text with two tokens or more, a neuron that is not there, no place asked for.
        UnsupportedModelError: a layer without single neurons.
    """
    if k < 1 or max_tokens < 2 or before < 0 or after < 0:
        raise ConfigError(
            f"{k} places in {max_tokens} tokens tell nothing.", todo="Give k of 1 or more, and max_tokens of 2 or more."
        )
    n, width = len(neurons), before + 1 + after
    at = {i: (neurons[:, 0] == i).nonzero()[:, 0] for i in sorted(set(neurons[:, 0].tolist()))}
    values = torch.full((n, k), -torch.inf)
    windows, places = torch.full((n, k, width), -1), torch.full((n, k, 2), -1)
    reader = _Reader(instrument, neurons, at, dictionary)
    n_texts = n_tokens = 0
    for number, text in enumerate(texts):
        ids = instrument.loaded.tokenizer(text, return_tensors="pt")["input_ids"][0][:max_tokens]
        if len(ids) < 2:
            continue
        n_texts, n_tokens = n_texts + 1, n_tokens + len(ids) - 1
        best, position = reader(ids)
        padded = torch.cat([ids.new_full((before,), -1), ids, ids.new_full((after,), -1)])
        window = padded[position[:, None] + torch.arange(width)]
        place = torch.stack([torch.full_like(position, number), position], 1)
        best = torch.where(best > 0, best, -torch.inf)
        values, windows, places = _merge((values, windows, places), (best, window, place), k)
    if not n_texts:
        raise ConfigError("No text has two tokens or more.", why="The first position is left out.", todo="Give longer texts.")
    none = values == -torch.inf
    windows[none], places[none] = -1, -1
    signed = torch.where(none, torch.nan, values * neurons[:, 2:3])
    return Contexts(neurons, signed, windows, places[:, :, 0], places[:, :, 1], before, n_texts, n_tokens)


def _merge(old: tuple[Tensor, Tensor, Tensor], new: tuple[Tensor, Tensor, Tensor], k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` largest of those so far and one more each, the earlier first where they are equal."""
    values = torch.cat([old[0], new[0][:, None]], 1)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    windows = torch.cat([old[1], new[1][:, None]], 1)
    places = torch.cat([old[2], new[2][:, None]], 1)
    rows = torch.arange(len(values))[:, None]
    return values.gather(1, order), windows[rows, order], places[rows, order]


class _Reader:
    """A text's largest activation of every asked neuron, times its sign, and where."""

    def __init__(self, instrument: Instrument, neurons: Tensor, at: dict[int, Tensor], dictionary: Dictionary | None) -> None:
        self.instrument, self.neurons, self.dictionary = instrument, neurons, dictionary
        known = {} if dictionary is None else dictionary.layers
        self.features = {i: mine for i, mine in at.items() if i in known}
        self.at = at = {i: mine for i, mine in at.items() if i not in known}
        for i, mine in self.features.items():
            if bool(((neurons[mine, 1] < 0) | (neurons[mine, 1] >= known[i].n_features)).any()):
                raise ConfigError(f"Layer {i} has features 0 to {known[i].n_features - 1}, and others were asked for.")
        self.kinds, self.mlps = {}, {}
        layers, dtype = instrument.parts.layers, next(instrument.model.parameters()).dtype
        for i, mine in at.items():
            if not 0 <= i < len(layers):
                raise ConfigError(f"There is no layer {i}.", todo=f"Layers 0 to {len(layers) - 1}.")
            direct = layers[i].absent("mlp_act") is None
            mlp = find_mlp(layers[i], dtype)
            width = mlp.down.shape[0]
            if bool(((neurons[mine, 1] < 0) | (neurons[mine, 1] >= width)).any()):
                raise ConfigError(f"Layer {i} has neurons 0 to {width - 1}, and others were asked for.")
            self.kinds[i] = "mlp_act" if direct else "mlp_in"
            if not direct:
                self.mlps[i] = mlp

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        best = torch.full((len(self.neurons),), -torch.inf)
        where = torch.ones(len(self.neurons), dtype=torch.long)

        def keep(point: Point, tensor: Tensor) -> None:
            i: Any = point.layer
            mine = self.at[i]
            x = tensor[0]
            if i in self.mlps:
                mlp = self.mlps[i]
                gate, up = mlp.read(x)
                x = mlp.respond(gate, up, None if mlp.route is None else mlp.route(x))
            acts = x[1:, self.neurons[mine, 1].to(x.device)].float().cpu() * self.neurons[mine, 2]
            found = acts.max(0)
            best[mine], where[mine] = found.values, found.indices + 1

        for i, (value, position) in self._features(ids).items():
            best[self.features[i]], where[self.features[i]] = value, position
        reads = [f"{kind}.{i}" for i, kind in self.kinds.items()]
        if not reads:
            return best, where
        with torch.no_grad():
            self.instrument.run(ids[None], reads=reads, keep_logits=1, on_read=keep)
        return best, where

    def _features(self, ids: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """The same of features, by layer; those that are active nowhere have −inf."""
        if self.dictionary is None or not self.features:
            return {}
        with torch.no_grad(), on(self.instrument.device):
            local = with_dictionary(freeze(self.instrument, ids.to(self.instrument.device)), self.dictionary)
        found = {}
        for i, mine in self.features.items():
            units = local.units[i]
            cells = units.cells()
            assert cells is not None
            position, number, value = (x.cpu() for x in (*cells, units.values()))
            value, later = value.float(), position > 0
            acts = torch.full((len(ids), int(self.dictionary.layers[i].n_features)), -torch.inf)
            acts[position[later], number[later]] = value[later]
            signed = acts[1:, self.neurons[mine, 1]]
            signed = torch.where(signed == -torch.inf, signed, signed * self.neurons[mine, 2])
            top = signed.max(0)
            found[i] = (top.values, top.indices + 1)
        return found
