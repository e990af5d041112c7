"""A graph as Neuronpedia's JSON (``_neuronpedia_schema``), to be opened by the viewers that read it.

1. Nodes and edges are those that ``Graph.prune`` keeps. Units are written as ``cross layer transcoder`` (the format has no other kind), REST as ``mlp
   reconstruction error``: it is what no single unit explains.
2. Ids: ``{layer}_{unit}_{position}``; ``{layer}_-1_{position}`` REST, ``{layer}_-2_{position}`` BIAS and ``0_-3_0`` the rows' constants, kinds of which
   the format knows nothing; ``E_{token}_{position}``; ``{layers + 1}_{token}_{position}`` for targets that are a token, a negative number in the token's
   place for others.
3. Numbers of the whole graph, which a pruned file cannot give back, stand under ``metadata.residue``: whether rows add up, and how each target divides.
4. Groups with labels of their own (``_group_labels``) go along: their evidence under ``metadata.residue.supernodes``, the label behind each member's.
5. Heads that were kept with the graph go along (``_neuronpedia_heads``).
6. A lone surrogate, which UTF-8 cannot hold, is written as its escape.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError, WriteError
from symbolic_residue.graph._neuronpedia_heads import add_links, add_looks
from symbolic_residue.graph._neuronpedia_schema import validate_neuronpedia
from symbolic_residue.graph._scores import graph_scores
from symbolic_residue.graph._supernodes import Supernodes

if TYPE_CHECKING:
    from symbolic_residue.graph._carried import GraphHeads
    from symbolic_residue.graph._graph import Graph, Pruned
    from symbolic_residue.graph._group_labels import GroupLabel, Hint

__all__ = ["to_neuronpedia", "write_neuronpedia"]

_REST, _BIAS, _CONSTANT = -1, -2, -3


def to_neuronpedia(
    graph: Graph,
    *,
    slug: str | None = None,
    scan: str | None = None,
    prompt: str | None = None,
    labels: Sequence[str] | None = None,
    supernodes: Supernodes | Sequence[Sequence[str]] = (),
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    heads: GraphHeads | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The graph as plain data in Neuronpedia's format.

    Args:
        graph: whole, not pruned.
        slug: its name in a web address; one made of the prompt.
        scan: the model's name there; the one that the graph was made with.
        prompt: the text, where it is not the tokens joined.
        labels: a unit each; those of the graph.
        supernodes: of the graph; or each a label and the node ids of its members.
        node_threshold, edge_threshold: of :meth:`Graph.prune`.
        heads: which carry its strongest edges, and why they look there.
        more: node id → further fields of that node.

    Returns:
        Data that :func:`validate_neuronpedia` has accepted.

    Raises:
        ConfigError: a label missing, an id that no node has, two targets that are the same token.
        RecordError: the data would be no valid graph.
    """
    kept = graph.prune(node_threshold, edge_threshold)
    targets = _target_ids(graph)
    said = _labels(graph, labels)
    groups = None if not isinstance(supernodes, Supernodes) else supernodes
    listed_groups = supernodes.rows(graph) if isinstance(supernodes, Supernodes) else supernodes
    if groups is not None and groups.about:
        said = _with_groups(said, groups)
    nodes = _columns(graph, kept, said)
    names: list[str] = [node["node_id"] for node in nodes]
    used = kept.edges.any(0)
    shown = kept.columns.clone()
    shown[graph.columns.constant] &= used[graph.columns.constant]
    rows = targets + names[: len(graph)]
    edges = [(r, c) for r, c in (kept.edges & shown).nonzero().tolist()]
    links: list[dict[str, Any]] = [{"source": names[c], "target": rows[r], "weight": float(graph.edges[r, c])} for r, c in edges]
    listed = [node for node, keep in zip(nodes, shown.tolist(), strict=True) if keep] + _targets(graph, targets)
    whole, only = _whole(graph, targets), {}
    if heads is not None:
        add_links(heads, edges, links)
        whole["looks"], only = add_looks(heads, rows, nodes, listed)
        whole["heads"] = {"edges": len(heads), "influence": heads.share, "refused": heads.refused}
    if groups is not None and groups.about:
        whole["supernodes"] = [_group(one, row[1:], names) for one, row in zip(groups.about, listed_groups, strict=True)]
    _attach(listed, more or {}, listed_groups)
    tokens = [_clean(token) for token in graph.tokens]
    text = _clean(prompt) if prompt is not None else "".join(tokens)
    data = {
        "metadata": {
            "slug": slug or _slug(text, graph),
            "scan": scan or _clean(str(graph.provenance.get("model") or "unknown")),
            "transcoder_list": [],
            "prompt_tokens": tokens,
            "prompt": text,
            "node_threshold": node_threshold,
            "schema_version": 1,
            "info": {
                "creator_name": "symbolic_residue",
                "generator": {"name": "symbolic_residue", "version": importlib.metadata.version("symbolic-residue")},
                "units": _units(graph),
            },
            "generation_settings": {"max_feature_nodes": len(graph), "max_n_logits": graph.n_targets, "rule": graph.rule},
            "pruning_settings": {"node_threshold": node_threshold, "edge_threshold": edge_threshold},
            "feature_details": {},
            "residue": whole,
        },
        "qParams": {
            "pinnedIds": list(targets),
            "supernodes": [[_clean(group[0]), *group[1:]] for group in listed_groups],
            "linkType": "both",
            "clickedId": targets[0],
            "sg_pos": "",
        },
        "nodes": listed,
        "links": links,
    }
    if only:
        data["qk_only_nodes"] = only
    validate_neuronpedia(data)
    return data


