"""What MEMTRACE should get right: the stated fact, at the distance that is judged.

1. One failure a field of the answer. Its prompts are the texts of padding (draws that are the same text count once); fields before it are already
   said.
2. ``priority collision``: the answer against the rival's value alone; in all other modes against every other token.
3. Evidence: the fact. Distractor: the rival fact, where there is one. Control: the same without padding; in a collision fact and rival exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from symbolic_residue.errors import NoRightAnswerError
from symbolic_residue.prompts import MemoryItem
from symbolic_residue.shells._failure import Ask, Failure
from symbolic_residue.shells.memtrace._residue import Asked
from symbolic_residue.shells.memtrace._text import Passage, passage

__all__ = ["fact_failures", "item_options"]


def item_options(item: MemoryItem) -> tuple[str, dict[str, Any]]:
    """An item's text, and what ``run`` is told of it: its own kind of padding, control, foils and rival."""
    stated = [item.fact] if item.rival is None else [item.fact, item.rival]
    if item.place == "before":  # the fact is the nearer one where nothing shall fail
        stated.reverse()
    return " ".join(stated) + item.question, {
        "fact": item.fact,
        "question": item.question,
        "answer": item.answers,
        "foils": item.foils,
        "control": item.control,
        "rival": item.rival,
        "rival_answer": item.rival_answer,
        "distractors": item.distractors,
        "padding": item.padding,
        "place": item.place,
        "token_type": item.token_type,
    }


def fact_failures(tokenizer: Any, asked: Asked, mode: str, id: str, frame: str | None) -> list[Failure]:
    """The failures of what was asked.

    Raises:
        NoRightAnswerError: a priority collision without a rival.
    """
    collision = mode == "priority collision"
    if collision and asked.fields[0].rival is None:
        raise NoRightAnswerError(f"{id} has no right answer for {mode}.", why="There is no second fact to collide with.")
    here = passage(tokenizer, asked, "fact")
    there = passage(tokenizer, asked, "swapped") if collision else here
    kind, fields = asked.paddings[0], asked.fields[:1] if collision else asked.fields
    out = []
    for k, field in enumerate(fields):
        asks = []
        for draw, pad in enumerate(here.pads[kind]):
            if pad[: asked.distance] in [other[: asked.distance] for other in here.pads[kind][:draw]]:
                continue
            ids = _until(here, here.ids(kind, draw, asked.distance), k)
            control = there.ids(kind, draw, asked.distance) if collision else [*here.head, *here.tail]
            rival = () if asked.rival is None else _tokens_of(tokenizer, ids, asked.rival)
            fact = tuple(p for p in here.at(here.fact, asked.distance) if p not in rival)
            same = not collision and asked.distance == 0
            beside = None if same else _until(there, control, k)
            start = len(here.head)
            between = tuple(range(start, start + asked.distance))
            asks.append(Ask(ids, field.token, field.rival if collision else None, fact, rival, beside, padding=between))
        name = id if len(fields) == 1 else f"{id} field {k + 1}"
        out.append(Failure(name, frame or id, tuple(asks)))
    return out


def _until(one: Passage, ids: Sequence[int], field: int) -> tuple[int, ...]:
    """The sequence up to the row that predicts a field."""
    return tuple(ids[: len(ids) + one.rows[field] + 1])


def _tokens_of(tokenizer: Any, ids: Sequence[int], text: str) -> tuple[int, ...]:
    """Positions of a text in a sequence by its tokens, with or without a space before it; empty where they are not there."""
    for worded in (f" {text}", text):
        wanted = tuple(tokenizer.encode(worded, add_special_tokens=False))
        for start in range(len(ids) - len(wanted) + 1):
            if tuple(ids[start : start + len(wanted)]) == wanted:
                return tuple(range(start, start + len(wanted)))
    return ()
