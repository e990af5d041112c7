"""Heads and looks of a graph in the exchanged JSON: the format's own fields, and ours where it has none.

1. A link that was split carries ``residue_heads``: ``heads [[layer, head, part] …]`` (the largest), ``others`` (all other heads) and ``no_attention``; they
   add up to its weight. The format has no place for heads of a link.
2. Each look is whole under ``metadata.residue.looks``: terms by node id, and ``…_left``, what all others sum to, so that they add up to ``score``.
3. ``qk_tracing_results``, of which a node can hold one, is that of the first look whose strongest edge ends in the node. It has no place for what is left.
4. Columns that a look names and that are no nodes of the file stand in ``qk_only_nodes``, by id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
    from symbolic_residue.graph._carried import GraphHeads, Look

__all__ = ["add_links", "add_looks"]

_PER_LINK = 3


def add_links(heads: GraphHeads, edges: Sequence[tuple[int, int]], links: Sequence[dict[str, Any]]) -> None:
    """Give links, one an edge ``(row, column)``, their heads."""
    one = heads.loadings
    if not len(one.row):
        return
    number = {edge: i for i, edge in enumerate(zip(one.row.tolist(), one.column.tolist(), strict=True))}
    flat = one.loadings.double().flatten(1)
    best = flat.abs().topk(min(_PER_LINK, flat.shape[1]), dim=1).indices
    parts = flat.gather(1, best)
    n_heads = one.loadings.shape[2]
    bypass = one.bypass.double()
    others = flat.sum(1) - parts.sum(1)
    for edge, link in zip(edges, links, strict=True):
        e = number.get(edge)
        if e is not None:
            link["residue_heads"] = {
                "heads": [
                    [i // n_heads, i % n_heads, part] for i, part in zip(best[e].tolist(), parts[e].tolist(), strict=True) if part
                ],
                "others": float(others[e]),
                "no_attention": float(bypass[e]),
            }


def add_looks(
    heads: GraphHeads, rows: Sequence[str], columns: Sequence[Mapping[str, Any]], listed: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Give nodes their looks.

    Args:
        heads: of the graph.
        rows: node ids of the graph's rows.
        columns: a node each column.
        listed: the file's nodes.

    Returns:
        Every look as plain data, and the nodes that only looks name, by id.
    """
    there = {node["node_id"]: node for node in listed}
    looks, only = [], {}
    for look in heads.looks:
        said = _plain(look, rows, columns)
        looks.append(said)
        named = [name for *names, _ in (*said["pairs"], *said["of_query"], *said["of_key"]) for name in names]
        by_id = {node["node_id"]: node for node in (columns[c] for c in _columns_of(look))}
        only.update({name: dict(by_id[name]) for name in named if name not in there})
        reader = there.get(said["target"])
        if reader is not None and "qk_tracing_results" not in reader:
            reader["qk_tracing_results"] = {
                "pair_wise_contributors": said["pairs"],
                "top_q_marginal_contributors": said["of_query"],
                "top_k_marginal_contributors": said["of_key"],
            }
    return looks, only


def _columns_of(look: Look) -> list[int]:
    return [c for a, b, _ in look.pairs for c in (a, b)] + [c for c, _ in (*look.of_query, *look.of_key)]


def _plain(look: Look, rows: Sequence[str], columns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    name = [node["node_id"] for node in columns]
    return {
        "layer": look.layer,
        "head": look.head,
        "query": look.query,
        "key": look.key,
        "score": look.score,
        "weight": look.weight,
        "others": look.others,
        "carries": look.carries,
        "source": name[look.edge[1]],
        "target": rows[look.edge[0]],
        "pairs": [[name[q], name[k], term] for q, k, term in look.pairs],
        "pairs_left": look.pairs_left,
        "of_query": [[name[c], term] for c, term in look.of_query],
        "query_left": look.query_left,
        "of_key": [[name[c], term] for c, term in look.of_key],
        "key_left": look.key_left,
    }
