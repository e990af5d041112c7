"""What a supernode's neurons do, in tokens, each kind of evidence beside what neurons drawn at random give.

1. *Writes*: the members' writes, each through the final norm as it stands at its position, summed and read by the unembedding: the tokens that they raise on
   the direct path. Judged by how far the first token stands above the vocabulary's mean, in its standard deviations.
2. *Acts at*: the tokens of the prompt where the members are, position 0 apart (it often carries the attention sink; how many stand there is said). Judged by
   the share of members at the commonest token.
3. *Fires on*: over given texts, the tokens at the places where the members' neurons act most, in the direction in which they act here (``_contexts``). Judged
   by the share of places with the commonest token.
4. Control: ``draws`` groups as large, by seed. For writes and contexts each member is replaced by a neuron drawn from its layer, at its position (a feature:
   by one that is active somewhere in the prompt); for the tokens of the prompt by a kept unit of its layer. A kind tells something where it is above all
   of the draws: by chance in 1 of ``draws`` + 1.
5. The label is made of the kinds that tell; where none does it says what is written, and ``chance``.

Members share positions because groups are made of edges; a neuron's texts are few: a label is a hint at what a group does, and no evidence for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary
from symbolic_residue.errors import ConfigError
from symbolic_residue.graph._columns import layer_sources, unit_values, Units
from symbolic_residue.graph._contexts import activating_contexts, Contexts
from symbolic_residue.graph._device import on
from symbolic_residue.graph._features import local_of
from symbolic_residue.graph._graph import Graph
from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._supernodes import Supernodes
from symbolic_residue.graph._units import layer_units

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["Example", "GroupLabel", "Hint", "label_supernodes"]

_TOKENS = 3
_SHOWN = 6


@dataclass(frozen=True)
class Hint:
    """One kind of evidence.

    Attributes:
        tokens: most first.
        value: what it is judged by; nan where there is nothing to judge.
        control: mean and largest of the random groups.
        n: what the value counts: members, or places.
    """

    tokens: tuple[str, ...]
    value: float
    control: tuple[float, float]
    n: int

    @property
    def tells(self) -> bool:
        """Above all random groups."""
        return self.value > self.control[1]


@dataclass(frozen=True)
class Example:
    """A place where a unit's neuron acts: the unit's number in the graph, the activation, and the text around."""

    unit: int
    value: float
    before: str
    token: str
    after: str


@dataclass(frozen=True)
class GroupLabel:
    """What is known of a group.

    Attributes:
        text: in short.
        writes, acts, fires: the kinds of evidence; ``fires`` is None without texts.
        first: members at position 0.
        examples: places in the texts, strongest neuron's first.
    """

    text: str
    writes: Hint
    acts: Hint
    fires: Hint | None
    first: int
    examples: tuple[Example, ...] = ()

    @property
    def tells(self) -> bool:
        """Any kind does."""
        return any(hint is not None and hint.tells for hint in (self.writes, self.acts, self.fires))


def label_supernodes(
    instrument: Instrument,
    graph: Graph,
    found: Supernodes,
    *,
    texts: Iterable[str] | None = None,
    k: int = 4,
    draws: int = 19,
    seed: int = 0,
    max_tokens: int = 256,
    local: LocalModel | None = None,
    dictionary: Dictionary | None = None,
) -> Supernodes:
    """Label groups by what their neurons write and where they act.

    Args:
        instrument: the model that the graph is of.
        graph: the graph.
        found: its groups.
        texts: where else the neurons are looked for, read once; None for the prompt alone.
        k: places in the texts kept of each neuron.
        draws: random groups a group.
        seed: of the draws.
        max_tokens: of each text.
        local: of the graph's prompt, where the caller has it.
        dictionary: of the graph, where it has one.

    Returns:
        The same groups with ``labels`` and ``about``.

    Raises:
        ConfigError: no draw, no usable text, another dictionary than the graph's.
    """
    if draws < 1:
        raise ConfigError(f"{draws} random groups are no control.", todo="Give draws of 1 or more.")
    if texts is not None and graph.feature_layers and dictionary is None:
        raise ConfigError("The graph's units are features of a dictionary, which is not given.", todo="Give dictionary=.")
    if not len(found):
        return found
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        local = local_of(instrument, graph, local, dictionary)
        stand_ins = [_drawn(local, graph, group, draws, generator) for group in found.members]
        peers = [_peers(graph, group, draws, generator) for group in found.members]
        own = [_triples(graph, group)[None] for group in found.members]
        drawn_too = [torch.cat([mine, drawn]) for mine, drawn in zip(own, stand_ins, strict=True)]
        writes = _writes(local, drawn_too)
        places: list[list[Counter[int]]] | None = None
        contexts: Contexts | None = None
        if texts is not None:
            keys = [_signed(local, one) for one in drawn_too]
            unique = torch.cat([one.flatten(0, 1) for one in keys]).unique(dim=0)
            contexts = activating_contexts(instrument, unique, texts, k=k, max_tokens=max_tokens, dictionary=dictionary)
            places = [[_counted(contexts, unique, group) for group in one] for one in keys]
    decode = instrument.loaded.tokenizer.decode
    about = []
    for g, group in enumerate(found.members):
        raised, peaks = writes[g]
        writes_hint = Hint(tuple(decode([t]) for t in raised), float(peaks[0]), _control(peaks[1:].tolist()), len(group))
        fires, examples = None, ()
        if contexts is not None and places is not None:
            counts = places[g]
            tokens = tuple(decode([t]) for t, _ in _commonest(counts[0])[:_TOKENS])
            fires = Hint(tokens, _share(counts[0]), _control([_share(one) for one in counts[1:]]), sum(counts[0].values()))
            examples = _examples(local, graph, group, contexts, decode)
        acts = _acts(graph, group, peers[g])
        first = int((graph.units.position[list(group)] == 0).sum())
        one = GroupLabel("", writes_hint, acts, fires, first, examples)
        about.append(replace(one, text=_text(graph, group, one)))
    return replace(found, labels=tuple(one.text for one in about), about=tuple(about))


def _triples(graph: Graph, group: Sequence[int]) -> Tensor:
    """``[member, (layer, position, neuron)]``."""
    at = list(group)
    return torch.stack([graph.units.layer[at], graph.units.position[at], graph.units.neuron[at]], 1)


def _drawn(local: LocalModel, graph: Graph, group: Sequence[int], draws: int, generator: torch.Generator) -> Tensor:
    """Random units in the members' places, ``[draw, member, (layer, position, neuron)]``."""
    found = _triples(graph, group).repeat(draws, 1, 1)
    for m, (layer, _, _) in enumerate(found[0].tolist()):
        cells = layer_units(local, layer).cells()
        if cells is None:
            found[:, m, 2] = torch.randint(local.layers[layer].activations.shape[1], (draws,), generator=generator)
        else:
            at = torch.randint(len(cells[0]), (draws,), generator=generator)
            found[:, m, 1], found[:, m, 2] = (cell.cpu()[at] for cell in cells)
    return found


