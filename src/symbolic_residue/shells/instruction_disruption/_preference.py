"""Which instruction the next token belongs to: minimal pairs of continuations, with either instruction hidden.

1. A question whose plain answer is known has two right continuations: the answer made to follow ``a``, and made to follow ``b``. Up to the first token in
   which they differ they are the same; that beginning is put after ``Answer:``, and the two tokens are the pair. Where no plain answer is known, the answers
   that the model gave to each instruction alone take their place.
2. *Preference* = logit(a's token) − logit(b's token) at the last row, nats: above 0 the model goes on as ``a`` asks. Both orders, and each instruction alone.
3. *Hidden*: one instruction's block is masked from every row after the last block (question and answer), in all layers and heads. The control hides the longest
   run of other tokens before the question (the frame's words), in one order of each question, by turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from symbolic_residue.shells._confirm import PairRuns
from symbolic_residue.shells.instruction_disruption._answers import SharedRows
from symbolic_residue.shells.instruction_disruption._frames import Frame
from symbolic_residue.shells.instruction_disruption._residue import Asked

__all__ = ["Cell", "answer_pairs", "cells_of", "plain_pairs", "preference_frame"]

Pair = tuple[list[int], int, int]
"""Common tokens, then a's token and b's."""
_OPENING = "Answer:"


@dataclass(frozen=True)
class Cell:
    """One frame with the pair's common tokens behind it, and what is hidden in it (``""`` nothing, a name, or ``control``)."""

    frame: Frame
    ids: tuple[int, ...]
    pair: tuple[int, int]
    hidden: str = ""
    span: tuple[int, int] | None = None

    @property
    def sequence(self) -> tuple[tuple[int, ...], tuple[int, int] | None]:
        """What is run."""
        return self.ids, self.span


def plain_pairs(tokenizer: Any, asked: Asked) -> list[Pair | None]:
    """Each question's pair from its plain answer; None where there is none."""
    found: list[Pair | None] = []
    base = _ids(tokenizer, _OPENING)
    for task in asked.tasks:
        if task.plain is None:
            found.append(None)
            continue
        sides = [_ids(tokenizer, f"{_OPENING} {i.follow(task.plain.answer, task.plain)}") for i in (asked.a, asked.b)]
        fits = all(s[: len(base)] == base for s in sides)
        found.append(_differ(*(s[len(base) :] for s in sides)) if fits else None)
    return found


def answer_pairs(asked: Asked, frames: Sequence[Frame], ids: Sequence[Sequence[int]]) -> list[Pair | None]:
    """Each question's pair from the answers to each instruction alone (of the first arrangement)."""
    alone: dict[tuple[str, int], Sequence[int]] = {}
    for frame, new in zip(frames, ids, strict=True):
        if frame.condition.startswith("alone"):
            alone.setdefault((frame.order, frame.task), new)
    return [_differ(list(alone["a", t]), list(alone["b", t])) for t in range(len(asked.tasks))]


def _differ(one: list[int], two: list[int]) -> Pair | None:
    n = next((i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), None)
    return None if n is None else (one[:n], one[n], two[n])


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def cells_of(frames: Sequence[Frame], pairs: Sequence[Pair | None], *, hide: bool, both_orders: bool = True) -> list[Cell]:
    """The cells to run: each alone and both orders; with ``hide`` also each block, and the control run, hidden.

    Without ``both_orders`` blocks are hidden in one order of each question, by turns, as the control always is.
    """
    cells = []
    for frame in frames:
        pair = pairs[frame.task]
        if pair is None or frame.condition == "control":
            continue
        ids = (*frame.prompt.ids, *pair[0])
        cells.append(Cell(frame, ids, pair[1:]))
        turn = (frame.order == "ab") == (frame.task % 2 == 0)
        if frame.condition == "conflict" and hide and (both_orders or turn):
            inside = {name: (max(1, a), min(b, frame.shared)) for name, (a, b) in frame.spans.items()}
            cells += [Cell(frame, ids, pair[1:], name, span) for name, span in inside.items()]
            control = _control_span(frame)
            if control is not None and turn:
                cells.append(Cell(frame, ids, pair[1:], "control", control))
    return cells


def _control_span(frame: Frame) -> tuple[int, int] | None:
    """The longest run of shared tokens outside the blocks and the sink; None under three tokens."""
    taken = {i for a, b in frame.spans.values() for i in range(a, b)}
    best, start = (0, 0), None
    for i in range(1, frame.shared + 1):
        free = i < frame.shared and i not in taken
        if free and start is None:
            start = i
        if not free and start is not None:
            best, start = max(best, (start, i), key=lambda s: s[1] - s[0]), None
    return best if best[1] - best[0] >= 3 else None


def preference_frame(rows: SharedRows, cells: Sequence[Cell]) -> pl.DataFrame:
    """``condition, order, arrangement, task, hidden, tokens, value``: preference for ``a`` over ``b`` (nats), ``tokens`` how many were hidden."""
    values = PairRuns(rows.instrument, [], [c.pair for c in cells], rows=rows)()
    return pl.DataFrame(
        [
            (
                c.frame.condition,
                c.frame.order,
                c.frame.arrangement,
                c.frame.task,
                c.hidden,
                (c.span[1] - c.span[0]) if c.span else 0,
                float(v),
            )
            for c, v in zip(cells, values, strict=True)
        ],
        schema={
            **dict.fromkeys(("condition", "order", "arrangement"), pl.String),
            "task": pl.Int64,
            "hidden": pl.String,
            "tokens": pl.Int64,
            "value": pl.Float64,
        },
        orient="row",
    )
