"""Configuration of MEMTRACE and the criteria of its verdicts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator

from symbolic_residue.prompts import Padding
from symbolic_residue.shells._config import ShellConfig, ShellCriteria

__all__ = ["Criteria", "MemtraceConfig"]


class Criteria(ShellCriteria):
    """Thresholds of the four verdicts; the defaults come from ``calibration.json``."""

    thresholds: ClassVar[dict[str, str]] = {
        "recall decay": "decay",
        "hallucinated reconstruction": "wrong",
        "partial recall": "partial",
        "priority collision": "collision",
    }

    decay: float
    """Recall decay: nats of memory lost between the best distance and the judged one, above this."""

    memory: float
    """… where stating the fact was worth more than this many nats at the best distance; else there was nothing to lose."""

    wrong: float
    """Hallucinated reconstruction: probability of the strongest wrong answer of the type, above this."""

    partial: float
    """Partial recall: best field's share of its type minus the worst field's, above this."""

    collision: float
    """Priority collision: log-odds (nats) of the answer over the rival nearer to the question, below this."""


class MemtraceConfig(ShellConfig):
    """Options of MEMTRACE. All are checked; unknown names are refused."""

    distances: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    """Tokens of padding, ascending from 0; those that do not fit the context are left out, and a prompt's own gap is added."""

    paddings: tuple[Padding, ...] = ("natural", "repetitive", "adversarial")
    """Kinds of padding; the first decides the verdicts. ``adversarial`` is left out where no similar sentences are given. An item of the benchmark
    brings its own kind."""

    draws: int = Field(default=10, ge=1, le=64)
    """Texts of padding of each kind; the verdicts' intervals are over these. With n draws no sign-flip p is below ``2 / 2^n``, so that k heads, of which one
    acts, need ``k · 2 / 2^n ≤ 0.05``."""

    foils: int = Field(default=7, ge=1, le=64)
    """Wrong answers of the type, where they are not given."""

    readable_rank: int = Field(default=5, ge=1)
    """RECALL: a token is readable where it is among this many best."""

    strengths: tuple[float, ...] = (0.0, 0.25, 0.5, 2.0, 4.0, 16.0)
    """ANCHOR and INHIBIT on the fact, from the last row: factors on the odds of its keys (0 hides it)."""

    top_heads: int = Field(default=12, ge=0, le=128)
    """Heads (attention to the answer × direct logit attribution) that are ablated and patched; with 0 there are no interventions."""

    random_heads: int = Field(default=40, ge=1, le=256)
    """Other heads, drawn at random, ablated as the control."""

    criteria: Criteria = Field(default_factory=Criteria.calibrated)
    """Thresholds of the verdicts."""

    @field_validator("distances")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) < 2 or value[0] != 0 or any(b <= a for a, b in pairwise(value)):
            raise ValueError("distances begin with 0 and ascend, at least two")
        return value

    @field_validator("paddings")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("give at least one kind of padding, none twice")
        return value

    @field_validator("strengths")
    @classmethod
    def _not_negative(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 <= s < float("inf") for s in value):
            raise ValueError("strengths are finite and not negative")
        return value

    @classmethod
    def quick(cls, **options: Any) -> Self:
        """Three distances up to 40 tokens, one kind of padding in eight draws, six heads: some seconds a prompt."""
        few: dict[str, Any] = {
            "distances": (0, 12, 40),
            "paddings": ("natural",),
            "draws": 8,
            "strengths": (0.0, 4.0),
            "top_heads": 6,
            "random_heads": 10,
        }
        return cls.make(**(few | options))
