"""Corrections for many tests at once.

1. :func:`benjamini_hochberg` holds the false discovery rate: of all that is called real at ``q <= .05``, at most 5% are
   expected to be false (Benjamini & Hochberg 1995; independent or positively dependent tests).
2. :func:`holm` holds the family-wise error: the chance of any false call (Holm 1979; any dependence).

Both return adjusted p values in the order given, to be compared with the level itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats._estimate import Array, finite_array

__all__ = ["benjamini_hochberg", "holm"]


def benjamini_hochberg(p: ArrayLike) -> Array:
    """Adjusted p values (q values) ``[k]`` of ``p [k]``: ``q_(i) = min over j >= i of p_(j) · k / j``.

    Raises:
        ConfigError: ``p`` empty, not finite, or outside [0, 1].
    """
    x = _probabilities(p)
    order = np.argsort(x, kind="stable")
    scaled = x[order] * len(x) / np.arange(1, len(x) + 1)
    q = np.empty_like(x)
    q[order] = np.minimum(1.0, np.minimum.accumulate(scaled[::-1])[::-1])
    # p · k / k may round below p; an adjusted value is never smaller than its own.
    return np.maximum(q, x)


def holm(p: ArrayLike) -> Array:
    """Adjusted p values ``[k]`` of ``p [k]``: ``max over j <= i of p_(j) · (k - j + 1)``, at most 1.

    Raises:
        ConfigError: ``p`` empty, not finite, or outside [0, 1].
    """
    x = _probabilities(p)
    order = np.argsort(x, kind="stable")
    scaled = x[order] * np.arange(len(x), 0, -1)
    adjusted = np.empty_like(x)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted


def _probabilities(p: ArrayLike) -> Array:
    x = finite_array(p, "p")
    if x.min() < 0 or x.max() > 1:
        raise ConfigError(f"p values run from {x.min()} to {x.max()}.", why="A probability lies between 0 and 1.")
    return x
