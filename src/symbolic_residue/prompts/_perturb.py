"""Small edits of a prompt that keep its meaning and its last words, to ask how much an answer hangs on the wording.

1. The end is fixed: the last ``TAIL`` characters never change, so the next-token question stays the same. Nor does any
   occurrence of a string in ``protect`` (the candidates of the answer).
2. Lines that look like code or a table are left as they are, and so are all words of a text that is not English by its
   function words: the word lists here are English. Such text still gets its whitespace edits.
3. Each kind of edit proposes what it can do, in an order drawn from the seed:
   *whitespace* (some single spaces doubled, an empty line in front), *punctuation* (a comma dropped or added where a clause
   starts, a period turned into a semicolon), *filler* (a phrase without content at the start of a sentence), *synonym* (one
   word, then several, from a table of safe pairs), *dropped* (a sentence away that is not among the last two, shares no content
   word with the last sentence or with ``protect``, and is not what the next sentence's pronoun stands for).
4. The kinds take turns until ``n`` variants are made or nothing is left. A proposal that repeats an earlier text or changes how
   often a protected string occurs is passed over.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args, Literal

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.prompts._words import ABBREVIATIONS, ENGLISH, FILLERS, LOWERABLE, PRONOUNS, STOP, SYNONYMS

__all__ = ["TAIL", "VARIANT_KINDS", "MessagesVariant", "Variant", "VariantKind", "perturb", "perturb_messages"]

VariantKind = Literal["whitespace", "punctuation", "filler", "synonym", "dropped"]
VARIANT_KINDS: tuple[VariantKind, ...] = get_args(VariantKind)

TAIL = 10
"""Characters at the end of a text that no edit touches."""

_CONJUNCTIONS = "and|but|so|because|while|although"
_OPENERS = "However|Then|Later|Yesterday|Today|Tomorrow|Now|Finally|Sometimes|Meanwhile|In the end|Of course|At first|Last year"

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s+[\"'“‘(]?[^\W_])")
_CODE_MARK = re.compile(
    r"[{}\[\]<>=`|\\_#~^]|;\s*$|\w\(|->|://|^(?: {4}|\t)"
    r"|^\s*(?:(?:def|class|for|while|if|elif|else|try|except|with)\b.*:|import [\w.]+.*|from [\w.]+ import .*|return\b.*)\s*$"
)
_CLAUSE = rf"(?:{_CONJUNCTIONS}) (?:he|she|it|they|we|I|you|the|there|this|that|his|her|my|our|their)\b"

Edit = tuple[int, int, str]
"""Characters ``start`` to ``stop`` of the text become the string."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One edited text: the ``kind`` of edit, and the whole ``text``."""

    kind: VariantKind
    text: str


@dataclass(frozen=True, slots=True)
class MessagesVariant:
    """One edited conversation: the ``kind`` of edit, and all ``messages``, of which only the last user turn differs."""

    kind: VariantKind
    messages: tuple[dict[str, str], ...]


def perturb(text: str, *, seed: int = 0, protect: Sequence[str] = (), n: int = 12) -> list[Variant]:
    """Up to ``n`` small edits of ``text`` that keep its meaning and its last ``TAIL`` characters.

    Args:
        text: the prompt; any language or code, not blank.
        seed: draws which edits are made; the same seed gives the same variants.
        protect: strings that must survive untouched, as often as they occur (the candidates, say); a blank one protects
            nothing.
        n: how many variants are wanted.

    Returns:
        Distinct variants, none equal to ``text``, balanced over the kinds that apply. Fewer than ``n`` when the text offers no
        more, but at least one (unless ``protect`` holds white space that even an empty line in front would repeat).

    Raises:
        PromptError: the text is blank.
        ConfigError: ``n`` below 1, or ``protect`` is a single string.
    """
    if not text.strip():
        raise PromptError("The text to perturb is empty.", todo="Give some text.")
    if n < 1:
        raise ConfigError(f"n = {n}: at least one variant must be wanted.")
    if isinstance(protect, str):
        raise ConfigError("protect is a single string.", why="It takes a list of them.", todo=f"Write protect=[{protect!r}].")
    source = _Source(text, [word for word in protect if word.strip()])
    rng = random.Random(seed)
    makers: dict[VariantKind, Callable[[_Source, random.Random], Iterator[list[Edit]]]] = {
        "whitespace": _whitespace,
        "punctuation": _punctuation,
        "filler": _filler,
        "synonym": _synonym,
        "dropped": _dropped,
    }
    # each kind gets a generator of its own, so that what one kind finds does not move the draws of another
    turns: dict[VariantKind, Iterator[list[Edit]]] = {
        kind: make(source, random.Random(rng.random())) for kind, make in makers.items()
    }
    made: list[Variant] = []
    seen = {text}
    while turns and len(made) < n:
        for kind in tuple(turns):
            for edits in turns[kind]:
                new = source.apply(edits)
                if new not in seen and source.keeps(new):
                    seen.add(new)
                    made.append(Variant(kind, new))
                    break
            else:
                del turns[kind]
            if len(made) == n:
                break
    return made


