"""The effect of every neuron on a target at once, by one pass down through the local replacement model.

1. A direction at the target's place starts as ``g [position, d_model]``. Layer by layer it is read by what the neurons write: ``effect = (∂target/∂a) · a``.
2. ``total=True`` goes on through the neurons by their frozen linear maps (the rule of ``_mlp``): the total effect, over all paths. ``total=False`` goes through
   attention and the residual stream only: the direct effect.
   A feature of a cross-layer transcoder is read at every layer that it writes to; a skip connection is passed like attention, in both cases.
3. Nothing is differentiated: every step is a transpose of a linear map. What arrives at the bottom is the embeddings' effect. ``largest`` ranks while the pass
   goes down, and holds one layer's effects at a time.
4. Total effects of one layer's neurons and of all below it do not add up to the target (paths are counted at each neuron that they pass); direct effects of
   all neurons, constants and embeddings do.

Source: RelP (Jafari et al. 2025) for rules that conserve; the linear replacement after Ameisen et al. 2025.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from symbolic_residue.graph._columns import Units
from symbolic_residue.graph._device import on
from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._maps import relevance_step
from symbolic_residue.graph._mlp import Rule
from symbolic_residue.graph._units import layer_units

__all__ = ["Relevance", "effects_at", "largest", "relevance"]


@dataclass(frozen=True, eq=False)
class Relevance:
    """Effects on one target.

    Attributes:
        neurons: layer by layer ``[position, neuron]``; ``[active]`` in the layers of a dictionary.
        embeddings: ``[position]``.
        slopes: layer by layer, as ``neurons``: ∂target/∂activation, which the effects are times the activations; empty in a sum of sizes.
        cells: layer by layer None for neurons, positions and features of the active ones in the layers of a dictionary; empty where all are neurons.
    """

    neurons: tuple[Tensor, ...]
    embeddings: Tensor
    slopes: tuple[Tensor, ...] = ()
    cells: tuple[tuple[Tensor, Tensor] | None, ...] = ()

    def top(self, count: int) -> Units:
        """The units of largest effect in size; all where there are fewer. Ties go to the earlier layer, position, number."""
        best = _Largest(count)
        for i in reversed(range(len(self.neurons))):
            best.add(i, self.neurons[i].abs(), self.cells[i] if self.cells else None)
        return best.units()

    def at(self, units: Units) -> Tensor:
        """The effects of some units, ``[unit]``."""
        found = torch.zeros(len(units), dtype=self.embeddings.dtype, device=self.embeddings.device)
        for i, one in enumerate(self.neurons):
            own = units.at(i)
            cells = self.cells[i] if self.cells else None
            found[own] = _of(one, cells, units.position[own], units.neuron[own])
        return found


def relevance(
    local: LocalModel, direction: Tensor, *, position: int = -1, layer: int | None = None, rule: Rule = "half", total: bool = True
) -> Relevance:
    """Effects on ``direction · residual stream``.

    Args:
        local: the replacement model.
        direction: ``[d_model]``.
        position: where the direction reads.
        layer: it reads what the MLP of this layer reads; None: the last residual stream.
        rule: of the neurons.
        total: through the MLPs, or direct.

    Returns:
        Effects in the direction's unit (logits for a logit's direction); zeros for layers that come after.
    """
    n_layers = len(local.layers)
    effects: list[Tensor] = [local.embedded] * n_layers
    slopes = list(effects)
    bottom = local.embedded
    with on(local.device):
        for j, g, slope, effect in _descend(local, direction, position, layer, rule, total):
            effects[j], slopes[j], bottom = effect, slope, g
    cells = tuple(layer_units(local, i).cells() for i in range(n_layers)) if local.units else ()
    return Relevance(tuple(effects), (bottom * local.embedded).sum(-1), tuple(slopes), cells)


def largest(
    local: LocalModel, groups: Sequence[tuple[Tensor, int, int | None]], count: int, *, rule: Rule = "half"
) -> tuple[Units, Tensor]:
    """The units of largest total effect on several directions, the sizes of their effects summed; all where there are fewer.

    Nothing is held but one layer's effects and the best so far.

    Args:
        local: the replacement model.
        groups: (direction, position, layer), as of :func:`relevance`.
        count: how many.
        rule: of the neurons.

    Returns:
        The units, and their effects on the first direction ``[unit]``.
    """
    with on(local.device):
        return _largest(local, groups, count, rule)


def _largest(local: LocalModel, groups: Sequence[tuple[Tensor, int, int | None]], count: int, rule: Rule) -> tuple[Units, Tensor]:
    best = _Largest(count)
    passes = [_descend(local, direction, position, layer, rule, True) for direction, position, layer in groups]
    for found in zip(*passes, strict=True):
        j, _, _, first = found[0]
        sizes = first.abs()
        for _, _, _, effect in found[1:]:
            sizes = sizes + effect.abs()
        best.add(j, sizes, layer_units(local, j).cells() if local.units else None, first)
    return best.units(), best.kept()


def effects_at(local: LocalModel, group: tuple[Tensor, int, int | None], units: Units, *, rule: Rule = "half") -> Tensor:
    """Total effects of given units on one direction, ``[unit]``; nothing is held but one layer's effects."""
    found = torch.zeros(len(units), dtype=local.dtype, device=local.device)
    direction, position, layer = group
    with on(local.device):
        for j, _, _, effect in _descend(local, direction, position, layer, rule, True):
            own = units.at(j)
            cells = layer_units(local, j).cells() if local.units else None
            found[own] = _of(effect, cells, units.position[own], units.neuron[own])
    return found


