"""What VALUE-COLLAPSE should get right: the candidate that the disambiguated prompt names.

1. On the ambiguous prompt both candidates are supported; which one counts as right is what the item's control settles. Right means decided:
   log-odds over the other candidate above the criterion of flatness, not merely above 0.
2. Evidence: the places that name this candidate. Distractor: those that name the other. Control: the item's.
"""

from __future__ import annotations

from typing import Any

from symbolic_residue.errors import NoRightAnswerError
from symbolic_residue.prompts import BenchmarkItem, build_prompt
from symbolic_residue.shells._failure import Ask, Failure, places_of

__all__ = ["candidate_failure"]


def candidate_failure(tokenizer: Any, item: BenchmarkItem, id: str, limit: float) -> Failure:
    """The failure of an item; its frame is the item's kind.

    Raises:
        NoRightAnswerError: the item has no control that names a candidate, or both begin with the same token.
    """
    if item.answer is None or item.candidates is None or item.control is None:
        raise NoRightAnswerError(f"{id} has no right answer.", why="It has no disambiguated prompt that names one.")
    other = next(c for c in item.candidates if c != item.answer)
    right, wrong = (int(tokenizer.encode(c, add_special_tokens=False)[0]) for c in (item.answer, other))
    if right == wrong:
        raise NoRightAnswerError(f"{id} has no right token.", why="Both candidates begin with the same one in this tokenizer.")
    ask = Ask(
        tuple(build_prompt(tokenizer, item.prompt).ids),
        right,
        wrong,
        evidence=places_of(tokenizer, item.prompt, item.answer),
        distractor=places_of(tokenizer, item.prompt, other),
        control=tuple(build_prompt(tokenizer, item.control).ids),
    )
    return Failure(id, item.frame or item.kind, (ask,), limit=limit)
