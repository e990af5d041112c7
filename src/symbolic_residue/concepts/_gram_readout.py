"""Readouts of sets of heads through inner products: any set's discriminant from a sum of its heads' Gram matrices.

1. ``K_h = X_h X_hᵀ`` over the design's texts. A set of heads, put side by side with each head divided by its scale ``s_h``, has ``K = Σ_h K_h / s_h²``: no
   activations are needed after that, and a set costs one addition of ``[n, n]``.
2. ``s_h`` is the root mean square distance of the *training* texts from their mean, labels unseen: heads of large and small outputs count alike.
3. Everything is a function of the scenarios' differences ``d_s`` (mean positive − mean negative), so of their Gram matrix ``Γ = D Dᵀ`` (``[scenario,
   scenario]``); a permutation of labels within scenarios picks other entries of ``K``.
4. Discriminant of a fold (one scenario left out): ``v = Σ⁻¹ d̄``, with Σ the covariance of the training differences (halved: each is a difference of two
   texts) shrunk towards a multiple of the identity by the amount of Ledoit and Wolf 2004. With one positive and one negative a scenario this is the ``lda``
   of ``_estimators``; with more texts it stays a discriminant of scenarios' means. A held-out text scores ``(x − mean of the training texts) · v / ‖v‖``.
5. Selectivity on training texts is that of ``_heads``: norm of the mean difference over the spread of the training negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._design import Design
from symbolic_residue.errors import ConfigError

__all__ = ["MIN_SCENARIOS", "Drawn", "Grams", "discriminant", "discriminant_scores"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
MIN_SCENARIOS = 6
"""Fewer cannot reach p ≤ .05 by permutations within pairs, and their intervals say nothing."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Labelings and what follows from them for every head.

    Attributes:
        picks: ``[draw, scenario, most positives]``: the positives' rows; the number of texts where a scenario has fewer.
        gamma: ``[head, draw, scenario, scenario]``: inner products of the scenarios' differences.
        negatives: the same of the sums of each scenario's negatives.
        selectivity: ``[draw, fold, head]``: without the fold.
        raw: ``[draw, fold, head]``: norm of the mean difference without the fold.
        paired: ``[draw, fold, head]``: raw² over what flipping the scenarios' differences makes of it on average, ``Σ ‖d_s‖² / S²``; 1 without a concept.
    """

    picks: Indices
    gamma: Array
    negatives: Array
    selectivity: Array
    raw: Array
    paired: Array

    def first(self) -> Drawn:
        """The first labeling alone, copied."""
        return Drawn(
            self.picks[:1].copy(),
            self.gamma[:, :1].copy(),
            self.negatives[:, :1].copy(),
            self.selectivity[:1].copy(),
            self.raw[:1].copy(),
            self.paired[:1].copy(),
        )

    def repeat(self, times: int) -> Drawn:
        """The first labeling so many times over, without copies: for many sets of heads under one labeling."""
        gamma = np.broadcast_to(self.gamma[:, :1], (len(self.gamma), times, *self.gamma.shape[2:]))
        picks = np.broadcast_to(self.picks[:1], (times, *self.picks.shape[1:]))
        return Drawn(picks, gamma, self.negatives[:, :1], self.selectivity[:1], self.raw[:1], self.paired[:1])


class Grams:
    """Inner products of texts, group by group (a group is a head, or the residual stream of a layer).

    Args:
        groups: arrays ``[n, d]`` of the design's rows, in its order.
        design: paired within scenarios.

    Raises:
        ConfigError: a design without pairs or with fewer than 6 scenarios, arrays that do not fit it.
    """

    def __init__(self, groups: Sequence[NDArray[np.floating]], design: Design) -> None:
        if not design.paired:
            raise ConfigError(
                f"The texts of {design.concept!r} are not paired within scenarios.",
                why="The scenario is the unit of every interval here.",
                todo="Give texts that tell the same scenarios neutrally and under the concept.",
            )
        if design.n_strata < MIN_SCENARIOS:
            raise ConfigError(
                f"{design.concept!r} has {design.n_strata} scenarios.",
                todo=f"Give {MIN_SCENARIOS} or more; 24 is what the packaged corpus has.",
            )
        n = len(design.positive)
        if not groups or any(np.ndim(x) != 2 or len(x) != n for x in groups):
            raise ConfigError(f"The activations do not fit the {n} texts of {design.concept!r}.", todo="Give [n, d] for each head.")
        self.design = design
        self.dims = np.array([x.shape[1] for x in groups], dtype=np.float64)
        self.n, self.n_folds = n, design.n_folds
        self.member = np.zeros((n, design.n_strata))
        self.member[np.arange(n), design.stratum] = 1
        self.n_pos = np.bincount(design.stratum[design.positive], minlength=design.n_strata).astype(np.float64)
        self.n_neg = np.bincount(design.stratum[~design.positive], minlength=design.n_strata).astype(np.float64)
        # A last row and column of zeros stands for "no such positive".
        self.gram = np.zeros((len(groups), n + 1, n + 1))
        for g, x in enumerate(groups):
            centred = np.asarray(x, dtype=np.float64) - np.asarray(x, dtype=np.float64).mean(0)
            self.gram[g, :n, :n] = centred @ centred.T
        self.by_scenario = np.zeros((len(groups), n + 1, design.n_strata))
        self.by_scenario[:, :n] = self.gram[:, :n, :n] @ self.member
        self.blocks = np.einsum("ns,gnt->gst", self.member, self.by_scenario[:, :n])
        sizes = self.member.sum(0)
        left = n - sizes
        # Mean of a fold's training texts, as inner products with every text, [group, fold, n + 1].
        self._mean = (self.gram[:, :n].sum(1)[:, None, :] - self.by_scenario.transpose(0, 2, 1)) / left[None, :, None]
        lengths = np.diagonal(self.gram[:, :n, :n], axis1=1, axis2=2)
        own = lengths @ self.member
        total = self.blocks.sum((1, 2))[:, None] - 2 * self.blocks.sum(2) + np.diagonal(self.blocks, axis1=1, axis2=2)
        scale2 = (lengths.sum(1, keepdims=True) - own) / left - total / left**2
        self.inverse = np.divide(
            1.0, scale2, out=np.zeros_like(scale2), where=scale2 > 1e-12 * np.maximum(lengths.mean(1, keepdims=True), 1e-300)
        )
        """``[group, fold]``: 1 / s², 0 for a group that does not vary."""
        self.lengths = lengths

        self._mean_sums = self._mean[:, :, :n] @ self.member
        self._fixed: dict[bytes, tuple[Array, Array]] = {}

    def __len__(self) -> int:
        return len(self.gram)

    def chunk(self) -> int:
        """Labelings that :meth:`drawn` takes at once in about 200 MB."""
        return max(1, int(4e6 / (len(self) * self.design.n_strata**2)))

    def drawn(self, labels: NDArray[np.bool_]) -> Drawn:
        """What follows from labelings ``[draw, n]``, for every group."""
        picks = self._picks(labels)
        p, q = self.n_pos, self.n_neg
        both, with_all = self._pairs(picks)
        cross = with_all - both  # positives of s with negatives of t
        negatives = self.blocks[:, None] - with_all - with_all.transpose(0, 1, 3, 2) + both
        gamma = (
            both / np.outer(p, p)
            - cross / np.outer(p, q)
            - cross.transpose(0, 1, 3, 2) / np.outer(q, p)
            + negatives / np.outer(q, q)
        )
        raw = np.sqrt(np.maximum(_without(gamma), 0)) / (self.design.n_strata - 1)
        lengths = np.diagonal(gamma, axis1=2, axis2=3)
        flipped = (lengths.sum(2, keepdims=True) - lengths) / (self.design.n_strata - 1) ** 2
        paired = np.divide(raw**2, flipped, out=np.zeros_like(raw), where=flipped > 1e-12 * self.lengths.mean(1)[:, None, None])
        n_neg = q.sum() - q
        own = np.einsum("gn,dn,ns->gds", self.lengths, (~labels).astype(np.float64), self.member)
        squares = own.sum(2, keepdims=True) - own
        spread = (squares - _without(negatives) / n_neg) / (n_neg - 1)
        scale = self.lengths.mean(1)[:, None, None]
        std = np.sqrt(np.where(spread > 1e-12 * scale, spread, 0.0))
        selectivity = np.divide(raw, std, out=np.zeros_like(raw), where=std > 0)
        return Drawn(picks, gamma, negatives, selectivity.transpose(1, 2, 0), raw.transpose(1, 2, 0), paired.transpose(1, 2, 0))

    def _picks(self, labels: NDArray[np.bool_]) -> Indices:
        most = int(self.n_pos.max())
        picks = np.full((len(labels), self.design.n_strata, most), self.n, dtype=np.intp)
        for s in range(self.design.n_strata):
            here = np.flatnonzero(self.design.stratum == s)
            count = int(self.n_pos[s])
            picks[:, s, :count] = here[np.nonzero(labels[:, here])[1].reshape(len(labels), count)]
        return picks

    def _pairs(self, picks: Indices) -> tuple[Array, Array]:
        """Sums over positives of s and t, and over positives of s and all texts of t: ``[group, draw, scenario, scenario]`` each."""
        most = picks.shape[2]
        both = sum(self.gram[:, picks[:, :, None, a], picks[:, None, :, b]] for a in range(most) for b in range(most))
        with_all = sum(self.by_scenario[:, picks[:, :, a]] for a in range(most))
        return both, with_all  # type: ignore[return-value]

    def fixed(self, drawn: Drawn, groups: Sequence[int] | Indices | None = None) -> tuple[Array, Array, Array]:
        """A set of groups that is the same in every fold: see :meth:`chosen`."""
        of = np.arange(len(self)) if groups is None else np.asarray(groups, dtype=np.intp)
        n_draws, n_s = drawn.gamma.shape[1:3]
        weights = self.inverse[of]
        gamma = (weights.T @ drawn.gamma[of].reshape(len(of), -1)).reshape(self.n_folds, n_draws, n_s, n_s).transpose(1, 0, 2, 3)
        if (key := of.tobytes()) not in self._fixed:
            rows, sums, fold = np.zeros((self.n, self.n + 1)), np.zeros((self.n, n_s)), self.design.fold
            for g, weight in zip(of, weights, strict=True):
                rows += weight[fold, None] * (self.gram[g, : self.n] - self._mean[g, fold])
                sums += weight[fold, None] * (self.by_scenario[g, : self.n] - self._mean_sums[g, fold])
            self._fixed[key] = rows, sums
        rows, sums = self._fixed[key]
        with_pos = sum(rows[:, drawn.picks[:, :, a]] for a in range(drawn.picks.shape[2])).transpose(1, 0, 2)  # type: ignore[union-attr]
        cross = with_pos / self.n_pos - (sums - with_pos) / self.n_neg
        return gamma, cross, np.broadcast_to(self.dims[of].sum(), (n_draws, self.n_folds))

    def chosen(self, drawn: Drawn, groups: Indices) -> tuple[Array, Array, Array]:
        """One group a fold and draw.

        Args:
            drawn: of :meth:`drawn`.
            groups: ``[draw, fold]``.

        Returns:
            ``Γ [draw, fold, scenario, scenario]``, the held-out texts' products with the differences ``[draw, n, scenario]`` (each with its own fold's
            groups), and the number of dimensions ``[draw, fold]``; those of several groups are added.
        """
        draws, folds = np.arange(len(groups))[:, None], np.arange(self.n_folds)
        weight = self.inverse[groups, folds]
        gamma = drawn.gamma[groups, draws] * weight[:, :, None, None]
        fold = self.design.fold
        own, rows = groups[:, fold], np.arange(self.n)
        with_pos = np.zeros((len(groups), self.n, self.design.n_strata))
        for a in range(drawn.picks.shape[2]):
            at = drawn.picks[:, None, :, a]
            with_pos += self.gram[own[:, :, None], rows[None, :, None], at] - self._mean[own[:, :, None], fold[None, :, None], at]
        sums = self.by_scenario[own, rows[None, :]] - self._mean_sums[own, fold[None, :]]
        cross = with_pos / self.n_pos - (sums - with_pos) / self.n_neg
        return gamma, cross * weight[:, fold][:, :, None], self.dims[groups]


def _without(blocks: Array) -> Array:
    """Sum of ``[..., s, s]`` without row and column s, for each s."""
    return blocks.sum((-2, -1))[..., None] - blocks.sum(-1) - blocks.sum(-2) + np.diagonal(blocks, axis1=-2, axis2=-1)


def discriminant_scores(gamma: Array, cross: Array, dims: Array, fold: Indices, *, plain_mean: bool = False) -> Array:
    """Held-out scores ``[draw, n]`` of the shrunk discriminant, from sums of what :meth:`Grams.chosen` gives.

    Args:
        gamma: ``[draw, fold, scenario, scenario]``.
        cross: ``[draw, n, scenario]``.
        dims: ``[draw, fold]``: dimensions of the set.
        fold: ``[n]``: the fold (scenario) of each text.
        plain_mean: the difference of means instead, ``v = d̄``.
    """
    n_folds = gamma.shape[1]
    train = np.array([[s for s in range(n_folds) if s != f] for f in range(n_folds)], dtype=np.intp)
    inside = gamma[:, np.arange(n_folds)[:, None, None], train[:, :, None], train[:, None, :]]
    full = np.zeros((len(gamma), n_folds, n_folds))
    full[:, np.arange(n_folds)[:, None], train] = discriminant(inside, dims, plain_mean=plain_mean)
    return (cross * full[:, fold]).sum(-1)


def discriminant(inside: Array, dims: Array, *, plain_mean: bool = False) -> Array:
    """The unit discriminant as a combination of the training differences, ``[..., t]`` from their inner products ``[..., t, t]`` and ``dims [...]``."""
    t = inside.shape[-1]
    mean = inside.mean(-1)  # products of every difference with the mean difference
    grand = mean.mean(-1)
    centred = (inside - mean[..., :, None] - mean[..., None, :] + grand[..., None, None]) / 2
    gram = centred / t
    diagonal = np.diagonal(gram, axis1=-2, axis2=-1)
    mu = diagonal.sum(-1) / dims
    squared = (gram**2).sum((-2, -1))
    spread = squared - dims * mu**2
    noise = (diagonal**2).sum(-1) - squared / t
    shrink = np.clip(np.divide(noise, spread, out=np.ones_like(noise), where=spread > 0), 1e-6, 1.0)
    plain = (shrink >= 1) | (mu <= 0) | plain_mean
    weight = np.where(plain, 1.0, np.where(plain, 1.0, shrink) * np.where(plain, 1.0, mu) * t / np.where(plain, 1.0, 1 - shrink))
    inner = np.where(plain[..., None, None], 0.0, centred) + weight[..., None, None] * np.eye(t)
    onto_mean = (mean - grand[..., None]) / np.sqrt(2)
    a = np.linalg.solve(inner, onto_mean[..., None])[..., 0]
    a -= a.mean(-1, keepdims=True)
    c = 1 / t - np.where(plain[..., None], 0.0, a / np.sqrt(2))
    norm = np.sqrt(np.maximum((c * (inside @ c[..., None])[..., 0]).sum(-1), 0))
    return np.divide(c, norm[..., None], out=np.zeros_like(c), where=norm[..., None] > 0)
