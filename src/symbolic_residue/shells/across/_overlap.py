"""Do several shells blame the same units more often than chance?

1. A shell's *set* is the share of the units that it blames most (or the confirmed ones), among the units that both shells score. A unit with score 0 is
   not blamed.
2. Heads and features: under the null each shell's set is drawn anew *within each layer*, with as many units in each layer as it has. So "both blame late
   layers" is no overlap. The number of shared units in a layer is then hypergeometric and the total is their sum, whose distribution is convolved
   exactly: p is exact, and conservative because counts are whole.
3. Layers and tokens lie in a row, and neighbours are alike: the null shifts one set against the other around the ring of units, all shifts enumerated. p is
   the share of shifts (identity included) that share at least as many, so it is never below one over the number of units.
4. *The leading head*: a single head that two shells share can hardly be found by (2), where its chance is one over the heads of its layer. Each shell's
   scores are divided by the median of their layer, so that layers differ in size no more, and ranked. ``k`` is the least number at which the ``k`` first
   units of both shells share one; p is the chance that sets of this size meet, drawn anew within each third of the depth, with as many in each third as
   they have. The null supposes that, but for a factor, the scores of the layers of a third are alike: where the tails of a few layers are much heavier, p
   is too small (in simulations with spreads that grow eightfold with depth, 5 % become 8 to 9 %).
5. All shells at once: the number of (unit, pair of shells) in which both blame the unit, so that a unit of three shells counts three times; the same null,
   drawn ``n_draws`` times for every shell, ``p = (1 + count) / (1 + n_draws)``.
6. q: Benjamini-Hochberg over the tests whose sets could reach 0.05 at all (Tarone: the smallest p that they allow, which does not depend on how many units are
   shared). The others have no q.

What the null does not know: heads with large outputs are blamed by every measure of this kind, on any text. For that there is the crossed control, one
shell here against the other on another text (``ShellIntegrator.integrated_attribution(elsewhere=…)``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import empirical_p

__all__ = ["Overlap", "blamed", "leading", "overlap_in_a_row", "overlap_of_leaders", "overlap_of_several", "overlap_within_layers"]

Mask = NDArray[np.bool_]
_BANDS = 3


@dataclass(frozen=True)
class Overlap:
    """Shared units against chance.

    Attributes:
        shared: units in both sets (for several sets: units and pairs of sets that both hold the unit).
        expected: mean under the null; ``low`` and ``high`` hold at least 95 % of it.
        p: chance of at least as many.
        least: the smallest p that sets of this kind allow, however many units they share.
    """

    shared: int
    expected: float
    low: float
    high: float
    p: float
    least: float


def blamed(score: NDArray[np.float64], share: float) -> Mask:
    """``[unit]``: the ``share`` of the units with the largest scores (at least one), those with score 0 or none left out; ties go to the first.

    Raises:
        ConfigError: a share outside (0, 1).
    """
    if not 0 < share < 1:
        raise ConfigError(f"The share blamed is {share}.", todo="Give a number between 0 and 1, such as 0.05.")
    known = np.where(np.isfinite(score), score, 0.0)
    k = max(1, int(np.ceil(share * len(score) - 1e-9)))
    out = np.zeros(len(score), bool)
    out[np.argsort(-known, kind="stable")[:k]] = True
    return out & (known > 0)


def overlap_within_layers(first: Mask, second: Mask, layers: Sequence[int]) -> Overlap:
    """Exact overlap test within layers; see the module.

    Args:
        first, second: ``[unit]``: the two sets.
        layers: ``[unit]``: the stratum of each unit.
    """
    strata = np.asarray(layers)
    _same_length(first, second, strata)
    total = np.ones(1)
    for layer in np.unique(strata):
        here = strata == layer
        n, a, b = int(here.sum()), int(first[here].sum()), int(second[here].sum())
        total = np.convolve(total, sps.hypergeom.pmf(np.arange(min(a, b) + 1), n, a, b))
    return _against(int((first & second).sum()), total / total.sum())


def overlap_in_a_row(first: Mask, second: Mask) -> Overlap:
    """Overlap against all shifts of one set around the ring; see the module. ``first, second``: ``[unit]`` in their order."""
    _same_length(first, second)
    shared = np.array([int((first & np.roll(second, k)).sum()) for k in range(len(second))])
    return _against(int(shared[0]), np.bincount(shared) / len(shared))


def overlap_of_several(sets: Sequence[Mask], layers: Sequence[int] | None, *, seed: int, n_draws: int = 9999) -> Overlap:
    """Units shared by the pairs of several sets, against the same null, drawn.

    Args:
        sets: ``[unit]`` each.
        layers: the stratum of each unit; None where units lie in a row.
        seed: of the draws.
        n_draws: how many.

    Raises:
        ConfigError: fewer than two sets, or sets of different lengths.
    """
    _same_length(*sets)
    if len(sets) < 2:
        raise ConfigError("An overlap needs at least two shells.")
    rng = np.random.default_rng(seed)
    observed = int(_pairs(np.sum(sets, 0)))
    n = len(sets[0])
    counts = np.zeros((n_draws, n), np.int8)
    if layers is None:
        for one in sets:
            shifts = rng.integers(0, n, n_draws)
            counts += one[(np.arange(n) - shifts[:, None]) % n]
    else:
        strata = np.asarray(layers)
        for layer in np.unique(strata):
            here = np.flatnonzero(strata == layer)
            for one in sets:
                k = int(one[here].sum())
                if k:  # the k smallest of random keys: k units drawn without replacement
                    keys = rng.random((n_draws, len(here)))
                    rank = keys.argsort(1).argsort(1)
                    counts[:, here] += (rank < k).astype(np.int8)
    drawn = _pairs(counts.astype(np.int64))
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    p = empirical_p(float(observed), drawn.astype(float))
    return Overlap(observed, float(drawn.mean()), float(low), float(high), p, min(p, float((drawn == drawn.max()).mean())))


def leading(first: NDArray[np.float64], second: NDArray[np.float64], layers: Sequence[int]) -> tuple[Mask, Mask]:
    """The ``k`` first units of both shells by score over the median of the layer, for the least ``k`` at which they share one (step 4).

    Args:
        first, second: ``[unit]``: scores ≥ 0.
        layers: ``[unit]``: the layer of each unit.

    Returns:
        Both sets; nothing where either shell scores no unit above 0.
    """
    strata = np.asarray(layers)
    _same_length(first, second, strata)
    ranks = []
    for score in (first, second):
        relative = np.zeros(len(score))
        for layer in np.unique(strata):
            here = strata == layer
            middle = float(np.median(score[here])) or float(score[here].mean())
            relative[here] = score[here] / middle if middle > 0 else 0.0
        rank = (relative[:, None] <= relative[None, :]).sum(1).astype(float)  # units at least as high, itself included
        ranks.append(np.where(relative > 0, rank, np.inf))
    k = np.maximum(*ranks).min()
    if not np.isfinite(k):
        return np.zeros(len(first), bool), np.zeros(len(first), bool)
    return ranks[0] <= k, ranks[1] <= k


def overlap_of_leaders(first: Mask, second: Mask, layers: Sequence[int]) -> Overlap:
    """Whether the sets of :func:`leading` meet, against sets drawn anew within thirds of the depth; ``shared`` counts the units they share."""
    strata = np.asarray(layers)
    _same_length(first, second, strata)
    depth = np.searchsorted(np.unique(strata), strata)
    band = depth * _BANDS // (depth.max() + 1)
    found = overlap_within_layers(first, second, band.tolist())
    apart, least = 1.0, 1.0
    for one in np.unique(band):
        here = band == one
        n = int(here.sum())
        apart *= float(sps.hypergeom.pmf(0, n, int(first[here].sum()), int(second[here].sum())))
        least = min(least, 1 / n)
    p = 1 - apart if found.shared else 1.0
    return Overlap(found.shared, found.expected, found.low, found.high, p, min(p, least))


def _pairs(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of sets that hold a unit, summed over units (the last axis)."""
    return (times * (times - 1) // 2).sum(-1)


def _against(observed: int, pmf: NDArray[np.float64]) -> Overlap:
    """``pmf [shared units]``: the null's distribution."""
    values = np.arange(len(pmf))
    below = np.cumsum(pmf)
    low, high = (int(np.searchsorted(below, level - 1e-12)) for level in (0.025, 0.975))
    # An observed number above the largest possible one cannot be; rounding must not take the tail above 1.
    p = min(1.0, float(pmf[observed:].sum()))
    least = float(pmf[np.flatnonzero(pmf > 0)[-1]])
    return Overlap(observed, float(values @ pmf), float(low), float(min(high, len(pmf) - 1)), p, min(p, least))


def _same_length(*arrays: NDArray[Any]) -> None:
    if len({len(a) for a in arrays}) > 1 or not len(arrays[0]):
        raise ConfigError("Sets of units must be over the same units, and at least one.")
