"""Which heads carry the difference: chosen on one half of the clusters, tested on the other.

1. Clusters are split in two by the seed (an example never has a half in both).
2. On the first half the ``top`` heads with the largest standardised mean of the delta (or of the difference tuned − reference) in the predicted
   direction are chosen.
3. Only these are tested on the second half: mean with its interval, p by flipping whole clusters, step-down max-T over the chosen.
   The estimates are those of the second half, so that choosing the largest does not make them larger.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from symbolic_residue.contrast._frames import COLUMN, OF_MODEL, PLACE
from symbolic_residue.contrast._options import interval, Options
from symbolic_residue.contrast._stack import DenseDeltas, Place, Stack, stacks
from symbolic_residue.errors import RecordError
from symbolic_residue.stats import generator, max_t

__all__ = ["select_heads"]

HEADS: dict[str, Any] = {
    **OF_MODEL,
    **COLUMN,
    "rank": pl.Int64,
    "chosen_value": pl.Float64,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "n": pl.Int64,
    "clusters": pl.Int64,
    "chosen_n": pl.Int64,
    "holds": pl.Boolean,
}
_FEWEST = 4


def select_heads(
    deltas: pl.DataFrame | DenseDeltas,
    reference: pl.DataFrame | DenseDeltas | None = None,
    *,
    top: int = 10,
    stratum: str = "C1",
    options: Options | None = None,
) -> pl.DataFrame:
    """The heads with the largest effect, each with an estimate from examples that took no part in choosing it.

    Args:
        deltas: with single heads.
        reference: another model's deltas on the same ids: the effect is then tuned − reference.
        top: heads chosen in each place.
        stratum: control of the deltas.
        options: direction, level, seed.

    Returns:
        For each place and chosen head: ``chosen_value`` (first half), ``value low high p n clusters`` (second half), ``holds``: interval on the
        predicted side and p ≤ alpha.

    Raises:
        RecordError: no single heads, or fewer than four clusters (two a half). Fewer than twelve leave a half of under six, whose flips cannot reach
        p ≤ .05: nothing holds then.
    """
    chosen = options or Options()
    sign = 1.0 if chosen.direction == "up" else -1.0
    mine = stacks(deltas, heads=True)
    other = None if reference is None else stacks(reference, heads=True)
    if other is not None and other.columns != mine.columns:
        raise RecordError("The two tables have different layers and heads.", todo="Compare models of one shape.")
    rows: list[dict[str, Any]] = []
    for place in mine.places(stratum):
        stack = mine.get(place, stratum)
        assert stack is not None
        if other is not None:
            twins = [at for at in other.places(stratum) if _same(at, place)]
            rival = other.get(twins[0], stratum) if len(twins) == 1 else None
            if rival is None:
                raise RecordError(
                    f"The reference has no deltas for {place.condition}, {place.region}.",
                    todo="Read the reference over the same ids.",
                )
            stack = stack.minus(rival)
        labels = sorted(set(stack.clusters))
        if len(labels) < _FEWEST:
            raise RecordError(
                f"{place.condition}, {place.region}: {len(labels)} clusters.",
                why=f"Heads are chosen on half of the clusters and tested on the other half: {_FEWEST} are needed at least.",
            )
        order = generator(chosen.seed).permutation(len(labels))
        first = {labels[i] for i in order[: len(labels) // 2]}
        half = np.array([cluster in first for cluster in stack.clusters])
        train, test = stack.values[half], stack.values[~half]
        spread = train.std(axis=0, ddof=1) if len(train) > 1 else np.ones(train.shape[1])
        score = sign * train.mean(axis=0) / np.where(spread > 0, spread, np.inf)
        picked = np.argsort(-score, kind="stable")[:top]
        kept = tuple(cluster for cluster, here in zip(stack.clusters, half, strict=True) if not here)
        value, low, high = interval(Stack(test[:, picked], tuple(map(str, range(len(test)))), kept), chosen)
        p = max_t(test[:, picked], seed=chosen.seed, n_resamples=chosen.n_resamples, clusters=kept)
        for rank, column in enumerate(picked):
            layer, head = mine.columns[column]
            bound = low[rank] if sign > 0 else high[rank]
            rows.append(
                {
                    **place.fields(), "layer": layer, "head": head, "rank": rank + 1, "chosen_value": train[:, column].mean(), "value": value[rank],
                    "low": low[rank], "high": high[rank], "p": p[rank], "n": len(test), "clusters": len(set(kept)), "chosen_n": len(train),
                    "holds": bool(sign * bound > 0 and p[rank] <= chosen.alpha),
                }
            )  # fmt: skip
    return pl.DataFrame(rows, schema=HEADS)


def _same(a: Place, b: Place) -> bool:
    return all(getattr(a, name) == getattr(b, name) for name in PLACE)
