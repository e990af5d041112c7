"""Behaviours: what an answer does, and which of its tokens is the first of it.

1. A behaviour is looked for in the generated tokens and in their text. A *token hit* is the behaviour's own token sequence; a *text hit* is its
   text, however it was tokenised. Both are kept: a detector that sees one of them only misses answers, or counts others.
2. The event is the first token of the first text hit (of the token hit where there is no text): the first token whose characters reach into it.
3. The characters of token k are those that ``decode`` adds when token k joins the ones before it. Bytes of an unfinished character show as one
   replacement character until the character is complete; so a hit behind it is found at the right token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from symbolic_residue.errors import ConfigError

__all__ = [
    "Behaviour",
    "CallableBehaviour",
    "EndOfText",
    "Hit",
    "RefusalBehaviour",
    "RegexBehaviour",
    "TextBehaviour",
    "TokenBehaviour",
    "answer_text",
    "make_behaviour",
]

_REFUSALS = (
    r"I(?:'|’)?m sorry",
    r"I am sorry",
    r"Sorry,",
    r"I can(?:'|’)?t\b",
    r"I cannot\b",
    r"I won(?:'|’)?t\b",
    r"I(?:'|’)m (?:not able|unable)\b",
    r"I am (?:not able|unable)\b",
    r"As an AI\b",
)
"""Openings of a refusal, in English, at the start of an answer or of a sentence."""


@dataclass(frozen=True)
class Hit:
    """Where a behaviour is.

    Attributes:
        start: index of its first token in the answer.
        token_hit: whether the behaviour's own tokens are there (None: the behaviour has none of its own).
        text_hit: whether its text is there (None: it is no text).
        shown: the text found.
    """

    start: int
    token_hit: bool | None
    text_hit: bool | None
    shown: str


class Behaviour(Protocol):
    """Something that an answer does."""

    @property
    def name(self) -> str:
        """A name, written into the records."""
        ...

    def find(self, tokenizer: Any, ids: Sequence[int], text: str) -> Hit | None:
        """The first place in the answer ``ids`` (end-of-text token included) with ``text``; None where it does not do it."""
        ...


@dataclass(frozen=True)
class TextBehaviour:
    """A string, such as a marker."""

    text: str

    def __post_init__(self) -> None:
        if not self.text:
            raise ConfigError("The behaviour is an empty text.", why="Every answer holds it.")

    @property
    def name(self) -> str:
        """``text:…``."""
        return f"text:{self.text}"

    def find(self, tokenizer: Any, ids: Sequence[int], text: str) -> Hit | None:
        """See :class:`Behaviour`."""
        own = [tokenizer(form, add_special_tokens=False)["input_ids"] for form in (self.text, f" {self.text}")]
        at = [place for form in own if (place := _sequence(ids, form)) is not None]
        where = text.find(self.text)
        if where < 0:
            return Hit(min(at), True, False, "") if at else None
        return Hit(_token_at(tokenizer, ids, where), bool(at), True, self.text)


@dataclass(frozen=True)
class RegexBehaviour:
    """A regular expression over the answer's text (``re.search``)."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            expression = re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"{self.pattern!r} is no regular expression.", why=str(error)) from error
        if expression.search("") is not None:
            raise ConfigError(f"{self.pattern!r} matches an empty text.", why="Every answer would show the behaviour.")

    @property
    def name(self) -> str:
        """``regex:…``."""
        return f"regex:{self.pattern}"

    def find(self, tokenizer: Any, ids: Sequence[int], text: str) -> Hit | None:
        """See :class:`Behaviour`."""
        match = re.search(self.pattern, text)
        return None if match is None else Hit(_token_at(tokenizer, ids, match.start()), None, True, match[0])


