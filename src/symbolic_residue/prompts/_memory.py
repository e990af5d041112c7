"""Items of the benchmark ``memory-degradation``: a fact, padding, and the question about the fact.

1. A *planted* item puts the padding between the fact and the question, so that the distance grows with it.
2. A *null* item has the same parts, with the padding before the fact: the text grows as long, the distance does not.
3. ``control`` is the fact with other values of the same type: what is read after it is a guess, not a memory.
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from symbolic_residue.prompts._benchmark import read_items, ShellItem
from symbolic_residue.prompts._padding import Padding

__all__ = ["MemoryItem", "TokenType", "memory_items"]

TokenType = Literal["name", "number", "word"]

_MODES = {
    "repetitive": ("recall decay",),
    "natural": ("recall decay",),
    "adversarial": ("recall decay", "hallucinated reconstruction"),
    "fields": ("partial recall",),
    "collision": ("priority collision",),
}


class MemoryItem(ShellItem):
    """One item of ``memory-degradation``."""

    fact: str
    """A sentence that states the answers."""
    question: str
    """What follows the padding; it ends where the first answer begins."""
    answers: tuple[str, ...]
    """What continues the question, one text a field, each with its leading space; the next field follows the one before."""
    foils: tuple[tuple[str, ...], ...]
    """For each field, wrong answers of the same type."""
    control: str
    """The fact with other values: the first foil of each field."""
    padding: Padding
    place: Literal["between", "before"]
    """Where the padding stands: between fact and question, or before the fact."""
    token_type: TokenType
    rival: str | None = None
    """A fact of the same form about something else, nearest to the question."""
    rival_answer: str | None = None
    """Its value."""
    distractors: tuple[str, ...] = ()
    """Sentences that look like the fact and are about something else, for adversarial padding."""

    @property
    def modes(self) -> tuple[str, ...]:
        """The failure that the item was made to show."""
        return () if self.null else _MODES[self.kind]

    @property
    def shown(self) -> str:
        """Fact and question without the padding."""
        return f"{self.fact}{' ' + self.rival if self.rival else ''} […] {self.question.strip()}"

    @model_validator(mode="after")
    def _check(self) -> MemoryItem:
        if not self.null and self.kind not in _MODES:
            raise ValueError(f"{self.kind!r} is no kind of this benchmark")
        if self.null != (self.place == "before"):
            raise ValueError("the padding of null items stands before the fact, that of others between")
        if not self.answers or len(self.foils) != len(self.answers) or not all(self.foils):
            raise ValueError("each answer needs foils")
        for answer, foils in zip(self.answers, self.foils, strict=True):
            if answer in foils or len(set(foils)) != len(foils):
                raise ValueError("foils must be distinct and differ from the answer")
            value, other = answer.split()[-1], foils[0].split()[-1]
            if value not in self.fact or other not in self.control:
                raise ValueError("the fact must state the answers, and the control the first foils")
        if (self.rival is None) != (self.rival_answer is None):
            raise ValueError("a rival needs its answer")
        if self.rival is not None and str(self.rival_answer).strip() not in self.rival:
            raise ValueError("the rival must state its answer")
        if self.padding == "adversarial" and not self.distractors:
            raise ValueError("adversarial padding needs distractors")
        if self.question != self.question.rstrip():
            raise ValueError("the question must not end in white space")
        return self


def memory_items() -> list[MemoryItem]:
    """The items of ``memory-degradation``, in file order.

    Raises:
        PromptFileError: the packaged file is missing or damaged.
    """
    return read_items("memory-degradation", MemoryItem)
