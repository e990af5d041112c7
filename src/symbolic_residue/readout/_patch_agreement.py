"""How well a gradient screen agrees with true patches, pair by pair, with intervals over pairs.

1. Cells that both measured are compared within each pair: Spearman's rank correlation of estimate and effect; the share of cells whose signs agree; and the
   overlap of the ``k`` largest in absolute value, ``|A ∩ B| / k``.
2. Each is then averaged over pairs, with an interval that resamples pairs (or clusters of them). A pair on which a statistic is not defined (two
   cells or fewer, or no spread) is left out of it and counted.
3. Done for all cells together and for each component.
"""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.readout._patch_cells import CELL_KEY
from symbolic_residue.readout._patch_table import PatchSweep
from symbolic_residue.stats import bootstrap_mean, cluster_bootstrap

if TYPE_CHECKING:
    from symbolic_residue.readout._patch_screen import PatchScreen

__all__ = ["AGREEMENT_SCHEMA", "screen_agreement"]

AGREEMENT_SCHEMA: dict[str, Any] = {
    "component": pl.String,
    "statistic": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
    "undefined": pl.Int64,
    "cells": pl.Int64,
    "method": pl.String,
}


def screen_agreement(
    sweep: PatchSweep, screen: PatchScreen | pl.DataFrame, *, k: int = 10, seed: int = 0, level: float = 0.95
) -> pl.DataFrame:
    """Agreement of a screen with a sweep of the same pairs, on the cells that both have.

    Args:
        sweep: true patches.
        screen: the estimates, or their table.
        k: how many of the largest are compared; where fewer than 2k cells are shared, half of them.
        seed: of the resampling.
        level: coverage of the intervals.

    Returns:
        ``component`` (``"all"`` first), ``statistic`` (``spearman``, ``sign``, ``top_k``), ``value`` with ``low`` and ``high`` (null without an
        interval), ``n`` (pairs or clusters), ``undefined`` (pairs left out), ``cells`` (a pair), ``method``.

    Raises:
        ConfigError: no cell in common, other pairs' values, or ``k`` not positive.
    """
    frame = screen if isinstance(screen, pl.DataFrame) else screen.table()
    if k < 1:
        raise ConfigError(f"k={k}: the largest of none cannot be compared.")
    keys = ["pair", "direction", *CELL_KEY]
    joined = sweep.table().join(frame.select(*keys, "estimate", "source", "target"), on=keys, how="inner", nulls_equal=True)
    if not len(joined):
        raise ConfigError("Screen and sweep have no cell in common.", todo="Use the same pairs, direction and components.")
    off = joined.select(
        (pl.col("source") - pl.col("source_right")).abs().max(), (pl.col("target") - pl.col("target_right")).abs().max()
    )
    scale = 1e-3 * (1 + float(joined["source"].abs().max()) + float(joined["target"].abs().max()))  # type: ignore[arg-type]
    if max(off.row(0)) > scale:
        raise ConfigError("Screen and sweep have other source or target values.", todo="Use the same prompts, models and metric.")
    rows = []
    names = list(dict.fromkeys(joined["component"]))
    for component in ["all", *(names if len(names) > 1 else [])]:
        part = joined if component == "all" else joined.filter(pl.col("component") == component)
        by_pair = part.partition_by("pair", maintain_order=True)
        clusters = [str(one["cluster"][0]) for one in by_pair]
        measured = [_of_pair(one, k) for one in by_pair]
        for statistic in ("spearman", "sign", "top_k"):
            values = np.array([one[statistic] for one in measured])
            defined = np.isfinite(values)
            undefined, cells = int((~defined).sum()), len(by_pair[0])
            if not defined.any():
                rows.append([component, statistic, None, None, None, 0, undefined, cells, "none: not defined on any pair"])
                continue
            kept = [cluster for cluster, ok in zip(clusters, defined, strict=True) if ok]
            if len(set(kept)) == len(kept):
                found = bootstrap_mean(values[defined], seed=seed, level=level)
            else:
                found = cluster_bootstrap(values[defined], kept, seed=seed, level=level)
            # Neither statistic can leave its range, whatever a t interval of few pairs says.
            least = -1.0 if statistic == "spearman" else 0.0
            bounds = (max(least, found.low), min(1.0, found.high)) if found.has_interval else (None, None)
            rows.append([component, statistic, found.value, *bounds, found.n, undefined, cells, found.method])
    return pl.DataFrame(rows, schema=AGREEMENT_SCHEMA, orient="row")


def _of_pair(pair: pl.DataFrame, k: int) -> dict[str, float]:
    """The three statistics over the cells of one pair; NaN where one is not defined."""
    estimate, effect = pair["estimate"].to_numpy(), pair["effect"].to_numpy()
    out = {"spearman": np.nan, "sign": np.nan, "top_k": np.nan}
    if len(effect) > 2 and np.ptp(estimate) > 0 and np.ptp(effect) > 0:
        out["spearman"] = float(np.corrcoef(sps.rankdata(estimate), sps.rankdata(effect))[0, 1])
    # A patch that did nothing beyond rounding has no sign.
    acted = np.abs(effect) > 1e-5 * (1 + abs(pair["source"][0]) + abs(pair["target"][0]))
    if acted.any():
        out["sign"] = float((np.sign(estimate) == np.sign(effect))[acted].mean())
    count = min(k, len(effect) // 2)
    if count:
        largest = [set(np.argsort(-np.abs(x), kind="stable")[:count].tolist()) for x in (estimate, effect)]
        out["top_k"] = len(largest[0] & largest[1]) / count
    return out
