"""The fact in a user's own text: the sentence that most helps the model to say one of its own words next.

1. The question is the end of the text (``find_question``); every sentence before it is put right in front of the question, alone, and the question also stands
   without any.
2. A word is a candidate where it is no function word and the question does not hold it. Its gain is what its sentence adds to its probability (of its
   first token) as the next one.
3. The fact is the sentence, and the answer the word, of the largest gain in probability; one that is raised by less than ``LEAST`` nats, or stays below 1 %
   with its sentence, is none.

A fact that the whole text makes the model lose is found all the same, since each sentence is read without the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from symbolic_residue.errors import PromptError, SpanError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import build_prompt
from symbolic_residue.prompts._words import STOP
from symbolic_residue.shells.memtrace._text import find_question, sentences

__all__ = ["LEAST", "Stated", "find_stated"]

LEAST = 1.0
"""Nats by which a sentence must raise its word, to be taken as the fact."""

_LIKELY = 0.01
_AT_ONCE = 16
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class Stated:
    """A fact found in a text.

    Attributes:
        question: the end of the text.
        fact: the sentence that states the answer.
        answer: the word, with the space that stands before it.
        gain: nats by which the sentence raises it.
    """

    question: str
    fact: str
    answer: str
    gain: float


@torch.no_grad()
def find_stated(instrument: Instrument, tokenizer: Any, text: str, *, chat: bool = False) -> Stated:
    """The fact in a text, the question that asks for it, and its answer; see the module.

    Args:
        instrument: the model's.
        tokenizer: its tokenizer.
        text: the whole prompt.
        chat: whether it is rendered by the chat template.

    Raises:
        PromptError: an empty text.
        SpanError: there is no sentence before the question, or none that helps the model to say one of its words.
    """
    if not text.strip():
        raise PromptError("The prompt is empty.", todo="Give a text with a fact and a question.")
    question = find_question(text)
    pieces = list(dict.fromkeys(piece for piece in sentences(text[: len(text) - len(question)]) if piece.strip()))
    if not pieces:
        raise SpanError(
            "No sentence stands before the question.",
            why="Memory is asked about something stated earlier.",
            todo="Give fact= and answer=.",
        )
    asked = {word.lower() for word in _WORD.findall(question)}
    space = "" if chat or text[-1:].isspace() else " "
    prompts = [build_prompt(tokenizer, piece + question, chat=chat) for piece in ("", *pieces)]
    rows = []
    for start in range(0, len(prompts), _AT_ONCE):
        logits = instrument.run(collate(prompts[start : start + _AT_ONCE]), keep_logits=1)["logits"][:, -1]
        rows += list(logits.double().log_softmax(-1).cpu())
    best: tuple[float, Stated] | None = None
    for piece, row in zip(pieces, rows[1:], strict=True):
        for word in dict.fromkeys(_WORD.findall(piece)):
            if word.lower() in STOP or word.lower() in asked or (len(word) < 2 and not word.isdigit()):
                continue
            built = build_prompt(tokenizer, question, chat=chat, answer=space + word)
            assert built.answer_start is not None
            token = built.ids[built.answer_start]
            gain = float(row[token] - rows[0][token])
            more = float(row[token].exp() - rows[0][token].exp())
            if gain >= LEAST and float(row[token].exp()) >= _LIKELY and (best is None or more > best[0]):
                best = (more, Stated(question, piece.strip(), space + word, gain))
    if best is None:
        raise SpanError(
            "No earlier sentence of the text states what its end asks for.",
            why=f"None of {len(pieces)} raises one of its own words by {LEAST:g} nat, to {_LIKELY:.0%} or more, as the next after {question.strip()[-60:]!r}.",
            todo="Give fact= and answer=.",
        )
    return best[1]
