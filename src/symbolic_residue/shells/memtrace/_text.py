"""From text to token sequences: fact, padding of exactly d tokens, question.

1. A *side* is a text before the padding (opening) and one after it (closing). The whole text, padding included, is tokenised at once and cut by
   characters: head, padding, tail. A token that straddles a border belongs to what comes later.
2. At distance d stand the head, the first d tokens of the padding, and the tail; the padding is cut inside a sentence where d falls there. A prompt's own
   gap is the beginning of its first padding text, so at d = its length the sequence is the prompt itself.
3. Answers and foils are tokenised behind the prompt. What they all begin with (a space before a digit, say) is put into the tail, and the first token in
   which they differ is scored. Foils that begin like the answer are left out, except the first, which the control states: it must differ. Later fields are
   read behind the right answers of the fields before.
4. Found where it is not given: the question is the last sentence (with a question before it); the fact, the first earlier sentence that mentions the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, PromptError, SpanError
from symbolic_residue.instrument import Batch, collate
from symbolic_residue.prompts import build_prompt, Padding, padding_sentences, Prompt, Regions
from symbolic_residue.shells.memtrace._residue import Asked, Field, Side

__all__ = ["Passage", "find_fact", "find_question", "padding_text", "passage", "scored_fields", "sentences", "token_type_of"]

REGIONS = ("sink", "fact", "padding", "question", "text")
_END = re.compile(r"[.!?]+\s+|\n\s*")


@dataclass(frozen=True)
class Passage:
    """One side as token ids.

    Attributes:
        head, tail: ids before and after the padding; ``tail`` ends with the row that predicts the last field.
        pads: padding ids by kind, one list a draw, each as long as the longest distance.
        rows: for each field, the row that predicts its scored token, counted from the end of the tail (negative).
        question: length of the part of the tail from the question on.
        fact, answer: places of the fact's tokens, and of the first field's answer in it: from 0 in the head, from −1 in the tail; None where the side
            does not state it.
        texts: what each token of head and tail shows, for tables.
    """

    head: list[int]
    tail: list[int]
    pads: dict[str, list[list[int]]]
    rows: list[int]
    question: int
    fact: list[int]
    answer: int | None
    texts: tuple[list[str], list[str]]

    def at(self, places: Sequence[int], distance: int) -> list[int]:
        """Positions in the sequence at a distance."""
        n = len(self.head) + distance + len(self.tail)
        return [p if p >= 0 else n + p for p in places]

    def ids(self, kind: str, draw: int, distance: int) -> list[int]:
        """The whole sequence."""
        return [*self.head, *self.pads[kind][draw][:distance], *self.tail]

    def beginnings(self, kind: str, longest: int) -> Batch | None:
        """Heads with all their padding, one a draw; None where that is nothing."""
        rows = [[*self.head, *pad[:longest]] for pad in self.pads[kind]]
        return collate(rows) if rows[0] else None

    def tails(self, n: int) -> Tensor:
        """The tail for each of ``n`` draws."""
        return torch.tensor([self.tail] * n)

    def regions(self, distance: int) -> Regions:
        """Sink (position 0), fact, padding, question, other text."""
        n = len(self.head) + distance + len(self.tail)
        labels = [REGIONS.index("text")] * n
        labels[len(self.head) : len(self.head) + distance] = [REGIONS.index("padding")] * distance
        for place in self.at(self.fact, distance):
            labels[place] = REGIONS.index("fact")
        labels[n - self.question :] = [REGIONS.index("question")] * self.question
        labels[0] = REGIONS.index("sink")
        return Regions(REGIONS, torch.tensor(labels).numpy())


def sentences(text: str) -> list[str]:
    """Pieces that joined are the text, each up to the white space after a sentence's end."""
    cuts = [0, *(match.end() for match in _END.finditer(text)), len(text)]
    return [text[a:b] for a, b in pairwise(cuts) if a < b]


def find_question(text: str) -> str:
    """The end of the text from the question on: its last sentence, with the question before it."""
    found = sentences(text)
    if len(found) > 1 and found[-2].rstrip().endswith("?"):
        return "".join(found[-2:])
    return found[-1]


def find_fact(text: str, answer: str) -> str:
    """The first sentence of a text that mentions the answer.

    Raises:
        SpanError: none does.
    """
    for piece in sentences(text):
        if answer.strip() and re.search(rf"(?<!\w){re.escape(answer.strip())}(?!\w)", piece):
            return piece.strip()
    raise SpanError(f"No sentence before the question mentions {answer.strip()!r}.", todo="Give fact= and answer=.")


def token_type_of(answer: str) -> str:
    """``number``, ``name`` (capitalised) or ``word``."""
    plain = answer.strip()
    if any(c.isdigit() for c in plain):
        return "number"
    return "name" if plain[:1].isupper() else "word"


def padding_text(tokenizer: Any, kind: Padding, tokens: int, *, seed: int, draw: int, similar: Sequence[str], start: str) -> str:
    """A padding text of more than ``tokens`` tokens that begins with ``start``."""
    n = max(1, tokens // 5)
    while True:
        text = start + " ".join(padding_sentences(kind, n, seed=(seed, draw), similar=similar))
        if len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) > tokens + 2:
            return text
        n *= 2


