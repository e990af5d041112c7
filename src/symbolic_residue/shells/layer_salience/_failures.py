"""What LAYER-SALIENCE should get right: the answer whose evidence is neglected.

1. The right next token is the item's answer, against every other token.
2. Evidence: the answer's word in the text, where it stands there. Control: the text with the sentence that holds it moved to the end, right before
   the last sentence; none where that changes nothing.
"""

from __future__ import annotations

import re
from typing import Any

from symbolic_residue.errors import NoRightAnswerError
from symbolic_residue.prompts import build_prompt
from symbolic_residue.shells._failure import Ask, Failure, places_of

__all__ = ["answer_failure", "evidence_last"]

_SENTENCE = re.compile(r"(?<=[.?!])\s+")


def answer_failure(
    tokenizer: Any, text: str, answer: str | None, id: str, frame: str | None, *, token: int | None = None, chat: bool = False
) -> Failure:
    """The failure of a text.

    Args:
        tokenizer: the model's.
        text: the text; ``chat`` renders it by the chat template.
        answer: what should come next; ``token`` its id where it is known.
        id, frame: of the failure.

    Raises:
        NoRightAnswerError: there is no answer.
    """
    if answer is None:
        raise NoRightAnswerError(
            f"{id} has no right answer.",
            why="The model's own best token was followed.",
            todo="Give the answer, as in answer=' plum'.",
        )
    built = build_prompt(tokenizer, text, chat=chat)
    if token is None:
        whole = build_prompt(tokenizer, text, chat=chat, answer=answer)
        assert whole.answer_start is not None
        token = whole.ids[whole.answer_start]
    matched = evidence_last(text, answer)
    control = None if matched is None else tuple(build_prompt(tokenizer, matched, chat=chat).ids)
    evidence = places_of(tokenizer, text, answer.strip(), chat=chat)
    return Failure(id, frame or id, (Ask(tuple(built.ids), token, evidence=evidence, control=control),))


def evidence_last(text: str, answer: str) -> str | None:
    """The text with the first sentence that holds the answer's word moved before the last sentence; None where there is nothing to move."""
    *body, last = _SENTENCE.split(text)
    place = next((i for i, s in enumerate(body) if re.search(rf"(?<!\w){re.escape(answer.strip())}(?!\w)", s)), None)
    if place is None or place == len(body) - 1:
        return None
    return " ".join([*body[:place], *body[place + 1 :], body[place], last])