def _peers(graph: Graph, group: Sequence[int], draws: int, generator: torch.Generator) -> list[list[int]]:
    """Units of the graph's own, of the members' layers: their positions, a list a draw."""
    found: list[list[int]] = [[] for _ in range(draws)]
    for layer in graph.units.layer[list(group)].tolist():
        own = graph.units.position[graph.units.at(layer)]
        for draw, pick in enumerate(torch.randint(len(own), (draws,), generator=generator).tolist()):
            found[draw].append(int(own[pick]))
    return found


def _writes(local: LocalModel, groups: Sequence[Tensor]) -> list[tuple[list[int], Tensor]]:
    """Of each ``[group, member, (layer, position, neuron)]``: the tokens that the first group raises most, and how far each group's first token stands above
    the others, ``[group]``."""
    counts = [len(one.flatten(0, 1)) for one in groups]
    unique, inverse = torch.unique(torch.cat([one.flatten(0, 1) for one in groups]), dim=0, return_inverse=True)
    found = []
    with on(local.device):
        units = Units.of(unique).to(local.device)
        write = torch.zeros(len(units), local.embedded.shape[1], dtype=local.dtype)
        for source in layer_sources(local, units):
            write[source.at] += source.write
        through, unembed = local.norm.linear(write, units.position), local.parts.w_u.to(local.dtype).T
        for one, rows in zip(groups, inverse.split(counts), strict=True):
            logits = through[rows.to(local.device)].view(*one.shape[:2], -1).sum(1) @ unembed
            peaks = (logits.max(1).values - logits.mean(1)) / logits.std(1).clamp(min=1e-30)
            found.append((logits[0].topk(min(_TOKENS, logits.shape[1])).indices.tolist(), peaks.cpu()))
    return found


