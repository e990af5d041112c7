"""From what a caller gives to what is asked: fact, question, control, answer and foils found; distances and padding laid out.

1. The prompt is *before · fact · gap · question*; a rival fact, where there is one after the fact, opens what comes after the gap.
2. The control states a given fact, or the fact with the first foils in the answers' places, or no fact at all.
3. Foils that are not given are the model's own best tokens of the answer's shape where the fact is not stated.
4. Where a text alone is given, its fact is the sentence that most helps the model to say a word of its own next (``_find``); where none does, the first one
   that mentions what the model says next.
5. The first padding text of each kind begins with the prompt's own gap, the others with its sentences in other orders, as far as there are any; texts that
   come out alike count once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from symbolic_residue.errors import ConfigError, PromptError, SpanError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import build_prompt, Padding
from symbolic_residue.shells.memtrace._config import MemtraceConfig
from symbolic_residue.shells.memtrace._find import find_stated
from symbolic_residue.shells.memtrace._residue import Asked, Field, Side
from symbolic_residue.shells.memtrace._text import (
    find_fact,
    find_question,
    padding_text,
    scored_fields,
    sentences,
    token_type_of,
)

__all__ = ["ask", "find_asked"]


def ask(
    instrument: Instrument,
    tokenizer: Any,
    config: MemtraceConfig,
    text: str,
    *,
    fact: str | None,
    question: str | None,
    answers: Sequence[str] | None,
    foils: Sequence[Sequence[str]] | None,
    control: str | None,
    rival: str | None,
    rival_answer: str | None,
    distractors: Sequence[str],
    paddings: Sequence[Padding],
    place: str,
    token_type: str | None,
    chat: bool,
    seed: int,
) -> Asked:
    """What is asked; see the module, and :meth:`MemtraceShell.run` for the arguments.

    Raises:
        PromptError, SpanError, ConfigError: something is not there, or cannot be used.
    """
    if not isinstance(text, str) or not text.strip():
        raise PromptError("The prompt is empty.", todo="Give a text with a fact and a question.")
    if place not in ("between", "before"):
        raise ConfigError(f"The padding cannot stand {place!r}.", todo="Use 'between' or 'before'.")
    if (rival is None) != (rival_answer is None):
        raise ConfigError("A rival fact needs its answer, and the other way round.", todo="Give rival= and rival_answer=.")
    if answers is None and fact is None and question is None:
        fact, question, answers = find_asked(instrument, tokenizer, text, chat)
    question = find_question(text) if question is None else question
    if not question.strip() or not text.endswith(question):
        raise SpanError(f"The prompt does not end with the question {question!r}.", todo="The question is the end of the prompt.")
    body = text[: len(text) - len(question)]
    if answers is None:
        answers = [_best(instrument, tokenizer, text, chat)]
    fact = find_fact(body, answers[0]) if fact is None else fact
    start = body.find(fact) if fact else -1
    if start < 0:
        raise SpanError(f"The prompt does not hold the fact {fact!r} before its question.", todo="Text is matched exactly.")
    end = start + len(fact)
    close = len(body)
    if rival is not None:
        at = body.find(rival, end)
        if at < 0 and body.find(rival) < 0:
            raise SpanError(f"The prompt does not hold the rival {rival!r} before its question.", todo="Text is matched exactly.")
        close = at if at >= 0 else close
    if place == "before":
        first = _spaced(text, chat)
        sides = {"fact": Side(opening="", closing=first)}
        gap = ""
    else:
        gap = body[end:close].rstrip()
        sides = {"fact": Side(opening=text[:end], closing=text[end + len(gap) :])}
    none = _changed(sides["fact"], fact, "")
    said = build_prompt(tokenizer, none.opening + none.closing, chat=chat).ids if foils is None else None
    fields = scored_fields(tokenizer, text, answers, foils, chat=chat, rival=rival_answer)
    if said is not None:
        fields = _model_foils(instrument, tokenizer, said, fields, config.foils)
    if rival is not None:
        sides["swapped"] = _exchanged(sides["fact"], fact, rival)
    kind = "none"
    if control is not None:
        kind, sides["control"] = "given", _changed(sides["fact"], fact, control)
    elif foils is not None and (other := _restated(fact, answers, foils)) is not None:
        kind, sides["control"] = "foil", _changed(sides["fact"], fact, other)
    else:
        sides["control"] = none
    length, own = _length(tokenizer, sides["fact"], gap, chat)
    extra = sum(len(f.before) + 1 + len(f.after) for f in fields)
    limit = instrument.parts.max_context
    wanted: set[int] = {*config.distances, *([own] if own else [])}
    distances = [d for d in sorted(wanted) if limit is None or length + extra + d <= limit]
    if len(distances) < 2 or own > distances[-1]:
        raise PromptError(f"The prompt of {length} tokens leaves no room for padding in a context of {limit}.", todo="Shorten it.")
    kinds: list[Padding] = [k for k in paddings if k != "adversarial" or distractors]
    if not kinds:
        raise ConfigError("Adversarial padding needs sentences that look like the fact.", todo="Give distractors=[…].")
    streams = {k: _streams(tokenizer, k, distances[-1], config.draws, seed, distractors, gap, place) for k in kinds}
    return Asked(
        input_text=text,
        chat=chat,
        fact=fact,
        question=question,
        fields=fields,
        rival=rival,
        foil_source="given" if foils is not None else "model",
        token_type=token_type or token_type_of(answers[0].split()[-1] if answers[0].split() else ""),
        place=place,
        sides={name: sides[name] for name in ("fact", "control", "swapped") if name in sides},
        control_kind=kind,
        gap=own,
        distances=distances,
        distance=own or distances[-1],
        streams=streams,
        paddings=kinds,
        seed=seed,
    )


def find_asked(instrument: Instrument, tokenizer: Any, text: str, chat: bool) -> tuple[str, str, list[str]]:
    """Fact, question and answer of a text alone: the sentence that most helps the model to say a word of its own; where none does, the first one that
    mentions what the model says next.

    Raises:
        PromptError, SpanError: neither finds one.
    """
    try:
        found = find_stated(instrument, tokenizer, text, chat=chat)
    except SpanError as none:
        question = find_question(text)
        try:
            said = _best(instrument, tokenizer, text, chat)
            return find_fact(text[: len(text) - len(question)], said), question, [said]
        except (PromptError, SpanError):
            raise none from None
    return found.fact, found.question, [found.answer]


def _spaced(text: str, chat: bool) -> str:
    """The text as it continues padding."""
    return text if text[:1].isspace() else " " + text


def _changed(side: Side, fact: str, other: str) -> Side:
    """The side with the fact replaced (its first occurrence in the opening's end, else in the closing)."""
    if side.opening.endswith(fact):
        return Side(opening=side.opening[: len(side.opening) - len(fact)] + other, closing=side.closing)
    return Side(opening=side.opening, closing=side.closing.replace(fact, other, 1))


def _exchanged(side: Side, fact: str, rival: str) -> Side:
    """Fact and rival in each other's places."""
    mark = "\x00"
    opening, closing = side.opening, side.closing
    if opening.endswith(fact):
        opening = opening[: len(opening) - len(fact)] + mark
    else:
        closing = closing.replace(fact, mark, 1)
    if rival in closing:
        closing = closing.replace(rival, fact, 1)
    else:
        opening = opening.replace(rival, fact, 1)
    return Side(opening=opening.replace(mark, rival), closing=closing.replace(mark, rival))


def _restated(fact: str, answers: Sequence[str], foils: Sequence[Sequence[str]]) -> str | None:
    """The fact with each answer replaced by its first foil; None where it does not state them."""
    for answer, others in zip(answers, foils, strict=True):
        if not others or answer.strip() not in fact:
            return None
        fact = fact.replace(answer.strip(), others[0].strip(), 1)
    return fact


def _length(tokenizer: Any, side: Side, gap: str, chat: bool) -> tuple[int, int]:
    """Tokens of the text without its gap, and of the gap."""
    prompt = build_prompt(tokenizer, side.opening + gap + side.closing, chat=chat)
    if not gap:
        return len(prompt), 0
    a = prompt.text.rfind(side.opening + gap + side.closing) + len(side.opening)
    own = sum(a < stop <= a + len(gap) for _, stop in prompt.offsets)
    return len(prompt) - own, own


def _streams(
    tokenizer: Any, kind: Padding, longest: int, draws: int, seed: int, similar: Sequence[str], gap: str, place: str
) -> list[str]:
    pieces = [s.strip() for s in sentences(gap) if s.strip()]
    found = []
    for draw in range(draws):
        start = "" if place == "before" else " "
        if gap and draw == 0:
            start = gap + " "
        elif len(pieces) > 1:
            order = np.random.default_rng([seed, draw]).permutation(len(pieces))
            mixed = " " + " ".join(pieces[int(i)] for i in order) + " "
            if order.tolist() != sorted(order.tolist()) and not any(s.startswith(mixed) for s in found):
                start = mixed
        found.append(padding_text(tokenizer, kind, longest, seed=seed, draw=draw, similar=similar, start=start))
    return list(dict.fromkeys(found))


def _best(instrument: Instrument, tokenizer: Any, text: str, chat: bool) -> str:
    """What the model says next."""
    logits = instrument.run(collate([build_prompt(tokenizer, text, chat=chat)]), keep_logits=1)["logits"]
    said = tokenizer.decode([int(logits[0, -1].argmax())], clean_up_tokenization_spaces=False)
    if not said.strip():
        raise PromptError(f"What the model says next, {said!r}, is no answer.", todo="Give answer= and fact=.")
    return said


def _shape(text: str) -> str:
    plain = text.strip()
    kind = token_type_of(plain) if plain.isalnum() else "other"
    return f"{kind}{' ' if text[:1].isspace() else ''}"


def _model_foils(instrument: Instrument, tokenizer: Any, said: list[int], fields: list[Field], n: int) -> list[Field]:
    """Fields with the model's own guesses as foils; ``said`` are the tokens of the prompt without the fact."""
    out, ids = [], list(said)
    for field in fields:
        ids += field.before
        row = instrument.run(collate([ids]), keep_logits=1)["logits"][0, -1]
        shape = _shape(tokenizer.decode([field.token]))
        best = row.topk(min(500, len(row))).indices.tolist()
        known = {field.token, field.rival}
        same = [t for t in best if t not in known and _shape(tokenizer.decode([t])) == shape][:n]
        if field.rival is not None:
            same = [field.rival, *same]
        if not same:
            raise ConfigError(f"No foils of the shape of {field.text!r} are among the model's best tokens.", todo="Give foils=[…].")
        out.append(field.model_copy(update={"foils": same}))
        ids += [field.token, *field.after]
    return out
