"""How alike the concepts' directions are, and how alike they would be without any concept.

1. Cosine of every pair of unit directions in a layer.
2. Null, for the difference of means: *all* labels are permuted within scenarios, the neutral telling's too, and every direction is found anew. Directions
   against the same neutral tellings share those, so their cosine lies far above 0 without any concept: about 1/2 where all texts vary alike.
3. ``p_layer`` is family-wise over the layer's pairs, of the distance from the null's own mean on either side (``_null``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._collect import Pooled
from symbolic_residue.concepts._design import make_design
from symbolic_residue.concepts._directions import Directions
from symbolic_residue.concepts._null import max_t_p, standardised
from symbolic_residue.stats import generator

__all__ = ["cosine_blocks", "permuted_weights"]

Array = NDArray[np.float64]


def permuted_weights(
    labels: Sequence[str], scenarios: Sequence[str | None], directions: Directions, n_draws: int, seed: int
) -> Array:
    """``[1 + draw, concept, text]``: with these weights the texts sum to each concept's direction before it has length 1; the observed labels come first."""
    rng = generator(seed)
    found = np.zeros((1 + n_draws, len(directions.concepts), len(labels)), dtype=np.float64)
    names = np.array(["" if s is None else f"={s}" for s in scenarios])
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]
    observed = np.array(labels)
    for draw in range(1 + n_draws):
        drawn = observed.copy()
        if draw:
            for rows in groups:
                drawn[rows] = observed[rng.permutation(rows)]
        for at, concept in enumerate(directions.concepts):
            design = make_design(drawn.tolist(), scenarios, concept, directions.against)
            found[draw, at, design.rows] = design.weights()
    return found


def cosine_blocks(pooled: Pooled, directions: Directions, weights: Array | None) -> Mapping[str, dict[str, Any]]:
    """By layer, as plain data: ``cosines`` [concept, concept] in the order of ``directions.concepts``, and the null.

    Args:
        pooled: the texts that the directions were found on.
        directions: of these texts.
        weights: of :func:`permuted_weights`; None leaves the null out.
    """
    blocks: dict[str, dict[str, Any]] = {}
    upper = np.triu_indices(len(directions.concepts), 1)
    for i in directions.layers:
        v = directions.vectors[i].astype(np.float64)
        cosines = np.clip(v @ v.T, -1, 1)
        block: dict[str, Any] = {
            "cosines": cosines.tolist(),
            "null_mean": None,
            "null_low": None,
            "null_high": None,
            "p_layer": None,
        }
        if weights is not None and len(upper[0]):
            x = np.asarray(pooled.resid[i], dtype=np.float64)
            x = x - x.mean(0)  # the weights of a direction sum to 0
            found = weights @ x
            found /= np.maximum(np.linalg.norm(found, axis=2, keepdims=True), 1e-300)
            pairs = (found @ found.transpose(0, 2, 1))[:, upper[0], upper[1]]
            z = np.abs(standardised(pairs))
            p = np.ones_like(cosines)
            p[upper] = max_t_p(z[0], z.max(1))
            low, high = np.quantile(pairs[1:], [0.025, 0.975])
            block |= {
                "null_mean": float(pairs[1:].mean()), "null_low": float(low), "null_high": float(high),
                "p_layer": np.minimum(p, p.T).tolist(), "n_draws": len(pairs) - 1,
            }  # fmt: skip
        blocks[str(i)] = block
    return blocks
