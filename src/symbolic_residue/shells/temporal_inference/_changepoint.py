"""Is a curve a step or a slope? A change point against smooth curves.

1. Step: ``y = a`` up to a distance, ``b`` past it, with at least two distances on each side; the best split is taken.
2. Smooth: a line ``a + b d``, and a saturating decay ``a + b (1 − exp(−d/τ))`` with τ on a fine grid.
3. Each is fitted by least squares; ``AICc = n ln(RSS/n) + 2k + 2k(k+1)/(n−k−1)``, the noise among the k parameters (line 3, step 4, decay 4).
   ``gain = min(AICc line, AICc decay) − AICc step``: above 0 the step is the better description.
4. *Share*: how much of the curve's range (largest minus smallest value) lies between the two distances beside the split. A smooth curve that is merely
   steep in the middle has its fall spread over several distances.

Noise below 0.01 (the curve's unit) is taken as 0.01: a curve that fits to the last digit has no likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from symbolic_residue.errors import ConfigError

__all__ = ["FEWEST", "Change", "change_point"]

FEWEST = 7
"""Distances below which a step cannot be told from a slope: AICc of four parameters needs more."""

_FLOOR = 0.01


@dataclass(frozen=True)
class Change:
    """The best step.

    Attributes:
        split: index of the first distance past it.
        after: that distance; ``before`` the last one short of it.
        size: value at the first distance past it minus that at the last before it.
        gain: how much better (AICc) than the best smooth curve.
        share: of the range, between the two distances beside the split.
    """

    split: int
    before: float
    after: float
    size: float
    gain: float
    share: float


def change_point(distance: ArrayLike, value: ArrayLike) -> Change:
    """The best step in a curve, and whether it is one.

    Args:
        distance: ``[n]`` ascending; ``value`` ``[n]``.

    Raises:
        ConfigError: fewer than :data:`FEWEST` points, or distances that do not ascend.
    """
    x, y = np.asarray(distance, float), np.asarray(value, float)
    if len(x) < FEWEST or len(x) != len(y) or not bool((np.diff(x) > 0).all()):
        raise ConfigError(f"A change point needs at least {FEWEST} ascending distances with a value each.")
    n = len(x)

    def aic(rss: float, k: int) -> float:
        return n * np.log(max(rss / n, _FLOOR**2)) + 2 * k + 2 * k * (k + 1) / (n - k - 1)

    steps = {i: float(((y[:i] - y[:i].mean()) ** 2).sum() + ((y[i:] - y[i:].mean()) ** 2).sum()) for i in range(2, n - 1)}
    split = min(steps, key=lambda i: steps[i])
    smooth = [aic(_rss(x, y), 3)]
    smooth.append(aic(min(_rss(1 - np.exp(-x / tau), y) for tau in np.geomspace(x[0] / 4, 4 * x[-1], 60)), 4))
    span = float(y.max() - y.min())
    return Change(
        split=split,
        before=float(x[split - 1]),
        after=float(x[split]),
        size=float(y[split] - y[split - 1]),
        gain=float(min(smooth) - aic(steps[split], 4)),
        share=float(abs(y[split] - y[split - 1]) / span) if span > 0 else 0.0,
    )


def _rss(u: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Residual sum of squares of ``y`` on 1 and ``u``."""
    matrix = np.stack([np.ones_like(u), u], 1)
    coefficients, *_ = np.linalg.lstsq(matrix, y, rcond=None)
    return float(((y - matrix @ coefficients) ** 2).sum())
