"""Configuration of TEMPORAL-INFERENCE and the criteria of its verdicts."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from symbolic_residue.shells._config import ShellConfig, ShellCriteria

__all__ = ["DIRECTIONS", "MODES", "Criteria", "Direction", "Mode", "TemporalInferenceConfig"]

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
Mode = Literal["tokens", "positions"]
MODES: tuple[Mode, ...] = ("tokens", "positions")


class Criteria(ShellCriteria):
    """Thresholds of the four verdicts; ``calibration.json`` says where the defaults come from."""

    thresholds: ClassVar[dict[str, str]] = {
        "drift": "drift",
        "discontinuity break": "fall",
        "ordering reversal": "order",
        "causal confusion": "cause",
    }

    drift: float
    """Drift: coherence of the continuation's second half minus that of its first (nats a token), below this."""

    fall: float
    """Discontinuity break: coherence at the first distance past the break minus that at the last one before it (nats a token), below this …"""

    margin: float
    """… and the step's AICc at least this much better than that of every smooth curve."""

    order: float
    """Ordering reversal: mean log-odds of the right over the wrong order (nats), below this."""

    cause: float
    """Causal confusion: mean log-odds of the right over the wrong direction (nats), below this."""


class TemporalInferenceConfig(ShellConfig):
    """Options of TEMPORAL-INFERENCE. All are checked; unknown names are refused."""

    distances: tuple[int, ...] = Field(default=(2, 4, 6, 8, 11, 15, 24, 28, 32, 38))
    """Shifts in tokens, besides the one that is asked for; those that the text is too short for are left out."""

    other_distances: tuple[int, ...] = Field(default=(5, 15, 24))
    """The same in the other direction."""

    modes: tuple[Mode, ...] = MODES
    """Ways of shifting that are measured besides the one that is asked for (that one always is)."""

    places: int = Field(default=6, ge=1, le=64)
    """Places in the text where the shift is made; the intervals' n."""

    stride: int = Field(default=2, ge=1)
    """Tokens from one place to the next."""

    window: int = Field(default=6, ge=1)
    """Tokens of the true continuation over which coherence is averaged."""

    horizon: int = Field(default=16, ge=4)
    """Tokens of the true continuation that drift looks at."""

    context: int = Field(default=8, ge=2)
    """Tokens that must be left before the shift."""

    references: int = Field(default=3, ge=1, le=3)
    """Reference texts (narrative, factual, list) that get the same shifts as a control; with 1 only that of the asked genre."""

    wordings: int = Field(default=8, ge=2, le=8)
    """Wordings of a pair of events; the intervals' n."""

    gaps: tuple[int, ...] = Field(default=(15, 60))
    """Jumps in position between a pair's story and its question, measured besides none."""

    steps: int = Field(default=12, ge=0, le=256)
    """PREDICT: tokens of the greedy continuation."""

    top_k: int = Field(default=8, ge=1, le=64)
    """PREDICT: most probable tokens shown."""

    sequences: int = Field(default=8, ge=2, le=64)
    """Random sequences for the heads' scores and ablations."""

    half: int = Field(default=16, ge=3)
    """Tokens of a random sequence before it repeats."""

    top_heads: int = Field(default=8, ge=0, le=128)
    """Heads tested by ablation; with 0 there are no interventions."""

    random_heads: int = Field(default=20, ge=1, le=256)
    """Other heads, drawn at random, ablated as the control."""

    criteria: Criteria = Field(default_factory=Criteria.calibrated)
    """Thresholds of the verdicts."""

    @classmethod
    def quick(cls, **options: Any) -> Self:
        """The options of a suite: shifts of tokens only, one reference text, six wordings without gaps, shorter random sequences, fewer heads."""
        few: dict[str, Any] = {
            "modes": (),
            "other_distances": (),
            "references": 1,
            "wordings": 6,
            "gaps": (),
            "steps": 0,
        }
        few |= {"sequences": 6, "half": 10, "top_heads": 4, "random_heads": 6}
        return cls.make(**few | options)
