"""The graph JSON that Neuronpedia and circuit-tracer exchange, restated, and what a file must fulfil to be trusted.

1. Root: ``metadata``, ``qParams`` (how a viewer opens), ``nodes``, ``links``. Keys beyond those named here are kept as they are.
2. Node ids are unique: circuit-tracer's early files named the error of layer 5 at position 3 and feature 5 of layer 0 at position 3 alike, and a viewer then
   draws one node's edges at the other. Links join nodes that exist, once, with finite weights. Positions lie in the prompt.
3. ``qk_tracing_results`` of a node names nodes, or what stands in ``qk_only_nodes`` by its id: not both, and none that is nowhere.
4. ``layer`` is text: ``E`` for embeddings, else a number; logits have the number of layers + 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from symbolic_residue.errors import RecordError

__all__ = ["NeuronpediaGraph", "NeuronpediaLink", "NeuronpediaNode", "read_neuronpedia", "validate_neuronpedia"]

_SHOWN = 5
_SUM = 1e-4
"""Of what a score's terms may miss it by, relative to their sizes: numbers written short."""


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, populate_by_name=True)


class _Look(_Open):
    """One head's score, ours: terms by node id, and what all others sum to."""

    layer: int = Field(ge=0)
    head: int = Field(ge=0)
    query: int = Field(ge=0)
    key: int = Field(ge=0)
    score: float
    weight: float
    others: float | None = None
    carries: float
    source: str
    target: str
    pairs: list[list[str | float]]
    pairs_left: float
    of_query: list[list[str | float]]
    query_left: float
    of_key: list[list[str | float]]
    key_left: float


class _Heads(_Open):
    edges: int = 0
    influence: float = 0.0
    refused: str = ""


class _Hint(_Open):
    tokens: list[str]
    n: int
    tells: bool
    value: float | None
    control_mean: float | None
    control_most: float | None


class _Example(_Open):
    node_id: str
    value: float
    before: str
    token: str
    after: str


class _Group(_Open):
    """What is known of a supernode, ours."""

    label: str
    members: list[str]
    first: int
    writes: _Hint
    acts: _Hint
    fires: _Hint | None
    examples: list[_Example]


class _Residue(_Open):
    looks: list[_Look] = []
    heads: _Heads | None = None
    supernodes: list[_Group] = []


class _Metadata(_Open):
    slug: str = Field(min_length=1)
    scan: str = Field(min_length=1)
    """The model, by the name that the site knows it by."""

    prompt_tokens: list[str] = Field(min_length=1)
    prompt: str
    node_threshold: float | None = Field(None, gt=0, le=1)
    schema_version: Literal[1] | None = 1
    residue: _Residue | None = None


class _View(_Open):
    pinnedIds: list[str] = []
    supernodes: list[list[str]] = []
    """Each a label and the ids of its members."""

    linkType: str = "both"
    clickedId: str | None = ""
    sg_pos: str = ""


class _Traced(_Open):
    """Why a node's head looks where it looks: ``[query id, key id, term]``, and ``[id, term]``."""

    pair_wise_contributors: list[list[str | float]] = []
    top_q_marginal_contributors: list[list[str | float]] = []
    top_k_marginal_contributors: list[list[str | float]] = []


class NeuronpediaNode(_Open):
    """A node. ``feature``: of a unit, layer and number as one (Cantor's pairing); ``influence``: the share of all influence held by it and those above it."""

    node_id: str = Field(min_length=1)
    feature: int | None
    layer: str = Field(pattern=r"^(E|\d+)$")
    ctx_idx: int = Field(ge=0)
    feature_type: Literal["cross layer transcoder", "mlp reconstruction error", "embedding", "logit"]
    token_prob: float = Field(0.0, ge=0, le=1)
    is_target_logit: bool = False
    run_idx: int = 0
    reverse_ctx_idx: int = 0
    jsNodeId: str
    clerp: str | None = ""
    """What the viewer writes beside it; of a logit it holds ``(p=0.123)``."""

    influence: float | None = None
    activation: float | None = None
    qk_tracing_results: _Traced | None = None


class _Named(_Open):
    node_id: str = Field(min_length=1)
    clerp: str | None = ""


class _LinkHeads(_Open):
    heads: list[list[float]] = []
    others: float = 0.0
    no_attention: float = 0.0


class NeuronpediaLink(_Open):
    """A direct effect of ``source`` on ``target``, both node ids; ``residue_heads`` is ours: its weight as a sum over heads."""

    source: str
    target: str
    weight: float
    residue_heads: _LinkHeads | None = None