def _signed(local: LocalModel, groups: Tensor) -> Tensor:
    """``[group, member, (layer, number, sign)]``: the neurons, in the direction in which they act at their positions."""
    unique, inverse = torch.unique(groups.flatten(0, 1), dim=0, return_inverse=True)
    with on(local.device):
        values = unit_values(local, Units.of(unique).to(local.device)).cpu()
    sign = torch.where(values < 0, -1, 1)
    return torch.stack([unique[:, 0], unique[:, 2], sign], 1)[inverse].view(groups.shape)


def _counted(contexts: Contexts, keys: Tensor, group: Tensor) -> Counter[int]:
    """How often each token stands where a group's neurons act most; a neuron that is there twice counts once."""
    tokens, counted = contexts.tokens(), Counter()
    for key in group.unique(dim=0):
        row = int((keys == key).all(1).nonzero()[0, 0])
        counted.update(t for t in tokens[row].tolist() if t >= 0)
    return counted


def _commonest(counts: Counter[int]) -> list[tuple[int, int]]:
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def _share(counts: Counter[int]) -> float:
    return max(counts.values()) / sum(counts.values()) if counts else float("nan")


def _control(values: Sequence[float]) -> tuple[float, float]:
    there = [value for value in values if value == value]
    return (sum(there) / len(there), max(there)) if there else (float("nan"), float("nan"))


def _acts(graph: Graph, group: Sequence[int], peers: Sequence[Sequence[int]]) -> Hint:
    def counted(positions: Sequence[int]) -> Counter[int]:
        return Counter(graph.ids[t] for t in positions if t > 0)

    mine = [int(graph.units.position[u]) for u in group]
    named = {graph.ids[t]: graph.tokens[t] for t in mine}
    counts = counted(mine)
    tokens = tuple(named[t] for t, _ in _commonest(counts)[:_TOKENS])
    return Hint(tokens, _share(counts), _control([_share(counted(one)) for one in peers]), sum(counts.values()))


def _examples(local: LocalModel, graph: Graph, group: Sequence[int], contexts: Contexts, decode: object) -> tuple[Example, ...]:
    """The strongest place of each member, the most influential members first, each neuron once."""
    keys = _signed(local, _triples(graph, group)[None])[0]
    seen: set[tuple[int, ...]] = set()
    found = []
    for unit, key in zip(group, keys, strict=True):
        row = int((contexts.neurons == key).all(1).nonzero()[0, 0])
        if tuple(key.tolist()) in seen or int(contexts.texts[row, 0]) < 0:
            continue
        seen.add(tuple(key.tolist()))
        ids = contexts.windows[row, 0].tolist()
        before, token, after = (
            decode([t for t in part if t >= 0])  # type: ignore[operator]
            for part in (ids[: contexts.before], ids[contexts.before : contexts.before + 1], ids[contexts.before + 1 :])
        )
        found.append(Example(int(unit), float(contexts.values[row, 0]), before, token, after))
    return tuple(found[:_SHOWN])


def _text(graph: Graph, group: Sequence[int], one: GroupLabel) -> str:
    layer = graph.units.layer[list(group)]
    low, high = int(layer.min()), int(layer.max())
    where = f"{f'L{low}' if low == high else f'L{low}–{high}'} ×{len(group)}"
    parts = [
        f"{verb} {', '.join(map(repr, hint.tokens[:2]))}"
        for verb, hint in (("fires on", one.fires), ("acts at", one.acts), ("writes", one.writes))
        if hint is not None and hint.tokens and hint.tells
    ]
    if 2 * one.first > len(group):
        parts.insert(0, "first position")
    if not parts:
        return f"{where} (chance): writes {', '.join(map(repr, one.writes.tokens[:2]))}"
    return f"{where}: {'; '.join(parts)}"
