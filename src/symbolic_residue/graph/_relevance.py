"""The effect of every neuron on a target at once, by one pass down through the local replacement model.

1. A direction at the target's place starts as ``g [position, d_model]``. Layer by layer it is read by what the neurons write: ``effect = (∂target/∂a) · a``.
2. ``total=True`` goes on through the neurons by their frozen linear maps (the rule of ``_mlp``): the total effect, over all paths. ``total=False`` goes through
   attention and the residual stream only: the direct effect.
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

__all__ = ["Relevance", "relevance"]


@dataclass(frozen=True, eq=False)
class Relevance:
    """Effects on one target.

    Attributes:
        neurons: layer by layer ``[position, neuron]``.
        embeddings: ``[position]``.
        slopes: layer by layer ``[position, neuron]``: ∂target/∂a, which the effects are times the activations; empty in a sum of sizes.
    """

    neurons: tuple[Tensor, ...]
    embeddings: Tensor
    slopes: tuple[Tensor, ...] = ()

    def top(self, count: int) -> Units:
        """The neurons of largest effect in size; all where there are fewer. Ties go to the earlier layer, position, neuron."""
        sizes = [one.shape[1] for one in self.neurons]
        found = []
        for i, one in enumerate(self.neurons):
            size, order = one.abs().flatten().sort(descending=True, stable=True)
            order = order[:count]
            layer = torch.full_like(order, i)
            found.append((size[:count], torch.stack([layer, order // sizes[i], order % sizes[i]], 1)))
        size = torch.cat([s for s, _ in found])
        chosen = size.sort(descending=True, stable=True).indices[:count]
        return Units.of(torch.cat([t for _, t in found])[chosen])


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
    found: list[Tensor] = [torch.zeros_like(one.gate) for one in local.layers]
    slopes = list(found)
    g[position] = direction
    if layer is not None and not local.layers[layer].parallel:
        g = relevance_step(local.layers[layer], g, None)
    for i in reversed(range(top)):
        block = local.layers[i]
        per_neuron = block.out_back(g) @ block.mlp.down.T
        slopes[i] = per_neuron
        found[i] = per_neuron * block.activations
        g = relevance_step(block, g, block.neurons_back(per_neuron, rule) if total else None)
    return Relevance(tuple(found), (g * local.embedded).sum(-1), tuple(slopes))
