"""Why a head looks where it looks: one attention score as an exact sum over pairs of the graph's columns.

1. A head's score at (query, key) is ``scale · q · k``, before softcap, mask and positional bias. With the norm before attention frozen, and the norm of queries
   and keys where there is one, q and k are affine in the residual stream at their positions: ``q = x W + c``, the rotation of the position in ``W``.
2. The residual stream there is the sum of what embeddings, neurons, rests and biases below wrote, carried by the frozen attention: each of the d_head
   coordinates of q (and of k) is a row of the graph, and one sweep splits all of them over the columns: ``Q, K [d_head, column]``.
3. ``score = Σ_ij scale · Q_i · K_j``: a pair's term is what the score owes to column i at the query together with column j at the key. The marginals are what
   it owes to one of them, whatever the other is.
4. The map from stream to q is built from the family's weights, tried with the rotations and norms that the layer can have, and taken only if it gives back the
   q and k of the model at every position; else the head is refused.

Source: QK attribution as in Kamath et al. 2025 (Tracing Attention Computation Through Feature Interactions); Su et al. 2021 (RoFormer) for the rotation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TYPE_CHECKING

import polars as pl
import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary
from symbolic_residue.errors import ConfigError, ReadError, VerificationError
from symbolic_residue.graph._columns import Rows
from symbolic_residue.graph._device import on
from symbolic_residue.graph._features import local_of
from symbolic_residue.graph._graph import Graph, TOLERANCE
from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._sweep import direct_edges
from symbolic_residue.readout import run_with_turns, Turn

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.models import LayerParts

__all__ = ["QKAttribution", "Sides", "qk_attribution", "score_sides"]

_AGREE = 1e-4
"""Of a rebuilt q or k, relative to the largest entry: rounding in float32; a wrong rotation is off by about 1."""


@dataclass(frozen=True, eq=False)
class QKAttribution:
    """One head's score at one query and key.

    Attributes:
        layer, head, query, key: which.
        score: scale · q · k as the model has it.
        weight: the attention weight there.
        names: of the columns.
        q, k: ``[d_head, column]``; their sums over columns are the head's query and key.
        scale: factor on q · k.
        error: |sum of all pairs − score|, relative to the sum of the pairs' sizes.
    """

    layer: int
    head: int
    query: int
    key: int
    score: float
    weight: float
    names: tuple[str, ...]
    q: Tensor
    k: Tensor
    scale: float
    error: float

    def pairs(self) -> Tensor:
        """Every pair's term, ``[query column, key column]``; the sum is the score."""
        return self.scale * (self.q.T @ self.k)

    def of_query(self) -> Tensor:
        """``[column]``: what the score owes to each column at the query, with the whole key."""
        return self.scale * (self.q.T @ self.k.sum(1))

    def of_key(self) -> Tensor:
        """``[column]``: what it owes to each column at the key, with the whole query."""
        return self.scale * (self.k.T @ self.q.sum(1))

    def top(self, n: int = 10) -> pl.DataFrame:
        """The largest pairs: ``query_column query_name key_column key_name term``."""
        terms = self.pairs()
        width = terms.shape[1]
        best = terms.abs().flatten().topk(min(n, terms.numel())).indices.tolist()
        rows = [
            (i // width, self.names[i // width], i % width, self.names[i % width], float(terms[i // width, i % width]))
            for i in best
        ]
        return pl.DataFrame(rows, schema=["query_column", "query_name", "key_column", "key_name", "term"], orient="row")


def qk_attribution(
    instrument: Instrument,
    graph: Graph,
    layer: int,
    head: int,
    query: int,
    key: int,
    *,
    local: LocalModel | None = None,
    dictionary: Dictionary | None = None,
) -> QKAttribution:
    """Split a head's score over pairs of the graph's columns.

    Args:
        instrument: the model that the graph is of.
        graph: the graph: its units are what is told apart.
        layer, head: which head.
        query, key: positions; the key is not after the query.
        local: of the same prompt, where the caller has it.
        dictionary: of the graph, where it has one.

    Raises:
        ConfigError: no such head or positions; another dictionary than the graph's.
        ReadError: queries and keys that are no rotated (and normed) affine map of the stream.
        VerificationError: the pairs do not add up to the score.
    """
    local = local_of(instrument, graph, local, dictionary)
    with torch.no_grad(), on(local.device):
        one = score_sides(instrument, graph, local, layer, head, query, key)
        width = len(one.q_constant)
        rows = Rows(
            torch.cat([one.q_direction, one.k_direction]),
            torch.cat([one.q_constant, one.k_constant]),
            torch.full((2 * width,), 2 * layer),
            torch.tensor([query] * width + [key] * width),
        )
        edges, columns = direct_edges(local, rows, graph.units.to(local.device), by_position=graph.columns.by_position)
        if columns != graph.columns:
            raise VerificationError("The graph has other columns than this model and prompt give.", todo="Make it with this model.")
        q, k = edges[:width].cpu(), edges[width:].cpu()
        names = tuple(graph.column_names())
        found = QKAttribution(layer, head, query, key, one.score, one.weight, names, q, k, one.scale, 0.0)
        missing = abs(float(one.scale * (q.sum(1) @ k.sum(1))) - one.score) / max(float(found.pairs().abs().sum()), 1e-30)
    if missing > TOLERANCE:
        raise VerificationError(
            f"The pairs of head {layer}.{head} miss its score by {missing:.1e} of their size.",
            todo="Make the graph with this model.",
        )
    return replace(found, error=missing)


@dataclass(frozen=True, eq=False)
class Sides:
    """A head's query and key at two positions as affine maps of the stream that the head reads.

    Attributes:
        q_direction, k_direction: ``[d_head, d_model]``.
        q_constant, k_constant: ``[d_head]``.
        q, k: ``[d_head]``: as the model has them.
        scale, score, weight: score = scale · q · k, and the attention weight.
        others: the query's mean score at the other keys that it sees, position 0 apart; None where there are none.
    """

    q_direction: Tensor
    q_constant: Tensor
    k_direction: Tensor
    k_constant: Tensor
    q: Tensor
    k: Tensor
    scale: float
    score: float
    weight: float
    others: float | None


def score_sides(instrument: Instrument, graph: Graph, local: LocalModel, layer: int, head: int, query: int, key: int) -> Sides:
    """What a head's score is made of, from one forward; arguments as of :func:`qk_attribution`.

    Raises:
        ConfigError: no such head or positions.
        ReadError: queries and keys that are no rotated (and normed) affine map of the stream.
    """
    n, parts = len(graph.ids), instrument.parts
    if not (0 <= layer < parts.n_layers and 0 <= head < parts.n_heads):
        raise ConfigError(
            f"There is no head {layer}.{head}.", todo=f"Layers 0 to {parts.n_layers - 1}, heads 0 to {parts.n_heads - 1}."
        )
    if not 0 <= key <= query < n:
        raise ConfigError(f"Query {query} does not see key {key}.", todo=f"Give 0 ≤ key ≤ query < {n}.")
    block = parts.layers[layer]
    ids = torch.tensor(graph.ids, device=local.device)
    trace, turns = run_with_turns(instrument, block, ids[None], (f"resid_pre.{layer}", f"q.{layer}", f"k.{layer}"))
    stream = trace[f"resid_pre.{layer}"][0].to(local.dtype)
    norm = local.layers[layer].norm_in
    normed = norm.linear(stream) + (0 if norm.bias is None else norm.bias)
    sides: dict[str, tuple[Tensor, Tensor]] = {}
    for side, position in (("q", query), ("k", key)):
        given = trace[f"{side}.{layer}"][0].to(local.dtype)
        sides[side] = _reading(block, side, head, normed, given, turns, position, local)  # type: ignore[arg-type]
    keys = trace[f"k.{layer}"][0].to(local.dtype)
    kv = head if keys.shape[1] == block.n_heads else head // (block.n_heads // block.n_kv_heads)
    q, k = trace[f"q.{layer}"][0, query, head].to(local.dtype), keys[key, kv]
    score = float(block.score_scale * (q @ k))
    (q_direction, q_constant), (k_direction, k_constant) = sides["q"], sides["k"]
    weight = local.layers[layer].weight(head, query, key)
    beside = [t for t in range(1, query + 1) if t != key]
    others = float(block.score_scale * (keys[beside, kv] @ q).mean()) if beside else None
    return Sides(q_direction, q_constant, k_direction, k_constant, q, k, block.score_scale, score, weight, others)


def _reading(
    block: LayerParts,
    side: Literal["q", "k"],
    head: int,
    normed: Tensor,
    given: Tensor,
    turns: list[Turn],
    position: int,
    local: LocalModel,
) -> tuple[Tensor, Tensor]:
    """Directions ``[d_head, d_model]`` of the stream and constants ``[d_head]`` that give the head's q or k at a position."""
    group = block.n_heads // block.n_kv_heads
    heads = range(block.n_heads) if side == "q" else range(0, block.n_heads, group)
    mine = head if side == "q" else head // group
    weights = [block.projection(side, h) for h in heads]
    prescale = float(getattr(block.attn, "scaling", block.d_head**-0.5)) if side == "q" and block.spec.query_prescaled else 1.0
    w, b = weights[mine]
    matrix = w.to(local.dtype) * prescale
    constant = torch.zeros(block.d_head, dtype=local.dtype) if b is None else b.to(local.dtype) * prescale
    raw = torch.stack([normed @ w.to(local.dtype) + (0 if b is None else b.to(local.dtype)) for w, b in weights], 1) * prescale
    own = given[:, mine if given.shape[1] == len(heads) else head]
    identity: list[Turn | None] = [None]
    for scales, gain, centred, offset in _norms(block.attn, side, mine, raw):
        made = raw[:, mine]
        made = ((made - made.mean(-1, keepdim=True)) if centred else made) * scales[:, None] * gain + offset
        for turn in identity + turns:
            try:
                turned = made if turn is None else torch.stack([turn(made[t : t + 1], t)[0] for t in range(len(made))])
            except RuntimeError:  # a function for another width
                continue
            if float((turned - own).abs().max()) > _AGREE * float(own.abs().max()):
                continue

            def through(
                rows: Tensor, turn: Turn | None = turn, centred: bool = centred, gain: Tensor = gain, s: Tensor = scales
            ) -> Tensor:
                rows = (rows - rows.mean(-1, keepdim=True)) if centred else rows
                rows = rows * s[position] * gain
                return rows if turn is None else turn(rows, position)

            norm = local.layers[block.index].norm_in
            added = constant if norm.bias is None else constant + norm.bias @ matrix
            fixed = through(added[None])[0]
            if isinstance(offset, Tensor):
                fixed = fixed + (offset if turn is None else turn(offset[None], position)[0])
            directions = norm.back(through(matrix).T, torch.full((block.d_head,), position))
            return directions, fixed
    raise ReadError(
        f"The {'queries' if side == 'q' else 'keys'} of head {block.index}.{head} are no affine map of the stream ({type(block.attn).__name__}).",
        why="Something stands between the weights and the scores that this package does not describe.",
    )


def _norms(attn: Any, side: str, mine: int, raw: Tensor) -> Iterator[tuple[Tensor, Tensor, bool, Tensor | float]]:
    """What the norm of queries or keys can be, frozen: (scale ``[position]``, gain ``[d_head]``, whether centred, what is added)."""
    n, n_heads, d_head = raw.shape
    module = next((m for name in (f"{side}_norm", f"{side}_layernorm") if (m := getattr(attn, name, None)) is not None), None)
    if module is None:
        yield torch.ones(n, dtype=raw.dtype), torch.ones(d_head, dtype=raw.dtype), False, 0.0
        return
    inner = getattr(module, "norms", None)  # stablelm keeps one norm a head
    if inner is not None:
        module = inner[mine]
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))
    weight = module.weight.detach().to(raw.dtype)
    joint = weight.numel() == n_heads * d_head and weight.dim() == 1 and n_heads > 1
    gain = weight.reshape(-1, d_head)[mine if weight.numel() > d_head else 0]
    bias = getattr(module, "bias", None)
    added: Tensor | float = (
        0.0 if bias is None else bias.detach().to(raw.dtype).reshape(-1, d_head)[mine if bias.numel() > d_head else 0]
    )
    x = raw.flatten(1) if joint else raw[:, mine]
    for centred in (False, True):
        y = x - x.mean(-1, keepdim=True) if centred else x
        scale = torch.rsqrt(y.square().mean(-1) + eps)
        for extra in (0.0, 1.0):  # gemma keeps its gain less one
            yield scale, gain + extra, centred and not joint, added
