"""From an estimate and a criterion to a verdict.

1. A criterion is calibrated on null runs: :func:`quantile_criterion` is the value that at most a given share of them exceeds.
2. A verdict *fires* when the whole interval lies past the criterion, is *absent* when the whole interval lies on the other
   side, and is *undecided* otherwise: an interval over the criterion, or no interval, decides nothing.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats._estimate import Estimate, finite_array

__all__ = ["Direction", "Outcome", "decide", "quantile_criterion"]

Outcome = Literal["fires", "absent", "undecided"]
Direction = Literal["above", "below"]


def decide(estimate: Estimate, criterion: float, direction: Direction = "above") -> Outcome:
    """Whether the estimate is past the criterion, by its whole interval.

    Args:
        estimate: the measured value with its interval.
        criterion: in the unit of the estimate.
        direction: the side of the criterion on which the verdict fires.

    Raises:
        ConfigError: a criterion that is not finite, or an unknown direction.
    """
    _check_direction(direction)
    if not math.isfinite(criterion):
        raise ConfigError(f"The criterion is {criterion}.", why="No interval can be compared with it.")
    past, short = estimate.above(criterion), estimate.below(criterion)
    if direction == "below":
        past, short = short, past
    if past:
        return "fires"
    return "absent" if short else "undecided"


def quantile_criterion(null_values: ArrayLike, rate: float = 0.05, *, direction: Direction = "above") -> float:
    """The threshold that at most ``floor(rate · n)`` of ``null_values [n]`` exceed: one of the values themselves.

    With ``k = floor(rate · n)`` it is the (k + 1)-th largest value, the smallest threshold with this property. For a new
    value drawn like the null ones (exchangeable with them) the chance to exceed it is at most ``(k + 1) / (n + 1)``: that is
    near ``rate`` for large n, and never better than ``1 / (n + 1)``, so 19 values at least are needed to promise 5%.

    Args:
        null_values: values measured where nothing is wrong.
        rate: the share allowed past the threshold, 0 <= rate < 1.
        direction: "below" gives the threshold that at most so many lie under.

    Raises:
        ConfigError: values empty or not finite, a rate outside [0, 1), or an unknown direction.
    """
    _check_direction(direction)
    x = finite_array(null_values, "null_values")
    if not 0 <= rate < 1:
        raise ConfigError(f"The rate is {rate}.", todo="Give a share of at least 0 and less than 1, such as 0.05.")
    # 0.29 · 100 is 28.999999999999996 in binary: the product is meant, not its rounding.
    allowed = math.floor(rate * len(x) + 1e-9)
    sign = 1.0 if direction == "above" else -1.0
    return float(sign * np.sort(sign * x)[len(x) - 1 - allowed])


def _check_direction(direction: str) -> None:
    if direction not in ("above", "below"):
        raise ConfigError(f"{direction!r} is no direction.", todo="Use 'above' or 'below'.")
