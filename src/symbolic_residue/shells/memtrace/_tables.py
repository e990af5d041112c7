"""What is read at the judged distance, as tables: attention, head scores, traces of the residual stream and of the cached values, lens, tokens.

1. ``head_scores``: per head, mean over draws with interval: attention to the answer's token and to the fact, value-weighted attention ``‖a v W_O‖`` to the
   answer's token, what the answer's cached value would write toward the answer if the head looked at nothing else (*value trace*), and *retrieval* =
   attention to the answer's token × the head's direct contribution to ``answer − foil``. The control of each is its mean over the padding's tokens
   (for retrieval: their attention times the same contribution). Position 0, the sink, never enters a mean.
2. ``maps``, first draw: the log-odds answer − foil read from the residual stream (logit lens) over the fact and the tail, and the value trace summed over
   the layer's heads over every token.
3. ``lens``: logit lens at the answer's token and at the row that predicts it.

The foil is the strongest one of the first field at the judged distance. Value traces need heads that are weighted sums of values and no norm after attention;
elsewhere they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.instrument import Instrument, Trace
from symbolic_residue.models import Parts
from symbolic_residue.readout import (
    computed_by,
    direct_logit_attribution,
    DirectLogitAttribution,
    fold,
    frozen_scale,
    lens_logits,
    value_weighted_attention,
)
from symbolic_residue.shells.memtrace._observe import Observed
from symbolic_residue.shells.memtrace._residue import Asked
from symbolic_residue.shells.memtrace._text import Passage
from symbolic_residue.stats import bootstrap_columns, bound
from symbolic_residue.types import Point

__all__ = ["ATTENTION", "DIRECT", "RETRIEVAL", "Reading", "reading_frames"]

Array = NDArray[np.float64]
ATTENTION = "attention to the answer"
FACT = "attention to the fact"
QUESTION = "attention of the question to the fact"
WEIGHTED = "value-weighted attention to the answer"
VALUE = "value trace"
RETRIEVAL = "retrieval"
DIRECT = "direct logit attribution"


@dataclass(frozen=True)
class Reading:
    """Tables, and the foil that the answer is held against."""

    frames: dict[str, pl.DataFrame]
    foil: int


def strongest_foil(asked: Asked, logits: Tensor) -> int:
    """The first field's foil with the largest mean logit; ``logits [draw, vocab]``."""
    foils = asked.fields[0].foils
    return foils[int(logits[:, foils].double().mean(0).argmax())]


def reading_frames(instrument: Instrument, tokenizer: Any, asked: Asked, one: Passage, seen: Observed) -> Reading:
    """Every table of the judged distance; see the module."""
    parts, trace = instrument.parts, seen.judged
    row, answer = one.rows[0], asked.fields[0].token
    assert trace.logits is not None
    foil = strongest_foil(asked, trace.logits[:, row])
    dla = direct_logit_attribution(trace, parts, [(answer, foil)], rows=(row,))
    heads = dla.heads[0, :, 0].double().cpu().numpy()
    frames = _attention_frames(trace, one, row)
    frames["head_scores"] = _head_scores(parts, asked, one, trace, heads, answer, foil)
    frames["maps"] = _maps(parts, asked, one, seen, answer, foil)
    frames["lens"] = _lens(parts, tokenizer, asked, one, seen, answer)
    frames["tokens"] = _tokens(tokenizer, asked, one, trace, row)
    frames["components"], frames["dla_check"] = _components(dla, f"{_text(tokenizer, answer)} − {_text(tokenizer, foil)}")
    candidates = [(answer, "answer"), *((f, "foil") for f in asked.fields[0].foils)]
    p = torch.softmax(trace.logits[:, row].double(), -1).mean(0)
    logit = trace.logits[:, row].double().mean(0)
    order = sorted(candidates, key=lambda c: -float(p[c[0]]))
    frames["candidates"] = pl.DataFrame(
        [(i + 1, t, _text(tokenizer, t), float(p[t]), float(logit[t]), source) for i, (t, source) in enumerate(order)],
        schema=["rank", "token_id", "token", "probability", "logit", "source"],
        orient="row",
    )
    return Reading(frames, foil)


