"""An attribution graph as one HTML page: tokens along x, layers along y, and what feeds and reads the node that is chosen.

1. It is made from a graph in the exchanged JSON (Neuronpedia's), ours or from elsewhere, and needs no model.
2. It is one file that asks for nothing: the style, one known script (its hash is in the page's policy), and the nodes and links as data that the script reads
   and never runs. Every text of the data passes ``visible`` here and reaches the page as text.
3. Of more than ``MOST_LINKS`` links the page holds those that are the largest shares of what they feed; it says so. The file holds all.
4. All nodes stand in a table below, which needs neither script nor sight of the picture.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from symbolic_residue import figures
from symbolic_residue.report._graph_groups import group_said
from symbolic_residue.report._graph_heads import link_heads, looks
from symbolic_residue.report._templates import environment, read

__all__ = ["MOST_LINKS", "graph_page"]

MOST_LINKS = 60_000

_NO_TOKEN = re.compile(r'Output "(.*)" \(p=0\.000\)$')
_KINDS = {"cross layer transcoder": "unit", "mlp reconstruction error": "rest", "embedding": "embedding", "logit": "target"}
_SPREAD = {"-2": "bias", "-3": "constant"}
"""Of ours, by the number in the id; the format knows only errors."""

_WORDS = {"unit": "unit", "rest": "rest", "embedding": "embedding", "target": "target"}


def graph_page(data: Mapping[str, Any], *, note: str | None = None) -> str:
    """The page of a graph.

    Args:
        data: a graph in the exchanged JSON, validated (``graph.validate_neuronpedia``).
        note: a sentence below the question: what else was measured.
    """
    tokens = [figures.visible(str(token), spaces="all") for token in data["metadata"]["prompt_tokens"]]
    ours = "residue" in data["metadata"]
    nodes = [_node(node, tokens, ours) for node in data["nodes"]]
    order = _order(data["links"])
    number = {node["node_id"]: i for i, node in enumerate(data["nodes"])}
    view = data.get("qParams") or {}
    about = {(one["label"], *one["members"]): one for one in (data["metadata"].get("residue") or {}).get("supernodes") or []}
    groups = [
        {"name": figures.visible(group[0]), "of": [number[name] for name in group[1:] if name in number]}
        | group_said(about.get(tuple(group)), number)
        for group in view.get("supernodes") or []
        if group
    ]
    explained = looks(data, number, lambda one: _beside(one, tokens))
    shown = {
        "tokens": tokens,
        "nodes": [[n["id"], n["kind"], n["row"], n["at"], n["name"], n["label"], n["activation"], n["influence"]] for n in nodes],
        "links": [
            [number[link["source"]], number[link["target"]], _short(link["weight"]) or 0.0]
            for link in (data["links"][i] for i in order)
        ],
        "heads": link_heads(data["links"], order),
        "looks": explained,
        "groups": [group for group in groups if group["of"]],
        "pinned": [number[name] for name in view.get("pinnedIds") or [] if name in number],
        "clicked": number.get(view.get("clickedId") or "", -1),
    }
    script = read("graph.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    whole = data["metadata"].get("residue") or {}
    return (
        environment()
        .get_template("graph.html.j2")
        .render(
            csp=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
            style=Markup(read("report.css") + read("graph.css")),
            script=Markup(script),
            data=Markup(_inert(shown)),
            model=str(data["metadata"]["scan"]),
            prompt=str(data["metadata"]["prompt"]),
            note=note,
            targets=_targets(data, whole),
            kinds=_kinds(whole),
            whole=whole,
            settings=data["metadata"].get("pruning_settings") or {},
            counts={kind: sum(n["kind"] == kind for n in nodes) for kind in _WORDS},
            n_links=len(data["links"]),
            left_out=len(data["links"]) - len(order),
            heads=whole.get("heads"),
            left=whole.get("dictionary"),
            looks=_look_rows(explained, nodes, tokens),
            rows=_table(nodes, data["links"], number),
            words=_WORDS,
        )
    )


def _inert(value: Any) -> str:
    """JSON that cannot end the element that holds it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _node(node: Mapping[str, Any], tokens: Sequence[str], ours: bool) -> dict[str, Any]:
    kind, layer, at = _KINDS[node["feature_type"]], node["layer"], int(node["ctx_idx"])
    label = figures.visible(str(node.get("clerp") or ""))
    if ours and kind == "target" and not node.get("token_prob") and (asked := _NO_TOKEN.match(label)):
        label = asked[1]  # the format asks for a probability; a difference has none
    number = str(node["node_id"]).split("_")[1] if str(node["node_id"]).count("_") == 2 else str(node.get("feature"))
    names = {
        "unit": f"L{layer} #{figures.visible(number)}",
        "rest": f"L{layer} {_SPREAD.get(number, 'rest')}",
        "embedding": f"token {tokens[at]}",
        "target": label,
    }
    return {
        "id": figures.visible(str(node["node_id"])),
        "kind": kind,
        "row": 0 if layer == "E" else int(layer) + (kind != "target"),
        "at": at,
        "layer": layer,
        "token": tokens[at],
        "name": names[kind],
        "label": "" if kind == "target" else label,
        "activation": _short(node.get("activation")),
        "influence": _short(node.get("influence")),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _order(links: Sequence[Mapping[str, Any]]) -> list[int]:
    """Numbers of the links that the page holds, largest share of the target's kept links first."""
    size: dict[str, float] = {}
    for link in links:
        size[link["target"]] = size.get(link["target"], 0.0) + abs(link["weight"])
    order = sorted(range(len(links)), key=lambda i: -abs(links[i]["weight"]) / (size[links[i]["target"]] or 1.0))
    return order[:MOST_LINKS]


def _beside(one: Mapping[str, Any], tokens: Sequence[str]) -> str:
    """A name for what only QK terms name; it may have a kind or place that nodes do not have."""
    at, layer = one.get("ctx_idx"), str(one.get("layer"))
    placed = isinstance(at, int) and 0 <= at < len(tokens) and (layer == "E" or layer.isdecimal())
    if not placed or one.get("feature_type") not in _KINDS:
        return figures.visible(f"{one['node_id']} {one.get('clerp') or ''}".strip())
    found = _node(one, tokens, ours=False)
    return f"{found['name']} @{at}"


def _targets(data: Mapping[str, Any], whole: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target, with what it divides into where the file says so."""
    rows = whole.get("accounted") or []
    known = whole.get("targets") or [
        {"name": node.get("clerp") or node["node_id"], "value": None, "probability": node.get("token_prob")}
        for node in data["nodes"]
        if node["feature_type"] == "logit"
    ]
    each = len(rows) // len(known) if known else 0
    return [target | {"parts": rows[i * each : (i + 1) * each]} for i, target in enumerate(known)]


def _look_rows(
    found: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]], tokens: Sequence[str]
) -> list[dict[str, Any]]:
    """A row a look, for the table that needs no script; of ours only."""

    def name(i: int, text: str) -> str:
        return text if i < 0 else f"{nodes[i]['name']}" + ("" if nodes[i]["kind"] == "target" else f" @{nodes[i]['at']}")

    def said(terms: Sequence[Sequence[Any]]) -> str:
        return ", ".join(f"{name(*end)} {term:+.3g}" for end, term in terms[:3])

    return [
        {
            "head": f"L{one['layer']}H{one['head']}",
            "query": f"@{one['query']} {tokens[one['query']]}",
            "key": f"@{one['key']} {tokens[one['key']]}",
            "of_query": said(one["of_query"]),
            "of_key": said(one["of_key"]),
        }
        | {name: one[name] for name in ("weight", "score", "others", "carries")}
        for one in found
        if one["score"] is not None
    ]


def _kinds(whole: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["kind"] for row in whole.get("accounted") or []))


def _table(nodes: Sequence[dict[str, Any]], links: Sequence[Mapping[str, Any]], number: Mapping[str, int]) -> list[dict[str, Any]]:
    """A row a node: targets first, then by influence; with its strongest source and reader."""
    source: dict[int, tuple[float, int]] = {}
    reader: dict[int, tuple[float, int]] = {}
    for link in links:
        s, t, w = number[link["source"]], number[link["target"]], float(link["weight"])
        if abs(w) > abs(source.get(t, (0.0, 0))[0]):
            source[t] = (w, s)
        if abs(w) > abs(reader.get(s, (0.0, 0))[0]):
            reader[s] = (w, t)

    def said(found: tuple[float, int] | None) -> str:
        return f"{found[0]:+.3g} {nodes[found[1]]['name']} @{nodes[found[1]]['at']}" if found else "—"

    order = sorted(range(len(nodes)), key=lambda i: (nodes[i]["kind"] != "target", nodes[i]["influence"] or 0.0))
    return [nodes[i] | {"source": said(source.get(i)), "reader": said(reader.get(i))} for i in order]
