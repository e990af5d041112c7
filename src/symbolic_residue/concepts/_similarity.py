"""How alike the concepts' directions are, and how alike they would be without any concept.

1. Cosine of every pair of unit directions in a layer.
2. ``ridge_r2``: share of a unit direction that the other concepts' directions explain (ridge, λ = 0.01).
3. Null of both, for the difference of means: *all* labels are permuted within scenarios, the neutral telling's too, and every direction is found anew.
   Directions against the same neutral tellings share those, so cosine and share lie far above 0 without any concept: about 1/2 where all texts vary alike.
   Permuting one concept's labels alone would miss that, and call every concept redundant.
4. ``p_layer`` is family-wise over the layer's pairs, of the distance from the null's own mean on either side (``_null``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

__all__ = ["permuted_weights", "ridge_shares", "similarity_blocks"]

Array = NDArray[np.float64]
_RIDGE = 0.01
_BYTES = 2**26
"""Of the weights, and of the directions, that are held at once."""


def permuted_weights(
    labels: Sequence[str], scenarios: Sequence[str | None], directions: Directions, n_draws: int, seed: int
) -> Iterator[Array]:
    """Blocks of ``[draw, concept, text]``: with these weights the texts sum to each concept's direction, before it has length 1."""
    rng, observed = generator(seed), np.array(labels)
    names = np.array(["" if s is None else f"={s}" for s in scenarios])
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]
    n_concepts = len(directions.concepts)
    some = max(1, _BYTES // (8 * n_concepts * max(len(labels), directions.model.hidden_size)))
    for start in range(0, n_draws, some):
        found = np.zeros((min(some, n_draws - start), n_concepts, len(labels)))
        for one in found:
            drawn = observed.copy()
            for rows in groups:
                drawn[rows] = observed[rng.permutation(rows)]
            for at, concept in enumerate(directions.concepts):
                design = make_design(drawn.tolist(), scenarios, concept, directions.against)
                one[at, design.rows] = design.weights()
        yield found


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


def similarity_blocks(
    pooled: Pooled, labels: Sequence[str], scenarios: Sequence[str | None], directions: Directions, n_draws: int, seed: int
) -> dict[str, dict[str, Any]]:
    """By layer, as plain data in the order of ``directions.concepts``: ``cosines`` [concept, concept] with their null, and ``ridge_r2`` [concept].

    Args:
        pooled: the texts that the directions were found on.
        labels, scenarios: one a text.
        directions: of these texts.
        n_draws: of the null, which only the difference of means has.
        seed: of the null.
    """
    cosines: dict[int, list[Array]] = {}
    for i in directions.layers:
        v = directions.vectors[i].astype(np.float64)
        cosines[i] = [np.clip(v @ v.T, -1, 1)[None]]
    if directions.estimator == "difference" and len(directions.concepts) > 1:
        for weights in permuted_weights(labels, scenarios, directions, n_draws, seed):
            flat = weights.reshape(-1, weights.shape[2])
            for i in directions.layers:
                rows = Rows.of(pooled.resid[i])
                # The weights of a direction sum to 0: without the mean the digits stay.
                found = rows.sums(lambda at, flat=flat: flat[:, at], rows.mean()).reshape(*weights.shape[:2], -1)
                found /= np.maximum(np.linalg.norm(found, axis=2, keepdims=True), 1e-300)
                cosines[i].append(found @ found.transpose(0, 2, 1))
    return {str(i): _block(np.concatenate(found)) for i, found in cosines.items()}


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