def perturb_messages(
    messages: Sequence[Mapping[str, str]], *, seed: int = 0, protect: Sequence[str] = (), n: int = 12
) -> list[MessagesVariant]:
    """``perturb`` on the content of the last user turn; every other turn stays as it is.

    Args:
        messages: turns with ``role`` and ``content``.
        seed: as in ``perturb``.
        protect: as in ``perturb``.
        n: as in ``perturb``.

    Raises:
        PromptError: no user turn, or a last one that is blank or no text.
        ConfigError: as in ``perturb``.
    """
    turns = [dict(message) for message in messages]
    last = next((i for i in reversed(range(len(turns))) if turns[i].get("role") == "user"), None)
    if last is None:
        raise PromptError("The conversation has no user turn.", todo="Give messages with the role 'user'.")
    content = turns[last].get("content")
    if not isinstance(content, str):
        raise PromptError("The last user turn holds no plain text.", todo="Give its content as a string.")
    return [
        MessagesVariant(
            variant.kind,
            tuple({**turn, "content": variant.text} if i == last else dict(turn) for i, turn in enumerate(turns)),
        )
        for variant in perturb(content, seed=seed, protect=protect, n=n)
    ]


class _Source:
    """The text with what may be edited: everything up to ``end`` that is neither protected nor in a line of code."""

    def __init__(self, text: str, protect: list[str]) -> None:
        self.text, self.protect = text, protect
        self.end = max(0, len(text) - TAIL)
        found = sorted(m.span() for word in protect for m in re.finditer(re.escape(word.strip()), text, re.IGNORECASE))
        self._fixed: list[tuple[int, int]] = []
        for start, stop in found:
            if self._fixed and start < self._fixed[-1][1]:
                start, stop = self._fixed[-1][0], max(stop, self._fixed.pop()[1])
            self._fixed.append((start, stop))
        self._counts = [_occurrences(word, text) for word in protect]
        self.prose = self._prose_spans()
        words = [word.casefold() for start, stop in self.prose for word in _WORD.findall(text[start:stop])]
        self.english = sum(word in ENGLISH for word in words) >= max(1, len(words) / 12)
        self.sentences = [span for start, stop in self.prose for span in _sentences(text, start, stop)]

    def _prose_spans(self) -> list[tuple[int, int]]:
        """Lines (without their newline) that are neither code nor inside a fenced block."""
        spans, position, fenced = [], 0, False
        for line in self.text.split("\n"):
            fence = line.lstrip().startswith("```")
            if line.strip() and not fenced and not fence and not _CODE_MARK.search(line):
                spans.append((position, position + len(line)))
            fenced ^= fence
            position += len(line) + 1
        return spans

    def free(self, start: int, stop: int) -> bool:
        """Whether characters ``start`` to ``stop`` may be replaced; an insertion (``start == stop``) may touch a fixed span's border."""
        if stop > self.end:
            return False
        # the spans are sorted and apart: only the last that begins before ``stop`` can be in the way
        i = bisect_left(self._fixed, stop, key=lambda span: span[0]) - 1
        return i < 0 or self._fixed[i][1] <= start

    def apply(self, edits: list[Edit]) -> str:
        text = self.text
        for start, stop, new in sorted(edits, reverse=True):
            text = text[:start] + new + text[stop:]
        return text

    def keeps(self, new: str) -> bool:
        """Whether every protected string occurs as often as before: as it is, stripped, and as a word in any case."""
        return bool(new.strip()) and all(_occurrences(w, new) == count for w, count in zip(self.protect, self._counts, strict=True))

    def in_prose(self, pattern: str, flags: int = 0) -> list[re.Match[str]]:
        """Matches that lie within one line of prose."""
        return [match for start, stop in self.prose for match in re.compile(pattern, flags).finditer(self.text, start, stop)]

    def lowered(self, position: int) -> list[Edit]:
        """The edit that makes the word at ``position`` lower case, where the word allows it."""
        match = _WORD.match(self.text, position)
        if not match or match[0] == match[0].lower() or match[0].lower() not in LOWERABLE or not self.free(*match.span()):
            return []
        return [(*match.span(), match[0].lower())]