def _text(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token], clean_up_tokenization_spaces=False)


def _attention_frames(trace: Trace, one: Passage, row: int) -> dict[str, pl.DataFrame]:
    table = trace.attention
    assert table is not None
    mean = table["mass"][:, :, :, row].double().mean(1).cpu()  # [layer, head, region]
    return {
        "attention": pl.DataFrame(
            [
                (layer, h, name, float(mean[i, h, r]))
                for i, layer in enumerate(table.layers)
                for h in range(mean.shape[1])
                for r, name in enumerate(table.regions)
            ],
            schema=["layer", "head", "region", "mass"],
            orient="row",
        ),
        "readouts": computed_by(table, "attention", "head_scores"),
    }


def _scores(name: str, values: Array, control: Array | None, layers: tuple[int, ...], unit: str, seed: int) -> list[dict[str, Any]]:
    """Rows of one score: ``values`` and ``control [draw, layer, head]`` over the layers given."""
    n, n_layers, n_heads = values.shape

    def interval(x: Array) -> tuple[Array, Array, Array]:
        if n == 1:
            return x[0].ravel(), np.full(n_layers * n_heads, np.nan), np.full(n_layers * n_heads, np.nan)
        value, low, high = bootstrap_columns(x.reshape(n, -1), seed=seed)
        return np.asarray(value), np.asarray(low), np.asarray(high)

    mine = interval(values)
    other = interval(control) if control is not None else None
    return [
        {
            "layer": layer,
            "head": h,
            "score": name,
            "value": float(mine[0][i * n_heads + h]),
            "low": bound(mine[1][i * n_heads + h]),
            "high": bound(mine[2][i * n_heads + h]),
            "control": float(other[0][i * n_heads + h]) if other is not None else None,
            "control_low": bound(other[1][i * n_heads + h]) if other is not None else None,
            "control_high": bound(other[2][i * n_heads + h]) if other is not None else None,
            "n": n,
            "unit": unit,
        }
        for i, layer in enumerate(layers)
        for h in range(n_heads)
    ]


def _head_scores(parts: Parts, asked: Asked, one: Passage, trace: Trace, heads: Array, answer: int, foil: int) -> pl.DataFrame:
    table = trace.attention
    assert table is not None
    seed, layers, row, d = asked.seed, table.layers, one.rows[0], asked.distance
    at = one.at([one.answer if one.answer is not None else one.fact[-1]], d)[0]
    fact = [p for p in one.at(one.fact, d) if p > 0]
    padding = [p for p in range(len(one.head), len(one.head) + d) if p > 0]
    weights = table["weights"].double().cpu()  # [layer, draw, head, row, key]
    last = weights[:, :, :, row]
    question = weights[:, :, :, len(one.tail) - one.question : len(one.tail) + row + 1]

    def draws_first(x: Tensor) -> Array:
        return x.transpose(0, 1).numpy()

    attention = draws_first(last[..., at])
    control = draws_first(last[..., padding].mean(-1)) if padding else None
    rows = _scores(ATTENTION, attention, control, layers, "attention", seed)
    of_fact = draws_first(last[..., fact].sum(-1))
    rows += _scores(FACT, of_fact, control * len(fact) if control is not None else None, layers, "attention", seed)
    asking = draws_first(question[..., fact].sum(-1).mean(-1))
    asking_control = draws_first(question[..., padding].mean((-1, -2))) * len(fact) if padding else None
    rows += _scores(QUESTION, asking, asking_control, layers, "attention", seed)
    mine = heads[:, list(layers)]
    rows += _scores(DIRECT, mine, None, layers, "nats", seed)
    rows += _scores(RETRIEVAL, attention * mine, control * mine if control is not None else None, layers, "nats", seed)
    if all(parts.layers[i].qkv_layout != "gated" for i in layers):
        norms = _weighted_norms(parts, trace, row)
        weighted_control = draws_first(norms[..., padding].mean(-1)) if padding else None
        rows += _scores(WEIGHTED, draws_first(norms[..., at]), weighted_control, layers, "norm", seed)
        traced = _value_trace(parts, trace, layers, row, answer, foil)
        if traced is not None:
            value_control = draws_first(traced[..., padding].mean(-1)) if padding else None
            rows += _scores(VALUE, draws_first(traced[..., at]), value_control, layers, "nats", seed)
    names = ("low", "high", "control", "control_low", "control_high")
    return pl.DataFrame(rows, schema_overrides=dict.fromkeys(names, pl.Float64))


