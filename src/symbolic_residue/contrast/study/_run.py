"""A study from its first missing item on: stages in their order, each from what the ones before it have saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from symbolic_residue.contrast.study._analyse import analyse_stage
from symbolic_residue.contrast.study._causal import causal_stage
from symbolic_residue.contrast.study._generate import generate_stage
from symbolic_residue.contrast.study._preflight import preflight_stage
from symbolic_residue.contrast.study._read import force_feed_stage, read_stage
from symbolic_residue.contrast.study._study import STAGES, Stopped, Study
from symbolic_residue.errors import ConfigError

__all__ = ["run_stages"]

_STAGES: dict[str, Callable[[Study], Any]] = {
    "preflight": preflight_stage,
    "generate": generate_stage,
    "read": read_stage,
    "force-feed": force_feed_stage,
    "analyse": analyse_stage,
    "causal": causal_stage,
}


def run_stages(study: Study, stages: Sequence[str] = STAGES) -> str:
    """Do these stages, what is there already left out.

    Args:
        study: what is asked, and where it goes.
        stages: names, in order.

    Returns:
        Why the study ended before the last of them; empty where it did not.

    Raises:
        ConfigError: no such stage, or one whose predecessor has not been done.
        ResidueError: what a stage refuses.
    """
    for stage in stages:
        if stage not in STAGES:
            raise ConfigError(f"{stage!r} is no stage.", todo=f"Stages: {', '.join(STAGES)}.")
    try:
        for stage in stages:
            _STAGES[stage](study)
    except Stopped as reason:
        return str(reason)
    return ""
