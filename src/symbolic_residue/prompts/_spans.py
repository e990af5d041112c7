"""Spans of a prompt found by their text, a pattern, or token positions.

1. Text and patterns are matched against the characters that the model reads (``prompt.text``), exactly and case by case;
   for a chat that is the rendered text, role tags included.
2. A match is widened to whole tokens: every token that holds one of its characters, with the zero-width pieces of those
   characters.
3. One span comes back or none: several matches are an error unless ``occurrence`` says which.
"""

from __future__ import annotations

import difflib
import re

from symbolic_residue.errors import ConfigError, SpanError
from symbolic_residue.prompts._prompt import Prompt
from symbolic_residue.types import Span

__all__ = ["find_span"]

_LISTED = 5  # matches named in an error message
_HINT_WORDS = 5000  # words of the prompt searched for a near match


def find_span(
    prompt: Prompt,
    *,
    text: str | None = None,
    regex: str | None = None,
    index: int | tuple[int, int | None] | None = None,
    occurrence: int | None = None,
    name: str = "span",
) -> Span:
    """One span of tokens, by exactly one of ``text``, ``regex`` and ``index``.

    Args:
        prompt: where to look.
        text: characters to find, exactly.
        regex: a Python regular expression; matches of no characters do not count.
        index: a token position, or ``(start, stop)`` with ``stop`` excluded and ``None`` for the end. Negative positions
            count from the end. Nothing is clamped: positions outside the prompt are an error.
        occurrence: which match of ``text`` or ``regex``, from 0; negative from the end (-1: the last). Matches do not overlap.
        name: the name of the span.

    Raises:
        SpanError: no match (with the nearest text there is), several matches and no ``occurrence``, an occurrence or a
            position that is not there, a pattern that does not compile.
        ConfigError: none or several of ``text``, ``regex`` and ``index``; ``occurrence`` with ``index``.
    """
    if sum(way is not None for way in (text, regex, index)) != 1:
        raise ConfigError("A span needs exactly one of text, regex and index.")
    if index is not None:
        if occurrence is not None:
            raise ConfigError("An index names one span; it takes no occurrence.")
        return _by_index(len(prompt), index, name)

    if text is not None:
        if not text:
            raise SpanError("An empty text matches nothing.")
        pattern, shown = re.compile(re.escape(text)), repr(text)
    else:
        try:
            pattern, shown = re.compile(regex or ""), f"the pattern {regex!r}"
        except re.error as error:
            raise SpanError(f"{regex!r} is no regular expression: {error}.") from error
    found = [match.span() for match in pattern.finditer(prompt.text) if match.end() > match.start()]
    if not found:
        raise SpanError(f"The prompt does not hold {shown}.", why=_nearest(prompt.text, text), todo="Text is matched exactly.")
    if occurrence is None and len(found) > 1:
        raise SpanError(
            f"The prompt holds {shown} {len(found)} times: {_listing(prompt.text, found)}.",
            todo=f"Say which by occurrence, 0 to {len(found) - 1}.",
        )
    which = occurrence or 0
    if not -len(found) <= which < len(found):
        raise SpanError(f"There is no occurrence {which} of {shown}: the prompt holds it {len(found)} times.")
    return _widened(prompt, *found[which], name)


def _by_index(n: int, index: int | tuple[int, int | None], name: str) -> Span:
    if isinstance(index, int):
        first, last = index, index + 1 if index != -1 else None
    else:
        first, last = index
    start = first + n if first < 0 else first
    stop = n if last is None else last + n if last < 0 else last
    if not 0 <= start < stop <= n:
        raise SpanError(f"Tokens {index} are no span of a prompt with {n} tokens.", why="A span is 0 <= start < stop <= n.")
    return Span(start, stop, name)


def _widened(prompt: Prompt, start: int, stop: int, name: str) -> Span:
    """The tokens that hold characters ``start`` up to ``stop`` (step 2). Offsets tile the text, so they are consecutive."""
    inside = [
        i
        for i, (a, b) in enumerate(prompt.offsets)
        if (a < stop and b > start) or (a == b and start < b <= stop)  # the second: later bytes of a character inside
    ]
    return Span(inside[0], inside[-1] + 1, name)


def _listing(text: str, found: list[tuple[int, int]]) -> str:
    """The first matches in their surroundings."""
    shown = [f"[{i}] at character {a}: {text[max(0, a - 15) : b + 15]!r}" for i, (a, b) in enumerate(found[:_LISTED])]
    return "; ".join(shown) + ("; …" if len(found) > _LISTED else "")


def _nearest(text: str, wanted: str | None) -> str:
    """A sentence with the nearest text there is, or nothing."""
    if wanted is None:
        return ""
    other_case = re.search(re.escape(wanted), text, re.IGNORECASE)
    if other_case:
        return f"It holds {other_case[0]!r}."
    spaced = r"\s+".join(re.escape(word) for word in wanted.split())
    other_space = re.search(spaced, text) if spaced else None
    if other_space:
        return f"It holds {other_space[0]!r}."
    words = text.split()[:_HINT_WORDS]
    width = max(1, len(wanted.split()))
    windows = [" ".join(words[i : i + width]) for i in range(len(words) - width + 1)]
    close = difflib.get_close_matches(wanted.strip(), windows, n=1, cutoff=0.6)
    return f"The nearest is {close[0]!r}." if close else ""
