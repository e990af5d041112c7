"""Entropies and divergences of discrete distributions, in nats, over the last axis, in float64.

1. Input must be a distribution: finite, not negative, summing to 1 within 0.001 (a float32 softmax passes, logits do not).
   It is divided by its sum, so that rounding of the input does not show as divergence.
2. ``0 · ln 0`` is 0. ``kl_divergence`` is infinite where q has 0 and p has not; ``js_divergence`` is always finite:
   it compares each with their mean and lies between 0 and ln 2.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, rel_entr

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats._estimate import Array, finite_array

__all__ = ["entropy", "js_divergence", "kl_divergence"]

_SUM_TOLERANCE = 1e-3


def entropy(p: ArrayLike) -> Array:
    """Shannon entropy ``-sum p ln p`` of ``p [..., outcome]``, in nats, ``[...]``; between 0 and ``ln(outcomes)``.

    Raises:
        ConfigError: ``p`` is no distribution over its last axis.
    """
    x = _distribution(p, "p")
    return np.clip(entr(x).sum(axis=-1), 0.0, math.log(x.shape[-1]))


def kl_divergence(p: ArrayLike, q: ArrayLike) -> Array:
    """Kullback-Leibler divergence ``sum p ln(p / q)`` of ``p, q [..., outcome]``, in nats, ``[...]``; may be infinite.

    Raises:
        ConfigError: ``p`` or ``q`` is no distribution over its last axis, or their outcomes differ in number.
    """
    x, y = _pair(p, q)
    return np.maximum(0.0, rel_entr(x, y).sum(axis=-1))


def js_divergence(p: ArrayLike, q: ArrayLike) -> Array:
    """Jensen-Shannon divergence of ``p, q [..., outcome]``, in nats, ``[...]``: mean KL of each to their mean (Lin 1991).

    Symmetric, 0 only where p equals q, and at most ln 2.

    Raises:
        ConfigError: ``p`` or ``q`` is no distribution over its last axis, or their outcomes differ in number.
    """
    x, y = _pair(p, q)
    # The sum is halved last, so that x equal to y gives back x; half of the smallest number underflows to 0.
    m = (x + y) / 2
    m = np.where(m == 0, np.maximum(x, y), m)
    return np.clip((rel_entr(x, m).sum(axis=-1) + rel_entr(y, m).sum(axis=-1)) / 2, 0.0, math.log(2))


def _pair(p: ArrayLike, q: ArrayLike) -> tuple[Array, Array]:
    x, y = _distribution(p, "p"), _distribution(q, "q")
    if x.shape[-1] != y.shape[-1]:
        raise ConfigError(
            f"p has {x.shape[-1]} outcomes and q has {y.shape[-1]}.", todo="Compare distributions over the same tokens."
        )
    try:
        np.broadcast_shapes(x.shape, y.shape)
    except ValueError as error:
        raise ConfigError(f"p is {x.shape} and q is {y.shape}: the axes before the last do not match.") from error
    return x, y


def _distribution(p: ArrayLike, name: str) -> Array:
    x = finite_array(p, name, tuple(range(1, 9)))
    if x.min() < 0:
        raise ConfigError(f"{name} holds negative numbers.", why="It is no distribution.", todo="Give probabilities, not logits.")
    total = x.sum(axis=-1, keepdims=True)
    off = float(np.abs(total - 1).max())
    if off > _SUM_TOLERANCE:
        raise ConfigError(
            f"{name} does not sum to 1 over its last axis (off by up to {off:.3g}).", todo="Give probabilities over all outcomes."
        )
    return x / total
