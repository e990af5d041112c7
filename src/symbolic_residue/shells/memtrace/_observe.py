"""The model on a fact at every distance, on its controls, and everything that is read at the distance that is judged.

1. Per side, kind of padding and draw, head and padding run once (``Prefix``); the tail runs after every cut. Scored are ln P(answer), ln P(rival), the
   probability of the strongest foil and of all foils, each at the row that predicts the field.
2. Without distance all draws are one text, run once. The same run also shifts the tail's positions by each distance *without any text between*: what
   position alone does, where the family has positions that can be shifted. Draws that are the same text up to a distance count once there.
3. At the judged distance, with the fact, the first kind of padding, all draws: attention weights of the question's rows, heads' outputs (direct logit
   attribution of answer − strongest foil), cached values, and the residual stream of the first draw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.instrument import AttentionRead, Batch, collate, Instrument, Positions, Prefix, Trace
from symbolic_residue.readout import dla_reads, lens_reads
from symbolic_residue.shells.memtrace._residue import Asked
from symbolic_residue.shells.memtrace._text import Passage

__all__ = ["NO_TEXT", "Begun", "Observed", "Scores", "heads_at", "observe", "score"]

Array = NDArray[np.float64]
NO_TEXT = "positions only"
"""The padding that is no text: positions are shifted instead."""

QUANTITIES = ("answer", "foil", "foils", "rival", "right")


@dataclass(frozen=True)
class Begun:
    """What has been run of the fact's side.

    Attributes:
        prefix: the beginnings with all their padding; None where there is nothing before the tail.
        near: at the row that predicts the first field, without distance: heads' outputs ``[layer, head, d_head]`` and logits ``[vocab]``.
        logits: the same row's at the judged distance, ``[draw, vocab]``; None where they have not been run.
    """

    prefix: Prefix | None
    near: tuple[Tensor, Tensor]
    logits: Tensor | None = None


@dataclass
class Observed:
    """What :func:`observe` saw.

    Attributes:
        measures: frame ``side, padding, distance, draw, field, quantity, value``: ``answer`` (ln P), ``foil`` (P of the strongest), ``foils`` (P of all
            together), ``rival`` (ln P), ``right`` (1 where the answer is the best of all tokens).
        attention: ``padding, distance, draw, region, mass``: the last row's mass, mean over layers and heads.
        judged: the forward at the judged distance.
        begun: what the analysis goes on from.
        early: residual stream of the first draw at the fact's tokens in the head, ``[depth, token, d_model]``; empty where there are none.
    """

    measures: pl.DataFrame
    attention: pl.DataFrame
    judged: Trace
    begun: Begun
    early: Tensor


@dataclass
class Scores:
    """Rows of ``measures`` as they come."""

    rows: list[tuple[str, str, int, int, int, str, float]] = field(default_factory=list)

    def take(
        self,
        asked: Asked,
        side: str,
        padding: str,
        distances: list[int],
        draws: list[int],
        logits: Tensor,
        rows: list[int],
        kept: set[int] | None = None,
    ) -> None:
        """Logits ``[sequence, row, vocab]``, whose last rows are the tail's; each sequence has its distance and draw, and ``kept`` are the draws that count."""
        for k, (row, asked_for) in enumerate(zip(rows, asked.fields, strict=True)):
            log_p = torch.log_softmax(logits[:, row].double(), -1).cpu()
            best = log_p.argmax(-1)
            foils = log_p[:, asked_for.foils].exp()
            for i, (distance, draw) in enumerate(zip(distances, draws, strict=True)):
                if kept is not None and draw not in kept:
                    continue
                place = (side, padding, distance, draw, k)
                self.rows.append((*place, "answer", float(log_p[i, asked_for.token])))
                self.rows.append((*place, "foil", float(foils[i].max())))
                self.rows.append((*place, "foils", float(foils[i].sum())))
                self.rows.append((*place, "right", float(best[i] == asked_for.token)))
                if asked_for.rival is not None:
                    self.rows.append((*place, "rival", float(log_p[i, asked_for.rival])))

    def frame(self) -> pl.DataFrame:
        """As a frame."""
        names = {"side": pl.String, "padding": pl.String, "distance": pl.Int64, "draw": pl.Int64, "field": pl.Int64}
        return pl.DataFrame(self.rows, schema={**names, "quantity": pl.String, "value": pl.Float64}, orient="row")


def score(measures: pl.DataFrame, side: str, padding: str, distance: int, quantity: str) -> Array:
    """One quantity ``[draw, field]``. Without distance there is one text for all kinds of padding: one row."""
    found = measures.filter(
        (pl.col("side") == side)
        & (pl.col("padding") == (NO_TEXT if distance == 0 else padding))
        & (pl.col("distance") == distance)
        & (pl.col("quantity") == quantity)
    ).sort("draw", "field")
    n = found["field"].n_unique()
    return found["value"].to_numpy().reshape(-1, n) if n else np.zeros((0, 0))


