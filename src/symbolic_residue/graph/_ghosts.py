"""Ghosts: units that write much and move the answer no more than they would move anything.

1. A neuron's size is |activation| × the norm of what it writes, through the norm after the MLP. A feature's is the same; one of a cross-layer transcoder writes
   into several layers, and its norm is that of all of it (the root of the sum of squares). The largest are looked at. Errors of a dictionary are no units.
2. Its effect is the total one (``_relevance``) on each group of targets.
3. Its floor is drawn, not set: the effects that it has on random directions of the target's length, at the target's place. They are normal with mean 0 in high
   dimension, so 1.96 × their root mean square is what a direction that has nothing to do with the answer exceeds in 5 % of cases.
4. A ghost is below its floor for every group of targets. A unit that no path leads to a target from (of the last layer at an earlier position) moves nothing
   by construction: it is listed, is no ghost, and counts in no share.
5. Control: each random direction in turn is the target, with floors drawn from the others. About 95 % of units are ghosts for it; that the share for the
   answer is lower says that large units serve it at all.

One prompt is one observation: shares over units of a prompt have no interval here.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary
from symbolic_residue.errors import ConfigError, DictionaryError
from symbolic_residue.graph._columns import unit_values, Units
from symbolic_residue.graph._device import on
from symbolic_residue.graph._features import local_of
from symbolic_residue.graph._graph import Graph
from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._relevance import Relevance, relevance
from symbolic_residue.graph._units import layer_units
from symbolic_residue.instrument import Instrument

__all__ = ["Ghosts", "ghosts"]

_NORMAL_95 = 1.959964
_BLOCK = 4096
"""Writes that are held at a time."""


@dataclass(frozen=True, eq=False)
class Ghosts:
    """Large units beside their floors.

    Attributes:
        table: ``layer position token kind neuron activation size effect floor ratio reaches ghost``, largest first; ``ratio`` is the largest effect over
            floor of any group, ``reaches`` whether a path leads to a target.
        share: ghosts, of those that reach a target; nan where none does.
        control: the same share with each random direction as the target: mean, smallest, largest.
        directions: how many there were.
    """

    table: pl.DataFrame
    share: float
    control: tuple[float, float, float]
    directions: int


def ghosts(
    instrument: Instrument,
    graph: Graph,
    *,
    count: int = 1000,
    directions: int = 24,
    seed: int = 0,
    dictionary: Dictionary | None = None,
) -> Ghosts:
    """The ``count`` largest units of a graph's prompt, and which of them are ghosts for its targets.

    Args:
        instrument: the graph's model.
        graph: for its prompt and targets; neurons and features that are no nodes are looked at too.
        count: units looked at.
        directions: random directions a group of targets; each costs a pass down.
        seed: of the directions.
        dictionary: the graph's, where it has one.

    Raises:
        ConfigError: fewer than 8 directions, no unit asked for, another model than the graph's, or a dictionary that is missing or not the graph's.
    """
    if directions < 8 or count < 1:
        raise ConfigError(
            f"{directions} directions and {count} neurons give no floor.", todo="Ask for 8 directions or more, and a neuron."
        )
    with torch.no_grad(), on(instrument.device):
        try:
            local = local_of(instrument, graph, None, dictionary)
        except DictionaryError as error:
            raise _other_model() from error
        _require_model(local, graph)
        units, sizes = _largest(local, count)
        generator = torch.Generator("cpu").manual_seed(seed)
        ratios, controls, effects, floors = [], [], [], []
        reaches = torch.zeros(len(units), dtype=torch.bool)
        for group in sorted({t.group for t in graph.targets}):
            members = [i for i, t in enumerate(graph.targets) if t.group == group]
            weights = torch.tensor([graph.targets[i].weight for i in members], dtype=local.dtype)
            target = weights @ graph.target_rows.direction[members].to(local.device, local.dtype)
            one = graph.targets[members[0]]
            layer = None if one.layer == len(local.layers) else one.layer

            def effect(direction: Tensor, layer: int | None = layer, position: int = one.position) -> Tensor:
                return relevance(local, direction, position=position, layer=layer, rule=graph.rule).at(units)

            drawn = torch.randn(directions, len(target), generator=generator, dtype=torch.float64, device="cpu")
            drawn = drawn.to(local.device, local.dtype)
            drawn = drawn / drawn.norm(dim=1, keepdim=True) * target.norm()
            noise = torch.stack([effect(direction) for direction in drawn]).double()
            mine = effect(target).double()
            floor = _NORMAL_95 * noise.square().mean(0).sqrt()
            ratios.append(_over(mine, floor))
            effects.append(mine)
            floors.append(floor)
            others = (noise.square().sum(0) - noise.square()) / (directions - 1)
            able = floor > 0
            reaches = reaches | able
            controls.append((_over(noise, _NORMAL_95 * others.sqrt()) < 1).double()[:, able].mean(1))
    ratio = torch.stack(ratios).amax(0)
    by_chance = torch.cat(controls)
    cells = (units.layer.tolist(), units.position.tolist(), units.neuron.tolist())
    table = pl.DataFrame(
        {
            "layer": cells[0],
            "position": cells[1],
            "token": [graph.tokens[t] for t in cells[1]],
            "kind": ["feature" if i in graph.feature_layers else "neuron" for i in cells[0]],
            "neuron": cells[2],
            "activation": unit_values(local, units).tolist(),
            "size": sizes.tolist(),
            "effect": effects[0].tolist(),
            "floor": floors[0].tolist(),
            "ratio": ratio.tolist(),
            "reaches": reaches.tolist(),
            "ghost": ((ratio < 1) & reaches).tolist(),
        },
        schema_overrides={"token": pl.String, "kind": pl.String},
    ).sort("size", descending=True, maintain_order=True)
    control = (float(by_chance.mean()), float(by_chance.min()), float(by_chance.max()))
    return Ghosts(table, float((ratio < 1)[reaches].double().mean()), control, directions)


def _require_model(local: LocalModel, graph: Graph) -> None:
    shape = graph.columns
    fits = len(local.layers) == shape.n_layers and graph.target_rows.direction.shape[1] == local.embedded.shape[1]
    if fits and len(graph):
        widths = torch.tensor([one.n_neurons if i not in local.units else 2**62 for i, one in enumerate(local.layers)])
        fits = bool((graph.units.neuron < widths.cpu()[graph.units.layer]).all())
    if fits and len(graph):
        try:
            now = unit_values(local, graph.units.to(local.device)).cpu().double()
        except ConfigError as error:  # a feature that is not active
            raise _other_model() from error
        fits = float((now - graph.activations.double()).abs().max()) <= 1e-3 * float(graph.activations.double().abs().max())
    if not fits:
        raise _other_model()


def _other_model() -> ConfigError:
    return ConfigError(
        "This is not the model that the graph was made with.",
        why="Its units have other activations on the graph's prompt.",
        todo="Give the graph's own model.",
    )


def _largest(local: LocalModel, count: int) -> tuple[Units, Tensor]:
    """The units of largest size, and their sizes in the units' order."""
    sizes = []
    for i, layer in enumerate(local.layers):
        if i in local.units:
            sizes.append(_feature_sizes(local, i))
            continue
        n, width = len(local), layer.n_neurons
        ones = torch.ones(max(n, width), dtype=local.dtype)
        first = torch.zeros(max(n, width), dtype=torch.long)
        norm = layer.written(torch.arange(width), first[:width], ones[:width]).norm(dim=1)
        widest = torch.full((n,), int(norm.argmax()), dtype=torch.long)  # a norm after the MLP scales each position's write as one
        scale = layer.written(widest, torch.arange(n), ones[:n]).norm(dim=1) / norm.max().clamp(min=1e-30)
        sizes.append(layer.activations.abs() * norm * scale[:, None])
    cells = tuple(layer_units(local, i).cells() for i in range(len(local.layers))) if local.units else ()
    found = Relevance(tuple(sizes), torch.zeros(len(local), dtype=local.dtype), cells=cells)
    units = found.top(count)
    return units, found.at(units)


def _feature_sizes(local: LocalModel, layer: int) -> Tensor:
    """``[active]``."""
    one, cells = layer_units(local, layer), layer_units(local, layer).cells()
    assert cells is not None
    values, total = one.values(), torch.zeros_like(one.values())
    for part in torch.arange(len(values)).split(_BLOCK):
        for j in one.writes:
            total[part] += one.written(cells[1][part], cells[0][part], values[part], j).square().sum(1)
    return total.sqrt()


def _over(effect: Tensor, floor: Tensor) -> Tensor:
    """|effect| over floor; 0 where both are (a unit that cannot reach the place)."""
    return effect.abs() / floor.clamp(min=1e-300)