def _occurrences(word: str, text: str) -> tuple[int, int, int]:
    """How often ``word`` occurs as it is, without the white space around it, and then as a word of its own in any case."""
    core = word.strip()
    return text.count(word), text.count(core), len(re.findall(rf"(?<!\w){re.escape(core)}(?!\w)", text, re.IGNORECASE))


def _sentences(text: str, start: int, stop: int) -> list[tuple[int, int]]:
    """Spans of the sentences in one line; each holds the white space that follows it."""
    cuts = [start]
    for match in _SENTENCE_END.finditer(text, start, stop):
        before = text[start : match.start()].split()
        word = before[-1].casefold().lstrip("\"'(“‘") if before else ""
        if match[0].startswith(".") and (word in ABBREVIATIONS or len(word) == 1 or word.isdigit()):
            continue
        cut = match.end()
        while cut < stop and text[cut].isspace():
            cut += 1
        cuts.append(cut)
    return list(zip(cuts, [*cuts[1:], stop], strict=True))


def _whitespace(source: _Source, rng: random.Random) -> Iterator[list[Edit]]:
    gaps = [gap for gap in (match.start() for match in source.in_prose(r"(?<=[\w,.;]) (?=\w)")) if source.free(gap, gap + 1)]
    leads: list[list[Edit]] = [[(0, 0, lead)] for lead in ("\n", "\n\n", " \n", "\n\n\n")]
    yield leads[0]
    for _ in range(min(200, 4 * len(gaps))):
        share = rng.choice((1 / len(gaps), 0.1, 0.3))
        chosen = [gap for gap in gaps if rng.random() < share] or [rng.choice(gaps)]
        yield [(gap, gap + 1, "  ") for gap in chosen]
    yield from leads[1:]


def _punctuation(source: _Source, rng: random.Random) -> Iterator[list[Edit]]:
    if not source.english:
        return
    edits: list[list[Edit]] = []
    for match in source.in_prose(rf"(?<=\w), (?={_CLAUSE})"):
        edits.append([(*match.span(), " ")])
    for start, _ in source.sentences:
        # a comma after an opening adverb is a matter of taste
        opener = re.compile(rf"({_OPENERS})(,?) (?=\w)").match(source.text, start)
        if opener:
            edits.append([(*opener.span(2), "" if opener[2] else ",")])
    for match in source.in_prose(rf"(?<=\w) (?={_CLAUSE})"):
        start = max((a for a, b in source.sentences if a <= match.start() < b), default=match.start())
        clause = source.text[start : match.start()]
        if len(clause.split()) >= 3 and "," not in clause:
            edits.append([(*match.span(), ", ")])
    for first, second in pairwise(source.sentences):
        mark = re.compile(r"(?<=[^\W\d_]{2})\.(?= )").search(source.text, max(first[0], second[0] - 3), second[0])
        if mark and second[0] == first[1]:
            edits.append([(*mark.span(), ";"), *source.lowered(second[0])])
    edits = [group for group in edits if all(source.free(a, b) for a, b, _ in group)]
    yield from rng.sample(edits, len(edits))
    for _ in range(len(edits) if len(edits) > 2 else 0):
        pair = rng.sample(edits, 2)
        if not _overlap([*pair[0], *pair[1]]):
            yield [*pair[0], *pair[1]]


