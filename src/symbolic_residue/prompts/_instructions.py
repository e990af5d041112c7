"""Instructions that a program can verify, and worked examples that follow them.

1. A *kind* names what is asked of an answer (``uppercase``, ``start``, ``json`` …): its words in two wordings, how a plain answer is made to follow it, the
   check, and a pattern that finds it in a user's words. Some kinds take a value (``start`` takes a word).
2. ``Instruction`` is one kind with its value and words: ``check(answer)`` says whether an answer follows it; an answer without a letter or digit follows none.
3. ``examples`` are questions with answers that follow the instruction (made by the kind from plain sentences), for models too small to follow bare words.
4. Two instructions are ``contradictory`` where no answer can follow both by how their kinds are checked (same group, other demand), ``compatible`` where one is
   known that does (an example made to follow one and then the other), else ``unknown``.

The kinds are in ``_instruction_kinds``, the plain questions and answers in ``_instruction_texts``.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.prompts._instruction_kinds import FUNCTION_WORDS, Kind, KINDS, letters_of, MARKS, speaks, words_of
from symbolic_residue.prompts._instruction_texts import PLAIN, Plain, TASKS

__all__ = [
    "KINDS",
    "MARKS",
    "PLAIN",
    "TASKS",
    "Instruction",
    "Kind",
    "Plain",
    "blends",
    "joint",
    "make_instruction",
    "read_instruction",
    "relation",
]

Relation = Literal["compatible", "contradictory", "unknown"]

_OPENINGS = ("hash", "numbered", "bullets", "quoted", "brackets", "stars", "json", "code")
_CLOSINGS = ("question", "exclaim", "dots")
_AGAINST = {
    frozenset(pair)
    for pair in (
        ("uppercase", "lowercase"), ("short", "long"), ("one-word", "long"), ("only", "long"), ("say-yes", "say-no"), ("digits", "no-digits"),
        ("numbered", "no-digits"), ("numbered", "no-list"), ("bullets", "no-list"), ("say-yes", "only"), ("say-no", "only"),
        ("one-word", "json"), ("only", "json"), ("only", "code"),
    )
}  # fmt: skip
"""Pairs of kinds that no answer follows both."""


class Instruction(BaseModel):
    """One instruction that a program can verify.

    Raises:
        ConfigError: when made by :func:`make_instruction` or :func:`read_instruction`; the model itself raises pydantic's error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """A key of ``KINDS``."""
    value: str = ""
    """What the kind takes, empty where it takes nothing."""
    text: str
    """Its words."""

    @model_validator(mode="after")
    def _check(self) -> Instruction:
        if self.kind not in KINDS:
            raise ValueError(f"there is no kind {self.kind!r}; use one of {', '.join(KINDS)}")
        takes = "{}" in KINDS[self.kind].wordings[0]
        if takes != bool(self.value.strip()):
            raise ValueError(f"the kind {self.kind!r} takes {'a value' if takes else 'no value'}")
        if self.kind == "language" and self.value not in FUNCTION_WORDS:
            raise ValueError(f"the language must be one of {', '.join(FUNCTION_WORDS)}")
        if takes and self.kind != "language" and (words_of(self.value) != [self.value]):
            raise ValueError(f"the value of {self.kind!r} must be one word")
        if not self.text.strip() or "\n" in self.text:
            raise ValueError("the text must be one line of words")
        return self

    def check(self, answer: str) -> bool:
        """Whether the answer follows the instruction; an answer without letter and digit follows none."""
        answer = answer.strip()
        return any(c.isalnum() for c in answer) and bool(KINDS[self.kind].check(answer, self.value))

    def follow(self, answer: str, plain: Plain) -> str:
        """``answer`` (to ``plain``'s question) made to follow the instruction."""
        return KINDS[self.kind].follow(answer, plain, self.value)


