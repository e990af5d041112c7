"""The effect of every neuron on a target at once, by one pass down through the local replacement model.

1. A direction at the target's place starts as ``g [position, d_model]``. Layer by layer it is read by what the neurons write: ``effect = (∂target/∂a) · a``.
2. ``total=True`` goes on through the neurons by their frozen linear maps (the rule of ``_mlp``): the total effect, over all paths. ``total=False`` goes through
   attention and the residual stream only: the direct effect.
   A feature of a cross-layer transcoder is read at every layer that it writes to; a skip connection is passed like attention, in both cases.
3. Nothing is differentiated: every step is a transpose of a linear map. What arrives at the bottom is the embeddings' effect.
4. Total effects of one layer's neurons and of all below it do not add up to the target (paths are counted at each neuron that they pass); direct effects of
   all neurons, constants and embeddings do.

Source: RelP (Jafari et al. 2025) for rules that conserve; the linear replacement after Ameisen et al. 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from symbolic_residue.graph._columns import Units
from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._maps import relevance_step
from symbolic_residue.graph._mlp import Rule
from symbolic_residue.graph._units import layer_units

__all__ = ["Relevance", "relevance"]


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
        found = []
        for i, one in enumerate(self.neurons):
            size, order = one.abs().flatten().sort(descending=True, stable=True)
            order = order[:count]
            cells = self.cells[i] if self.cells else None
            position, number = (
                (order // one.shape[1], order % one.shape[1]) if cells is None else (cells[0][order], cells[1][order])
            )
            found.append((size[:count], torch.stack([torch.full_like(order, i), position, number], 1)))
        size = torch.cat([s for s, _ in found])
        chosen = size.sort(descending=True, stable=True).indices[:count]
        return Units.of(torch.cat([t for _, t in found])[chosen])

    def at(self, units: Units) -> Tensor:
        """The effects of some units, ``[unit]``."""
        found = torch.zeros(len(units), dtype=self.embeddings.dtype)
        for i, one in enumerate(self.neurons):
            own = units.at(i)
            cells = self.cells[i] if self.cells else None
            if cells is None:
                found[own] = one[units.position[own], units.neuron[own]]
            elif len(own):
                most = int(torch.cat([cells[1], units.neuron[own]]).max()) + 1
                keys = cells[0] * most + cells[1]
                found[own] = one[torch.searchsorted(keys, units.position[own] * most + units.neuron[own])]
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
    n = len(local)
    g = torch.zeros(n, len(direction), dtype=local.dtype, device=local.embedded.device)
    top = len(local.layers) if layer is None else layer
    kinds = [layer_units(local, i) for i in range(len(local.layers))]
    slopes: dict[int, Tensor] = {}
    effects: dict[int, Tensor] = {}
    g[position] = direction
    if layer is not None and not local.layers[layer].parallel:
        g = relevance_step(local.layers[layer], g, None)
    for j in reversed(range(top)):
        block = local.layers[j]
        for i in range(j + 1):
            if j in kinds[i].writes:
                part = kinds[i].slopes(g, j)
                slopes[i] = slopes[i] + part if i in slopes else part
        values = kinds[j].values()
        slopes.setdefault(j, torch.zeros_like(values))
        effects[j] = slopes[j] * values
        through = kinds[j].back(slopes[j], rule) if total else None
        if block.skip is not None:
            skipped = block.skip.pull(g, slice(None))
            through = skipped if through is None else through + skipped
        g = relevance_step(block, g, through)
    for j in range(top, len(kinds)):
        slopes[j] = effects[j] = torch.zeros_like(kinds[j].values())
    cells = tuple(one.cells() for one in kinds) if local.units else ()
    every = range(len(kinds))
    return Relevance(tuple(effects[i] for i in every), (g * local.embedded).sum(-1), tuple(slopes[i] for i in every), cells)
