"""How alike the concepts' directions are, and how alike they would be without any concept.

1. Cosine of every pair of unit directions in a layer.
2. ``ridge_r2``: share of a unit direction that the other concepts' directions explain (ridge, λ = 0.01).
3. Null of both, for the difference of means: *all* labels are permuted within scenarios, the neutral telling's too, and every direction is found anew.
   Directions against the same neutral tellings share those, so cosine and share lie far above 0 without any concept: about 1/2 where all texts vary alike.
   Permuting one concept's labels alone would miss that, and call every concept redundant.
4. ``p_layer`` is family-wise over the layer's pairs, of the distance from the null's own mean on either side (``_null``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._collect import Pooled
from symbolic_residue.concepts._design import make_design
from symbolic_residue.concepts._directions import Directions
from symbolic_residue.concepts._null import max_t_p, standardised
from symbolic_residue.concepts._quality_parts import null_block
from symbolic_residue.concepts._rows import Rows
from symbolic_residue.stats import generator

__all__ = ["PermutedWeights", "permuted_weights", "ridge_shares", "similarity_blocks"]

Array = NDArray[np.float64]
_RIDGE = 0.01


@dataclass(frozen=True, eq=False)
class PermutedWeights:
    """With which weights the texts sum to each concept's direction before it has length 1, under the observed labels (first) and permuted ones.

    Labels stay in their scenario, so a text's weight is known from its scenario and its label.

    Attributes:
        table: ``[concept, scenario, label]``.
        scenario: ``[text]``.
        label: ``[1 + draw, text]``.
    """

    table: Array
    scenario: NDArray[np.intp]
    label: NDArray[np.int16]

    def __call__(self, at: slice) -> Array:
        """Of a block of texts, ``[(1 + draw) · concept, k]``."""
        found = self.table[:, self.scenario[at][None], self.label[:, at]]
        return found.transpose(1, 0, 2).reshape(-1, found.shape[2])


def permuted_weights(
    labels: Sequence[str], scenarios: Sequence[str | None], directions: Directions, n_draws: int, seed: int
) -> PermutedWeights:
    """Weights under all labels permuted within scenarios, ``n_draws`` times."""
    rng = generator(seed)
    scenario, groups = _numbered(["" if s is None else f"={s}" for s in scenarios])
    observed, names = _numbered(labels)
    table = np.zeros((len(directions.concepts), len(groups), len(names)))
    for at, concept in enumerate(directions.concepts):
        design = make_design(labels, scenarios, concept, directions.against)
        table[at, scenario[design.rows], observed[design.rows]] = design.weights()
    drawn = np.tile(observed.astype(np.int16), (1 + n_draws, 1))
    rows = [np.flatnonzero(scenario == s) for s in range(len(groups))]
    for draw in range(1, 1 + n_draws):
        for own in rows:
            drawn[draw, own] = observed[rng.permutation(own)]
    return PermutedWeights(table, scenario, drawn)


def _numbered(names: Sequence[str]) -> tuple[NDArray[np.intp], list[str]]:
    """Each name's number, in order of appearance, and the names."""
    known = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names], dtype=np.intp), list(known)


def ridge_shares(cosines: Array) -> Array:
    """Share of each unit direction that the others explain, ``[draw, concept, concept] -> [draw, concept]``."""
    n = cosines.shape[1]
    shares = np.zeros(cosines.shape[:2])
    for at in range(n):
        others = [i for i in range(n) if i != at]
        inner, own = cosines[:, others][:, :, others], cosines[:, others, at]
        beta = np.linalg.solve(inner + _RIDGE * np.eye(n - 1), own[:, :, None])[:, :, 0]
        shares[:, at] = 2 * (beta * own).sum(1) - np.einsum("di,dij,dj->d", beta, inner, beta)
    return np.clip(shares, 0, 1)


def similarity_blocks(pooled: Pooled, directions: Directions, weights: PermutedWeights | None) -> dict[str, dict[str, Any]]:
    """By layer, as plain data in the order of ``directions.concepts``: ``cosines`` [concept, concept] with their null, and ``ridge_r2`` [concept].

    Args:
        pooled: the texts that the directions were found on.
        directions: of these texts.
        weights: of :func:`permuted_weights`; None leaves the null out.
    """
    blocks = {}
    for i in directions.layers:
        v = directions.vectors[i].astype(np.float64)
        cosines = np.clip(v @ v.T, -1, 1)[None]
        if weights is not None and len(v) > 1:
            x = Rows(pooled.resid[i])
            found = x.sums(weights, x.mean()).reshape(-1, len(v), v.shape[1])  # the weights of a direction sum to 0
            found /= np.maximum(np.linalg.norm(found, axis=2, keepdims=True), 1e-300)
            cosines = np.concatenate([cosines, (found @ found.transpose(0, 2, 1))[1:]])
        blocks[str(i)] = _block(cosines)
    return blocks


def _block(cosines: Array) -> dict[str, Any]:
    """Of ``[1 + draw, concept, concept]``, the observed cosines first."""
    n = cosines.shape[1]
    block: dict[str, Any] = {
        "cosines": cosines[0].tolist(),
        **dict.fromkeys(("null_mean", "null_low", "null_high", "p_layer")),
        "n_draws": len(cosines) - 1,
    }
    if n < 2:
        return block | {"ridge_r2": [{"value": None, "reason": "There is one concept only."}]}
    shares = ridge_shares(cosines)
    if len(cosines) == 1:
        return block | {"ridge_r2": [{"value": float(value), "null": None} for value in shares[0]]}
    upper = np.triu_indices(n, 1)
    pairs = cosines[:, upper[0], upper[1]]
    z = np.abs(standardised(pairs))
    p = np.ones((n, n))
    p[upper] = max_t_p(z[0], z.max(1))
    low, high = np.quantile(pairs[1:], [0.025, 0.975])
    return block | {
        "null_mean": float(pairs[1:].mean()),
        "null_low": float(low),
        "null_high": float(high),
        "p_layer": np.minimum(p, p.T).tolist(),
        "ridge_r2": [null_block(column) for column in shares.T],
    }