def observe(
    instrument: Instrument,
    asked: Asked,
    passages: dict[str, Passage],
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Observed:
    """Run everything; see the module.

    Args:
        passages: by side.
        progress: told what is going on, and the share done.
    """
    scores, masses = Scores(), []
    longest = asked.distances[-1]
    jobs, done = len(passages) * len(asked.paddings) + 1, 0
    judged: Trace | None = None
    prefix: Prefix | None = None
    early: list[Tensor] = []
    texts = passages["fact"].pads
    fresh = {(kind, d): _distinct([pad[:d] for pad in texts[kind]]) for kind in asked.paddings for d in asked.distances}
    near: tuple[Tensor, Tensor] | None = None
    for side, one in passages.items():
        found = _without_distance(instrument, asked, side, one, scores)
        near = found if side == "fact" else near
    assert near is not None
    progress("without distance", 1 / jobs)
    for kind in asked.paddings:
        for side, one in passages.items():
            done += 1
            distances = [d for d in asked.distances if d > 0]
            if side == "swapped":  # read at the judged distance only
                distances = [d for d in distances if d == asked.distance and kind == asked.paddings[0]]
            main = side == "fact" and kind == asked.paddings[0]
            draws = len(one.pads[kind])
            batch = one.beginnings(kind, longest)
            if not distances or batch is None:
                continue
            begun = _begin(instrument, batch, one, early if main else None)
            if main:
                prefix = begun
            for d in distances:
                last = main and d == asked.distance
                keep = -min(one.rows)
                trace = begun.run(
                    one.tails(draws),
                    drop=longest - d,
                    reads=_reads(instrument) if last else (),
                    attention=_attention(one, d, whole=last) if main else None,
                    keep_logits=keep,
                    keep=last,
                )
                assert trace.logits is not None
                scores.take(asked, side, kind, [d] * draws, list(range(draws)), trace.logits, one.rows, fresh[kind, d])
                if main:
                    masses += _masses(trace, kind, d, one.rows[0])
                if last:
                    judged = trace
            progress(f"{side}, {kind} padding", (done + 1) / jobs)
    if judged is None:  # the prompt's own distance is 0
        one = passages["fact"]
        batch = collate([[*one.head, *one.tail]])
        judged = instrument.run(batch, reads=_reads(instrument), attention=_attention(one, 0, whole=True))
        begin = len(one.head)
        early = [judged[p][0, :begin] for p in ("resid_pre.0", *(f"resid_post.{i}" for i in range(instrument.parts.n_layers)))]
        for point, tensor in judged.tensors.items():
            if point.kind not in ("k", "v"):
                judged.tensors[point] = tensor[:, begin:]
    frame = pl.DataFrame(
        masses,
        schema={"padding": pl.String, "distance": pl.Int64, "draw": pl.Int64, "region": pl.String, "mass": pl.Float64},
        orient="row",
    )
    begun_with = Begun(
        prefix, near, None if prefix is None or asked.distance == 0 else judged["logits"][:, passages["fact"].rows[0]]
    )
    return Observed(scores.frame(), frame, judged, begun_with, torch.stack(early) if early else torch.zeros(0))


def _distinct(texts: list[list[int]]) -> set[int]:
    """Draws whose text no earlier draw has: two that begin alike are one text at a short distance."""
    return {i for i, text in enumerate(texts) if text not in texts[:i]}


def _begin(instrument: Instrument, batch: Batch, one: Passage, early: list[Tensor] | None) -> Prefix:
    """The beginnings; ``early`` receives the first draw's residual stream over the head, depth by depth."""
    if early is None or not one.head:
        return Prefix(instrument, batch)
    n = len(one.head)
    return Prefix(instrument, batch, reads=lens_reads(), on_read=lambda point, x: early.append(x[0, :n].detach().clone()))


def _reads(instrument: Instrument) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*dla_reads(instrument.parts), *lens_reads(), "v.*"]))


def _attention(one: Passage, distance: int, *, whole: bool) -> AttentionRead:
    """The row that predicts the first field; at the judged distance all of the tail, with their weights."""
    rows = tuple(range(-len(one.tail), 0)) if whole else (one.rows[0],)
    return AttentionRead(regions=one.regions(distance), stats=("mass",), rows=rows, weights=whole, split_self=True)


def _masses(trace: Trace, kind: str, distance: int, row: int) -> list[tuple[str, int, int, str, float]]:
    table: Any = trace.attention
    at = row if len(table.rows) > 1 else 0
    mean = table["mass"][:, :, :, at].mean((0, 2)).double().cpu()  # [batch, region]
    return [(kind, distance, b, name, float(mean[b, r])) for b in range(len(mean)) for r, name in enumerate(table.regions)]


def _without_distance(instrument: Instrument, asked: Asked, side: str, one: Passage, scores: Scores) -> tuple[Tensor, Tensor]:
    """Head and tail with nothing between, and with the tail's positions shifted by each distance; returns :attr:`Begun.near`."""
    shifts = asked.distances if instrument.parts.position_ids and side != "swapped" else [0]
    ids = [*one.head, *one.tail]
    edits = []
    if len(shifts) > 1:
        positions = torch.arange(len(ids)).repeat(len(shifts), 1)
        positions[:, len(one.head) :] += torch.tensor(shifts)[:, None]
        edits = [Positions(positions)]
    trace = instrument.run(collate([ids] * len(shifts)), edits=edits, reads=("z.*",), keep_logits=-min(one.rows))
    assert trace.logits is not None
    scores.take(asked, side, NO_TEXT, list(shifts), [0] * len(shifts), trace.logits, one.rows)
    return heads_at(instrument, trace, one.rows[0]), trace.logits[0, one.rows[0]]


def heads_at(instrument: Instrument, trace: Trace, row: int) -> Tensor:
    """Heads' outputs of the first sequence at a row, ``[layer, head, d_head]``; NaN where a layer has no heads."""
    found = {layer: trace[f"z.{layer}"][0, row] for layer in instrument.attention_layers}
    first = next(iter(found.values()))
    absent = torch.full_like(first, float("nan"))
    return torch.stack([found.get(layer, absent) for layer in range(instrument.parts.n_layers)])
