"""Supernodes: neurons of a pruned graph that are fed and read alike, grouped.

1. A neuron's profile: its row of edges, and its column of edges, among the nodes that pruning keeps, signed, each of length 1. Alike: the mean of both cosines.
2. Groups by average linkage on 1 − alikeness. Their number is the one of largest mean silhouette, from 2 to ``most`` (fewer where equal).
3. Control: the same with every column of the profiles permuted among the neurons of a layer, which keeps how popular each source and reader is with each layer
   and unties them from each other (that layers differ is no finding; that positions do counts as one). Where the silhouette is not above all of
   ``permutations`` such, there are no supernodes.
4. Without the model a group is named by the tokens that its neurons raise, each by the neuron's influence; with it by ``_group_labels``. Groups of one neuron
   are left alone.

Nothing is drawn but the permutations, by seed. A group is a summary of edges, and no claim that its neurons compute one thing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.graph._graph import Graph

if TYPE_CHECKING:
    from symbolic_residue.graph._group_labels import GroupLabel

__all__ = ["Supernodes", "supernodes"]


@dataclass(frozen=True, eq=False)
class Supernodes:
    """Groups of neurons.

    Attributes:
        labels: a group each.
        members: a group each: numbers of its units in the graph.
        silhouette: mean over the grouped neurons; nan where there were too few.
        control: the largest of the permuted profiles; nan where there were too few.
        about: what is known of each group, where :func:`label_supernodes` was asked.
        node_threshold, edge_threshold: of the pruning whose nodes are grouped.
    """

    labels: tuple[str, ...]
    members: tuple[tuple[int, ...], ...]
    silhouette: float
    control: float
    about: tuple[GroupLabel, ...] = ()
    node_threshold: float = 0.8
    edge_threshold: float = 0.98

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, graph: Graph) -> list[list[str]]:
        """As :func:`to_neuronpedia` takes them: label, then node ids."""
        units = graph.units
        ids = [f"{i}_{n}_{t}" for i, t, n in zip(units.layer.tolist(), units.position.tolist(), units.neuron.tolist(), strict=True)]
        return [[label, *(ids[u] for u in group)] for label, group in zip(self.labels, self.members, strict=True)]


def supernodes(
    graph: Graph,
    *,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    most: int = 40,
    permutations: int = 19,
    seed: int = 0,
) -> Supernodes:
    """Group the neurons that pruning keeps.

    Args:
        graph: whole, not pruned.
        node_threshold, edge_threshold: of :meth:`Graph.prune`.
        most: groups at most.
        permutations: of the control; 19 are a test at 5 %.
        seed: of the permutations.

    Raises:
        ConfigError: fewer than 2 groups or no permutation.
    """
    if most < 2 or permutations < 1:
        raise ConfigError(f"{most} groups and {permutations} permutations are too few.", todo="Give 2 and 1, or more.")
    kept = graph.prune(node_threshold, edge_threshold)
    units = kept.columns[: len(graph)].nonzero()[:, 0]
    if len(units) < 4:
        return Supernodes((), (), float("nan"), float("nan"), (), node_threshold, edge_threshold)
    edges = torch.where(kept.edges, graph.edges.double(), 0.0)
    into = _unit(edges[graph.n_targets + units])
    out = _unit(edges[:, units].T)
    into, out = into[:, into.any(0)], out[:, out.any(0)]
    groups, silhouette = _best(_distance(into, out), most)
    generator = torch.Generator().manual_seed(seed)
    layer = graph.units.layer[units]
    control = max(
        _best(_distance(_shuffled(into, layer, generator), _shuffled(out, layer, generator)), most)[1] for _ in range(permutations)
    )
    if not silhouette > control:
        return Supernodes((), (), silhouette, control, (), node_threshold, edge_threshold)
    found = [units[torch.from_numpy(groups == g)].tolist() for g in range(1, int(groups.max()) + 1)]
    influence = kept.influence
    found = [sorted(group, key=lambda u: -float(influence[u])) for group in found if len(group) > 1]
    found.sort(key=lambda group: (-float(influence[group].sum()), group))
    labels = tuple(_label(graph, g, influence) for g in found)
    return Supernodes(labels, tuple(map(tuple, found)), silhouette, control, (), node_threshold, edge_threshold)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)


def _shuffled(rows: Tensor, layer: Tensor, generator: torch.Generator) -> Tensor:
    """Every column permuted among the rows of a layer (``layer`` ascending), rows of length 1 again."""
    drawn = torch.rand(rows.shape, generator=generator, dtype=torch.float64)
    return _unit(rows.gather(0, (drawn + layer[:, None]).argsort(dim=0)))


def _distance(into: Tensor, out: Tensor) -> np.ndarray:
    found = (1 - (into @ into.T + out @ out.T) / 2).clamp(0, 2)
    found = (found + found.T) / 2
    found.fill_diagonal_(0)
    return found.numpy()


def _best(distance: np.ndarray, most: int) -> tuple[np.ndarray, float]:
    """Groups 1 … k of largest mean silhouette, and it."""
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform

    n = len(distance)
    tree = linkage(squareform(distance, checks=False), "average")
    cuts = cut_tree(tree, n_clusters=list(range(2, min(most, n - 1) + 1)))
    best, chosen = -np.inf, cuts[:, 0]
    for groups in cuts.T:
        score = _silhouette(distance, groups)
        if score > best + 1e-12:
            best, chosen = score, groups
    return chosen + 1, float(best)


def _silhouette(distance: np.ndarray, groups: np.ndarray) -> float:
    """Mean of (b − a) / max(a, b): a to one's own group, b to the nearest other; 0 for one alone."""
    member = np.eye(int(groups.max()) + 1)[groups]
    counts = member.sum(0)
    sums = distance @ member
    rows = np.arange(len(groups))
    own = counts[groups]
    a = sums[rows, groups] / np.maximum(own - 1, 1)
    means = sums / counts
    means[rows, groups] = np.inf
    b = means.min(1)
    score = np.where(own > 1, (b - a) / np.maximum(np.maximum(a, b), 1e-300), 0.0)
    return float(score.mean())


def _label(graph: Graph, group: list[int], influence: Tensor) -> str:
    layers = graph.units.layer[group]
    low, high = int(layers.min()), int(layers.max())
    where = f"L{low}" if low == high else f"L{low}–{high}"
    votes: Counter[str] = Counter()
    for u in group:
        words = graph.labels[u] if graph.labels else (graph.tokens[int(graph.units.position[u])],)
        for word in set(words):
            votes[word] += float(influence[u])  # type: ignore[assignment]
    best = sorted(votes, key=lambda word: (-votes[word], word))[:2]
    return f"{', '.join(map(repr, best))} {where} ×{len(group)}"
