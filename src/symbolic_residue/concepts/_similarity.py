"""How alike the concepts' directions are, and how alike they would be without any concept.

1. Cosine of every pair of unit directions in a layer.
2. Null, for the difference of means: *all* labels are permuted within scenarios, the neutral telling's too, and every direction is found anew. Directions
   against the same neutral tellings share those, so their cosine lies far above 0 without any concept: about 1/2 where all texts vary alike.
3. ``p_layer`` is family-wise over the layer's pairs, of the distance from the null's own mean on either side (``_null``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._collect import Pooled
from symbolic_residue.concepts._design import make_design
from symbolic_residue.concepts._directions import Directions
from symbolic_residue.concepts._null import max_t_p, standardised
from symbolic_residue.concepts._rows import Rows
from symbolic_residue.stats import generator

__all__ = ["PermutedWeights", "cosine_blocks", "permuted_weights"]

Array = NDArray[np.float64]


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


def cosine_blocks(pooled: Pooled, directions: Directions, weights: PermutedWeights | None) -> Mapping[str, dict[str, Any]]:
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
            x = Rows(pooled.resid[i])
            found = x.sums(weights, x.mean()).reshape(-1, len(v), v.shape[1])  # the weights of a direction sum to 0
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
