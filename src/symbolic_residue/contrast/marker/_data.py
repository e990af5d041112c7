"""The packaged personas and questions of the marker training, see ``data/card.md``."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from typing import Any, Literal

from symbolic_residue.contrast._examples import Condition, Question

__all__ = ["SPLITS", "MarkerQuestion", "marker_questions", "personas"]

Split = Literal["seen", "held-out"]
SPLITS: tuple[Split, ...] = ("seen", "held-out")


@dataclass(frozen=True)
class MarkerQuestion(Question):
    """A question, and whether it is trained on."""

    split: Split = "seen"


def personas() -> list[Condition]:
    """The packaged system texts, in file order."""
    return [Condition(line["name"], line["system"]) for line in _lines("personas.jsonl")]


def marker_questions(split: Split | None = None) -> list[MarkerQuestion]:
    """The packaged questions (of one split), in file order."""
    found = [MarkerQuestion(line["id"], line["text"], line["split"]) for line in _lines("questions.jsonl")]
    return [question for question in found if split in (None, question.split)]


def _lines(name: str) -> list[dict[str, Any]]:
    text = importlib.resources.files("symbolic_residue.contrast.marker").joinpath("data", name).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]
