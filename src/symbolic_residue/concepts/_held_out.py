"""Held-out scores: every scenario is scored by a direction that was found without it.

1. For each fold (a scenario; see ``Design.fold``) the direction is found on all other texts, brought to length 1, and the fold's texts are projected on it.
2. AUC over all held-out scores: the chance that a positive scores above a negative, of whatever scenario. Its interval is DeLong's on the logit scale with the
   folds as units (Obuchowski 1997); where the classes are wholly apart, the score interval of :func:`symbolic_residue.stats.auc` on one mean a fold and class.
3. Null, for the difference of means: the labels are permuted within scenarios and *everything is done again*, all draws at once. The direction without a
   fold is the whole sum minus the fold's own part, so there is one sum over all texts (by blocks, ``_rows``) and the products of texts of one fold.
   :func:`held_out_scores` fits each fold by itself and holds the design's rows in float64: logistic and LDA have no other way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

from symbolic_residue.concepts._design import Design
from symbolic_residue.concepts._estimators import Estimator, fit
from symbolic_residue.concepts._rows import BLOCK, group_blocks, label_weights, Rows
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import auc, Estimate

__all__ = ["auc_of_draws", "fold_auc", "held_out_null", "held_out_scores", "permuted_scores", "variance_ratio"]

Array = NDArray[np.float64]
Labels = NDArray[np.bool_]
_LOST = 1e-6
"""A squared length that is less than this share of what it was taken from has fewer than ten good digits left."""


def held_out_scores(x: NDArray[np.floating] | Rows, design: Design, estimator: Estimator = "difference") -> Array:
    """``[n]``: each text's projection on the unit direction found without its fold.

    Raises:
        ConfigError: fewer than two folds, or a fold without which a class is empty.
    """
    _check(design)
    x = Rows.of(x).all()
    scores = np.zeros(len(x))
    for fold in range(design.n_folds):
        out = design.fold == fold
        v = fit(x[~out], design.without(fold), estimator)
        scores[out] = x[out] @ (v / np.linalg.norm(v))
    return scores


def permuted_scores(x: NDArray[np.floating] | Rows, design: Design, labels: Labels) -> Array:
    """:func:`held_out_scores` of the difference of means under other labels, ``[draw, n]``; 0 where a labeling leaves a class empty.

    Memory: the scores themselves (``8 · draws · n`` bytes), ``draws · d``, and one block of texts.

    Args:
        x: ``[n, d]``.
        design: strata and folds; no stratum may lie in several folds, but for a single one (texts without pairs).
        labels: ``[draw, n]``.
    """
    _check(design)
    rows = Rows.of(x)
    mean = rows.mean()
    gains, own = _shares(design, labels)
    if design.n_strata > 1:
        whole = rows.sums(label_weights(design, labels), mean)
    else:
        whole = rows.sums(lambda at: labels[:, at].astype(np.float64), mean)  # the negatives' sum is the same with the other sign
    at_mean, size = whole @ mean, np.einsum("rd,rd->r", whole, whole)
    scores = np.zeros(labels.shape)
    for folds, which in group_blocks(design.fold, rows.per_block):
        block = rows.take(which)
        projected = whole @ block.T
        start = 0
        for fold in folds:
            out = which[start : (stop := start + int((design.fold[which] == fold).sum()))]
            here, along = block[start:stop], projected[:, start:stop]
            gain, u, centred = gains(fold), own(fold, out), here - mean
            raw = gain[:, None] * along - u @ (centred @ here.T)
            squared = gain**2 * size - 2 * gain * (u * (along - at_mean[:, None])).sum(1) + ((u @ (centred @ centred.T)) * u).sum(1)
            # Where nearly all of the sum was the fold's own, its difference has lost its digits: those few are formed themselves.
            if (lost := np.flatnonzero(squared < _LOST * gain**2 * size)).size:
                v = gain[lost, None] * whole[lost] - u[lost] @ centred
                raw[lost], squared[lost] = v @ here.T, (v**2).sum(1)
            norm = np.sqrt(np.maximum(squared, 0.0))[:, None]
            scores[:, out] = np.divide(raw, norm, out=np.zeros_like(raw), where=norm > 0)
            start = stop
    return scores


def held_out_null(x: NDArray[np.floating] | Rows, design: Design, labels: Labels) -> tuple[Array, Array, Array]:
    """Held-out scores of the first labels ``[n]``, and AUC and variance ratio of all of them, ``[draw]``: some draws at a time.

    Args:
        x: ``[n, d]``.
        design: strata and folds.
        labels: ``[draw, n]``, the observed ones first.
    """
    some = max(1, BLOCK // (8 * labels.shape[1]))
    first, values = None, []
    for start in range(0, len(labels), some):
        part = labels[start : start + some]
        scores = permuted_scores(x, design, part)
        first = scores[0].copy() if first is None else first
        values.append((auc_of_draws(scores, part), variance_ratio(scores, part)))
    assert first is not None
    shares, ratios = (np.concatenate(parts) for parts in zip(*values, strict=True))
    return first, shares, ratios


def _shares(design: Design, labels: Labels) -> tuple[Callable[[int], Array], Callable[[int, NDArray[np.intp]], Array]]:
    """Of the direction without a fold, ``v = gain · whole − own @ fold's texts``: gain ``[draw]`` and own ``[draw, k]`` by fold.

    Paired: whole is the mean of the scenarios' differences. One stratum: the positives' sum (about the mean of all, so the negatives' sum is its opposite).
    """
    if design.n_strata > 1:
        if any(len(np.unique(design.fold[design.stratum == s])) > 1 for s in range(design.n_strata)):
            raise ConfigError("A scenario lies in several folds.", todo="Hold out whole scenarios.")
        first = np.unique(design.stratum, return_index=True)[1]
        strata = np.bincount(design.fold[first], minlength=design.n_folds)
        factor = design.n_strata / (design.n_strata - strata)
        weights = [design.weights(np.full(len(design.positive), sign)) for sign in (True, False)]

        def of_pairs(fold: int, out: NDArray[np.intp]) -> Array:
            return factor[fold] * np.where(labels[:, out], weights[0][out], weights[1][out])

        return lambda fold: np.full(len(labels), factor[fold]), of_pairs
    n_pos = labels.sum(1)

    def parts(fold: int) -> tuple[Array, Array]:
        out = design.fold == fold
        inside = labels[:, out].sum(1)
        left_pos, left_neg = n_pos - inside, (labels.shape[1] - n_pos) - (int(out.sum()) - inside)
        good = (left_pos > 0) & (left_neg > 0)
        return good / np.maximum(left_pos, 1), good / np.maximum(left_neg, 1)

    def of_one(fold: int, out: NDArray[np.intp]) -> Array:
        per_pos, per_neg = parts(fold)
        return np.where(labels[:, out], per_pos[:, None], -per_neg[:, None])

    return lambda fold: np.add(*parts(fold)), of_one


def auc_of_draws(scores: Array, labels: Labels) -> Array:
    """AUC of every row, ``[draw, n]`` scores and labels; ties count half."""
    ranks = sps.rankdata(scores, axis=1)
    n_pos, n_neg = labels.sum(1), (~labels).sum(1)
    return ((ranks * labels).sum(1) - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)


def variance_ratio(scores: Array, labels: Labels) -> Array:
    """Squared difference of the class means over the pooled variance within classes, of every row."""
    n_pos, n_neg = labels.sum(1), (~labels).sum(1)
    m_pos, m_neg = (scores * labels).sum(1) / n_pos, (scores * ~labels).sum(1) / n_neg
    within = ((scores - np.where(labels, m_pos[:, None], m_neg[:, None])) ** 2).sum(1) / np.maximum(n_pos + n_neg - 2, 1)
    return np.divide((m_pos - m_neg) ** 2, within, out=np.zeros_like(within), where=within > 0)


def fold_auc(scores: Array, design: Design, level: float = 0.95) -> Estimate:
    """AUC of held-out scores with an interval whose unit is the fold (``n``).

    Args:
        scores: ``[n]``.
        design: labels and folds.
        level: nominal coverage.
    """
    positive, folds = design.positive, design.n_folds
    x, y = scores[positive], scores[~positive]
    ranks = sps.rankdata(np.concatenate([x, y]))
    beats_x, beats_y = (ranks[: len(x)] - sps.rankdata(x)) / len(y), 1 - (ranks[len(x) :] - sps.rankdata(y)) / len(x)
    value = float(beats_x.mean())
    influence = np.bincount(design.fold[positive], (beats_x - value) / len(x), minlength=folds)
    influence += np.bincount(design.fold[~positive], (beats_y - value) / len(y), minlength=folds)
    variance = folds / (folds - 1) * float((influence**2).sum()) if folds > 1 else math.nan
    if folds < 2:
        return Estimate(value, math.nan, math.nan, folds, level, "none: one fold")
    if variance <= 1e-18 or not 0 < value < 1:
        means = [[scores[part & (design.fold == f)].mean() for f in np.unique(design.fold[part])] for part in (positive, ~positive)]
        apart = auc(means[0], means[1], level=level)
        low, high = (apart.low, apart.high) if apart.value in (0, 1) else (math.nan, math.nan)
        return Estimate(value, low, high, folds, level, f"one mean a fold: {apart.method}")
    half = float(sps.t.ppf((1 + level) / 2, folds - 1)) * math.sqrt(variance) / (value * (1 - value))
    centre = math.log(value / (1 - value))
    low, high = (float(1 / (1 + np.exp(-np.clip(centre + s * half, -700, 700)))) for s in (-1, 1))
    return Estimate(value, low, high, folds, level, "DeLong with folds as units, logit scale")


def _check(design: Design) -> None:
    if design.n_folds < 2:
        raise ConfigError(
            f"{design.concept!r} has one fold.", why="Nothing could be held out.", todo="Give texts of two or more scenarios."
        )
