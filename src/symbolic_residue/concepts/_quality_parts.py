"""Single numbers of the quality report, each with what it is without a concept.

1. ``pc_share``: share of the first principal component in the scenarios' *differences* (not centred, so that a common direction counts). Null: in each scenario
   as many texts drawn from all its texts, of whatever concept, stand for the positives and negatives, so topic and the spread of single texts stay. (The
   same share of centred positives would say nothing about the concept.)
2. ``alignment``: cosine of each scenario's difference with the mean of the others'; ``by_text``: the same of each positive text minus its scenario's negatives,
   in the order of ``positive_rows``. Outliers lie more than 3 · 1.4826 · MAD below the median; ``outlier_texts`` are rows of the corpus.
3. ``mlp``: the largest |cosine| of the direction with one column of the layer's MLP down-projection (after the gain of a norm of the MLP's output, where
   there is one); null: directions drawn uniformly.
4. ``length``: correlation of score and length in tokens, over scenarios' differences where paired (n: scenarios), else over texts with class means taken out;
   Fisher's z interval. ``length_direction``: cosine of the direction with the one along which the neutral tellings grow longer.
5. ``scenario``: share of the variance of held-out scores, class means taken out, that lies between scenarios; null: scenarios permuted within classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps
from scipy.sparse.linalg import eigsh
from torch import nn

from symbolic_residue.concepts._design import Design
from symbolic_residue.concepts._estimators import fit, scenario_differences
from symbolic_residue.concepts._null import tail_p
from symbolic_residue.concepts._rows import BLOCK, group_blocks, group_sums, Rows
from symbolic_residue.stats import auc, bound, Estimate, generator

if TYPE_CHECKING:
    from symbolic_residue.models import LayerParts

__all__ = [
    "alignment",
    "estimate_block",
    "length_cosine",
    "length_leak",
    "mlp_columns",
    "mlp_cosine",
    "mlp_null",
    "null_block",
    "pc_share",
    "scenario_leak",
]

Array = NDArray[np.float64]
_NOT_PAIRED = "No scenario holds both a positive and a negative, so there are no differences."


def null_block(values: Array) -> dict[str, float]:
    """From ``[1 + draw]``, the observed value first: value, mean and sd of the null, p."""
    return {
        "value": float(values[0]),
        "null_mean": float(values[1:].mean()),
        "null_sd": float(values[1:].std(ddof=1)),
        "p": tail_p(values),
    }


def estimate_block(found: Estimate, counts: str) -> dict[str, Any]:
    """An estimate as plain data; ``counts`` says what n counts."""
    return {
        "value": bound(found.value), "low": bound(found.low), "high": bound(found.high), "n": found.n, "n_counts": counts,
        "method": found.method,
    }  # fmt: skip


def pc_share(x: NDArray[np.floating], design: Design, scenarios: Sequence[str | None], n_draws: int, seed: int) -> dict[str, Any]:
    """First component's share of the differences, with its null.

    Args:
        x: ``[text, d]`` of *all* texts of the corpus.
        design: of the concept.
        scenarios: of all texts.
        n_draws: of the null.
        seed: of the null.
    """
    if not design.paired or design.n_strata < 3:
        return {"value": None, "reason": _NOT_PAIRED if not design.paired else "Fewer than three scenarios."}
    rows, n = Rows.of(x), design.n_strata
    names = np.array(["" if s is None else f"={s}" for s in scenarios])
    rng, larger = generator(seed), False
    pools, weights = [], []
    for s in range(n):
        here = design.stratum == s
        pool = np.flatnonzero(names == names[design.rows[here][0]])
        n_pos, n_all = int(design.positive[here].sum()), int(here.sum())
        larger |= len(pool) > n_all
        place = rng.random((n_draws, len(pool))).argsort(axis=1).argsort(axis=1)
        drawn = np.where(place < n_pos, 1 / n_pos, np.where(place < n_all, -1 / (n_all - n_pos), 0.0))
        own = np.searchsorted(pool, design.rows[here])
        observed = np.zeros((1, len(pool)))
        observed[0, own] = design.weights()[here] * n
        pools.append(pool)
        weights.append(np.concatenate([observed, drawn]))
    shares = _first_shares(rows, pools, weights)
    if not larger:
        return {
            "value": float(shares[0]),
            "n": n,
            "null": None,
            "reason": "No scenario has texts of a third kind to draw a null from.",
        }
    return {**null_block(shares), "n": n}


def _first_shares(rows: Rows, pools: Sequence[NDArray[np.intp]], weights: Sequence[Array]) -> Array:
    """First component's share of the scenarios' differences of every draw, ``[draw]``, some draws and some scenarios at a time.

    Through the differences' Gram matrix ``[scenario, scenario]``, or, of more scenarios than dimensions, through their covariance ``[d, d]``.
    """
    n_draws, d, n = len(weights[0]), rows.width, len(pools)
    size = min(n, d)
    some = max(1, 4 * BLOCK // (8 * d * size))
    shares = np.zeros(n_draws)
    for start in range(0, n_draws, some):
        at = slice(start, min(start + some, n_draws))
        matrices = np.zeros((at.stop - start, d, d)) if n > d else None
        for first in range(0, n, size):
            part = range(first, min(first + size, n))
            differences = np.stack([weights[s][at] @ rows.take(pools[s]) for s in part], axis=1)
            if matrices is None:
                matrices = differences @ differences.transpose(0, 2, 1)
            else:
                matrices += differences.transpose(0, 2, 1) @ differences
        assert matrices is not None
        total = np.trace(matrices, axis1=1, axis2=2)
        largest = np.linalg.eigvalsh(matrices)[:, -1] if n <= d else np.array([_largest(one) for one in matrices])
        shares[at] = np.divide(largest, total, out=np.zeros_like(total), where=total > 0)
    return shares


def _largest(matrix: Array) -> float:
    """Largest eigenvalue of a covariance (Lanczos from a fixed start: of a large one, where all eigenvalues would take long)."""
    if len(matrix) < 64 or not matrix.any():
        return float(np.linalg.eigvalsh(matrix)[-1])
    start = np.random.default_rng(0).normal(size=len(matrix))
    return float(eigsh(matrix, k=1, which="LA", v0=start, return_eigenvectors=False)[0])


def alignment(x: NDArray[np.floating] | Rows, design: Design, names: Sequence[str | None]) -> dict[str, Any]:
    """Cosine of each scenario's difference with the mean of the others', and the outliers by name."""
    if not design.paired or design.n_strata < 3:
        return {"value": None, "reason": _NOT_PAIRED if not design.paired else "Fewer than three scenarios."}
    rows, weights = Rows.of(x), design.weights() * design.n_strata
    total = design.n_strata * fit(rows, design)
    cosines, of_texts = np.zeros(design.n_strata), np.zeros(len(rows))
    for strata, which in group_blocks(design.stratum, rows.per_block):
        block, w, own = rows.take(which), weights[which, None], design.stratum[which] - strata.start
        differences, negatives = group_sums(block * w, own), group_sums(block * np.maximum(-w, 0), own)
        others = total - differences
        cosines[strata.start : strata.stop] = _cosines(differences, others)
        of_texts[which] = _cosines(block - negatives[own], others[own])
    middle, limit = _limit(cosines)
    at = np.flatnonzero(design.positive)
    by_text = of_texts[at]
    of = [str(names[int(design.rows[design.stratum == s][0])]) for s in range(design.n_strata)]
    return {
        "mean": float(cosines.mean()),
        "median": middle,
        "by_scenario": dict(zip(of, cosines.tolist(), strict=True)),
        "outliers": [name for name, c in zip(of, cosines, strict=True) if c < limit],
        "limit": limit,
        "by_text": by_text.tolist(),
        "outlier_texts": design.rows[at[by_text < _limit(by_text)[1]]].tolist(),
    }


def _cosines(a: Array, b: Array) -> Array:
    """Row by row; 0 where one of the two has no length."""
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide(np.einsum("nd,nd->n", a, b), sizes, out=np.zeros(len(sizes)), where=sizes > 0)


def _limit(cosines: Array) -> tuple[float, float]:
    """Median, and below what a value is an outlier."""
    middle = float(np.median(cosines))
    return middle, middle - 3 * 1.4826 * float(np.median(np.abs(cosines - middle)))


def mlp_columns(layer: LayerParts) -> Array | str:
    """``[neuron, d_model]``: what single neurons write, each of length 1; or why there are none."""
    if (reason := layer.absent("mlp_act")) is not None or layer.mlp_down is None:
        return reason or "The layer has no MLP."
    if hasattr(layer.mlp_down, "base_layer"):
        return "An adapter is attached to the MLP's down-projection; merge it first."
    stored: Any = layer.mlp_down.weight
    weight = stored.detach().double().cpu().numpy()
    columns = weight.T if isinstance(layer.mlp_down, nn.Linear) else weight
    if layer.post_mlp_norm is not None:
        columns = columns * layer.post_mlp_norm.gain().double().cpu().numpy()
    sizes = np.linalg.norm(columns, axis=1, keepdims=True)
    return np.divide(columns, sizes, out=np.zeros_like(columns), where=sizes > 0)


def mlp_cosine(v: Array, columns: Array, null: Array) -> dict[str, Any]:
    """Largest |cosine| with one column, against the same of random directions, ``[draw]`` (:func:`mlp_null`)."""
    cosines = columns @ v
    at = int(np.abs(cosines).argmax())
    return {**null_block(np.concatenate([[abs(float(cosines[at]))], null])), "neuron": at, "sign": float(np.sign(cosines[at]))}


def mlp_null(columns: Array, random: Array) -> Array:
    """Largest |cosine| with one column of each of ``random [draw, d_model]``, unit directions: ``[draw]``."""
    return np.array([np.abs(columns @ one).max() for one in random])


def length_leak(scores: Array, lengths: Array, design: Design) -> dict[str, Any]:
    """Correlation of score and length, and how well length alone tells the classes apart."""
    if design.paired:
        a, b = (scenario_differences(value[:, None], design)[:, 0] for value in (scores, lengths))
    else:
        a, b = (
            value - np.where(design.positive, value[design.positive].mean(), value[~design.positive].mean())
            for value in (scores, lengths)
        )
    alone = auc(lengths[design.positive], lengths[~design.positive])
    block: dict[str, Any] = {"length_alone_auc": alone.value, "n": len(a), "n_counts": "scenarios" if design.paired else "texts"}
    if len(a) < 4 or a.std() == 0 or b.std() == 0:
        return {**block, "r": None, "low": None, "high": None, "reason": "Too few texts, or all of one length."}
    r = float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
    half = float(sps.norm.ppf(0.975)) / math.sqrt(len(a) - 3)
    z = math.atanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return {**block, "r": r, "low": math.tanh(z - half), "high": math.tanh(z + half)}


def length_cosine(
    v: Array, x: NDArray[np.floating], lengths: NDArray[np.integer], rows: NDArray[np.intp], permuted: Array | None
) -> dict[str, Any]:
    """Cosine of a direction with the slope of activations on length, over neutral tellings (other texts would bring their concept).

    Args:
        v: unit direction ``[d]``.
        x: ``[text, d]`` of all texts.
        lengths: ``[text]``, tokens.
        rows: the neutral tellings.
        permuted: unit directions ``[draw, d]`` of permuted labels.
    """
    tokens = lengths[rows].astype(np.float64)
    tokens -= tokens.mean() if len(rows) else 0
    if len(rows) < 4 or not tokens.any():
        return {"value": None, "reason": "Fewer than four neutral tellings, or all of one length.", "n": len(rows)}
    slope = Rows(x, rows).sums(lambda at: tokens[None, at])[0]  # the lengths' mean is out, so the activations' needs not be
    size = float(np.linalg.norm(slope))
    if size == 0:
        return {"value": None, "reason": "Length changes nothing here.", "n": len(rows)}
    block: dict[str, Any] = {"value": float(np.clip(v @ slope / size, -1, 1)), "n": len(rows), "n_counts": "neutral tellings"}
    if permuted is not None:
        values = np.abs(np.concatenate([v[None], permuted]) @ slope / size)
        block |= {f"null_{key}": float(f(values[1:])) for key, f in (("mean", np.mean), ("sd", lambda a: a.std(ddof=1)))}
        block["p"] = tail_p(values)
    return block


def scenario_leak(
    scores: Array, scenario: NDArray[np.intp], positive: NDArray[np.bool_], n_draws: int, seed: int
) -> dict[str, Any]:
    """Share of the scores' variance (class means taken out) between scenarios, against permuted scenarios."""
    if len(np.unique(scenario)) in (1, len(scenario)):
        return {"value": None, "reason": "No two texts share a scenario, or all do."}
    rng = generator(seed)
    residual = scores - np.where(positive, scores[positive].mean(), scores[~positive].mean())
    sums = np.zeros((1 + n_draws, int(scenario.max()) + 1))
    for part in (positive, ~positive):
        own = np.flatnonzero(part)
        order = np.argsort(scenario[own], kind="stable")
        names, starts = np.unique(scenario[own][order], return_index=True)
        some = max(1, BLOCK // (8 * len(own)))
        for start in range(0, n_draws, some):
            stop = min(start + some, n_draws)
            drawn = rng.permuted(np.tile(residual[own], (stop - start, 1)), axis=1)
            sums[1 + start : 1 + stop, names] += np.add.reduceat(drawn[:, order], starts, axis=1)
        sums[0, names] += np.add.reduceat(residual[own][order], starts)
    between = (sums**2 / np.maximum(np.bincount(scenario), 1)).sum(1)
    total = float((residual**2).sum())
    return null_block(between / total) if total > 0 else {"value": None, "reason": "All scores are the same."}
