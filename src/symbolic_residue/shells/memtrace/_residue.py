"""The residue of MEMTRACE: what was asked, and every table observed."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from symbolic_residue.prompts import Padding
from symbolic_residue.shells._residue import ShellResidue
from symbolic_residue.shells.memtrace._config import MemtraceConfig

__all__ = ["Asked", "Field", "MemtraceResidue", "Side"]


class Field(BaseModel):
    """One answer, scored at the first token in which it and its foils differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    """The answer."""
    before: list[int]
    """Token ids that stand between the question (or the field before) and the scored token; foils share them."""
    token: int
    """The scored token of the answer."""
    after: list[int]
    """What follows it, up to the next field."""
    foils: list[int]
    """Scored tokens of wrong answers of the type."""
    rival: int | None = None
    """Scored token of the rival fact's value."""


class Side(BaseModel):
    """A text before the padding and one after it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    opening: str
    closing: str


class Asked(BaseModel):
    """What one run was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_text: str
    """The prompt as given; for an item, the prompt without padding."""
    chat: bool
    """Whether the chat template is used."""
    fact: str
    """The sentence that states the answers."""
    question: str
    """The end of the prompt, from the question on."""
    fields: list[Field]
    """The answers."""
    rival: str | None
    """Another fact of the same kind in the prompt."""
    foil_source: str
    """``given``, or ``model``: its best tokens of the same shape where the fact is not stated."""
    token_type: str
    """``name``, ``number`` or ``word``."""
    place: str
    """Where the padding stands: ``between`` fact and question, or ``before`` the fact."""
    sides: dict[str, Side]
    """``fact``, ``control`` (another fact, or none) and, with a rival, ``swapped`` (rival and fact exchanged)."""
    control_kind: str
    """``given``, ``foil`` (the fact with a foil in the answer's place) or ``none`` (the fact left out)."""
    gap: int
    """Tokens between fact and question in the prompt as given."""
    distances: list[int]
    """Tokens of padding, ascending from 0."""
    distance: int
    """The distance that is judged: the prompt's own gap, or the longest."""
    streams: dict[str, list[str]]
    """Padding texts by kind, one a draw, each at least as long as the longest distance; the first kind is judged."""
    paddings: list[Padding]
    seed: int
    """Of padding, random heads and all resampling."""


class MemtraceResidue(ShellResidue[Asked, MemtraceConfig]):
    """Everything observed on one fact and its controls; the table ``measures`` holds ``(side, padding, distance, draw, field, quantity, value)``."""

    shell: ClassVar[str] = "memtrace"
    asked_type: ClassVar[type[BaseModel]] = Asked
    config_type: ClassVar[type[MemtraceConfig]] = MemtraceConfig
    own: ClassVar[frozenset[str]] = frozenset({"measures"})
