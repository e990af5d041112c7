"""From a prompt to its attribution graph.

1. One forward, frozen (``_local``); a dictionary's features take the neurons' place in its layers (``_features``).
2. One pass down a group of targets gives every unit's total effect (``_relevance``); the largest become nodes, the others go into REST.
3. One sweep gives all direct edges (``_sweep``).
4. Every row is checked against the model's own value; a graph that does not add up is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary
from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.graph._columns import Rows, unit_rows, unit_values, Units
from symbolic_residue.graph._device import on
from symbolic_residue.graph._features import describe, silenced, with_dictionary
from symbolic_residue.graph._freeze import freeze
from symbolic_residue.graph._graph import Graph, TargetInfo
from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._mlp import Rule
from symbolic_residue.graph._relevance import effects_at, largest
from symbolic_residue.graph._sweep import direct_edges
from symbolic_residue.graph._targets import AskedTarget, read_targets, Target, target_rows
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt, Prompt

__all__ = ["attribute", "attribute_prompt", "choose_units"]


def attribute(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    targets: Sequence[AskedTarget] = ("top",),
    units: Literal["neurons"] | Dictionary = "neurons",
    chat: bool = False,
    position: int = -1,
    max_nodes: int = 1000,
    rule: Rule = "half",
    rest: str = "position",
    nodes: Units | None = None,
) -> Graph:
    """The attribution graph of a model of yours on a prompt.

    Args:
        model, tokenizer: from transformers, float32 or float64.
        prompt: text.
        targets: see :data:`AskedTarget`.
        units: ``neurons``, or a dictionary whose features stand for them in the layers that it has.
        chat: render the prompt as a user's turn.
        position: where logits are read.
        max_nodes: units that become nodes (all, where there are fewer).
        rule: ``half`` or ``gate``: how gated neurons are made linear.
        rest: ``position``: what was not chosen is one node a layer and position; ``layer``: one a layer (less work).
        nodes: the neurons (features, in a dictionary's layers) that become nodes, where they are not to be chosen by their effects.

    Returns:
        The graph, every row of which adds up.

    Raises:
        PromptError: an empty or over-long prompt.
        ConfigError: an option or target that cannot be.
        DictionaryError: a dictionary of another model.
        UnsupportedModelError: half precision, or an architecture that frozen patterns do not make linear.
        VerificationError: the replacement is not the model, or a row does not add up.
    """
    instrument = Instrument(wrap(model, tokenizer))
    built = build_prompt(tokenizer, prompt, chat=chat, max_tokens=instrument.parts.max_context)
    return attribute_prompt(
        instrument, built, targets=targets, units=units, position=position, max_nodes=max_nodes, rule=rule, rest=rest, nodes=nodes
    )


def attribute_prompt(
    instrument: Instrument,
    prompt: Prompt,
    *,
    targets: Sequence[AskedTarget] = ("top",),
    units: Literal["neurons"] | Dictionary = "neurons",
    position: int = -1,
    max_nodes: int = 1000,
    rule: Rule = "half",
    rest: str = "position",
    nodes: Units | None = None,
    off: bool = False,
) -> Graph:
    """The same for an instrument and a built prompt; see :func:`attribute`.

    ``nodes``: the neurons and features that become nodes, where they are not to be chosen by their effects (``max_nodes`` then says nothing).
    ``off``: a given feature that is not active on this prompt becomes a node without edges; else it is refused.

    Raises:
        ConfigError: units that the model does not have; others as of :func:`attribute`.
    """
    if rest not in ("position", "layer"):
        raise ConfigError(f"rest={rest!r} is not known.", todo="Use 'position' or 'layer'.")
    _require_asked(prompt, units, max_nodes)
    about: dict[str, Any] = {}
    with torch.no_grad(), on(instrument.device):
        local = freeze(instrument, torch.tensor(prompt.ids))
        if not isinstance(units, str):
            local = with_dictionary(local, units)
            about = describe(local, units)
            if nodes is not None and off:
                local = silenced(local, nodes.to(local.device))
        asked = read_targets(instrument, local, targets, position, rule)
        groups = _groups(local, asked)
        if nodes is None:
            chosen, first = largest(local, groups, max_nodes, rule=rule)
        else:
            chosen = _given(local, nodes.to(local.device))
            first = effects_at(local, groups[0], chosen, rule=rule)
        of_targets = target_rows(local, asked)
        rows = of_targets + unit_rows(local, chosen, rule)
        edges, columns = direct_edges(local, rows, chosen, by_position=rest == "position")
        activations, terms = unit_values(local, chosen), _terms(local, rows)
    return Graph(
        tuple(prompt.ids), tuple(prompt.tokens), _infos(asked), chosen.to("cpu"), activations.cpu(), first.cpu(), edges.cpu(), columns, rule,
        local.parts.logit_softcap is not None, local.error, of_targets.to("cpu"), instrument.loaded.provenance.model_dump(), dictionary=about,
        terms=terms.cpu(),
    ).require()  # fmt: skip


def choose_units(
    instrument: Instrument,
    prompt: Prompt,
    *,
    targets: Sequence[AskedTarget] = ("top",),
    units: Literal["neurons"] | Dictionary = "neurons",
    position: int = -1,
    max_nodes: int = 1000,
    rule: Rule = "half",
) -> tuple[Units, tuple[TargetInfo, ...]]:
    """The units that :func:`attribute_prompt` would choose, and the targets, without any edges: a forward and a pass down.

    Raises:
        as :func:`attribute`.
    """
    _require_asked(prompt, units, max_nodes)
    with torch.no_grad(), on(instrument.device):
        local = freeze(instrument, torch.tensor(prompt.ids))
        local = local if isinstance(units, str) else with_dictionary(local, units)
        asked = read_targets(instrument, local, targets, position, rule)
        return largest(local, _groups(local, asked), max_nodes, rule=rule)[0].to("cpu"), _infos(asked)


def _require_asked(prompt: Prompt, units: Any, max_nodes: int) -> None:
    if max_nodes < 0:
        raise ConfigError(f"{max_nodes} nodes cannot be chosen.", todo="Give max_nodes of 0 or more.")
    if isinstance(units, str) and units != "neurons":
        raise ConfigError(f"units={units!r} is not known.", todo="Use 'neurons', or a dictionary from open_dictionary.")
    if not len(prompt.ids):
        raise PromptError("The prompt is empty.", todo="Give some text.")


def _infos(asked: Sequence[Target]) -> tuple[TargetInfo, ...]:
    return tuple(TargetInfo(t.name, t.value, t.layer, t.position, t.weight, t.group, t.token, t.probability) for t in asked)


def _terms(local: LocalModel, rows: Rows) -> Tensor:
    """``[row]``: the sizes of the terms of each row's dot product with the residual stream that it reads, summed."""
    found = torch.zeros(len(rows), dtype=local.dtype)
    for place in rows.place.unique().tolist():
        stream = local.final if place == local.end else local.layers[place // 2].stream
        at = (rows.place == place).nonzero()[:, 0]
        found[at] = (rows.direction[at] * stream[rows.position[at]]).abs().sum(1)
    return found


def _groups(local: LocalModel, targets: Sequence[Target]) -> list[tuple[Tensor, int, int | None]]:
    """(direction, position, layer) of each group's weighted sum of targets."""
    found = []
    for group in sorted({t.group for t in targets}):
        members = [t for t in targets if t.group == group]
        direction: Tensor = sum((t.weight * t.direction for t in members[1:]), start=members[0].weight * members[0].direction)
        found.append((direction, members[0].position, None if members[0].layer == len(local.layers) else members[0].layer))
    return found


def _given(local: LocalModel, units: Units) -> Units:
    for i, t, n in zip(units.layer.tolist(), units.position.tolist(), units.neuron.tolist(), strict=True):
        inside = 0 <= i < len(local.layers) and 0 <= t < len(local)
        if inside and i in local.units:
            local.units[i].at(torch.tensor([t]), torch.tensor([n]))  # refuses a feature that is not active there
        elif not (inside and 0 <= n < local.layers[i].n_neurons):
            raise ConfigError(
                f"There is no neuron {n} in layer {i} at position {t}.",
                todo=f"Layers 0 to {len(local.layers) - 1}, positions 0 to {len(local) - 1}, neurons 0 to {local.layers[0].n_neurons - 1}.",
            )
    return units