class NeuronpediaGraph(_Open):
    """A whole file."""

    metadata: _Metadata
    view: _View = Field(alias="qParams")
    nodes: list[NeuronpediaNode]
    links: list[NeuronpediaLink]
    qk_only_nodes: dict[str, _Named] | list[_Named] = {}
    """What QK terms name and pruning left out, by id; a list is read too."""

    def plain(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        return self.model_dump(by_alias=True, exclude_unset=True)


def validate_neuronpedia(data: Mapping[str, Any]) -> NeuronpediaGraph:
    """A graph from its plain data.

    Raises:
        RecordError: missing or wrong fields (each named by its place), ids that collide, links that join no nodes or are doubled, positions outside the prompt.
    """
    try:
        graph = NeuronpediaGraph.model_validate(dict(data))
    except (ValidationError, TypeError, ValueError) as error:
        raise RecordError("This is no graph in Neuronpedia's format.", why=_places(error), todo="Mend the named fields.") from error
    problems = [*_ids(graph), *_outside(graph), *_links(graph), *_traced(graph)]
    if problems:
        shown = "; ".join(problems[:_SHOWN]) + (f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else "")
        raise RecordError(
            "This graph contradicts itself.", why=f"{shown}.", todo="Have it written anew with ids of its own for every node."
        )
    return graph


def read_neuronpedia(path: Path | str) -> NeuronpediaGraph:
    """A graph from a file.

    Raises:
        RecordError: no JSON, or not a valid graph; see :func:`validate_neuronpedia`.
    """
    try:
        data = json.loads(Path(path).read_bytes(), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(
            f"{path} is no readable graph.", why=str(error), todo="Give a JSON file in Neuronpedia's format."
        ) from error
    if not isinstance(data, dict):
        raise RecordError(
            f"{path} holds no graph.",
            why=f"It is a JSON {type(data).__name__}, not an object.",
            todo="Give a JSON file in Neuronpedia's format.",
        )
    return validate_neuronpedia(data)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON's")


def _places(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_url=False, include_input=False)
    said = [f"{_place(one['loc'])}: {one['msg'].rstrip('.')}" for one in found[:_SHOWN]]
    return "; ".join(said) + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "") + "."


def _place(where: Iterable[int | str]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")


def _ids(graph: NeuronpediaGraph) -> list[str]:
    seen: dict[str, int] = {}
    said = []
    for i, node in enumerate(graph.nodes):
        if node.node_id in seen:
            said.append(f"nodes {seen[node.node_id]} and {i} are both {node.node_id!r}")
        seen.setdefault(node.node_id, i)
    return said


def _outside(graph: NeuronpediaGraph) -> list[str]:
    n = len(graph.metadata.prompt_tokens)
    return [f"node {node.node_id!r} is at position {node.ctx_idx} of {n}" for node in graph.nodes if node.ctx_idx >= n]


def _links(graph: NeuronpediaGraph) -> list[str]:
    ids = {node.node_id for node in graph.nodes}
    seen: set[tuple[str, str]] = set()
    said = []
    for i, link in enumerate(graph.links):
        said += [
            f"link {i} has {end} {name!r}, which no node is"
            for end, name in (("source", link.source), ("target", link.target))
            if name not in ids
        ]
        if (link.source, link.target) in seen:
            said.append(f"link {i} from {link.source!r} to {link.target!r} is there twice")
        seen.add((link.source, link.target))
    return said


def _traced(graph: NeuronpediaGraph) -> list[str]:
    ids = {node.node_id for node in graph.nodes}
    beside = graph.qk_only_nodes
    only = [(one.node_id, one) for one in beside] if isinstance(beside, list) else list(beside.items())
    said = [f"qk_only_nodes has {name!r}, which is a node too" for name, _ in only if name in ids]
    said += [f"qk_only_nodes has {one.node_id!r} under {name!r}" for name, one in only if one.node_id != name]
    known = ids | {name for name, _ in only}
    n = len(graph.metadata.prompt_tokens)
    for node in graph.nodes:
        found = node.qk_tracing_results
        if found is not None:
            who = f"a QK term of node {node.node_id!r}"
            said += _terms(who, found.pair_wise_contributors, 3, known)
            said += _terms(who, [*found.top_q_marginal_contributors, *found.top_k_marginal_contributors], 2, known)
    for i, look in enumerate(graph.metadata.residue.looks if graph.metadata.residue else ()):
        if max(look.query, look.key) >= n:
            said.append(f"look {i} is from position {look.query} at {look.key} of {n}")
        for terms, size, left in (
            (look.pairs, 3, look.pairs_left),
            (look.of_query, 2, look.query_left),
            (look.of_key, 2, look.key_left),
        ):
            wrong = _terms(f"a term of look {i}", terms, size, known)
            values = [*(float(term[-1]) for term in terms), left] if not wrong else []
            if not wrong and abs(sum(values) - look.score) > _SUM * (abs(look.score) + sum(map(abs, values))):
                wrong = [f"terms of look {i} sum to {sum(values):.4g}, not to its score {look.score:.4g}"]
            said += wrong
    return said


def _terms(who: str, terms: list[list[str | float]], size: int, known: set[str]) -> list[str]:
    said = []
    for term in terms:
        if len(term) != size or not isinstance(term[-1], float | int) or not all(isinstance(name, str) for name in term[:-1]):
            said.append(f"{who} is {term!r}, not {size - 1} ids and a number")
        else:
            said += [f"{who} has {name!r}, which no node is" for name in term[:-1] if name not in known]
    return said
