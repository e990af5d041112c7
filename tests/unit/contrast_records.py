"""Long tables with planted truths."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

REGIONS = ("system", "user", "answer")


def long_table(
    *,
    seed: int = 0,
    model: str = "tuned",
    condition: str = "on",
    clusters: int = 12,
    each: int = 4,
    layers: int = 6,
    heads: int | None = None,
    effect: dict[int, float] | None = None,
    region: str = "system",
    strata: tuple[str, ...] = ("C1", "C2", "C5"),
    unpaired: bool = False,
    segmentations: tuple[str, ...] = ("full", "content"),
    offsets: tuple[int, ...] = (-1,),
    lags: int = 0,
    spread: float = 0.01,
    between: float = 0.01,
    rows: int = 3,
) -> pl.DataFrame:
    """Masses on three regions that sum to .9; the event adds ``effect[layer]`` to ``region`` and takes it from the last one.

    ``between`` is the standard deviation of what all examples of a cluster have in common (on the event rows), ``spread`` that of a row.
    """
    rng = np.random.default_rng(seed)
    effect = effect or {}
    out: list[dict[str, Any]] = []
    shared = rng.normal(0, between, size=(clusters, layers))

    def write(example: str, cluster: int, stratum: str, offset: int, row: int, lift: np.ndarray) -> None:
        noise = rng.normal(0, spread, size=(layers, heads or 1, len(REGIONS)))
        base = np.full((layers, heads or 1, len(REGIONS)), 0.3) + noise
        base[:, :, REGIONS.index(region)] += lift[:, None]
        base[:, :, -1] -= lift[:, None]
        for segmentation in segmentations:
            for layer in range(layers):
                for head in range(heads or 1):
                    for k, name in enumerate(REGIONS):
                        out.append(
                            {
                                "model": model, "condition": condition, "example": example, "cluster": f"q{cluster}", "layer": layer,
                                "head": head if heads else None, "region": name, "segmentation": segmentation, "stratum": stratum,
                                "query_offset": offset, "row": row, "mass": float(np.clip(base[layer, head, k], 0, 1)),
                            }
                        )  # fmt: skip

    planted = np.array([effect.get(layer, 0.0) for layer in range(layers)])
    for cluster in range(clusters):
        for i in range(each):
            name = f"q{cluster}.{i}"
            for offset in offsets:
                write(name, cluster, "event", offset, 40 + offset, planted + shared[cluster])
                for stratum in strata:
                    for k in range(rows):
                        write(name, cluster, stratum, offset, 10 + k, np.zeros(layers))
            for lag in range(1, lags + 1):
                write(name, cluster, "event", min(offsets) - lag, 40 + min(offsets) - lag, shared[cluster] * 0)
        if unpaired:
            for i in range(2):
                write(f"q{cluster}.neg{i}", cluster, "C4", offsets[0], 50, np.zeros(layers))
    return pl.DataFrame(out)