@dataclass(frozen=True)
class RefusalBehaviour:
    """A refusal (English), at the start of the answer or of a sentence."""

    @property
    def name(self) -> str:
        """``refusal``."""
        return "refusal"

    def find(self, tokenizer: Any, ids: Sequence[int], text: str) -> Hit | None:
        """See :class:`Behaviour`."""
        match = re.search(rf"(?:^\s*|[.!?]\s+|\n)(?P<said>{'|'.join(_REFUSALS)})", text)
        return None if match is None else Hit(_token_at(tokenizer, ids, match.start("said")), None, True, match["said"])


@dataclass(frozen=True)
class TokenBehaviour:
    """A sequence of token ids."""

    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ids:
            raise ConfigError("The behaviour has no tokens.", why="Every answer holds them.")

    @property
    def name(self) -> str:
        """``tokens:…``."""
        return "tokens:" + ",".join(map(str, self.ids))

    def find(self, tokenizer: Any, ids: Sequence[int], text: str) -> Hit | None:
        """See :class:`Behaviour`."""
        at = _sequence(ids, self.ids)
        return None if at is None else Hit(at, True, None, tokenizer.decode(list(self.ids)))


@dataclass(frozen=True)
class EndOfText:
    """The answer ends by itself (an end id of the model)."""

    ends: tuple[int, ...]

    @property
    def name(self) -> str:
        """``end of text``."""
        return "end of text"

    def find(self, tokenizer: Any, ids: Sequence[int], text: str) -> Hit | None:
        """See :class:`Behaviour`."""
        at = next((i for i, token in enumerate(ids) if token in self.ends), None)
        return None if at is None else Hit(at, True, None, tokenizer.decode([ids[at]]))


@dataclass(frozen=True)
class CallableBehaviour:
    """Your own: ``find_start(ids, text) -> index of the first token, or None``."""

    name: str
    find_start: Callable[[Sequence[int], str], int | None]

    def find(self, tokenizer: Any, ids: Sequence[int], text: str) -> Hit | None:
        """See :class:`Behaviour`."""
        at = self.find_start(ids, text)
        if at is None:
            return None
        if not 0 <= at < len(ids):
            raise ConfigError(f"The behaviour {self.name!r} says token {at} of an answer with {len(ids)} tokens.")
        return Hit(at, None, None, tokenizer.decode([ids[at]]))


def make_behaviour(text: str, *, ends: Sequence[int] = ()) -> Behaviour:
    """A behaviour by name: ``text:…``, ``regex:…``, ``tokens:1,2``, ``refusal``, ``end of text``.

    Args:
        text: the name.
        ends: the model's end ids.

    Raises:
        ConfigError: none of these.
    """
    kind, _, rest = text.partition(":")
    if kind == "text":
        return TextBehaviour(rest)
    if kind == "regex":
        return RegexBehaviour(rest)
    if text == "refusal":
        return RefusalBehaviour()
    if text == "end of text":
        if not ends:
            raise ConfigError("The model has no end-of-text id.", why="Its generation config names none.")
        return EndOfText(tuple(ends))
    if kind == "tokens" and re.fullmatch(r"\d+(,\d+)*", rest):
        return TokenBehaviour(tuple(int(part) for part in rest.split(",")))
    raise ConfigError(f"{text!r} is no behaviour.", todo="Use text:…, regex:…, tokens:1,2, refusal, or 'end of text'.")


def answer_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of an answer, control tokens left out, spaces as the tokens have them."""
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _token_at(tokenizer: Any, ids: Sequence[int], character: int) -> int:
    """The first token whose characters reach past ``character``."""
    low, high = 0, len(ids) - 1
    while low < high:  # the length of the decoded beginning never falls by more than an unfinished character
        middle = (low + high) // 2
        if len(answer_text(tokenizer, ids[: middle + 1])) > character:
            high = middle
        else:
            low = middle + 1
    return low


def _sequence(ids: Sequence[int], wanted: Sequence[int]) -> int | None:
    n = len(wanted)
    return next((i for i in range(len(ids) - n + 1) if list(ids[i : i + n]) == list(wanted)), None) if n else None