def make_instruction(kind: str, value: str = "", *, wording: int = 0, text: str | None = None) -> Instruction:
    """An instruction of a kind, in one of its two wordings or in ``text``.

    Raises:
        ConfigError: no such kind, a value that does not fit.
    """
    if kind not in KINDS:
        raise ConfigError(f"There is no kind of instruction {kind!r}.", todo=f"Use one of: {', '.join(KINDS)}.")
    try:
        return Instruction(kind=kind, value=value, text=text or KINDS[kind].wordings[wording].format(value))
    except ValueError as error:
        raise ConfigError(
            f"The instruction {kind!r} with the value {value!r} cannot be used.", why=str(error).split("\n")[2].strip()
        ) from None


_ORDER = (
    "only",
    "one-word",
    "no-list",
    "no-digits",
    "avoid",
    "say-yes",
    "say-no",
    "hash",
    "exclaim",
    "dots",
    "end",
    "start",
    "contain",
)
"""Kinds whose patterns are tried before the others: their words hold those of others."""


def read_instruction(text: str) -> Instruction:
    """The instruction in words of a user's own; ``kind: words`` or ``kind=value: words`` names the kind outright.

    Raises:
        PromptError: no kind is found in the words.
        ConfigError: a kind that is named, and does not exist or does not fit its value.
    """
    text = " ".join(text.split())
    named = re.match(r"([a-z-]+)(?:=([^:]*))?:\s+(\S.*)$", text)
    if named and named[1] in KINDS:
        return make_instruction(named[1], named[2] or "", text=named[3])
    for kind in (*_ORDER, *(name for name in KINDS if name not in _ORDER)):
        found = re.search(KINDS[kind].pattern, text, re.IGNORECASE)
        if found:
            value = next((g for g in found.groups() if g), "")
            return make_instruction(kind, value.capitalize() if kind == "language" else value, text=text)
    raise PromptError(
        f"No program here can verify {text[:80]!r}.",
        why="Whether an instruction is followed is judged by a program, so its kind must be known.",
        todo=f"Name the kind in front, as in 'uppercase: {text[:40]}'. Kinds: {', '.join(KINDS)}.",
    )


def relation(one: Instruction, two: Instruction) -> Relation:
    """Whether one answer can follow both; see the module."""
    kinds = frozenset((one.kind, two.kind))
    same = one.kind == two.kind
    if same and one.value.lower() == two.value.lower():
        return "compatible"
    openings = {"start", "say-yes", "say-no", "only"}
    words = {"start": one.value, "say-yes": "yes", "say-no": "no", "only": one.value}
    others = {"start": two.value, "say-yes": "yes", "say-no": "no", "only": two.value}
    if kinds <= openings and words[one.kind].lower() != others[two.kind].lower():
        return "contradictory"
    if (
        (same and one.kind in ("language", "end"))
        or (not same and (kinds <= set(_OPENINGS) or kinds <= set(_CLOSINGS) or kinds in _AGAINST))
        or (kinds == {"contain", "avoid"} and one.value.lower() == two.value.lower())
    ):
        return "contradictory"
    return "compatible" if joint(one, two, PLAIN[0]) is not None else "unknown"


def joint(one: Instruction, two: Instruction, plain: Plain) -> str | None:
    """An answer to ``plain``'s question that follows both, None where neither order of making it gives one."""
    for first, second in ((one, two), (two, one)):
        answer = second.follow(first.follow(plain.answer, plain), plain)
        if one.check(answer) and two.check(answer):
            return answer
    return None


def blends(one: Instruction, two: Instruction, answer: str) -> bool:
    """Whether the answer mixes the two: a part of it follows one and the part beside it the other, though the whole does not follow both.

    Parts are cut between words, have at least four letters, and only kinds that leave a mark count.
    """
    answer = answer.strip()
    if not {one.kind, two.kind} <= MARKS or (one.check(answer) and two.check(answer)):
        return False
    for cut in (m.start() for m in re.finditer(r"\s+", answer)):
        left, right = answer[:cut], answer[cut:]
        if min(len(letters_of(left)), len(letters_of(right))) >= 4 and (
            (_in_part(one, left) and _in_part(two, right)) or (_in_part(two, left) and _in_part(one, right))
        ):
            return True
    return False


def _in_part(instruction: Instruction, part: str) -> bool:
    if instruction.kind == "language":
        return speaks(part, instruction.value, part=True)
    return instruction.check(part)
