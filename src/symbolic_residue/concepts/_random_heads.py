"""What chosen heads are compared with at the same size: sets of other heads, at random or of about the same raw norm, and a part of the residual stream.

1. The chosen heads of a fold are the first k of its order. ``random_sets`` draws places after the first k, the same places in every fold, so the order in
   which heads are numbered changes nothing.
2. ``norm_sets`` takes for each chosen head one of the ten nearest in raw norm among the others, none twice.
3. ``projected_reading`` is the residual stream of a layer on random orthonormal directions, as many as the chosen heads have numbers. (Its largest principal
   components are no smaller readout: with fewer texts than directions they hold all that the discriminant can see.)
4. A readout's AUC is the mean over sets; on parts of the scenarios (``_delete_third``) the first ten sets are read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._auc_difference import HeldOutAuc
from symbolic_residue.concepts._delete_third import DeleteThird
from symbolic_residue.concepts._design import Design
from symbolic_residue.concepts._gram_readout import discriminant_scores, Drawn, Grams
from symbolic_residue.concepts._held_out import auc_of_draws
from symbolic_residue.stats import generator

__all__ = ["norm_sets", "projected_reading", "random_sets", "set_readings"]

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
_NEAR = 10
_ON_PARTS = 10
_AT_ONCE = 50
_PROJECTIONS = 20


def random_sets(orders: tuple[Indices, Indices], k: int, n_sets: int, seed: int) -> tuple[Indices, Indices]:
    """Places after the first k.

    Args:
        orders: ``[fold, head]`` and ``[entry, head]``: of the folds, and of the entries of the parts.
        k: heads of a set.
        n_sets: how many sets.
        seed: of the draws.

    Returns:
        ``[set, fold, k]``, and of the first sets ``[set, entry, k]``.
    """
    places = k + np.argsort(generator(seed).random((n_sets, orders[0].shape[1] - k)), axis=1)[:, :k]
    return orders[0][:, places].transpose(1, 0, 2), orders[1][:, places[:_ON_PARTS]].transpose(1, 0, 2)


def norm_sets(orders: tuple[Indices, Indices], raw: tuple[Array, Array], k: int, n_sets: int, seed: int) -> tuple[Indices, Indices]:
    """Others near the first k in raw norm; arguments and result as of :func:`random_sets`, with ``raw`` norms by number of head."""
    draws = generator(seed).random((n_sets, k))
    return _near(orders[0], raw[0], draws), _near(orders[1], raw[1], draws[:_ON_PARTS])


def _near(order: Indices, raw: Array, draws: Array) -> Indices:
    k = draws.shape[1]
    others = order[:, k:]
    log = np.log(np.maximum(raw, 1e-300))
    at = np.arange(len(order))[:, None]
    distance = np.abs(log[at, others][:, None, :] - log[at, order[:, :k]][:, :, None])
    near = np.argsort(distance, axis=2, kind="stable")[:, :, : _NEAR + k - 1]
    near = np.take_along_axis(np.broadcast_to(others[:, None], distance.shape), near, axis=2)
    sets = np.full((len(draws), len(order), k), -1, dtype=np.intp)
    for j in range(k):
        free = (near[None, :, j, :, None] != sets[:, :, None, :j]).all(-1)
        place = free.cumsum(-1)
        wanted = 1 + (draws[:, j, None] * np.minimum(place[..., -1], _NEAR)).astype(np.intp)
        pick = (free & (place == wanted[..., None])).argmax(-1)
        sets[:, :, j] = np.take_along_axis(np.broadcast_to(near[None, :, j], free.shape), pick[..., None], -1)[..., 0]
    return sets


def set_readings(grams: Grams, observed: Drawn, parts: DeleteThird, sets: tuple[Indices, Indices]) -> tuple[Array, HeldOutAuc]:
    """AUC of every set, and their mean with its values on parts of the scenarios.

    Args:
        grams, observed: all groups and the observed labeling.
        parts: the same on parts of the scenarios.
        sets: of :func:`random_sets` or :func:`norm_sets`.
    """
    found = []
    for start in range(0, len(sets[0]), _AT_ONCE):
        some = sets[0][start : start + _AT_ONCE]
        drawn = observed.repeat(len(some))
        total = grams.chosen(drawn, some[:, :, 0])
        for place in range(1, some.shape[2]):
            one = grams.chosen(drawn, some[:, :, place])
            total = (total[0] + one[0], total[1] + one[1], total[2] + one[2])
        scores = discriminant_scores(*total, grams.design.fold)
        found.append(auc_of_draws(scores, np.broadcast_to(grams.design.positive, scores.shape)))
    mean = np.zeros(parts.n_parts)
    for some in sets[1]:
        total = parts.chosen(some[None, :, 0])
        for place in range(1, some.shape[1]):
            one = parts.chosen(some[None, :, place])
            total = (total[0] + one[0], total[1] + one[1], total[2] + one[2])
        mean += parts.aucs(total)[0] / len(sets[1])
    aucs = np.concatenate(found)
    return aucs, HeldOutAuc(float(aucs.mean()), mean, grams.n_folds, parts.n_out)


def projected_reading(x: NDArray[np.floating], design: Design, dims: int, stay: Indices, seed: int) -> HeldOutAuc | None:
    """Mean AUC of a residual stream ``[n, d_model]`` on ``dims`` random orthonormal directions, drawn 20 times; None where it has no more than that."""
    x = np.asarray(x, dtype=np.float64)
    if dims >= x.shape[1]:
        return None
    rng = generator(seed)
    centred = x - x.mean(0)
    groups = [centred @ np.linalg.qr(rng.normal(size=(x.shape[1], dims)))[0] for _ in range(_PROJECTIONS)]
    grams = Grams(groups, design)
    observed = grams.drawn(design.positive[None])
    parts = DeleteThird(grams, observed, stay)
    scores = np.concatenate([discriminant_scores(*grams.fixed(observed, [g]), design.fold) for g in range(_PROJECTIONS)])
    aucs = auc_of_draws(scores, np.broadcast_to(design.positive, scores.shape))
    n_entries = len(parts.raw)
    on_parts = np.mean([parts.aucs(parts.chosen(np.full((1, n_entries), g)))[0] for g in range(_PROJECTIONS)], axis=0)
    return HeldOutAuc(float(aucs.mean()), on_parts, design.n_folds, parts.n_out)
