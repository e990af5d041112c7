"""Two graphs, edge by edge: what a failing prompt has that a healthy one of the same length lacks, or a tuned model that its base lacks.

1. Both graphs have the same nodes: the same neurons or features (layer, position, number), rests, embeddings, constants, and the same targets, in order.
2. ``edges = edges of A − edges of B``, ``values = values of A − values of B``: both rows add up, so their difference does.
3. Graphs that were kept have units of their own each. Those that only one has go into REST (exact: a REST is a sum; a feature of a cross-layer
   transcoder goes, with all that it writes, into that of the layer that it reads), and the common ones are compared.
   :func:`attribute_pair` has the model at hand: it attributes twice, and again with the union of what was chosen.
4. A feature that is active on one side alone stands on the other with activation 0 and no edges (``_features``): the difference is then its edges on the first.

A difference is that of two prompts, n = 1 pair, and holds for them; where attention looks differs too, and the edges hold what follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TYPE_CHECKING

import polars as pl
import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary
from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.graph._attribute import attribute_prompt, choose_units
from symbolic_residue.graph._columns import Columns, Units
from symbolic_residue.graph._failure_targets import fixed_failures
from symbolic_residue.graph._graph import Check, Graph, TargetInfo, TOLERANCE
from symbolic_residue.graph._mlp import Rule
from symbolic_residue.graph._targets import AskedTarget
from symbolic_residue.instrument import Instrument
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import check_same_architecture

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Difference", "attribute_pair", "difference", "only"]


@dataclass(frozen=True, eq=False)
class Difference:
    """Two graphs with the same nodes.

    Attributes:
        a, b: the graphs.
        chosen: units that each had as nodes before they were aligned.
    """

    a: Graph
    b: Graph
    chosen: tuple[int, int]

    def __len__(self) -> int:
        return len(self.a)

    def edges(self) -> Tensor:
        """Edge in A − edge in B, ``[row, column]``."""
        return self.a.edges - self.b.edges

    def values(self) -> Tensor:
        """Value in A − value in B, ``[row]``: what each row of ``edges`` sums to."""
        return self.a.values() - self.b.values()

    def check(self, tolerance: float = TOLERANCE) -> Check:
        """Every row's sum against the difference of values, relative to the sizes of both rows' edges (their difference may be near 0)."""
        missing = self.edges().double().sum(1) - self.values()
        relative = missing.abs() / self._sizes()
        return Check(missing, relative, float(relative.max()), tolerance)

    def _sizes(self) -> Tensor:
        return self.a.row_sizes() + self.b.row_sizes()

    def changed(self, count: int = 20) -> pl.DataFrame:
        """The edges that changed most: ``target source a b change share``; ``share`` is of the sizes of both rows' edges together."""
        edges = self.edges().double()
        order = edges.abs().flatten().argsort(descending=True, stable=True)[:count]
        names = self.a.column_names()
        rows = [target.name for target in self.a.targets] + names[: len(self)]
        sizes, width = self._sizes(), edges.shape[1]
        found = []
        for at in order.tolist():
            r, c = divmod(at, width)
            change = float(edges[r, c])
            found.append(
                (rows[r], names[c], float(self.a.edges[r, c]), float(self.b.edges[r, c]), change, abs(change) / float(sizes[r]))
            )
        return pl.DataFrame([row for row in found if row[4]], schema=_CHANGED, orient="row")

    def nodes(self) -> pl.DataFrame:
        """The units, those first whose total effect on the first target changed most.

        Columns ``layer kind position token_a token_b neuron activation_a activation_b effect_a effect_b change``; of a feature ``neuron`` is its number.
        """
        units, features = self.a.units, self.a.feature_layers
        frame = pl.DataFrame(
            {
                "layer": units.layer.tolist(),
                "kind": ["feature" if i in features else "neuron" for i in units.layer.tolist()],
                "position": units.position.tolist(),
                "token_a": [self.a.tokens[t] for t in units.position.tolist()],
                "token_b": [self.b.tokens[t] for t in units.position.tolist()],
                "neuron": units.neuron.tolist(),
                "activation_a": self.a.activations.tolist(),
                "activation_b": self.b.activations.tolist(),
                "effect_a": self.a.effects.tolist(),
                "effect_b": self.b.effects.tolist(),
                "change": (self.a.effects - self.b.effects).tolist(),
            },
            schema_overrides={"kind": pl.String, "token_a": pl.String, "token_b": pl.String},
        )
        order = (self.a.effects - self.b.effects).abs().argsort(descending=True, stable=True)
        return frame[order.tolist()]

    def graph(self) -> Graph:
        """The difference as a graph, for ``accounted``, ``influence`` (by sizes of changes), ``prune`` and ``to_neuronpedia``."""
        a, b = self.a, self.b
        targets = tuple(
            TargetInfo(f"Δ {one.name}", one.value - two.value, one.layer, one.position, one.weight, one.group, None, None)
            for one, two in zip(a.targets, b.targets, strict=True)
        )
        return replace(
            a,
            tokens=tuple(x if x == y else f"{x} | {y}" for x, y in zip(a.tokens, b.tokens, strict=True)),
            targets=targets,
            activations=a.activations - b.activations,
            effects=a.effects - b.effects,
            edges=self.edges(),
            terms=None if a.terms is None or b.terms is None else a.terms + b.terms,
            local_error=max(a.local_error, b.local_error),
            provenance={"model": a.provenance.get("model"), "a": a.provenance, "b": b.provenance},
        )


