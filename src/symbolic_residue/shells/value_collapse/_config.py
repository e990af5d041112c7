"""Configuration of VALUE-COLLAPSE and the criteria of its verdicts."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from symbolic_residue.errors import ConfigError

__all__ = ["REFINERS", "Criteria", "Refiner", "ValueCollapseConfig"]

Refiner = Literal["rollout", "soft", "layers"]
REFINERS: tuple[Refiner, ...] = ("rollout", "soft", "layers")


class Criteria(BaseModel):
    """Thresholds of the four verdicts.

    The defaults come from ``calibration.json``, written by ``benchmarks/calibrate_value_collapse.py``: each is set so that its verdict
    fires on at most 5 % of prompts whose next token is settled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_odds: float
    """Flatness: the log-odds (nats) between the two best candidates must be below this …"""

    entropy: float
    """… and the entropy (nats) over the candidates above this."""

    returns: float = 2.0
    """Oscillation: returns to an earlier leader, at least this many (the specification says two)."""

    leader_loss: float = 0.5
    """Value collapse: share of its mass that an early leader loses (the specification says half)."""

    fragility: float
    """Confidence fragility: median Jensen-Shannon divergence (nats) under small edits, above this."""

    source: str = "given"
    """Where the thresholds come from; stands beside every verdict."""

    @classmethod
    def calibrated(cls) -> Criteria:
        """The packaged thresholds."""
        return _calibrated()


@cache
def _calibrated() -> Criteria:
    text = files("symbolic_residue.shells.value_collapse").joinpath("calibration.json").read_text("utf-8")
    return Criteria(**json.loads(text)["criteria"])


class ValueCollapseConfig(BaseModel):
    """Options of VALUE-COLLAPSE. All are checked; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mass: float = Field(default=0.9, gt=0, lt=1)
    """Candidates not given: the smallest set of tokens that holds this much probability (at least two)."""

    max_candidates: int = Field(default=8, ge=2, le=64)
    """… but never more than this many."""

    yield_threshold: float = Field(default=0.5, gt=0, lt=1)
    """YIELD returns the top token only if its probability is above this."""

    steps: int = Field(default=8, ge=1, le=256)
    """STABILIZE: the most steps of refinement."""

    tolerance: float = Field(default=0.02, gt=0)
    """STABILIZE has converged when the distribution's L1 change is below this."""

    refiners: tuple[Refiner, ...] = REFINERS
    """Which refiners run."""

    verdict_refiner: Refiner = "layers"
    """Whose traces decide oscillation and value collapse (the others are reported beside)."""

    readable_mass: float = Field(default=0.5, ge=0, lt=1)
    """Depths at which the candidates hold less probability than this are not yet about them, and are left out of the ``layers`` trace."""

    variants: int = Field(default=12, ge=1, le=64)
    """Small edits of the prompt that keep its meaning; the verdicts' intervals are over these."""

    top_heads: int = Field(default=12, ge=1, le=128)
    """Heads (largest direct logit attribution, either sign) that are ablated and patched."""

    random_heads: int = Field(default=40, ge=1, le=256)
    """Other heads, drawn at random, ablated as the control."""

    attributed_candidates: int = Field(default=3, ge=2, le=8)
    """Direct logit attribution for every pair among this many best candidates."""

    lens_positions: int = Field(default=48, ge=1)
    """Last positions shown by the lens map."""

    criteria: Criteria = Field(default_factory=Criteria.calibrated)
    """Thresholds of the verdicts."""

    @classmethod
    def make(cls, **options: Any) -> ValueCollapseConfig:
        """The configuration from keyword options.

        Raises:
            ConfigError: an unknown option or a value out of range, named.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"Option {where!r}: {first['msg']}.", todo=f"Options: {', '.join(cls.model_fields)}.") from None
