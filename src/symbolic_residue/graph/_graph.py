"""An attribution graph: targets and neurons as rows, everything that explains them as columns, and edges that add up.

1. ``edges[row, column]`` is the direct effect of a column on a row. Rows are the targets and then the units; columns are the units, one REST a layer (and
   position), one embedding a position, BIAS where the architecture has constants, and the row's own constant.
2. ``check``: every row's sum against the value that the model gave: the difference is rounding, or the graph is wrong.
3. ``accounted``: how each target's value divides among the kinds of columns: all of it, by construction; what REST holds is not explained by single units.
4. ``influence`` and ``prune``: edges by their share of each row's absolute sum, influence over all paths from the targets back, nodes and then edges kept
   up to a cumulative share, and what dangles dropped. Rule and thresholds of Ameisen et al. 2025 (Circuit Tracing) and of their circuit-tracer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TYPE_CHECKING

import polars as pl
import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, VerificationError
from symbolic_residue.graph._columns import Columns, Rows, Units
from symbolic_residue.graph._mlp import Rule

if TYPE_CHECKING:
    from pathlib import Path

    from symbolic_residue.dictionaries import Dictionary
    from symbolic_residue.graph._carried import GraphHeads
    from symbolic_residue.graph._diff import Difference
    from symbolic_residue.graph._faithfulness import Faithfulness
    from symbolic_residue.graph._ghosts import Ghosts
    from symbolic_residue.graph._heads import HeadLoadings
    from symbolic_residue.graph._pairs import TokenPair
    from symbolic_residue.graph._qk import QKAttribution
    from symbolic_residue.graph._supernodes import Supernodes
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.prompts import CounterfactualPair

__all__ = ["Check", "Graph", "Pruned", "TargetInfo"]

TOLERANCE = 1e-5
"""Of a row's sum, relative to the sum of its edges' sizes; float32 gives about 1e-7."""
_FLOOR = 1000
"""Units of rounding of the largest row that count as size of any row. A neuron that is almost silent (1e-6 beside thousands) reads that from large writes that
cancel: its sum is good to the rounding of those, not of its own edges."""


@dataclass(frozen=True)
class TargetInfo:
    """A target: its name, the model's value for it (logits, or the direction's unit), where it reads, its weight in ranking, and the probability of a token."""

    name: str
    value: float
    layer: int
    position: int
    weight: float
    group: int
    token: int | None
    probability: float | None


@dataclass(frozen=True, eq=False)
class Check:
    """Whether rows add up.

    Attributes:
        missing: ``[row]``: sum of a row's edges − the model's value.
        relative: ``[row]``: its size over :meth:`Graph.row_sizes`.
        worst: the largest of them.
        tolerance: what was asked.
    """

    missing: Tensor
    relative: Tensor
    worst: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Every row adds up."""
        return self.worst <= self.tolerance


@dataclass(frozen=True, eq=False)
class Pruned:
    """What a graph keeps.

    Attributes:
        columns: ``[column]`` bool: nodes kept.
        edges: ``[row, column]`` bool: edges kept.
        influence: ``[column]``: each node's influence on the targets; they need not sum to 1, since influence passes through nodes.
        cumulative: ``[column]``: share of all influence in this node and those above it.
    """

    columns: Tensor
    edges: Tensor
    influence: Tensor
    cumulative: Tensor


