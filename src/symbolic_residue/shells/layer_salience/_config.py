"""Configuration of LAYER-SALIENCE and the criteria of its verdicts."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, field_validator

from symbolic_residue.shells._config import ShellConfig, ShellCriteria

__all__ = ["Criteria", "LayerSalienceConfig"]


class Criteria(ShellCriteria):
    """Thresholds of the four verdicts; the defaults come from ``calibration.json``."""

    thresholds: ClassVar[dict[str, str]] = {
        "salience collapse": "collapse",
        "premature deprioritization": "deprioritization",
        "bottleneck": "bottleneck",
        "ghosts": "ghosts",
    }

    collapse: float
    """Salience collapse: share of tokens under the threshold in at least half of the layers, above this."""

    deprioritization: float
    """Premature deprioritization: fall of ln P(answer) (nats) beyond that of random tokens, above this."""

    bottleneck: float
    """Bottleneck: fall of the log effective number of attended tokens from one layer to the next (nats), above this."""

    ghosts: float
    """Ghosts: KL (nats) beyond that of as many random cells, above this."""


class LayerSalienceConfig(ShellConfig):
    """Options of LAYER-SALIENCE. All are checked; unknown names are refused."""

    threshold: float = Field(default=0.5, gt=0, lt=1)
    """WEIGHT: a token is under the threshold in a layer where it receives less than this part of its uniform share."""

    ghost_threshold: float = Field(default=0.1, gt=0, lt=1)
    """Attention at most this part of the uniform share counts as nearly none."""

    doses: tuple[float, ...] = (0.1, 0.2, 0.35, 0.5, 0.75)
    """Thresholds at which every position under them is cancelled; ``ghost_threshold`` is always among them."""

    draws: int = Field(default=12, ge=8, le=256)
    """Random draws of every control."""

    matched_doses: bool = True
    """Whether doses are compared with positions of matched distance as well (single tokens always are)."""

    max_tokens: int = Field(default=32, ge=1, le=1024)
    """Neglected tokens that are cancelled one by one; where there are more, those whose hiding from the last row matters most."""

    top_heads: int = Field(default=8, ge=0, le=128)
    """Heads that attend most to the cancelled tokens (value-weighted), tested by intervention; with 0 there are no interventions."""

    top_layers: int = Field(default=4, ge=0, le=64)
    """Layers likewise."""

    random_heads: int = Field(default=20, ge=1, le=256)
    """Other heads, drawn at random, as the control."""

    head_draws: int = Field(default=39, ge=19, le=999)
    """Random sets of keys, as many as were cancelled, hidden from the same heads."""

    criteria: Criteria = Field(default_factory=Criteria.calibrated)
    """Thresholds of the verdicts."""

    @field_validator("doses")
    @classmethod
    def _doses(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < dose < 10 for dose in value) or len(set(value)) < len(value):
            raise ValueError("doses are distinct numbers above 0 and below 10")
        return tuple(sorted(value))

    @property
    def all_doses(self) -> tuple[float, ...]:
        """``doses`` with ``ghost_threshold``, ascending."""
        return tuple(sorted({*self.doses, self.ghost_threshold}))

    @classmethod
    def quick(cls, **options: Any) -> Self:
        """The options of a suite: the ghosts' dose only, eight draws, six tokens, three heads."""
        fewer: dict[str, Any] = {
            "doses": (),
            "draws": 8,
            "matched_doses": False,
            "max_tokens": 6,
            "top_heads": 3,
            "top_layers": 1,
            "random_heads": 8,
            "head_draws": 19,
        }
        return cls.make(**(fewer | options))
