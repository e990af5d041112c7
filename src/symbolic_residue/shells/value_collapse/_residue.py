"""The residue of VALUE-COLLAPSE: what was asked, and every table observed."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from symbolic_residue.shells._residue import ShellResidue
from symbolic_residue.shells.value_collapse._config import ValueCollapseConfig

__all__ = ["Asked", "ValueCollapseResidue"]


class Asked(BaseModel):
    """What one run was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_text: str
    """The prompt's text (the last user turn's, for messages)."""
    messages: list[dict[str, str]] | None
    """The conversation, when one was given."""
    chat: bool
    """Whether the chat template is used."""
    control_text: str
    """The control prompt, in the same frame."""
    control_kind: str
    """``given``, or ``hint`` for the control that this shell words itself."""
    candidates: list[int]
    """Token ids, best first."""
    candidate_source: str
    """``given`` or ``mass``."""
    variants: list[tuple[str, str]]
    """(kind, text) of the small edits, without the prompt itself."""
    control_variants: list[tuple[str, str]]
    """The same for the control."""
    seed: int
    """Of the variants, the random heads and all resampling."""


class ValueCollapseResidue(ShellResidue[Asked, ValueCollapseConfig]):
    """Everything observed on one prompt and its control; the table ``measures`` holds ``(side, variant, quantity, value)``."""

    shell: ClassVar[str] = "value-collapse"
    asked_type: ClassVar[type[BaseModel]] = Asked
    config_type: ClassVar[type[ValueCollapseConfig]] = ValueCollapseConfig
    own: ClassVar[frozenset[str]] = frozenset({"measures"})
