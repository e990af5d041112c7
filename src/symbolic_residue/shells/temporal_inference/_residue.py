"""The residue of TEMPORAL-INFERENCE: what was asked, and every table observed."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from symbolic_residue.shells._residue import ShellResidue
from symbolic_residue.shells.temporal_inference._config import Direction, Mode, TemporalInferenceConfig
from symbolic_residue.shells.temporal_inference._pairs import EventPair, PairPrompt
from symbolic_residue.shells.temporal_inference._references import Genre

__all__ = ["Asked", "TemporalInferenceResidue"]


class Asked(BaseModel):
    """What one run was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_text: str
    """The text, or the first wording of the pair where there is no text."""
    text: str | None
    """The text that was shifted, None where only a pair was asked."""
    pair: EventPair | None
    """The pair of events, where one was given."""
    genre: Genre
    """Which reference text stands beside the text."""
    distance: int
    """The shift that drift is judged at, in tokens."""
    direction: Direction
    """Its direction."""
    mode: Mode
    """What is shifted."""
    cuts: list[int]
    """The places: tokens before each cut."""
    prompts: list[PairPrompt]
    """The pair's prompts."""
    neutral: list[PairPrompt]
    """Those of the control."""
    seed: int
    """Of shuffles, random heads, random sequences and resampling."""


class TemporalInferenceResidue(ShellResidue[Asked, TemporalInferenceConfig]):
    """Everything observed. Tables of its own: ``shifts`` (side, mode, direction, distance, place, token, coherence: nats) and ``preferences`` (side, gap,
    wording, a_first, log_odds: nats)."""

    shell: ClassVar[str] = "temporal-inference"
    asked_type: ClassVar[type[BaseModel]] = Asked
    config_type: ClassVar[type[TemporalInferenceConfig]] = TemporalInferenceConfig
    own: ClassVar[frozenset[str]] = frozenset({"shifts", "preferences"})
