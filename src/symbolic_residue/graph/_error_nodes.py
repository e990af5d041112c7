"""What a dictionary's errors do to a graph, apart from the features that are no nodes.

1. A REST of a layer of the dictionary is two things: the error, and the features that are no nodes. The edges of the errors alone come from one more sweep, in
   which those features write nothing; the others' are REST − error.
2. Influence is that of ``Graph.influence`` with both as columns of their own: over all paths from the targets back, each edge by its share of its row's sizes.
3. Where all active features are nodes REST is the error, and the numbers are those of ``Graph.errors``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import torch

from symbolic_residue.dictionaries import Dictionary
from symbolic_residue.errors import ConfigError
from symbolic_residue.graph._columns import layer_sources, unit_rows
from symbolic_residue.graph._features import local_of
from symbolic_residue.graph._sweep import direct_edges

if TYPE_CHECKING:
    from symbolic_residue.graph._graph import Graph
    from symbolic_residue.instrument import Instrument

__all__ = ["error_influence"]


def error_influence(instrument: Instrument, graph: Graph, dictionary: Dictionary) -> pl.DataFrame:
    """The errors' influence on the targets, by layer.

    Args:
        instrument: of the graph's model.
        graph: of features; whole.
        dictionary: the graph's.

    Returns:
        One row a layer of the dictionary: ``layer error others below``: the influence of the errors and of the features that are no nodes, and the sum of
        the errors of this layer and of lower ones. All sources of the graph together have 1.

    Raises:
        ConfigError: a graph without a dictionary, or another dictionary than the graph's.
    """
    if not graph.feature_layers:
        raise ConfigError(
            "A graph of neurons has no errors.",
            why="Neurons are all of an MLP.",
            todo="Use graph.errors(): what the neurons that are no nodes have.",
        )
    with torch.no_grad():
        local = local_of(instrument, graph, None, dictionary)
        layers = list(local.layers)
        for j, source in enumerate(layer_sources(local, graph.units)):
            layer = layers[j]
            if layer.written_by_units is not None and layer.unexplained is not None:
                chosen = layer.written_by_units - source.rest
                layers[j] = replace(layer, written_by_units=layer.unexplained + chosen)
        rows = graph.target_rows + unit_rows(local, graph.units, graph.rule)
        without, columns = direct_edges(
            replace(local, layers=tuple(layers)), rows, graph.units, by_position=graph.columns.by_position
        )
    n_units, n_targets, spread = len(graph), graph.n_targets, columns.spread
    whole = graph.edges.double()
    error = without[:, columns.rest].double()
    others = whole[:, columns.rest] - error  # nothing in a layer of neurons, which is not reported
    size = torch.cat([whole[:, :n_units], error, others, whole[:, columns.rest.stop :]], 1).abs()
    share = size / size.sum(1, keepdim=True).clamp(min=1e-300)
    weight = torch.tensor([t.weight for t in graph.targets], dtype=torch.float64)
    found = (weight / weight.sum()) @ share[:n_targets]
    total = found.clone()
    while bool((found[:n_units] > 0).any()):  # a path climbs at least one layer at each step
        found = found[:n_units] @ share[n_targets:]
        total = total + found
    both = total[n_units : n_units + 2 * error.shape[1]].view(2, columns.n_layers, spread).sum(-1)
    at = sorted(graph.feature_layers)
    of_errors = both[0][at]
    return pl.DataFrame(
        {"layer": at, "error": of_errors.tolist(), "others": both[1][at].tolist(), "below": of_errors.cumsum(0).tolist()},
        schema={"layer": pl.Int64, "error": pl.Float64, "others": pl.Float64, "below": pl.Float64},
    )
