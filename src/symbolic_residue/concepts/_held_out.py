"""Held-out scores: every scenario is scored by a direction that was found without it.

1. For each fold (a scenario; see ``Design.fold``) the direction is found on all other texts, brought to length 1, and the fold's texts are projected on it.
2. AUC over all held-out scores: the chance that a positive scores above a negative, of whatever scenario. Its interval is DeLong's on the logit scale with the
   folds as units (Obuchowski 1997); where the classes are wholly apart, the score interval of :func:`symbolic_residue.stats.auc` on one mean a fold and class.
3. Null, for the difference of means: the labels are permuted within scenarios and *everything is done again*, all draws at once through the Gram matrix.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

from symbolic_residue.concepts._design import Design
from symbolic_residue.concepts._estimators import Estimator, fit
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import auc, Estimate

__all__ = ["auc_of_draws", "fold_auc", "held_out_scores", "permuted_scores", "variance_ratio"]

Array = NDArray[np.float64]
Labels = NDArray[np.bool_]


def held_out_scores(x: NDArray[np.floating], design: Design, estimator: Estimator = "difference") -> Array:
    """``[n]``: each text's projection on the unit direction found without its fold.

    Raises:
        ConfigError: fewer than two folds, or a fold without which a class is empty.
    """
    _check(design)
    x = np.asarray(x, dtype=np.float64)
    scores = np.zeros(len(x))
    for fold in range(design.n_folds):
        out = design.fold == fold
        v = fit(x[~out], design.without(fold), estimator)
        scores[out] = x[out] @ (v / np.linalg.norm(v))
    return scores


def permuted_scores(x: NDArray[np.floating], design: Design, labels: Labels) -> Array:
    """:func:`held_out_scores` of the difference of means under other labels, ``[draw, n]``; 0 where a labeling leaves a class empty.

    Args:
        x: ``[n, d]``.
        design: strata and folds.
        labels: ``[draw, n]``.
    """
    _check(design)
    x = np.array(x, dtype=np.float64)
    gram_raw = x @ x.T
    scores = np.zeros(labels.shape)
    for fold in range(design.n_folds):
        out = design.fold == fold
        w = _weights(labels[:, ~out], np.unique(design.stratum[~out], return_inverse=True)[1])
        norm = np.sqrt(np.maximum(((w @ gram_raw[np.ix_(~out, ~out)]) * w).sum(1), 0))
        raw = w @ gram_raw[np.ix_(~out, out)]
        scores[:, out] = np.divide(raw, norm[:, None], out=np.zeros_like(raw), where=norm[:, None] > 0)
    return scores


def _weights(labels: Labels, stratum: NDArray[np.intp]) -> Array:
    n_strata = int(stratum.max()) + 1
    member = np.zeros((len(stratum), n_strata))
    member[np.arange(len(stratum)), stratum] = 1
    n_pos, n_neg = labels @ member, (~labels) @ member
    good = ((n_pos > 0) & (n_neg > 0)).all(1)
    per_pos, per_neg = 1 / np.maximum(n_pos, 1), 1 / np.maximum(n_neg, 1)
    w = np.where(labels, per_pos[:, stratum], -per_neg[:, stratum]) / n_strata
    w[~good] = 0
    return w


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