def _weighted_norms(parts: Parts, trace: Trace, row: int) -> Tensor:
    """``[layer, draw, head, key]``: ``‖a v W_O‖`` of one row; layer by layer, since the reduced values of all layers together are large."""
    table = trace.attention
    assert table is not None
    out = []
    for i, layer in enumerate(table.layers):
        one = table["weights"][i : i + 1, :, :, row][:, :, :, None]
        part = replace(table, layers=(layer,), rows=table.rows[row][None], values={"weights": one})
        out.append(value_weighted_attention(replace(trace, attention=part), parts).norms[0, :, :, 0].double().cpu())
    return torch.stack(out)


def _value_trace(parts: Parts, trace: Trace, layers: tuple[int, ...], row: int, answer: int, foil: int) -> Tensor | None:
    """``[layer, draw, head, key]``: each cached value through the head's output and the unembedding, answer − foil, at the predicting row's final scale."""
    if any(parts.layers[i].post_attn_norm is not None for i in layers):
        return None
    direction = fold(parts.final_norm, parts.logit_scale * (parts.w_u[answer] - parts.w_u[foil]).float())
    scale = frozen_scale(parts.final_norm, trace[f"resid_post.{parts.n_layers - 1}"][:, row]).double().cpu()
    out = []
    for i in layers:
        layer, v = parts.layers[i], trace[f"v.{i}"].double().cpu()  # [draw, key, kv head, d_head]
        group = layer.n_heads // v.shape[2]
        u = torch.stack([layer.w_o(h).float() @ direction.to(layer.w_o(h).device) for h in range(layer.n_heads)]).double().cpu()
        read = torch.einsum("bkcd,cgd->bcgk", v, u.unflatten(0, (v.shape[2], group)) * layer.attn_scale)
        out.append(read.flatten(1, 2) * scale[:, None, None])
    return torch.stack(out)


def _early(one: Passage, seen: Observed) -> list[int]:
    """Positions of the fact's tokens in the head."""
    return [p for p in one.fact if p >= 0] if seen.early.numel() else []


def _stream(parts: Parts, asked: Asked, one: Passage, seen: Observed) -> tuple[Trace, list[int]]:
    """The first draw's residual stream at the fact's tokens and over the tail, and their positions in the sequence."""
    early = _early(one, seen)
    tensors: dict[Point, Tensor] = {}
    for depth in range(parts.n_layers + 1):
        point = Point("resid_pre", 0) if depth == 0 else Point("resid_post", depth - 1)
        late = seen.judged[point][:1]
        tensors[point] = torch.cat([seen.early[depth][None, early].to(late), late], 1) if early else late
    n = len(one.head) + asked.distance + len(one.tail)
    return Trace(tensors=tensors), [*early, *range(n - len(one.tail), n)]


def _maps(parts: Parts, asked: Asked, one: Passage, seen: Observed, answer: int, foil: int) -> pl.DataFrame:
    stream, positions = _stream(parts, asked, one, seen)
    rows = []
    pair = parts.logit_scale * (parts.w_u[answer] - parts.w_u[foil]).float()
    bias = 0.0 if parts.b_u is None else parts.logit_scale * float(parts.b_u[answer] - parts.b_u[foil])
    for depth in range(parts.n_layers + 1):
        x = stream["resid_pre.0" if depth == 0 else f"resid_post.{depth - 1}"][0]
        with torch.no_grad():
            values = (parts.final_norm.module(x).float() @ pair.to(x.device)).double().cpu() + bias
        # Depth 0 is the embedding: the map's layers are those after which the stream was read.
        if depth:
            rows += [
                ("answer in the residual stream", depth - 1, p, float(v), "nats") for p, v in zip(positions, values, strict=True)
            ]
    table = seen.judged.attention
    assert table is not None
    if all(parts.layers[i].qkv_layout != "gated" for i in table.layers):
        traced = _value_trace(parts, seen.judged, table.layers, one.rows[0], answer, foil)
        if traced is not None:
            whole = traced[:, 0].sum(1)  # [layer, key]
            rows += [
                ("answer in the cached values", layer, p, float(whole[i, p]), "nats")
                for i, layer in enumerate(table.layers)
                for p in range(whole.shape[1])
            ]
    return pl.DataFrame(rows, schema=["map", "layer", "position", "value", "unit"], orient="row")