_CHANGED: dict[str, type[pl.DataType]] = {
    "target": pl.String,
    "source": pl.String,
    "a": pl.Float64,
    "b": pl.Float64,
    "change": pl.Float64,
    "share": pl.Float64,
}


def difference(a: Graph, b: Graph) -> Difference:
    """A − B on the units that both have; the others go into REST.

    Raises:
        PromptError: prompts of different lengths.
        ConfigError: other targets, rule, layers or rests: their rows and columns do not mean the same.
    """
    _require_alike(a, b)
    mine, theirs = _triples(a.units), _triples(b.units)
    common = set(mine) & set(theirs)
    return Difference(only(a, common), only(b, common), (len(a), len(b)))


def only(graph: Graph, kept: Iterable[tuple[int, int, int]]) -> Graph:
    """The graph with these units (layer, position, neuron) as nodes; the others' edges are added to their REST, and their rows left out."""
    kept = set(kept)
    there = torch.tensor([cell in kept for cell in _triples(graph.units)], dtype=torch.bool)
    if bool(there.all()):
        return graph
    shape, units = graph.columns, graph.units
    stay, go = there.nonzero()[:, 0], (~there).nonzero()[:, 0]
    edges = graph.edges.double().clone()
    into = shape.rest.start + units.layer[go] * shape.spread + (units.position[go] if shape.by_position else 0)
    edges.index_add_(1, into, graph.edges.double()[:, go])
    rows = torch.cat([torch.arange(graph.n_targets), graph.n_targets + stay])
    columns = torch.cat([stay, torch.arange(len(graph), len(shape))])
    return replace(
        graph,
        units=Units(units.layer[stay], units.position[stay], units.neuron[stay]),
        activations=graph.activations[stay],
        effects=graph.effects[stay],
        edges=edges[rows][:, columns].to(graph.edges.dtype),
        columns=Columns(len(stay), shape.n_layers, shape.n_positions, shape.biased, shape.by_position),
        labels=tuple(graph.labels[i] for i in stay.tolist()) if graph.labels else (),
        terms=None if graph.terms is None else graph.terms[rows],
    )


