"""Items of the benchmark ``attention-salience``."""

from __future__ import annotations

from pydantic import model_validator

from symbolic_residue.prompts import read_items, ShellItem

__all__ = ["SalienceItem", "salience_items"]


class SalienceItem(ShellItem):
    """One text that stops before its last word.

    Kinds: ``early`` (the answer's word stands once, at the start, unrelated sentences follow); ``null-late`` (the same frames, the answer's word
    right before the end); ``null-open`` (no word of the text is the answer).
    """

    text: str
    """The text whose next token is asked for."""
    answer: str | None = None
    """The word that continues it, with its leading space; None where the model's own best token is followed."""

    @property
    def modes(self) -> tuple[str, ...]:
        """Premature deprioritization, where the answer's word stands early."""
        return () if self.null else ("premature deprioritization",)

    @property
    def shown(self) -> str:
        """The text."""
        return self.text

    @model_validator(mode="after")
    def _check(self) -> SalienceItem:
        if not self.text.strip() or self.text != self.text.rstrip():
            raise ValueError("the text must not be empty, nor end in white space")
        if self.answer is not None:
            if not self.answer.startswith(" ") or self.text.count(self.answer) != 1:
                raise ValueError(f"the answer {self.answer!r} must begin with a space and stand in the text once")
        elif not self.null:
            raise ValueError("an item with a planted failure needs its answer")
        return self


def salience_items() -> list[SalienceItem]:
    """The packaged items, in file order.

    Raises:
        PromptFileError: the packaged file is missing or damaged.
    """
    return read_items("attention-salience", SalienceItem)
