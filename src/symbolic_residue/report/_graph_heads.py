"""Heads of a graph's links and why they look where they look, as the graph's page holds them: numbers, node numbers, and texts made visible."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["link_heads", "looks"]

Name = Callable[[str], list[Any]]
_CANCEL = 3.0
"""Parts whose sizes are more than so many times the link are said as numbers: shares of what they nearly cancel to would say nothing."""


def link_heads(links: Sequence[Mapping[str, Any]], order: Sequence[int]) -> list[list[Any]]:
    """Of the links that were split: place in ``order``, whether in shares, ``[[layer, head, part] …]``, all other heads, no attention."""
    found: list[list[Any]] = []
    for place, i in enumerate(order):
        one = links[i].get("residue_heads")
        if not one:
            continue
        weight, others, none = (float(x) for x in (links[i]["weight"], one.get("others", 0.0), one.get("no_attention", 0.0)))
        heads = [(int(layer), int(head), float(part)) for layer, head, part in one.get("heads", [])]
        size = sum(abs(part) for _, _, part in heads) + abs(others) + abs(none)
        if not size:
            continue
        shares = weight != 0 and size <= _CANCEL * abs(weight)
        by = weight if shares else 1.0
        found.append(
            [place, int(shares), [[i, h, _short(part / by)] for i, h, part in heads], _short(others / by), _short(none / by)]
        )
    return found


def looks(data: Mapping[str, Any], number: Mapping[str, int], name: Callable[[Mapping[str, Any]], str]) -> list[dict[str, Any]]:
    """Why heads look where they look: ours, whole; of other files what their nodes hold, without the sums that they do not say.

    Args:
        data: the graph.
        number: of its nodes, by id.
        name: of a node, to be read.
    """
    beside = data.get("qk_only_nodes") or {}
    beside = {one["node_id"]: one for one in beside} if isinstance(beside, list) else beside

    def end(node_id: str) -> list[Any]:
        if node_id in number:
            return [number[node_id], ""]
        one = beside.get(node_id)
        return [-1, name({"node_id": node_id, "feature_type": "", "layer": "", "ctx_idx": -1} | dict(one or {}))]

    whole = (data["metadata"].get("residue") or {}).get("looks")
    if whole is not None:
        return [_ours(one, number, end) for one in whole]
    found = []
    for i, node in enumerate(data["nodes"]):
        one = node.get("qk_tracing_results")
        if one:
            lists = (one.get(f"{kind}_contributors") or [] for kind in ("pair_wise", "top_q_marginal", "top_k_marginal"))
            pairs, query, key = ([[*map(end, ids), _short(term)] for *ids, term in terms] for terms in lists)
            found.append({"node": [i], "pairs": pairs, "of_query": query, "of_key": key, "score": None})
    return found


def _ours(one: Mapping[str, Any], number: Mapping[str, int], end: Name) -> dict[str, Any]:
    ends = [number[name] for name in (one["source"], one["target"]) if name in number]
    lists = {kind: [[*map(end, ids), _short(term)] for *ids, term in one[kind]] for kind in ("pairs", "of_query", "of_key")}
    said = {name: _short(one[name]) for name in ("score", "weight", "carries", "pairs_left", "query_left", "key_left")}
    others = one.get("others")
    said_too = {"node": ends, "others": None if others is None else _short(others)}
    return {name: one[name] for name in ("layer", "head", "query", "key")} | lists | said | said_too


def _short(value: float) -> float:
    return float(f"{value:.4g}")