def passage(tokenizer: Any, asked: Asked, side: str) -> Passage:
    """One side of what was asked; see the module.

    Raises:
        PromptError: the text cannot be tokenised as needed.
    """
    words: Side = asked.sides[side]
    longest = asked.distances[-1]
    head: list[int] = []
    tail: list[int] = []
    spans: tuple[list[int], int | None, int] = ([], None, 0)
    shown: tuple[list[str], list[str]] = ([], [])
    pads: dict[str, list[list[int]]] = {}
    for kind, streams in asked.streams.items():
        pads[kind] = []
        for stream in streams:
            prompt = build_prompt(tokenizer, words.opening + stream + words.closing, chat=asked.chat)
            start, stop = _borders(prompt, words, stream)
            if not head and not tail:
                head, tail = prompt.ids[:start], prompt.ids[stop:]
                shown = (prompt.tokens[:start], prompt.tokens[stop:])
                spans = _places(prompt, asked, words, stream, start, stop)
            pads[kind].append(prompt.ids[start:stop][:longest])
            if len(pads[kind][-1]) < longest:
                raise PromptError(f"A padding text has fewer than {longest} tokens.")
    rows, length = [], len(tail)
    extra: list[int] = []
    for i, field in enumerate(asked.fields):
        extra += field.before
        rows.append(length + len(extra) - 1)
        if i + 1 < len(asked.fields):
            extra += [field.token, *field.after]
    whole = [*tail, *extra]
    fact, answer, question = spans
    shift = len(extra)
    return Passage(
        head=head,
        tail=whole,
        pads=pads,
        rows=[r - len(whole) for r in rows],
        question=question + shift,
        fact=[p if p >= 0 else p - shift for p in fact],
        answer=answer if answer is None or answer >= 0 else answer - shift,
        texts=(shown[0], [*shown[1], *(tokenizer.decode([t]) for t in extra)]),
    )


def _borders(prompt: Prompt, words: Side, stream: str) -> tuple[int, int]:
    """The first token of the padding and the first after it."""
    text = words.opening + stream + words.closing
    base = prompt.text.rfind(text)
    if base < 0:
        raise PromptError("The template changes the prompt's text.", todo="Run it without the chat template.")
    a = base + len(words.opening)
    b = a + len(stream)
    start = next((i for i, (_, end) in enumerate(prompt.offsets) if end > a), len(prompt))
    stop = next((i for i, (_, end) in enumerate(prompt.offsets) if end > b), len(prompt))
    return start, stop


def _places(prompt: Prompt, asked: Asked, words: Side, stream: str, start: int, stop: int) -> tuple[list[int], int | None, int]:
    """Places of the fact and of the answer (see :class:`Passage`), and the question's length in tokens."""
    base = prompt.text.rfind(words.opening + stream + words.closing)
    n = len(prompt)

    def tokens(first: int, last: int) -> list[int]:
        inside = [i for i, (a, b) in enumerate(prompt.offsets) if a < last and b > first]
        return [i if i < start else i - n for i in inside if i < start or i >= stop]

    at_question = base + len(words.opening) + len(stream) + words.closing.rfind(asked.question)
    question = len(tokens(at_question, len(prompt.text)))
    where = words.opening.rfind(asked.fact)
    offset = base + where
    if where < 0:
        where = words.closing.find(asked.fact)
        offset = base + len(words.opening) + len(stream) + where
    if where < 0:
        return [], None, question
    fact = tokens(offset, offset + len(asked.fact))
    field = asked.fields[0]
    inner = asked.fact.find(field.text.strip())
    span = fact if inner < 0 else tokens(offset + inner, offset + inner + len(field.text.strip()))
    same = [p for p in span if prompt.ids[p] == field.token] or [p for p in fact if prompt.ids[p] == field.token]
    answer = same[-1] if same else (span[0] if inner >= 0 else None)
    return fact, answer, question


def scored_fields(
    tokenizer: Any,
    prompt: str,
    answers: Sequence[str],
    foils: Sequence[Sequence[str]] | None,
    *,
    chat: bool,
    rival: str | None = None,
) -> list[Field]:
    """Answers and foils as tokens behind a prompt (step 3); without ``foils`` the answers' first tokens are scored, and foils are left empty.

    Raises:
        ConfigError: no answer; as many lists of foils as answers are needed; the first foil or the rival cannot be told from the answer.
        PromptError: an answer that merges with what stands before it.
    """
    if not answers or (foils is not None and len(foils) != len(answers)):
        raise ConfigError("Each answer needs its own list of foils.", todo="Write answer=[…], foils=[[…], …].")
    out: list[Field] = []
    said, done = "", 0

    def behind(text: str) -> list[int]:
        built = build_prompt(tokenizer, prompt, chat=chat, answer=text)
        return built.ids[built.answer_start :]

    for k, answer in enumerate(answers):
        given = [*([] if foils is None else foils[k])]
        others = given + ([rival] if rival is not None and k == 0 else [])
        mine = behind(said + answer)
        if out and mine[:done] != behind(said):
            raise PromptError(f"The answer {answer!r} merges with the one before it.", todo="Begin it with a space.")
        ids = [mine[done:], *(behind(said + other)[done:] for other in others)]
        shared = 0
        while all(len(i) > shared + 1 for i in ids) and len({i[shared] for i in ids}) == 1 and len(ids) > 1:
            shared += 1
        token, *rest = (i[shared] for i in ids)
        alike = [n for n, other in enumerate(rest) if other == token]
        if any(n in (0, len(given)) for n in alike):  # the first foil, or the rival
            raise ConfigError(
                f"{others[alike[0]]!r} begins like the answer {answer!r}, so their first tokens do not tell them apart.",
                todo="Give a foil that differs from the answer in its first token.",
            )
        out.append(
            Field(
                text=answer,
                before=ids[0][:shared],
                token=token,
                after=ids[0][shared + 1 :],
                foils=list(dict.fromkeys(t for t in rest if t != token)),
                rival=rest[-1] if rival is not None and k == 0 else None,
            )
        )
        said, done = said + answer, len(mine)
    return out
