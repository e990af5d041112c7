"""Targets of failures, each the mean logit of some tokens minus that of others, and above 0 where the model fails in that way.

1. ``silence``: best end token − best content token (no end token, no special one). Above 0 nothing comes.
2. ``repeat``: the token that would repeat an n-gram − the best other token. The longest run of tokens before the next one that stands earlier in the prompt too
   is looked for (overlaps allowed; of several places the latest); the token that followed it there is the one. n-grams of fewer than ``at_least`` tokens, that
   token included, are no repetition, and where there is none the target is refused.
3. ``collapse``: the leading candidate − the second, of those given, or of all tokens. It is never below 0: near 0 the model cannot decide. Of a candidate of
   several tokens the first counts.
4. ``refusal``: mean over the first tokens of openings that refuse − mean over those of openings that comply. An opening of several tokens is explained by its
   first token only; a token that opens both ("I") is left out on both sides. The packaged openings are read as the prompt goes on: with a leading space where
   its last token ends in text, without one after white space or a special token.

Tokens are chosen by the model's logits on the prompt; once chosen they are fixed, so that a matched prompt is explained by the same (:class:`Contrast`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Instrument, stop_ids_of
from symbolic_residue.prompts import COMPLIANCE_OPENINGS, REFUSAL_OPENINGS

__all__ = [
    "FAILURES",
    "Collapse",
    "Contrast",
    "FailureTarget",
    "Refusal",
    "Repeat",
    "Silence",
    "failure_contrast",
    "failure_named",
    "fixed_failures",
    "repeated",
]


@dataclass(frozen=True)
class Contrast:
    """Ask for the mean logit of the tokens ``plus`` minus that of the tokens ``minus``."""

    name: str
    plus: tuple[int, ...]
    minus: tuple[int, ...]


@dataclass(frozen=True)
class Silence:
    """End of text against the best content token; ``ends`` are the end tokens, the model's own where none are given."""

    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class Repeat:
    """The token that would repeat an n-gram of ``at_least`` tokens, against the best other token."""

    at_least: int = 3


@dataclass(frozen=True)
class Collapse:
    """The two leading candidates (texts or token ids) against each other; of all tokens where none are given."""

    candidates: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """Openings that refuse against openings that comply (texts or token ids); the packaged ones where none are given."""

    refusals: tuple[str | int, ...] = ()
    compliances: tuple[str | int, ...] = ()


FailureTarget = Silence | Repeat | Collapse | Refusal

FAILURES: tuple[str, ...] = ("silence", "repeat", "collapse", "refusal")
"""Names that can be typed; also ``repeat:N`` for n-grams of N tokens or more."""


def failure_named(text: str) -> FailureTarget | None:
    """The target that a name asks for; None where it is no failure's.

    Raises:
        ConfigError: ``repeat:`` without a number.
    """
    plain: dict[str, FailureTarget] = {"silence": Silence(), "repeat": Repeat(), "collapse": Collapse(), "refusal": Refusal()}
    if text.startswith("repeat:"):
        number = text.partition(":")[2]
        if not number.isdecimal():
            raise ConfigError(f"{text!r} is no length of an n-gram.", todo="Write repeat or repeat:3.")
        return Repeat(int(number))
    return plain.get(text)


def failure_contrast(instrument: Instrument, ids: Sequence[int], logits: Tensor, asked: FailureTarget) -> Contrast:
    """The tokens that a failure's target compares on a prompt.

    Args:
        instrument: the model with its tokenizer.
        ids: the prompt, up to and with the position that is explained.
        logits: ``[vocab]`` at that position, before or after a softcap (tokens are chosen by order).
        asked: which failure.

    Raises:
        ConfigError: no end token, nothing repeats, fewer than two candidates, candidates or openings without a token of their own.
    """
    reader = _Reader(instrument, ids, logits)
    if isinstance(asked, Silence):
        return reader.silence(asked.ends)
    if isinstance(asked, Repeat):
        return reader.repeat(asked.at_least)
    if isinstance(asked, Collapse):
        return reader.collapse(asked.candidates)
    return reader.refusal(asked)


def fixed_failures(instrument: Instrument, ids: Sequence[int], asked: Sequence[Any], position: int = -1) -> list[Any]:
    """Targets with each failure's tokens chosen on this prompt (a :class:`Contrast` in its place); one forward where there is a failure, none else.

    Raises:
        ConfigError: as of :func:`failure_contrast`.
    """
    named = [failure_named(one) or one if isinstance(one, str) else one for one in asked]
    if not any(isinstance(one, (Silence, Repeat, Collapse, Refusal)) for one in named):
        return list(asked)
    before = list(ids)[: position % len(ids) + 1]
    logits = instrument.run(torch.tensor([before]), keep_logits=1)["logits"][0, -1]
    return [
        failure_contrast(instrument, before, logits, failure) if isinstance(failure, (Silence, Repeat, Collapse, Refusal)) else one
        for one, failure in zip(asked, named, strict=True)
    ]