@dataclass(frozen=True, eq=False)
class Graph:
    """An attribution graph of one prompt.

    Attributes:
        ids, tokens: the prompt.
        targets: what it explains.
        units: the neurons (and features) that are nodes, in order of layer, position, number.
        activations: ``[unit]``.
        effects: ``[unit]``: total effect on the first group of targets (signed; their weighted sum).
        edges: ``[row, column]``: see the module's text.
        columns: what the columns are.
        rule: how gated neurons were made linear.
        uncapped: the model soft-caps its logits, and those before the cap are explained.
        target_rows: the targets as rows: directions of the residual stream, with the place and position where they read.
        local_error: largest relative difference between a rebuilt layer's write and the model's.
        provenance: of the model, plain data.
        labels: tokens that each unit's write raises (:func:`promoted_tokens`), a unit each; empty where none were asked for.
        dictionary: whose features are units in the place of neurons: ``sha256 source layers`` (``layer fvu l0``, on this prompt); empty without one.
        terms: ``[row]``: a row's value is a dot product with the residual stream that it reads; the sum of the sizes of its terms. None: not known.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    targets: tuple[TargetInfo, ...]
    units: Units
    activations: Tensor
    effects: Tensor
    edges: Tensor
    columns: Columns
    rule: Rule
    uncapped: bool
    local_error: float
    target_rows: Rows
    provenance: dict[str, Any] = field(default_factory=dict)
    labels: tuple[tuple[str, ...], ...] = ()
    dictionary: dict[str, Any] = field(default_factory=dict)
    terms: Tensor | None = None

    def __len__(self) -> int:
        return len(self.units)

    @property
    def n_targets(self) -> int:
        """Rows that are targets; the units' follow them."""
        return len(self.targets)

    @property
    def feature_layers(self) -> frozenset[int]:
        """Layers whose units are features of a dictionary; the others' are neurons."""
        return frozenset(one["layer"] for one in self.dictionary.get("layers", ()))

    def values(self) -> Tensor:
        """What each row must sum to, ``[row]``."""
        targets = torch.tensor([t.value for t in self.targets], dtype=torch.float64)
        return torch.cat([targets, self.activations.double()])

    def row_sizes(self) -> Tensor:
        """``[row]``: what gaps are measured by: the sum of the sizes of a row's edges; where it is more, that of the terms of its dot product with the stream,
        which is what its rounding grows with; and at least 1000 units of rounding of the largest row."""
        size = self.edges.abs().sum(1, dtype=torch.float64)
        if self.terms is not None:
            size = torch.maximum(size, self.terms.double())
        return size.clamp(min=max(1e-30, _FLOOR * torch.finfo(self.edges.dtype).eps * float(size.max())))

    def check(self, tolerance: float = TOLERANCE) -> Check:
        """Every row's sum against its value."""
        missing = self.edges.sum(1, dtype=torch.float64) - self.values()
        relative = missing.abs() / self.row_sizes()
        return Check(missing, relative, float(relative.max()), tolerance)

    def require(self, tolerance: float = TOLERANCE) -> Graph:
        """The graph itself.

        Raises:
            VerificationError: a row does not add up.
        """
        found = self.check(tolerance)
        if not found.passed:
            row = int(found.relative.argmax())
            raise VerificationError(
                f"Row {row} of the graph does not add up: {float(found.missing[row]):.2e} is missing ({found.worst:.1e} of its edges' size).",
                why="Its edges would be wrong.",
                todo="Report it, with the model's name; in float64 the sums are good to 1e-12.",
            )
        return self

    def accounted(self) -> pl.DataFrame:
        """How each target's value divides: columns ``target kind value share_of_size``, one row a target and kind.

        ``value`` adds up to the target's value over the kinds; ``share_of_size`` is the kind's part of the sum of all edges' sizes.
        """
        kinds = {"units": slice(0, len(self.units)), "embeddings": self.columns.embeddings, "rest": self.columns.rest}
        if self.columns.biased:
            kinds["bias"] = self.columns.bias
        kinds["constant"] = slice(self.columns.constant, self.columns.constant + 1)
        rows = []
        for i, target in enumerate(self.targets):
            row = self.edges[i].double()
            size = float(row.abs().sum())
            for kind, where in kinds.items():
                part = row[where]
                rows.append((target.name, kind, float(part.sum()), float(part.abs().sum()) / size if size else 0.0))
        return pl.DataFrame(rows, schema=["target", "kind", "value", "share_of_size"], orient="row")

    def influence(self) -> Tensor:
        """``[column]``: influence on the targets over all paths, each target by its weight."""
        size = self.edges.double().abs()
        share = size / size.sum(1, keepdim=True).clamp(min=1e-300)
        weight = torch.tensor([t.weight for t in self.targets], dtype=torch.float64)
        found = (weight / weight.sum()) @ share[: self.n_targets]
        total, into = found.clone(), found[: len(self.units)]
        while bool((into > 0).any()):  # a path climbs at least one layer at each step
            found = into @ share[self.n_targets :]
            total, into = total + found, found[: len(self.units)]
        return total

    def prune(self, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Pruned:
        """The nodes and edges that hold these shares of the influence.

        Raises:
            ConfigError: a threshold outside 0 to 1.
        """
        for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
            if not 0 < value <= 1:
                raise ConfigError(f"{name} = {value} is no share.", todo="Give a number above 0, up to 1.")
        influence = self.influence()
        cumulative = _cumulative(influence)
        keep = _first_to_reach(influence, cumulative, node_threshold)
        keep[self.columns.embeddings] = True
        keep[self.columns.constant] = True
        n_targets, n_units = self.n_targets, len(self.units)
        weight = torch.tensor([t.weight for t in self.targets], dtype=torch.float64)
        size = self.edges.double().abs() * keep
        size[n_targets:] *= keep[:n_units, None]
        share = size / size.sum(1, keepdim=True).clamp(min=1e-300)
        score = share * torch.cat([weight / weight.sum(), influence[:n_units] * keep[:n_units]])[:, None]
        flat = score.flatten()
        edges = (_first_to_reach(flat, _cumulative(flat), edge_threshold) & (flat > 0)).view_as(score)
        while True:  # a unit that explains nothing kept, or that nothing kept explains, goes
            out = edges.any(0)
            has_in = edges[n_targets:].any(1)
            alive = keep.clone()
            alive[:n_units] &= out[:n_units] & has_in
            alive[self.columns.rest] &= out[self.columns.rest]
            alive[self.columns.bias] &= out[self.columns.bias]
            if bool((alive == keep).all()):
                return Pruned(keep, edges, influence, cumulative)
            keep = alive
            edges = edges & keep
            edges[n_targets:] &= keep[:n_units, None]

    def errors(self) -> pl.DataFrame:
        """What single neurons do not explain, by layer: ``layer influence below``; ``below`` is the sum of it and of lower layers.

        All influence ends in rests, embeddings and constants (in all 1), so each is a share; it falls as more neurons become nodes. In a layer of a
        dictionary it is that of the error and of the features that are no nodes; :func:`error_influence` parts them.
        """
        rest = self.influence()[self.columns.rest].view(self.columns.n_layers, -1).sum(1)
        return pl.DataFrame(
            {"layer": list(range(self.columns.n_layers)), "influence": rest.tolist(), "below": rest.cumsum(0).tolist()}
        )

    def diff(self, other: Graph) -> Difference:
        """This graph − another, edge by edge, on the neurons or features that both have; see ``_diff``."""
        from symbolic_residue.graph._diff import difference

        return difference(self, other)

    def ghosts(self, instrument: Instrument, **options: Any) -> Ghosts:
        """Large units that move the targets no more than they move random directions; options of ``_ghosts.ghosts``, ``dictionary`` where the graph has one."""
        from symbolic_residue.graph._ghosts import ghosts

        return ghosts(instrument, self, **options)

    def supernodes(
        self,
        instrument: Instrument | None = None,
        *,
        texts: Iterable[str] | None = None,
        dictionary: Dictionary | None = None,
        **options: Any,
    ) -> Supernodes:
        """Kept neurons grouped by what feeds and what reads them; options of ``_supernodes.supernodes``.

        With the model they are labelled by what they write and where they act, in the prompt and in ``texts``: ``_group_labels.label_supernodes``,
        which has more options.

        Raises:
            ConfigError: texts without the model.
        """
        from symbolic_residue.graph._group_labels import label_supernodes
        from symbolic_residue.graph._supernodes import supernodes

        if texts is not None and instrument is None:
            raise ConfigError("Texts say nothing without the model.", todo="Give the instrument too.")
        found = supernodes(self, **options)
        return found if instrument is None else label_supernodes(instrument, self, found, texts=texts, dictionary=dictionary)

    def faithfulness(self, instrument: Instrument, pair: CounterfactualPair | TokenPair, **options: Any) -> Faithfulness:
        """How much of a counterfactual pair's difference the graph's own units bring back: see ``graph_faithfulness``."""
        from symbolic_residue.graph._faithfulness import graph_faithfulness  # it takes graphs

        return graph_faithfulness(self, instrument, pair, **options)

    def head_loadings(self, instrument: Instrument, edges: Tensor | None = None, **options: Any) -> HeadLoadings:
        """Edges as sums over the heads that carry them, and what passes no attention; options of ``_heads.head_loadings``."""
        from symbolic_residue.graph._heads import head_loadings

        return head_loadings(instrument, self, edges, **options)

    def qk(self, instrument: Instrument, layer: int, head: int, query: int, key: int, **options: Any) -> QKAttribution:
        """Why a head looks where it looks: its score as a sum over pairs of columns; options of ``_qk.qk_attribution``."""
        from symbolic_residue.graph._qk import qk_attribution

        return qk_attribution(instrument, self, layer, head, query, key, **options)

    def heads(self, instrument: Instrument, **options: Any) -> GraphHeads:
        """The heads that carry the strongest kept edges, and why they look where they look; options of ``_carried.graph_heads``."""
        from symbolic_residue.graph._carried import graph_heads

        return graph_heads(instrument, self, **options)

    def save(self, folder: Path | str) -> Path:
        """Write the graph into a folder; see ``_file.save_graph``."""
        from symbolic_residue.graph._file import save_graph

        return save_graph(self, folder)

    def column_names(self) -> list[str]:
        """A name a column: ``L3 #120 @5`` for a neuron, ``L3 f120 @5`` for a feature, ``rest L3 @5``, ``emb @5``, ``bias L3 @5``, ``constant``."""
        features = self.feature_layers
        names = [f"L{i} {'f' if i in features else '#'}{n} @{t}" for i, t, n in _triples(self.units)]
        names += _spread_names("rest", self.columns)
        names += [f"emb @{t}" for t in range(self.columns.n_positions)]
        if self.columns.biased:
            names += _spread_names("bias", self.columns)
        return [*names, "constant"]

    def to_neuronpedia(self, **options: Any) -> dict[str, Any]:
        """The pruned graph in the JSON that Neuronpedia reads, as plain data; options of ``_neuronpedia.to_neuronpedia``."""
        from symbolic_residue.graph._neuronpedia import to_neuronpedia

        return to_neuronpedia(self, **options)

    def nodes(self) -> pl.DataFrame:
        """The units, most influential first: ``layer position token kind neuron activation effect influence``; of a feature ``neuron`` is its number."""
        influence = self.influence()[: len(self.units)]
        features = self.feature_layers
        layer, position, neuron = (x.tolist() for x in (self.units.layer, self.units.position, self.units.neuron))
        frame = pl.DataFrame(
            {
                "layer": layer,
                "position": position,
                "token": [self.tokens[t] for t in position],
                "kind": ["feature" if i in features else "neuron" for i in layer],
                "neuron": neuron,
                "activation": self.activations.tolist(),
                "effect": self.effects.tolist(),
                "influence": influence.tolist(),
            },
            schema_overrides={"token": pl.String, "kind": pl.String},
        )
        return frame.sort("influence", descending=True, maintain_order=True)


def _triples(units: Units) -> Sequence[tuple[int, int, int]]:
    return list(zip(units.layer.tolist(), units.position.tolist(), units.neuron.tolist(), strict=True))


def _spread_names(kind: str, columns: Columns) -> list[str]:
    if not columns.by_position:
        return [f"{kind} L{i}" for i in range(columns.n_layers)]
    return [f"{kind} L{i} @{t}" for i in range(columns.n_layers) for t in range(columns.n_positions)]


def _cumulative(values: Tensor) -> Tensor:
    """Share of the sum in each value and all larger ones."""
    order = values.argsort(descending=True, stable=True)
    shares = torch.empty_like(values)
    shares[order] = values[order].cumsum(0) / values.sum().clamp(min=1e-300)
    return shares


def _first_to_reach(values: Tensor, cumulative: Tensor, threshold: float) -> Tensor:
    """The largest values that together reach the share, the one that reaches it among them."""
    before = cumulative - values / values.sum().clamp(min=1e-300)
    return before < threshold - 1e-12