def _filler(source: _Source, rng: random.Random) -> Iterator[list[Edit]]:
    if not source.english:
        return
    starts = [start for start, _ in source.sentences if source.free(start, start)]
    starts = [start for start in starts if source.text[start].isalnum() or source.text[start] in "\"'“"]
    places = [(start, filler) for start in starts for filler in FILLERS]
    for start, filler in rng.sample(places, min(200, len(places))):
        yield [(start, start, filler), *source.lowered(start)]


def _synonym(source: _Source, rng: random.Random) -> Iterator[list[Edit]]:
    if not source.english:
        return
    table = dict(SYNONYMS)
    starts = {start for start, _ in source.sentences}
    edits: list[Edit] = []
    for match in source.in_prose(_WORD.pattern):
        other = table.get(match[0].lower())
        # a capital inside a sentence is part of a name
        name = match[0][0].isupper() and not match[0].isupper() and match.start() not in starts
        part = source.text[match.start() - 1 : match.start()] == "-" or source.text[match.end() : match.end() + 1] == "-"
        if other is None or name or part or not source.free(*match.span()) or _breaks_article(source.text, match, other):
            continue
        edits.append((*match.span(), _in_case(other, match[0])))
    yield from ([edit] for edit in rng.sample(edits, len(edits)))
    for _ in range(4 * len(edits) if len(edits) > 1 else 0):
        yield rng.sample(edits, rng.randint(2, min(4, len(edits))))


def _dropped(source: _Source, rng: random.Random) -> Iterator[list[Edit]]:
    if not source.english or len(source.sentences) < 3:
        return
    held = _content(source.text[slice(*source.sentences[-1])]) | {word for item in source.protect for word in _content(item)}
    places = []
    for i, (start, stop) in enumerate(source.sentences[:-2]):
        follower = _WORD.search(source.text, stop)
        own = source.text[start:stop]
        if (
            source.free(start, stop)
            and own.rstrip().endswith((".", "!"))
            and not _related(_content(own), held)
            and not (follower and follower[0].lower() in PRONOUNS)
            and source.sentences[i + 1][0] - stop <= 1  # what follows is the next sentence, not code
        ):
            places.append((start, stop))
    for start, stop in rng.sample(places, len(places)):
        yield [(start, stop, "")]


def _content(text: str) -> set[str]:
    """The words that carry content, in lower case; numbers count."""
    return {word.lower() for word in re.findall(r"\w+", text)} - STOP


def _related(some: set[str], others: set[str]) -> bool:
    """Whether a word occurs in both, in forms that may differ in their ending: one begins as the other, but for an ``e`` or ``y``."""

    def same(a: str, b: str) -> bool:
        short, long = sorted((a, b), key=len)
        stem = short[:-1] if len(short) > 4 and short[-1] in "ey" else short
        return short == long or (len(stem) >= 3 and long.startswith(stem) and len(long) - len(stem) <= 3)

    return any(same(a, b) for a in some for b in others)


def _in_case(word: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[0].upper() + word[1:] if like[0].isupper() else word


def _breaks_article(text: str, match: re.Match[str], other: str) -> bool:
    """Whether "a" before the word would have to become "an", or the other way round."""
    before = re.search(r"\b(an?)\s+$", text[max(0, match.start() - 8) : match.start()], re.IGNORECASE)
    return bool(before) and (match[0][0].lower() in "aeiou") != (other[0].lower() in "aeiou")


def _overlap(edits: list[Edit]) -> bool:
    spans = sorted((start, stop) for start, stop, _ in edits)
    return any(a[1] > b[0] or a == b for a, b in pairwise(spans))