def attribute_pair(
    instrument: Instrument,
    a: Prompt,
    b: Prompt,
    *,
    other: Instrument | None = None,
    targets: Sequence[AskedTarget] = ("top",),
    units: Literal["neurons"] | Dictionary = "neurons",
    position: int = -1,
    max_nodes: int = 1000,
    rule: Rule = "half",
    rest: str = "position",
) -> Difference:
    """A − B, with the union of the units that each prompt chooses.

    Args:
        instrument: the model of A.
        a, b: prompts of as many tokens; the same prompt, for two models.
        other: the model of B, of the same architecture; the same model where left out.
        targets: of both; ``top`` means A's top tokens, and a failure's tokens are those chosen on A.
        units: ``neurons``, or a dictionary; with two models the same one for both, and each graph says how well it fits.
        position, rule, rest: see :func:`attribute`.
        max_nodes: units that each chooses.

    Raises:
        PromptError: prompts of different lengths.
        ConfigError: a target that is not the same in both (an entropy's gradient).
        ModelError: another architecture.
        others: as of :func:`attribute`.
    """
    _require_length(len(a.ids), len(b.ids))
    second = other or instrument
    check_same_architecture(second, instrument)

    def choose(which: Instrument, prompt: Prompt, asked: Sequence[AskedTarget]) -> tuple[Units, tuple[TargetInfo, ...]]:
        return choose_units(which, prompt, targets=asked, units=units, position=position, max_nodes=max_nodes, rule=rule)

    def run(which: Instrument, prompt: Prompt, nodes: Units) -> Graph:
        return attribute_prompt(
            which, prompt, targets=same, units=units, position=position, rule=rule, rest=rest, nodes=nodes, off=True
        )

    targets = fixed_failures(instrument, a.ids, targets, position)
    first, explained = choose(instrument, a, targets)
    same: list[AskedTarget] = []
    for group, one in enumerate(targets):
        top = isinstance(one, str) and (one == "top" or one.startswith("top:"))
        same += [t.token for t in explained if t.group == group and t.token is not None] if top else [one]
    found, _ = choose(second, b, same)
    union = Units.of(torch.tensor(sorted({*_triples(first), *_triples(found)}), dtype=torch.long).view(-1, 3))
    one, two = run(instrument, a, union), run(second, b, union)
    _require_alike(one, two)
    return Difference(one, two, (len(first), len(found)))


def _require_length(a: int, b: int) -> None:
    if a != b:
        raise PromptError(
            f"The prompts have {a} and {b} tokens.",
            why="Nodes are compared position by position.",
            todo="Reword one so that both have as many tokens, with the same thing at the same place.",
        )


def _require_alike(a: Graph, b: Graph) -> None:
    _require_length(len(a.ids), len(b.ids))
    for name, mine, theirs in (
        ("rule", a.rule, b.rule),
        ("dictionary", *(g.dictionary.get("sha256", "none") for g in (a, b))),
        ("layers", a.columns.n_layers, b.columns.n_layers),
        ("biases", a.columns.biased, b.columns.biased),
        ("rest", *("position" if g.columns.by_position else "layer" for g in (a, b))),
    ):
        if mine != theirs:
            raise ConfigError(
                f"The graphs differ in {name}: {mine} and {theirs}.",
                why="Their edges do not mean the same.",
                todo="Make both alike.",
            )
    named = [[(t.name, t.layer, t.position, t.token) for t in graph.targets] for graph in (a, b)]
    if named[0] != named[1]:
        raise ConfigError(
            f"The graphs explain different targets: {_names(a)}, and {_names(b)}.",
            why="A difference is taken of one target.",
            todo="Name the same tokens, or one pair of tokens, for both.",
        )


def _names(graph: Graph) -> str:
    return ", ".join(f"{t.name} at {t.position}" for t in graph.targets)


def _triples(units: Units) -> list[tuple[int, int, int]]:
    return list(zip(units.layer.tolist(), units.position.tolist(), units.neuron.tolist(), strict=True))
