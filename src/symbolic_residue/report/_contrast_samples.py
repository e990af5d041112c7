"""Answers to look at: of every condition some with the behaviour and some without, the behaviour marked where it starts in the text.

1. Examples are taken question by question (the first of each question, then the second …), so that a few show many questions; how many there are is said.
2. The mark starts at ``event_character``. It covers the behaviour's own text where that is known (``text:…``) and stands near, else the rest of the word. A
   behaviour past the text (the end of text) is marked as the end.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from symbolic_residue.report._contrast_load import ContrastRun

__all__ = ["marked_text", "samples"]

WITH, WITHOUT = 6, 2
"""Answers shown of each condition."""

_END = "(end of text)"
_NEAR = 4


def samples(run: ContrastRun) -> list[dict[str, Any]]:
    """``condition, system, n_with, n_without, rows`` of each condition; rows have the example's columns and ``pieces`` (see :func:`marked_text`)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in run.rows("contrast_examples"):
        found.setdefault(row["condition"], []).append(row)
    groups = []
    for condition, rows in found.items():
        sides = [[row for row in rows if (row["event"] is not None) == positive] for positive in (True, False)]
        shown = [*_spread(sides[0])[:WITH], *_spread(sides[1])[:WITHOUT]]
        groups.append(
            {
                "condition": condition,
                "system": rows[0]["system"],
                "n_with": len(sides[0]),
                "n_without": len(sides[1]),
                "questions": len({row["question"] for row in rows}),
                "stops": ", ".join(
                    f"{stop} {sum(row['stop'] == stop for row in rows)}" for stop in dict.fromkeys(row["stop"] for row in rows)
                ),
                "rows": [{**row, "pieces": marked_text(row, run.behaviour)} for row in shown],
            }
        )
    return groups


def _spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_question: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_question.setdefault(row["question"], []).append(row)
    return [row for turn in zip_longest(*by_question.values()) for row in turn if row is not None]


def marked_text(row: dict[str, Any], behaviour: str) -> list[tuple[bool, str]]:
    """The answer's text as pieces ``(marked, text)`` that add up to it; an end that is the behaviour is a marked piece more."""
    text, start = row["text"], row["event_character"]
    if start is None:
        return [(False, text)]
    if start >= len(text):
        return [(False, text), (True, _END)]
    kind, _, wanted = behaviour.partition(":")
    at = text.find(wanted, start) if kind == "text" and wanted else -1
    if 0 <= at <= start + _NEAR:
        stop = at + len(wanted)
    else:
        stop = start + 1
        while stop < len(text) and not text[stop].isspace():
            stop += 1
    return [piece for piece in ((False, text[:start]), (True, text[start:stop]), (False, text[stop:])) if piece[1]]