def repeated(ids: Sequence[int], at_least: int = 3) -> tuple[int, int] | None:
    """The token that would repeat an n-gram, and the length of the longest one with it; None where nothing of ``at_least`` tokens would repeat.

    Raises:
        ConfigError: fewer than two tokens asked for.
    """
    if at_least < 2:
        raise ConfigError(f"{at_least} tokens are no n-gram that repeats.", todo="Ask for 2 or more; 3 is the default.")
    found, longest, last = -1, 0, len(ids) - 1
    for end in range(last - 1, -1, -1):  # the earlier copy ends here; the latest first
        length = 0
        while length <= end and ids[end - length] == ids[last - length]:
            length += 1
        if length > longest:
            found, longest = int(ids[end + 1]), length
    return (found, longest + 1) if longest + 1 >= at_least else None


class _Reader:
    def __init__(self, instrument: Instrument, ids: Sequence[int], logits: Tensor) -> None:
        self.instrument, self.ids, self.logits = instrument, list(ids), logits
        self.tokenizer: Any = instrument.loaded.tokenizer

    def silence(self, given: Sequence[int]) -> Contrast:
        ends = sorted(stop_ids_of(self.instrument, list(given) or None))
        if not ends:
            raise ConfigError("The model has no end token.", why="Silence is end-of-text before any content.")
        end = max(ends, key=lambda t: float(self.logits[t]))
        best = self._best({*ends, *self.tokenizer.all_special_ids})
        return Contrast(f"end {self._word(end)} − content {self._word(best)}", (end,), (best,))

    def repeat(self, at_least: int) -> Contrast:
        found = repeated(self.ids, at_least)
        if found is None:
            raise ConfigError(
                f"Nothing of {at_least} tokens or more would repeat here.",
                why=f"The last {at_least - 1} tokens stand nowhere earlier in the prompt.",
                todo="Ask at a position inside a repetition, or for a shorter one: repeat:2.",
            )
        token, length = found
        other = self._best({token})
        return Contrast(f"repeat {self._word(token)} ({length} tokens) − other {self._word(other)}", (token,), (other,))

    def collapse(self, candidates: Sequence[str | int]) -> Contrast:
        if not candidates:
            first, second = self.logits.topk(2).indices.tolist()
        else:
            ids = list(dict.fromkeys(self._first(one) for one in candidates))
            if len(ids) < 2:
                raise ConfigError(
                    f"The candidates {', '.join(map(repr, candidates))} begin with one token in this tokenizer.",
                    why="A collapse is between two.",
                    todo="Give candidates that differ in their first token, leading space included.",
                )
            first, second = sorted(ids, key=lambda t: -float(self.logits[t]))[:2]
        note = " (first tokens)" if any(isinstance(c, str) and len(self._tokens(c)) > 1 for c in candidates) else ""
        return Contrast(f"candidate {self._word(first)} − candidate {self._word(second)}{note}", (first,), (second,))

    def refusal(self, asked: Refusal) -> Contrast:
        spaced = self._goes_on()
        refuse, comply = (
            {self._first(one) if given else self._first(one, spaced=spaced) for one in given or packaged}
            for given, packaged in ((asked.refusals, REFUSAL_OPENINGS), (asked.compliances, COMPLIANCE_OPENINGS))
        )
        both = refuse & comply
        plus, minus = tuple(sorted(refuse - both)), tuple(sorted(comply - both))
        if not plus or not minus:
            shared = ", ".join(self._word(t) for t in sorted(both)[:5])
            raise ConfigError(
                f"No opening that {'refuses' if not plus else 'complies'} has a first token of its own; shared: {shared}.",
                why="Only first tokens are explained.",
                todo="Give openings that begin differently.",
            )
        return Contrast(f"refusal ({len(plus)} first tokens) − compliance ({len(minus)} first tokens)", plus, minus)

    def _best(self, barred: set[int]) -> int:
        content = self.logits.clone()
        content[[t for t in barred if t < len(content)]] = -torch.inf
        return int(content.argmax())

    def _word(self, token: int) -> str:
        return repr(self.tokenizer.decode([token]))

    def _tokens(self, text: str) -> list[int]:
        return [int(t) for t in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _first(self, one: str | int, *, spaced: bool = False) -> int:
        """The first token of a text that shows something; a token id as it is."""
        if isinstance(one, int):
            if not 0 <= one < len(self.logits):
                raise ConfigError(f"There is no token {one}.", todo=f"The vocabulary has tokens 0 to {len(self.logits) - 1}.")
            return one
        ids = self._tokens(f" {one}" if spaced else one)
        if ids and not self.tokenizer.decode(ids[:1]).strip():  # a space that stands alone opens everything
            ids = self._tokens(one) if spaced else []
        if not ids:
            raise ConfigError(f"{one!r} begins with no token that shows something.", todo="Give a word.")
        return ids[0]

    def _goes_on(self) -> bool:
        """Whether an answer would follow the prompt after a space."""
        last = self.ids[-1]
        if last in self.tokenizer.all_special_ids or last in getattr(self.tokenizer, "added_tokens_decoder", {}):
            return False
        text = self.tokenizer.decode([last])
        return bool(text) and not text[-1].isspace()
