"""Rank effects of many units under permuted labels, in one pass over blocks of units: memory does not grow with their number times the draws.

1. *Labels.* Within a stratum, labels of items may be exchanged. A frame with items on both sides is a stratum; all items of one-sided frames together are one
   more. Without frames there is one stratum. The permutations are drawn once, so all units of a shell see the same ones.
2. *Statistic* of a unit: with ranks ``r`` of its values over a shell's items, ``2 AUC − 1 = Σ w r``. Under permuted labels its mean and variance are known,
   and the standardised ``z`` is compared between units and shells.
3. *Family-wise p*: each ``|z|`` against the largest over all units of all shells in each draw (single step, Westfall & Young 1993).
4. *False discovery rate* (``q``): for a threshold, the mean number of a shell's units that exceed it under permuted labels over the number that do; the
   smallest such ratio at or below a unit's own ``|z|`` (Tusher et al. 2001, every unit counted as null). Null numbers are counted in whole bins,
   which can only enlarge q.
5. *Pairs of shells*: Pearson correlation of the (centred) effects over units against that with one of the two shells' labels permuted. Units hang together, so
   their number says nothing; of both nulls the larger p counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats as sps

from symbolic_residue.stats import empirical_p, holm

__all__ = ["Labels", "Running", "pair_frame"]

Array = NDArray[np.float64]
_HELD = 8_000_000
"""Most numbers of a block under permuted labels (32 MB in float32)."""
_BINS = 4096
_ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Labels:
    """A shell's items, planted ones first, and what their labels may become.

    Attributes:
        weights: ``[item]``: ``weights @ ranks`` is 2 AUC − 1.
        strata: ``[item]`` numbers from 0.
        permuted: ``[draw, item]`` weights, centred in their stratum, under permuted labels (float32).
    """

    weights: Array
    strata: NDArray[np.int64]
    permuted: NDArray[np.float32] = field(repr=False)

    @classmethod
    def draw(
        cls,
        n_planted: int,
        n_null: int,
        rng: np.random.Generator,
        draws: int,
        frames: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> Labels:
        """The labels of ``n_planted`` and ``n_null`` items, with the permutations."""
        n = n_planted + n_null
        weights = np.concatenate([np.full(n_planted, 1 / n_planted), np.full(n_null, -1 / n_null)]) * 2 / n
        strata = np.zeros(n, dtype=np.int64)
        if frames is not None:
            shared = sorted(set(frames[0]) & set(frames[1]))
            place = {frame: i + 1 for i, frame in enumerate(shared)}
            strata = np.array([place.get(f, 0) for side in frames for f in side])
            strata = np.unique(strata, return_inverse=True)[1]
        centred = weights - _means(weights, strata)[strata]
        permuted = np.empty((draws, n), dtype=np.float32)
        for s in range(strata.max() + 1):
            at = np.flatnonzero(strata == s)
            permuted[:, at] = rng.permuted(np.tile(centred[at], (draws, 1)), axis=1)
        return cls(weights, strata, permuted)

    @property
    def centred(self) -> Array:
        """``[item]`` the observed weights, centred in their stratum."""
        return self.weights - _means(self.weights, self.strata)[self.strata]

    def spread(self, ranks: Array) -> Array:
        """``[unit]`` standard deviation of ``centred @ ranks`` under all permutations, by the formula."""
        total = np.zeros(ranks.shape[1])
        weights = self.centred
        for s in range(self.strata.max() + 1):
            at = self.strata == s
            if (n := int(at.sum())) > 1:
                total += (weights[at] ** 2).sum() * ((ranks[at] - ranks[at].mean(0)) ** 2).sum(0) / (n - 1)
        return np.sqrt(total)


def _means(values: Array, strata: NDArray[np.int64]) -> Array:
    return np.bincount(strata, values) / np.bincount(strata)


class Running:
    """Collects blocks of units; :meth:`finish` gives effects, p and q.

    Args:
        labels: of each shell.
    """

    def __init__(self, labels: Sequence[Labels]) -> None:
        self.labels = list(labels)
        k, draws = len(self.labels), len(self.labels[0].permuted)
        self.effect: list[list[Array]] = [[] for _ in range(k)]
        self._z: list[list[Array]] = [[] for _ in range(k)]
        self._centred: list[list[Array]] = [[] for _ in range(k)]
        self._largest = np.zeros(draws)
        self._top = [float(np.sqrt(len(one.weights))) for one in self.labels]
        self._counts = np.zeros((k, _BINS), dtype=np.int64)
        self._sums, self._squares = np.zeros((2, k, draws))
        self._dots = {(a, b): np.zeros(draws) for a, b in permutations(range(k), 2)}

    def add(self, values: Sequence[NDArray[np.floating]]) -> None:
        """More units: ``[item, unit]`` for each shell, of the same units."""
        step = max(64, _HELD // len(self._largest))
        for start in range(0, values[0].shape[1], step):
            self._block([v[:, start : start + step] for v in values])

    def _block(self, values: Sequence[NDArray[np.floating]]) -> None:
        blocks = []
        for s, (labels, x) in enumerate(zip(self.labels, values, strict=True)):
            ranks = sps.rankdata(x, axis=0) - (len(x) + 1) / 2
            spread = labels.spread(ranks)
            inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-12)
            self.effect[s].append(labels.weights @ ranks)
            self._centred[s].append(labels.centred @ ranks)
            self._z[s].append(np.abs(self._centred[s][-1] * inverse))
            blocks.append((ranks.astype(np.float32), inverse.astype(np.float32)))
        for s, (ranks, inverse) in enumerate(blocks):
            null = self.labels[s].permuted @ ranks
            self._sums[s] += null.sum(1, dtype=np.float64)
            self._squares[s] += np.einsum("du,du->d", null, null, dtype=np.float64)
            for other in range(len(blocks)):
                if other != s:
                    self._dots[s, other] += null @ self._centred[other][-1].astype(np.float32)
            size = np.abs(null * inverse)
            np.maximum(self._largest, size.max(1), out=self._largest)
            bins = np.minimum(size * (_BINS / self._top[s]), _BINS - 1).astype(np.int64)
            self._counts[s] += np.bincount(bins.ravel(), minlength=_BINS)

    def finish(self) -> tuple[Array, Array, Array]:
        """``effect``, family-wise ``p`` and ``q``, each ``[shell, unit]``."""
        effect = np.clip(np.stack([np.concatenate(e) for e in self.effect]), -1, 1)
        z = np.stack([np.concatenate(one) for one in self._z]) * (1 - _ROUNDING)
        p = np.stack([np.asarray(empirical_p(one, self._largest)) for one in z])
        return effect, p, np.stack([self._q(s, one) for s, one in enumerate(z)])

    def _q(self, s: int, z: Array) -> Array:
        beyond = self._counts[s][::-1].cumsum()[::-1]
        bins = np.minimum(z * (_BINS / self._top[s]), _BINS - 1).astype(np.int64)
        expected = (1 + beyond[bins]) / (1 + len(self._largest))
        order = np.argsort(-z, kind="stable")
        # How many are at least as large, ties counted in full.
        found = len(z) - np.searchsorted(np.sort(z), z[order], side="left")
        ratio = np.minimum(expected[order] / found, 1.0)
        q = np.empty_like(z)
        q[order] = np.minimum.accumulate(ratio[::-1])[::-1]
        return q

    def correlations(self) -> list[tuple[int, int, float, Array, float]]:
        """For each pair of shells: numbers, correlation of effects, its null ``[draw]`` (the one with the larger p), p (two-sided)."""
        found = []
        centred = [np.concatenate(c) for c in self._centred]
        for a, b in combinations(range(len(self.labels)), 2):
            value = _pearson(centred[a], centred[b])
            nulls = [self._null(a, b, centred[b]), self._null(b, a, centred[a])]
            ps = [float(empirical_p(abs(value) * (1 - _ROUNDING), np.abs(null))) for null in nulls]
            worse = int(ps[1] > ps[0])
            found.append((a, b, value, nulls[worse], ps[worse]))
        return found

    def _null(self, permuted: int, fixed: int, effect: Array) -> Array:
        n = len(effect)
        mean = effect.mean()
        dot = self._dots[permuted, fixed] - self._sums[permuted] * mean
        size = np.sqrt(np.maximum(self._squares[permuted] - self._sums[permuted] ** 2 / n, 0) * ((effect - mean) ** 2).sum())
        return np.divide(dot, size, out=np.zeros_like(dot), where=size > 0)


def _pearson(a: Array, b: Array) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def pair_frame(names: Sequence[str], running: Running) -> pl.DataFrame:
    """The table ``alignment_pairs``, Holm over pairs."""
    rows = running.correlations()
    adjusted = holm([row[4] for row in rows]) if rows else []
    units = sum(len(e) for e in running.effect[0])
    return pl.DataFrame(
        [
            {
                "first": names[a],
                "second": names[b],
                "correlation": value,
                "null_low": float(np.quantile(null, 0.025)),
                "null_high": float(np.quantile(null, 0.975)),
                "p": p,
                "p_adjusted": float(q),
                "units": units,
            }
            for (a, b, value, null, p), q in zip(rows, adjusted, strict=True)
        ],
        schema={"first": pl.String, "second": pl.String}
        | dict.fromkeys(("correlation", "null_low", "null_high", "p", "p_adjusted"), pl.Float64)
        | {"units": pl.Int64},
    )
