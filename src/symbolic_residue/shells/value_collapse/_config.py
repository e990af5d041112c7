"""Configuration of VALUE-COLLAPSE and the criteria of its verdicts."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from symbolic_residue.shells._config import ShellConfig, ShellCriteria

__all__ = ["REFINERS", "Criteria", "Refiner", "ValueCollapseConfig"]

Refiner = Literal["rollout", "soft", "layers"]
REFINERS: tuple[Refiner, ...] = ("rollout", "soft", "layers")


class Criteria(ShellCriteria):
    """Thresholds of the four verdicts.

    The defaults come from ``calibration.json``, written by ``benchmarks/calibrate_value_collapse.py``: each is set so that its verdict
    fires on at most 5 % of prompts whose next token is settled.
    """

    thresholds: ClassVar[dict[str, str]] = {
        "flatness": "log_odds",
        "oscillation": "returns",
        "value collapse": "leader_loss",
        "confidence fragility": "fragility",
    }

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


class ValueCollapseConfig(ShellConfig):
    """Options of VALUE-COLLAPSE. All are checked; unknown names are refused."""

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

    control_variants: int | None = Field(default=None, ge=1, le=64)
    """The same of the control; as many as of the prompt when left out."""

    top_heads: int = Field(default=12, ge=0, le=128)
    """Heads (largest direct logit attribution, either sign) that are ablated and patched; with 0 there are no interventions."""

    random_heads: int = Field(default=40, ge=1, le=256)
    """Other heads, drawn at random, ablated as the control."""

    attributed_candidates: int = Field(default=3, ge=2, le=8)
    """Direct logit attribution for every pair among this many best candidates."""

    lens_positions: int = Field(default=48, ge=1)
    """Last positions shown by the lens map."""

    criteria: Criteria = Field(default_factory=Criteria.calibrated)
    """Thresholds of the verdicts."""

    @classmethod
    def quick(cls, **options: Any) -> Self:
        """The options of a suite: fewer variants and heads, the ``layers`` refiner alone (the one that decides), a shorter lens map."""
        few: dict[str, Any] = {"variants": 7, "control_variants": 3, "refiners": ("layers",), "lens_positions": 4}
        few |= {"top_heads": 6, "random_heads": 16, "attributed_candidates": 2}
        return cls.make(**few | options)
