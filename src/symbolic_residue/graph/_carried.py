"""Which heads carry a graph's strongest edges, and why they look where they look: chosen, bounded, and complete.

1. Edges: of those that pruning keeps, from units, embeddings and rests by position, the ``edges`` that hold most influence: the edge's share of its row's
   absolute sum × the row's influence (a target's: its weight). Each is split over heads (``_heads``); parts and bypass add up to it. Most such edges end in
   few rows, and a row more costs more than an edge more.
2. Looks: a head that takes from a position holds, of each edge, the edge's influence × |its part| over the sizes of all parts. Summed over the edges
   between positions, the ``looks`` largest (layer, head, key) are explained (``_qk``), at the query where the head puts most of its strongest edge. Left out:
   keys at position 0 (looking there is most often the attention sink), and heads that put most where they took it.
3. Of each look what the score owes to each column at the query (with the whole key), and at the key, is one row each of a sweep; the ``terms`` largest of
   either are kept. Of the pairs, those among these columns are computed, and the ``terms`` largest kept (constants, biases and rests by layer, which are no
   write at one position, form none). Beside each stands what all others sum to: kept + left = score. ``Graph.qk`` has all pairs.
4. A model whose queries and keys cannot be rebuilt has no looks; ``refused`` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary
from symbolic_residue.errors import ConfigError, ReadError, VerificationError
from symbolic_residue.graph._columns import Rows
from symbolic_residue.graph._device import on
from symbolic_residue.graph._features import local_of
from symbolic_residue.graph._graph import Graph, TOLERANCE
from symbolic_residue.graph._heads import arrived, head_loadings, HeadLoadings, routes
from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._qk import score_sides, Sides
from symbolic_residue.graph._sweep import direct_edges

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["GraphHeads", "Look", "graph_heads", "influential_edges"]

_CANDIDATES = 4
"""Times as many are looked at, since some look at their own position."""

Pair = tuple[int, int, float]
One = tuple[int, float]


@dataclass(frozen=True)
class Look:
    """Why a head looks at a key.

    Attributes:
        layer, head, query, key: which.
        score, weight: scale · q · k, and the attention weight.
        others: the query's mean score at the other keys that it sees, position 0 apart; None where there are none.
        carries: influence of the split edges that the head carries from there, of all of theirs.
        edge: ``(row, column)`` of the strongest that it carries.
        pairs: ``(query column, key column, term)``, largest first, among the columns that are named; ``pairs_left``: sum of all others.
        of_query: ``(column, term)``: what the score owes to a column at the query, with the whole key; ``query_left``: sum of all others.
        of_key, key_left: the same at the key.
    """

    layer: int
    head: int
    query: int
    key: int
    score: float
    weight: float
    others: float | None
    carries: float
    edge: tuple[int, int]
    pairs: tuple[Pair, ...]
    pairs_left: float
    of_query: tuple[One, ...]
    query_left: float
    of_key: tuple[One, ...]
    key_left: float


@dataclass(frozen=True, eq=False)
class GraphHeads:
    """Heads of a graph's strongest edges.

    Attributes:
        loadings: the edges and their parts.
        share: the edges' part of the influence of all kept edges from units, embeddings and rests by position.
        looks: why the most important heads look where they look.
        refused: why there are no looks; empty where there are, or none were asked for.
    """

    loadings: HeadLoadings
    share: float
    looks: tuple[Look, ...]
    refused: str = ""

    def __len__(self) -> int:
        return len(self.loadings.row)


def influential_edges(
    graph: Graph, count: int, *, node_threshold: float = 0.8, edge_threshold: float = 0.98
) -> tuple[Tensor, Tensor, float]:
    """The kept edges that hold most influence.

    Args:
        graph: whole, not pruned.
        count: how many at most.
        node_threshold, edge_threshold: of :meth:`Graph.prune`.

    Returns:
        ``[edge, (row, column)]`` in the graph's order, their influence ``[edge]``, and its share of that of all edges that could have been chosen.
    """
    kept, columns = graph.prune(node_threshold, edge_threshold), graph.columns
    allowed = torch.zeros(len(columns), dtype=torch.bool)
    allowed[: len(graph)] = True
    allowed[columns.embeddings] = True
    allowed[columns.rest] = columns.by_position
    size = graph.edges.double().abs()
    weight = torch.tensor([t.weight for t in graph.targets], dtype=torch.float64)
    row = torch.cat([weight / weight.sum(), kept.influence[: len(graph)]])
    score = size / size.sum(1, keepdim=True).clamp(min=1e-300) * row[:, None] * (kept.edges & allowed)
    total = float(score.sum())
    best = score.flatten().topk(min(count, int((score > 0).sum()))).indices.sort().values
    strength = score.flatten()[best]
    return torch.stack([best // len(columns), best % len(columns)], 1), strength, float(strength.sum()) / total if total else 0.0


def graph_heads(
    instrument: Instrument,
    graph: Graph,
    *,
    edges: int = 3000,
    looks: int = 6,
    terms: int = 10,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    local: LocalModel | None = None,
    dictionary: Dictionary | None = None,
) -> GraphHeads:
    """The heads that carry a graph's strongest edges.

    Args:
        instrument: the model that the graph is of.
        graph: whole, not pruned.
        edges: split at most.
        looks: explained at most; each costs a forward, a sweep of two rows and one of ``2 · terms`` columns.
        terms: pairs (and marginals of the query, and of the key) kept of each.
        node_threshold, edge_threshold: of :meth:`Graph.prune`.
        local: of the same prompt, where the caller has it.
        dictionary: of the graph, where it has one.

    Raises:
        ConfigError: a negative number, or no terms; another dictionary than the graph's.
        VerificationError: another model, or another prompt.
    """
    if edges < 0 or looks < 0 or terms < 1:
        raise ConfigError(f"{edges} edges, {looks} looks of {terms} terms cannot be.", todo="Give 0 or more, and a term.")
    chosen, strength, share = influential_edges(graph, edges, node_threshold=node_threshold, edge_threshold=edge_threshold)
    local = local_of(instrument, graph, local, dictionary)
    loadings = head_loadings(instrument, graph, chosen, local=local)
    found, refused = [], ""
    try:
        for layer, head, query, key, carries, edge in _asked(local, graph, loadings, strength, looks):
            with torch.no_grad(), on(local.device):
                found.append(_look(instrument, graph, local, (layer, head, query, key), terms, carries, edge))
    except ReadError as error:
        found, refused = [], error.what
    return GraphHeads(loadings, share, tuple(found), refused)


def _asked(
    local: LocalModel, graph: Graph, loadings: HeadLoadings, strength: Tensor, count: int
) -> list[tuple[int, int, int, int, float, tuple[int, int]]]:
    """(layer, head, query, key, share of the influence, edge) of the looks that carry most."""
    if not len(strength) or not count:
        return []
    sizes = loadings.loadings.double().abs()
    whole = sizes.sum((1, 2)) + loadings.bypass.double().abs()
    held = sizes * (strength / whole.clamp(min=1e-300))[:, None, None]  # [edge, layer, head]
    where = _positions(graph)
    source, reader = where[loadings.column], torch.cat([graph.target_rows.position, graph.units.position])[loadings.row]
    held[(source == 0) | (source == reader)] = 0
    carried = torch.zeros(graph.columns.n_positions, *held.shape[1:], dtype=held.dtype).index_add(0, source, held)
    best = carried.flatten().topk(min(_CANDIDATES * count, int((carried > 0).sum()))).indices
    if not len(best):
        return []
    n_heads = held.shape[2]
    key, layer, head = best // held[0].numel(), best % held[0].numel() // n_heads, best % n_heads
    edge = torch.stack([(held[:, i, h] * (source == t)).argmax() for t, i, h in zip(key, layer, head, strict=True)])
    edges = torch.stack([loadings.row[edge], loadings.column[edge]], 1)
    query = routes(local, graph, edges, torch.stack([layer, head], 1)).abs().argmax(1)
    share = carried.flatten()[best] / strength.sum()
    found = [
        (int(i), int(h), int(q), int(t), float(s), (int(e[0]), int(e[1])))
        for i, h, q, t, s, e in zip(layer, head, query, key, share, edges, strict=True)
        if q != t
    ]
    return found[:count]


def _positions(graph: Graph) -> Tensor:
    """``[column]``: where a column writes; 0 where it writes at several positions."""
    shape = graph.columns
    found = torch.zeros(len(shape), dtype=torch.long)
    found[: len(graph)] = graph.units.position
    found[shape.embeddings] = torch.arange(shape.n_positions)
    if shape.by_position:
        found[shape.rest] = torch.arange(shape.n_positions).repeat(shape.n_layers)
    return found


def _look(
    instrument: Instrument,
    graph: Graph,
    local: LocalModel,
    asked: tuple[int, int, int, int],
    terms: int,
    carries: float,
    edge: tuple[int, int],
) -> Look:
    layer, _, query, key = asked
    one = score_sides(instrument, graph, local, *asked)
    rows = Rows(
        one.scale * torch.stack([one.k @ one.q_direction, one.q @ one.k_direction]),
        one.scale * torch.stack([one.k @ one.q_constant, one.q @ one.k_constant]),
        torch.full((2,), 2 * layer),
        torch.tensor([query, key]),
    )
    edges, columns = direct_edges(local, rows, graph.units.to(local.device), by_position=graph.columns.by_position)
    if columns != graph.columns:
        raise VerificationError("The graph has other columns than this model and prompt give.", todo="Make it with this model.")
    of_query, of_key = edges.cpu().double()
    for side, values in (("query", of_query), ("key", of_key)):
        missing = abs(float(values.sum()) - one.score)
        if missing > TOLERANCE * max(float(values.abs().sum()), abs(one.score)):
            raise VerificationError(
                f"What stands at the {side} misses the score of head {asked[0]}.{asked[1]} by {missing:.1e}.",
                todo="Make the graph with this model.",
            )
    by_query, query_left = _largest(of_query, terms, one.score)
    by_key, key_left = _largest(of_key, terms, one.score)
    pairs = _pairs(graph, local, one, asked, [c for c, _ in by_query], [c for c, _ in by_key])[:terms]
    left = one.score - sum(term for *_, term in pairs)
    return Look(
        *asked,
        one.score,
        one.weight,
        one.others,
        carries,
        edge,
        tuple(pairs),
        left,
        tuple(by_query),
        query_left,
        tuple(by_key),
        key_left,
    )


def _pairs(
    graph: Graph, local: LocalModel, one: Sides, asked: tuple[int, int, int, int], at_query: Sequence[int], at_key: Sequence[int]
) -> list[Pair]:
    """Terms of all pairs of these columns, largest first."""
    layer, _, query, key = asked
    shape = graph.columns
    rest = range(shape.rest.start, shape.rest.stop)

    def single(column: int) -> bool:
        return column < shape.embeddings.stop and (column not in rest or shape.by_position)

    used = torch.tensor(sorted({c for c in (*at_query, *at_key) if single(c)}), dtype=torch.long)
    if not len(used):
        return []
    stream = arrived(local, graph, used, layer, query + 1)
    terms = one.scale * (stream[:, query] @ one.q_direction.T) @ (stream[:, key] @ one.k_direction.T).T
    place = {c: i for i, c in enumerate(used.tolist())}
    found = [(i, j, float(terms[place[i], place[j]])) for i in at_query if i in place for j in at_key if j in place]
    return sorted((pair for pair in found if pair[2]), key=lambda pair: (-abs(pair[2]), pair))


def _largest(values: Tensor, count: int, total: float) -> tuple[Sequence[One], float]:
    """The largest values, with their numbers, and what the others make up of the total."""
    best = values.abs().topk(min(count, int((values != 0).sum()))).indices.tolist()
    found = [(i, float(values[i])) for i in best]
    return found, total - sum(value for _, value in found)