def write_neuronpedia(data: Mapping[str, Any], path: Path | str) -> Path:
    """Write checked data to a file; its path comes back.

    Raises:
        RecordError: the data is no valid graph.
        WriteError: the file cannot be written.
    """
    validate_neuronpedia(data)
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n", "utf-8")
        part.replace(path)
    except OSError as error:
        raise WriteError(f"The graph cannot be written to {path}.", why=str(error)) from error
    return path


def _units(graph: Graph) -> str:
    """What the unit nodes are, in words."""
    if not graph.dictionary:
        return "MLP neurons: no dictionary; activation × row of the output weights"
    layers = ", ".join(map(str, sorted(graph.feature_layers)))
    return f"features of the dictionary {graph.dictionary['sha256'][:16]} in layers {layers}, MLP neurons in the others"


def _target_ids(graph: Graph) -> list[str]:
    ids: list[str] = []
    for i, target in enumerate(graph.targets):
        feature = target.token if target.token is not None else -(i + 1)
        name = f"{graph.columns.n_layers + 1}_{feature}_{target.position}"
        if name in ids:
            raise ConfigError(
                f"Targets {ids.index(name)} and {i} would both be node {name!r}.",
                why=f"Both are the token {target.name} at position {target.position}.",
                todo="Ask for each token once.",
            )
        ids.append(name)
    return ids


def _labels(graph: Graph, given: Sequence[str] | None) -> list[str]:
    if given is None:
        return [f"raises {', '.join(map(repr, words))}" for words in graph.labels] if graph.labels else [""] * len(graph)
    if len(given) != len(graph):
        raise ConfigError(f"{len(given)} labels were given for {len(graph)} units.", todo="Give one a unit, in the graph's order.")
    return list(given)


def _with_groups(said: Sequence[str], groups: Supernodes) -> list[str]:
    """Labels of units with that of their group behind, and the token on which their neuron acts most where texts were read."""
    found = list(said)
    for members, one in zip(groups.members, groups.about, strict=True):
        most = {example.unit: example.token for example in one.examples}
        for unit in members:
            parts = [found[unit], f"most on {most[unit]!r}" if unit in most else "", f"group: {one.text}"]
            found[unit] = "; ".join(filter(None, parts))
    return found