def _descend(
    local: LocalModel, direction: Tensor, position: int, layer: int | None, rule: Rule, total: bool
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Layer by layer from the last to the first: (layer, directions at its input ``[position, d_model]``, its units' slopes, their effects)."""
    n, n_layers = len(local), len(local.layers)
    g = torch.zeros(n, len(direction), dtype=local.dtype, device=local.embedded.device)
    top = n_layers if layer is None else layer
    g[position] = direction
    below: dict[int, Tensor] = {}  # slopes of features whose layers are yet to come
    for j in reversed(range(top, n_layers)):
        none = torch.zeros_like(layer_units(local, j).values())
        yield j, g, none, none
    if layer is not None and not local.layers[layer].parallel:
        g = relevance_step(local.layers[layer], g, None)
    for j in reversed(range(top)):
        block = local.layers[j]
        kind = layer_units(local, j)
        for i in range(j + 1):
            if j in (one := kind if i == j else layer_units(local, i)).writes:
                part = one.slopes(g, j)
                below[i] = below[i] + part if i in below else part
        values = kind.values()
        slopes = below.pop(j) if j in below else torch.zeros_like(values)
        through = kind.back(slopes, rule) if total else None
        if block.skip is not None:
            skipped = block.skip.pull(g, slice(None))
            through = skipped if through is None else through + skipped
        g = relevance_step(block, g, through)
        yield j, g, slopes, slopes * values


def _of(effect: Tensor, cells: tuple[Tensor, Tensor] | None, positions: Tensor, numbers: Tensor) -> Tensor:
    """Entries of one layer's effects, ``[unit]``; 0 for features that are not active."""
    if cells is None or not len(numbers):
        return effect[positions, numbers] if cells is None else effect[:0]
    most = int(torch.cat([cells[1], numbers]).max()) + 1
    keys = cells[0] * most + cells[1]
    return effect[torch.searchsorted(keys, positions * most + numbers)]


class _Largest:
    """The largest so far, while layers are added from the last to the first. Ties go to the earlier layer, position, number."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.sizes = torch.zeros(0)
        self.triples = torch.zeros(0, 3, dtype=torch.long)
        self.values = torch.zeros(0)

    def add(self, layer: int, sizes: Tensor, cells: tuple[Tensor, Tensor] | None, values: Tensor | None = None) -> None:
        """One layer's sizes ``[position, number]`` or ``[candidate]``, and what is kept beside them."""
        flat = sizes.flatten()
        full = len(self.sizes) == self.count > 0
        chosen = (flat >= self.sizes[-1]).nonzero()[:, 0] if full else torch.arange(len(flat) if self.count else 0)
        if len(chosen) > self.count:
            those = flat[chosen]
            least = those.topk(self.count, sorted=False).values.min()
            more = (those > least).nonzero()[:, 0]
            equal = (those == least).nonzero()[: self.count - len(more), 0]
            chosen = chosen[torch.cat([more, equal]).sort().values]
        if cells is None:
            width = max(1, sizes.shape[-1])
            position, number = chosen // width, chosen % width
        else:
            position, number = cells[0][chosen], cells[1][chosen]
        triples = torch.cat([torch.stack([torch.full_like(chosen, layer), position, number], 1), self.triples])
        size = torch.cat([flat[chosen], self.sizes.to(flat.dtype)])
        value = torch.cat([(flat if values is None else values.flatten())[chosen], self.values.to(flat.dtype)])
        order = size.sort(descending=True, stable=True).indices[: self.count]
        self.sizes, self.triples, self.values = size[order], triples[order], value[order]

    def units(self) -> Units:
        """In the units' order."""
        return Units.of(self.triples)

    def kept(self) -> Tensor:
        """What was kept beside the sizes, ``[unit]``, in the units' order."""
        rows = self.triples.tolist()
        return self.values[torch.tensor(sorted(range(len(rows)), key=rows.__getitem__), dtype=torch.long)]
