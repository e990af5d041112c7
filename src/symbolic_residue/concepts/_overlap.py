"""Do two concepts sit in the same heads? Overlap of their top heads, against chance and against what shared texts alone would give.

1. The k heads of largest selectivity of each concept, on all texts. Overlap of two: how many are in both; Jaccard: of those in either.
2. Chance: k of H heads drawn twice (hypergeometric). Concepts are compared with the same neutral texts and heads differ in noise, so two concepts overlap
   more than that without sharing anything.
3. Hence the permuted null: in every scenario *all* its labels are permuted, the neutral one and every concept's together, and the whole matrix is made again:
   what two comparisons share in texts, they share there too. ``p`` of a pair; ``p_pairs`` family-wise over all pairs (largest standardised overlap, as in
   ``_null``).
4. An overlap beyond that may still be what all the concepts have in common against neutral tellings: ``against="others"`` takes that out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

from symbolic_residue.concepts._design import Against, make_design
from symbolic_residue.concepts._null import max_t_p, squared_norms, standardised
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import generator

__all__ = ["head_overlap"]

Array = NDArray[np.float64]


def head_overlap(
    heads: Mapping[int, NDArray[np.floating]],
    labels: Sequence[str],
    scenarios: Sequence[str | None],
    concepts: Sequence[str],
    k: int,
    *,
    against: Against = "baseline",
    n_draws: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Overlap of every two concepts' top heads: plain data.

    Args:
        heads: layer → ``[text, head, d_head]``.
        labels, scenarios: one a text.
        concepts: two or more.
        k: top heads of each.
        against: the negatives.
        n_draws: permutations; 100 or more.
        seed: of them.

    Returns:
        ``concepts k n_heads expected pairs [{first second overlap jaccard p_chance null_mean p p_pairs}]`` and ``top {concept: [[layer, head], …]}``.

    Raises:
        ConfigError: fewer than two concepts, k out of range, too few draws.
    """
    names = [(i, h) for i in sorted(heads) for h in range(heads[i].shape[1])]
    if len(concepts) < 2:
        raise ConfigError("One concept overlaps with nothing.", todo="Ask about two or more.")
    if not 1 <= k < len(names):
        raise ConfigError(f"The top {k} of {len(names)} heads say nothing.", todo=f"Give k from 1 to {len(names) - 1}.")
    if n_draws < 100:
        raise ConfigError(f"{n_draws} permutations are too few.", why="The tails would be noise.", todo="Draw 100 or more.")
    designs = [make_design(labels, scenarios, c, against) for c in concepts]
    places = _permuted(scenarios, n_draws, seed)
    selectivity = np.zeros((len(concepts), n_draws + 1, len(names)))
    used = 0
    for i in sorted(heads):
        x = np.array(heads[i], dtype=np.float64)
        x -= x.mean(0)
        part = slice(used, used := used + x.shape[1])
        for c, design in enumerate(designs):
            weights, negative = np.zeros(len(labels)), np.zeros(len(labels))
            weights[design.rows], negative[design.rows] = design.weights(), ~design.positive
            selectivity[c, :, part] = _selectivity(x, weights[places], negative[places])
    top = np.argsort(-selectivity, axis=2, kind="stable")[:, :, :k]
    inside = np.zeros(selectivity.shape)
    np.put_along_axis(inside, top, 1.0, axis=2)
    first, second = np.triu_indices(len(concepts), 1)
    overlap = np.einsum("pdh,pdh->dp", inside[first], inside[second])
    p = (overlap >= overlap[0] - 0.5).mean(0)
    z = standardised(overlap)
    family = max_t_p(z[0], z.max(1))
    chance = sps.hypergeom.sf(overlap[0] - 1, len(names), k, k)
    pairs = [
        {"first": concepts[a], "second": concepts[b], "overlap": int(overlap[0, j]), "jaccard": float(overlap[0, j] / (2 * k - overlap[0, j])),
         "p_chance": float(min(1.0, chance[j])), "null_mean": float(overlap[1:, j].mean()), "p": float(p[j]), "p_pairs": float(family[j])}
        for j, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True))
    ]  # fmt: skip
    return {
        "concepts": list(concepts), "against": against, "k": k, "n_heads": len(names), "expected": k * k / len(names), "n_draws": n_draws, "seed": seed,
        "mean": float(overlap[0].mean()), "mean_null": float(overlap[1:].mean()),
        "p_mean": float((overlap.mean(1) >= overlap[0].mean() - 1e-9).mean()),
        "pairs": pairs, "top": {c: [list(names[h]) for h in top[j, 0]] for j, c in enumerate(concepts)},
    }  # fmt: skip


def _permuted(scenarios: Sequence[str | None], n_draws: int, seed: int) -> NDArray[np.intp]:
    """Which text's label each text has, ``[1 + draw, text]``; permuted within scenarios, the first not at all."""
    rng = generator(seed)
    names = np.array(["" if s is None else f"={s}" for s in scenarios])
    places = np.tile(np.arange(len(names)), (n_draws + 1, 1))
    for name in np.unique(names):
        here = np.flatnonzero(names == name)
        places[1:, here] = here[rng.random((n_draws, len(here))).argsort(axis=1)]
    return places


def _selectivity(x: Array, weights: Array, negative: Array) -> Array:
    """``[draw, head]`` from ``x [text, head, d_head]`` and, of each draw, the weights of the difference and who is a negative."""
    n_neg = negative[0].sum()
    spread = (negative @ (x**2).sum(2) - n_neg * squared_norms(x, negative / n_neg)) / max(n_neg - 1, 1)
    raw2 = squared_norms(x, weights)
    return np.sqrt(np.divide(raw2, spread, out=np.zeros_like(raw2), where=spread > 1e-12 * (x**2).sum(2).mean(0)))
