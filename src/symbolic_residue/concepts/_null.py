"""Label permutations, all at once: squared norms of weighted sums, and family-wise p values.

1. ``‖Σ_i w_i x_i‖² = wᵀ G w`` with ``G = X Xᵀ``: a permutation changes ``w`` alone. Where there are more texts than dimensions the sum itself is formed,
   which is then the cheaper way; both give the same number.
2. Family-wise p values: a statistic is standardised by its own mean and sd over all labelings drawn, the observed one among them (so that all are
   exchangeable), and each head is compared with the largest head of every draw (Westfall & Young 1993, single step). ``p = (1 + count) / (1 + draws)``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["max_t_p", "squared_norms", "standardised", "tail_p"]

Array = NDArray[np.float64]
_TIE = 1e-9
"""Statistics that are equal on paper differ by rounding; within this share of their size they count as equal."""


def squared_norms(x: Array, weights: Array) -> Array:
    """``‖Σ_i w_i x_i‖²`` of every head and draw.

    Args:
        x: ``[n, head, d]``.
        weights: ``[draw, n]``.

    Returns:
        ``[draw, head]``.
    """
    n, _, d = x.shape
    heads = np.ascontiguousarray(x.transpose(1, 0, 2))
    if n < d:
        found = [((weights @ (one @ one.T)) * weights).sum(1) for one in heads]
    else:
        found = [((weights @ one) ** 2).sum(1) for one in heads]
    return np.maximum(np.stack(found, axis=1), 0.0)


def standardised(statistic: Array) -> Array:
    """``[1 + draw, head]`` minus its column's mean, over its column's sd; 0 in a column that does not vary."""
    centred = statistic - statistic.mean(0)
    sd = statistic.std(0)
    return np.divide(centred, sd, out=np.zeros_like(centred), where=sd > _TIE * np.abs(statistic).max(0, initial=0.0))


def max_t_p(scores: Array, largest: Array) -> Array:
    """Family-wise p of each head.

    Args:
        scores: ``[head]``: the observed standardised statistics.
        largest: ``[1 + draw]``: the largest of the family in each labeling, the observed one first.
    """
    slack = _TIE * np.maximum(1.0, np.abs(scores))
    return (largest[None, :] >= (scores - slack)[:, None]).mean(1)


def tail_p(values: Array) -> float:
    """Share of labelings ``[1 + draw]``, the observed one first, whose value is at least the observed."""
    return float((values >= values[0] - _TIE * max(1e-300, abs(values[0]))).mean())
