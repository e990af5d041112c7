"""What the analysis may be told, and the interval that all of it uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.contrast._stack import Stack
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import flip_columns

__all__ = ["Direction", "Options", "interval", "side"]

Array = NDArray[np.float64]
Direction = Literal["up", "down"]


@dataclass(frozen=True)
class Options:
    """How the gates decide.

    Attributes:
        direction: the predicted sign of the delta at the event.
        share: gate A's least share of examples in that direction.
        alpha: of gate B's family-wise p; intervals have the level 1 − alpha.
        run: fewest layers of a window.
        seed: of what is drawn: flips of more than 12 clusters (of fewer all are listed), and clusters for C4 and the shift of peaks; ``n_resamples`` of each.
        reference: stratum of gates A to D and F.
    """

    direction: Direction = "up"
    share: float = 0.70
    alpha: float = 0.05
    run: int = 3
    seed: int = 0
    n_resamples: int = 2000
    reference: str = "C1"

    def __post_init__(self) -> None:
        if self.direction not in ("up", "down"):
            raise ConfigError(f"{self.direction!r} is no direction.", todo="Use 'up' or 'down'.")
        if not 0 < self.share <= 1 or not 0 < self.alpha < 1 or self.run < 1:
            raise ConfigError("A gate's option is out of range.", todo="0 < share <= 1, 0 < alpha < 1, run >= 1.")


def interval(stack: Stack, options: Options) -> tuple[Array, Array, Array]:
    """``(value, low, high)`` of each column's mean, from flips of whole clusters; NaN bounds with one cluster."""
    return flip_columns(
        stack.values, seed=options.seed, n_resamples=options.n_resamples, level=1 - options.alpha, clusters=stack.clusters
    )


def side(low: Any, high: Any, sign: float) -> Any:
    """Whether an interval lies wholly on the predicted side of zero; False where a bound is NaN."""
    return low > 0 if sign > 0 else high < 0