def _group(one: GroupLabel, members: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    def plain(hint: Hint) -> dict[str, Any]:
        numbers = {"value": hint.value, "control_mean": hint.control[0], "control_most": hint.control[1]}
        return {"tokens": [_clean(t) for t in hint.tokens], "n": hint.n, "tells": hint.tells} | {
            name: value if value == value else None for name, value in numbers.items()
        }

    return {
        "label": _clean(one.text),
        "members": list(members),
        "first": one.first,
        "writes": plain(one.writes),
        "acts": plain(one.acts),
        "fires": None if one.fires is None else plain(one.fires),
        "examples": [
            {
                "node_id": names[e.unit],
                "value": e.value,
                "before": _clean(e.before),
                "token": _clean(e.token),
                "after": _clean(e.after),
            }
            for e in one.examples
        ],
    }


def _columns(graph: Graph, kept: Pruned, labels: Sequence[str]) -> list[dict[str, Any]]:
    """A node each column, in their order."""
    shape, units = graph.columns, graph.units
    found = [
        _node(f"{i}_{n}_{t}", _cantor(i, n), str(i), t, "cross layer transcoder", f"{i}_{n}-0", label, activation=a)
        for i, t, n, a, label in zip(
            units.layer.tolist(), units.position.tolist(), units.neuron.tolist(), graph.activations.tolist(), labels, strict=True
        )
    ]
    found += _spread(graph, _REST, "other features and error" if graph.dictionary else "other neurons")
    found += [
        _node(f"E_{token}_{t}", t, "E", t, "embedding", f"E_{token}-{t}", f"Emb: {graph.tokens[t]!r}")
        for t, token in enumerate(graph.ids)
    ]
    if shape.biased:
        found += _spread(graph, _BIAS, "constants of attention and MLP")
    found.append(_node("0_-3_0", _CONSTANT, "0", 0, "mlp reconstruction error", "0_-3-0", "the rows' own constants (biases)"))
    for node, share in zip(found, kept.cumulative.tolist(), strict=True):
        node["influence"] = share
    return found


def _spread(graph: Graph, kind: int, what: str) -> list[dict[str, Any]]:
    n = graph.columns.n_positions
    places = (
        [(t, f"{what}, layer {{}}") for t in range(n)]
        if graph.columns.by_position
        else [(n - 1, f"{what}, layer {{}}, all positions")]
    )
    return [
        _node(f"{i}_{kind}_{t}", kind, str(i), t, "mlp reconstruction error", f"{i}_{kind}-{t}", words.format(i))
        for i in range(graph.columns.n_layers)
        for t, words in places
    ]


def _targets(graph: Graph, ids: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for i, (target, name) in enumerate(zip(graph.targets, ids, strict=True)):
        p = target.probability or 0.0
        said = target.name[1:-1] if target.token is not None and target.name[:1] in "'\"" else target.name
        layer, feature, position = name.split("_")
        node = _node(name, int(feature), layer, target.position, "logit", f"L_{feature}-{position}", f'Output "{said}" (p={p:.3f})')
        first = all(other.group != target.group for other in graph.targets[:i])
        found.append(node | {"token_prob": min(max(p, 0.0), 1.0), "is_target_logit": first, "activation": target.value})
    return found


def _node(
    name: str, feature: int, layer: str, position: int, kind: str, js: str, clerp: str, activation: float | None = None
) -> dict[str, Any]:
    return {
        "node_id": name,
        "feature": feature,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": js,
        "clerp": _clean(clerp),
        "influence": None,
        "activation": activation,
    }


def _attach(nodes: Sequence[dict[str, Any]], more: Mapping[str, Mapping[str, Any]], supernodes: Sequence[Sequence[str]]) -> None:
    by_id = {node["node_id"]: node for node in nodes}
    asked = [*more, *(member for group in supernodes for member in group[1:])]
    lost = [name for name in asked if name not in by_id]
    if lost:
        raise ConfigError(
            f"The exported graph has no node {lost[0]!r}.",
            why="Pruning left it out, or there never was one.",
            todo="Name nodes that are kept, or raise node_threshold.",
        )
    for name, fields in more.items():
        by_id[name].update(fields)


def _whole(graph: Graph, targets: Sequence[str]) -> dict[str, Any]:
    check = graph.check()
    found: dict[str, Any] = {
        "adds_up": {"worst": check.worst, "tolerance": check.tolerance, "rows": len(check.relative)},
        "accounted": [row | {"target": _clean(row["target"])} for row in graph.accounted().to_dicts()],
        "targets": [
            {"node_id": name, "name": _clean(target.name), "value": target.value, "probability": target.probability}
            for name, target in zip(targets, graph.targets, strict=True)
        ],
        "units": len(graph),
        "layers": graph.columns.n_layers,
        "uncapped": graph.uncapped,
    }
    if graph.feature_layers and not {"a", "b"} <= set(graph.provenance):  # of a difference of two graphs they would be one's
        rest = dict(zip(*graph.errors().select("layer", "influence").to_dict(as_series=False).values(), strict=True))
        layers = [one | {"rest": rest[one["layer"]]} for one in graph.dictionary["layers"]]
        found["dictionary"] = {"scores": vars(graph_scores(graph)), "layers": layers}
    return found


def _cantor(a: int, b: int) -> int:
    """Cantor's pairing of two counts as one."""
    return (a + b) * (a + b + 1) // 2 + b


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _slug(text: str, graph: Graph) -> str:
    words = re.findall(r"[a-z0-9]+", text.lower())[:6]
    digest = hashlib.sha256(repr((graph.ids, [t.name for t in graph.targets])).encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return "-".join([*words, digest])