def _lens(parts: Parts, tokenizer: Any, asked: Asked, one: Passage, seen: Observed, answer: int) -> pl.DataFrame:
    stream, positions = _stream(parts, asked, one, seen)
    wanted = [len(positions) + one.rows[0]]
    if one.answer is not None:
        wanted.insert(0, positions.index(one.at([one.answer], asked.distance)[0]))
    # All depths at once: the unembedding is read from memory once.
    x = torch.stack([stream["resid_pre.0" if d == 0 else f"resid_post.{d - 1}"][0, wanted] for d in range(parts.n_layers + 1)])
    log_p = torch.log_softmax(lens_logits(parts, x), -1).cpu()
    best = log_p.max(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return pl.DataFrame(
        [
            (
                depth,
                positions[w],
                _text(tokenizer, int(best.indices[depth, i])),
                float(best.values[depth, i].exp()),
                float(entropy[depth, i]),
                float(log_p[depth, i, answer].exp()),
            )
            for depth in range(parts.n_layers + 1)
            for i, w in enumerate(wanted)
        ],
        schema=["layer", "position", "top_token", "top_probability", "entropy", "answer_probability"],
        orient="row",
    )


def _tokens(tokenizer: Any, asked: Asked, one: Passage, trace: Trace, row: int) -> pl.DataFrame:
    """The first draw's sequence, token by token; characters count in the tokens' own joined text."""
    table: Any = trace.attention
    padding = one.pads[asked.paddings[0]][0][: asked.distance]
    ids = [*one.head, *padding, *one.tail]
    words = [*one.texts[0], *(_text(tokenizer, t) for t in padding), *one.texts[1]]
    ends = np.cumsum([len(w) for w in words])
    attention = table["weights"][:, 0, :, row].double().mean((0, 1)).tolist()
    return pl.DataFrame(
        {
            "position": list(range(len(ids))),
            "token_id": ids,
            "token": words,
            "region": one.regions(asked.distance).per_token(),
            "char_start": (ends - [len(w) for w in words]).tolist(),
            "char_end": ends.tolist(),
            "influence": [None] * len(ids),
            "attention": attention,
        },
        schema_overrides={"influence": pl.Float64},
    )


def _components(dla: DirectLogitAttribution, target: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tables ``components`` and ``dla_check``, means over draws."""

    def mean(x: Tensor) -> Array:
        return x[0, :, 0].double().mean(0).cpu().numpy()

    heads, biases, mixers, mlps = (mean(x) for x in (dla.heads, dla.attention_bias, dla.mixers, dla.mlps))
    rows = [("embedding", -1, float(mean(dla.embedding))), ("bias", -1, float(dla.constant[0]))]
    for layer in range(len(mlps)):
        rows += [
            ("attention", layer, float(heads[layer].sum())),
            ("attention bias", layer, float(biases[layer])),
            ("mixer", layer, float(mixers[layer])),
            ("mlp", layer, float(mlps[layer])),
        ]
    rows = [r for r in rows if not np.isnan(r[2])]
    total, error = float(mean(dla.total)), float(mean(dla.error))
    return (
        pl.DataFrame([(target, *r) for r in rows], schema=["target", "component", "layer", "contribution"], orient="row"),
        pl.DataFrame(
            [(target, total, total + error, error)], schema=["target", "logit_difference", "sum_of_parts", "error"], orient="row"
        ),
    )
