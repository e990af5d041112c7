"""How much of a graph runs through its units: replacement and completeness score, as circuit-tracer computes them (Ameisen et al. 2025, Circuit Tracing).

1. Shares: ``|edge|`` over the sum of its row's ``|edges|`` from units, REST and embeddings. circuit-tracer has no nodes for constants, so BIAS and the
   rows' own constants are left out. Influence of a node: the sum over all paths from it to the targets, each the product of its shares, each target by
   its weight.
2. ``replacement = T / (T + R)``: influence T of embeddings and R of REST: what reaches the targets from tokens, through units alone.
3. ``completeness``: mean of the share of a node's inputs that are not REST, over all nodes by their influence, targets by their weight. Embeddings and
   REST have no inputs and count with 1, as they do there.
4. REST holds the error and the units that are no nodes, which circuit-tracer drops from its sums: with every active feature a node the scores are its
   own, with fewer they are lower. A graph of neurons has no error: there the scores say how much runs through the neurons that are nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from symbolic_residue.graph._graph import Graph

__all__ = ["Scores", "graph_scores"]


@dataclass(frozen=True)
class Scores:
    """Both from 0 (all REST) to 1 (no REST)."""

    replacement: float
    completeness: float


def graph_scores(graph: Graph) -> Scores:
    """The scores of a whole (not pruned) graph."""
    n_units, n_targets = len(graph), graph.n_targets
    size = graph.edges.double().abs()[:, : graph.columns.embeddings.stop]
    share = size / size.sum(1, keepdim=True).clamp(min=1e-300)
    weight = torch.tensor([t.weight for t in graph.targets], dtype=torch.float64)
    weight = weight / weight.sum()
    now = weight @ share[:n_targets]
    total = now.clone()
    while bool((now[:n_units] > 0).any()):  # a path climbs at least one layer at each step
        now = now[:n_units] @ share[n_targets:]
        total = total + now
    rest, tokens = total[graph.columns.rest].sum(), total[graph.columns.embeddings].sum()
    explained = 1 - share[:, graph.columns.rest].sum(1)
    rows = torch.cat([weight, total[:n_units]])
    completeness = ((rows * explained).sum() + rest + tokens) / (rows.sum() + rest + tokens)
    both = rest + tokens
    return Scores(float(tokens / both) if both else 0.0, float(completeness))
