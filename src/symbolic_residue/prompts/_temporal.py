"""Items of the benchmark ``temporal-coherence``: texts to shift, and pairs of events."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from symbolic_residue.prompts._benchmark import read_items, ShellItem

__all__ = ["TemporalItem", "temporal_coherence"]

_MODES = {"echo": ("drift", "discontinuity break"), "order": ("ordering reversal",), "cause": ("causal confusion",)}


class TemporalItem(ShellItem):
    """One item: a text or a pair.

    ``kind``: ``echo`` (a passage read out twice), ``order`` and ``cause`` (a story restated wrongly); null ones begin with ``null-``.
    """

    text: str | None = None
    """A text to shift."""
    genre: Literal["narrative", "factual", "list"] | None = None
    """Its genre."""
    pair: dict[str, str] | None = None
    """Two events: the fields of ``EventPair``."""

    @property
    def modes(self) -> tuple[str, ...]:
        """The failure modes that the item was made to show."""
        return () if self.null else _MODES[self.kind]

    @property
    def shown(self) -> str:
        """The text, or the events."""
        return self.text if self.text is not None else " / ".join((self.pair or {}).get(k, "") for k in ("first", "second"))

    @model_validator(mode="after")
    def _check(self) -> TemporalItem:
        if (self.text is None) == (self.pair is None) or (self.text is None) != (self.genre is None):
            raise ValueError("an item has a text with its genre, or a pair")
        if not self.null and self.kind not in _MODES:
            raise ValueError(f"{self.kind!r} is no kind of item")
        return self


def temporal_coherence() -> list[TemporalItem]:
    """The items of ``temporal-coherence``, in file order.

    Raises:
        PromptFileError: the packaged file is missing or damaged.
    """
    return read_items("temporal-coherence", TemporalItem)
