"""Graphs in the exchanged JSON, made up: of any size, and with tokens and labels that would be markup."""

from __future__ import annotations

import math
import random
from typing import Any

NASTY = [
    "<script>window.pwned = 1</script>",
    "\"'><img src=x onerror=window.pwned=1>",
    "</script><script>window.pwned=1</script>",
    "\u202eevil",
    "a\nb",
]
WORDS = [
    "",
    "The",
    "mill",
    "stands",
    "where",
    "the",
    "river",
    "turns",
    "and",
    "the",
    "miller",
    "keeps",
    "a",
    "key",
    "to",
    "its",
    "gate",
    ",",
    "so",
][1:]


def graph_data(units: int = 40, tokens: int = 12, layers: int = 6, *, nasty: bool = False, seed: int = 0) -> dict[str, Any]:
    """A graph: units in late layers and at late positions more often; 12 sources each, rests, embeddings and two targets."""
    draw = random.Random(seed)
    texts = [f" {WORDS[t % len(WORDS)]}" for t in range(tokens)]
    if nasty:
        texts[: len(NASTY)] = NASTY[:tokens]
    cells = [(layer, t) for layer in range(layers) for t in range(tokens)]
    weights = [(1 + layer) * math.exp(3 * t / tokens) for layer, t in cells]
    places = draw.choices(cells, weights, k=units)
    nodes = [
        node(
            f"{layer}_{100 + i}_{t}",
            str(layer),
            t,
            "cross layer transcoder",
            f"raises {texts[i % tokens]!r}, ' word{i}'",
            draw.gauss(0, 2),
        )
        for i, (layer, t) in enumerate(places)
    ]
    nodes += [
        node(f"{layer}_-1_{t}", str(layer), t, "mlp reconstruction error", f"other neurons, layer {layer}")
        for layer, t in cells
        if draw.random() < 0.1
    ]
    for i, one in enumerate(draw.sample(nodes, len(nodes))):
        one["influence"] = 0.8 * (i + 1) / len(nodes)
    nodes += [node(f"E_{t}_{t}", "E", t, "embedding", f"Emb: {text!r}") | {"influence": 0.5} for t, text in enumerate(texts)]
    names = [" gate", " river"]
    nodes += [
        node(f"{layers + 1}_{9 + i}_{tokens - 1}", str(layers + 1), tokens - 1, "logit", f'Output "{name}" (p={p:.3f})', v)
        | {"token_prob": p}
        for i, (name, p, v) in enumerate(zip(names, (0.6, 0.2), (9.1, 7.4), strict=True))
    ]

    def height(one: dict[str, Any]) -> int:
        return 0 if one["layer"] == "E" else int(one["layer"]) + 1

    links = []
    for target in nodes:
        if target["feature_type"] in ("embedding", "mlp reconstruction error"):
            continue
        below = [one for one in nodes if height(one) < height(target) and one["ctx_idx"] <= target["ctx_idx"]]
        links += [
            {"source": one["node_id"], "target": target["node_id"], "weight": draw.gauss(0, 1)}
            for one in draw.sample(below, min(12, len(below)))
        ]
    first = [one["node_id"] for one in nodes[:5]]
    targets = [
        {"node_id": f"{layers + 1}_{9 + i}_{tokens - 1}", "name": repr(name), "value": v, "probability": p}
        for i, (name, v, p) in enumerate(zip(names, (9.1, 7.4), (0.6, 0.2), strict=True))
    ]
    looks, only = made_heads(draw, nodes, links, layers, NASTY[0] if nasty else "rest of layer 1")
    kinds = ("units", "embeddings", "rest", "constant")
    return {
        "metadata": {
            "slug": "made-up",
            "scan": NASTY[0] if nasty else "made-up",
            "prompt_tokens": texts,
            "prompt": "".join(texts),
            "schema_version": 1,
            "pruning_settings": {"node_threshold": 0.8, "edge_threshold": 0.98},
            "residue": {
                "adds_up": {"worst": 1e-7, "tolerance": 1e-5, "rows": units + 2},
                "accounted": [
                    {"target": t["name"], "kind": kind, "value": t["value"] * share, "share_of_size": share}
                    for t in targets
                    for kind, share in zip(kinds, (0.6, 0.1, 0.3, 0.0), strict=True)
                ],
                "targets": targets,
                "units": units,
                "layers": layers,
                "uncapped": False,
                "looks": looks,
                "supernodes": [made_group(NASTY[0] if nasty else "' gate', ' key' L3–5 ×5", first, NASTY[1] if nasty else " gate")],
                "heads": {"edges": sum("residue_heads" in link for link in links), "influence": 0.6, "refused": ""},
            },
        },
        "qParams": {
            "pinnedIds": [t["node_id"] for t in targets],
            "supernodes": [[NASTY[0] if nasty else "' gate', ' key' L3–5 ×5", *first]],
            "linkType": "both",
            "clickedId": targets[0]["node_id"],
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": links,
        "qk_only_nodes": only,
    }


def made_group(label: str, members: list[str], token: str) -> dict[str, Any]:
    """What is known of a group: places in texts tell, the prompt's tokens have nothing to judge, writes are no more than chance."""
    numbers = {"n": 20, "control_mean": 0.11, "control_most": 0.25}
    return {
        "label": label,
        "members": members,
        "first": 1,
        "fires": {"tokens": [token, " key"], "tells": True, "value": 0.6} | numbers,
        "acts": {"tokens": [], "tells": False, "value": None} | numbers | {"control_mean": None, "control_most": None},
        "writes": {"tokens": [" river"], "tells": False, "value": 4.7, "n": 5, "control_mean": 5.2, "control_most": 6.75},
        "examples": [{"node_id": members[0], "value": -2.5, "before": "she opened the", "token": token, "after": " and"}],
    }


def made_heads(
    draw: random.Random, nodes: list[dict[str, Any]], links: list[dict[str, Any]], layers: int, label: str
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Heads of every other link, which add up to it, and two looks: the second names a node that is not in the graph."""
    by_id = {one["node_id"]: one for one in nodes}
    for i, link in enumerate(links):
        if i % 2:
            continue
        none = 0.1 * link["weight"] if by_id[link["source"]]["ctx_idx"] == by_id[link["target"]]["ctx_idx"] else 0.0
        parts = [share * link["weight"] for share in ((0.6, 0.25, -0.1) if i % 6 else (4.0, -3.0, -0.2))]
        heads = [[draw.randrange(layers), draw.randrange(9), part] for part in parts]
        link["residue_heads"] = {"heads": heads, "others": link["weight"] - none - sum(parts), "no_attention": none}
    only = {"1_-1_0": node("1_-1_0", "1", 0, "mlp reconstruction error", label)}
    looks = []
    between = [one for one in links if "residue_heads" in one and by_id[one["source"]]["ctx_idx"] < by_id[one["target"]]["ctx_idx"]]
    for link in between[:40:20]:
        layer, head, _ = link["residue_heads"]["heads"][0]
        names = [one["node_id"] for one in draw.sample(nodes, 6)] + (["1_-1_0"] if looks else [])
        pairs = [[q, k, draw.gauss(0, 1)] for q, k in zip(names, reversed(names), strict=True)]
        query, key = ([[name, draw.gauss(0, 1)] for name in names] for _ in range(2))
        left = {
            f"{kind}_left": 5.25 - sum(term[-1] for term in terms)
            for kind, terms in (("pairs", pairs), ("query", query), ("key", key))
        }
        ends = {"source": link["source"], "target": link["target"]}
        at = {"query": by_id[link["target"]]["ctx_idx"], "key": by_id[link["source"]]["ctx_idx"]}
        numbers = {"score": 5.25, "weight": 0.62, "others": 1.75, "carries": 0.03}
        looks.append({"layer": layer, "head": head, "pairs": pairs, "of_query": query, "of_key": key} | left | ends | at | numbers)
    return looks, only


def node(name: str, layer: str, at: int, kind: str, clerp: str, activation: float | None = None) -> dict[str, Any]:
    """A node with every field."""
    return {
        "node_id": name, "feature": 1, "layer": layer, "ctx_idx": at, "feature_type": kind, "token_prob": 0.0, "is_target_logit": False,
        "run_idx": 0, "reverse_ctx_idx": 0, "jsNodeId": f"{name}-0", "clerp": clerp, "influence": None, "activation": activation,
    }  # fmt: skip
