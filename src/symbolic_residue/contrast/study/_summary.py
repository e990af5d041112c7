"""The end of a study in a few rows, from its tables alone: verdicts under both segmentations, their controls, and what disagrees.

1. A row is a region in a condition against a reference, at one offset, under one segmentation: outcome, value with interval, n and clusters, the two models'
   own deltas, and the rule-outs of gate E at that layer.
2. A *sign flag*: tuned − reference at the row's layer has the other sign under the other segmentation. An *outcome flag*: the two segmentations have
   different outcomes.
"""

from __future__ import annotations

from typing import Any

import polars as pl

__all__ = ["verdict_rows"]

_PLACE = ["tuned", "reference", "condition", "region", "query_offset"]


def verdict_rows(
    verdicts: pl.DataFrame,
    differences: pl.DataFrame,
    rule_outs: pl.DataFrame,
    *,
    region: str | None = None,
    offset: int | None = -1,
) -> list[dict[str, Any]]:
    """Rows of the table of verdicts with what belongs beside them.

    Args:
        verdicts, differences, rule_outs: tables of a run.
        region: only this one; None: all.
        offset: only this one; None: all.

    Returns:
        The verdict's columns, ``rule_outs`` (stratum → whether the tuned model passes it at the layer; null where not evaluated), ``flags`` (texts).
    """
    frame = verdicts.filter(pl.col("head").is_null())
    if region is not None:
        frame = frame.filter(pl.col("region") == region)
    if offset is not None:
        frame = frame.filter(pl.col("query_offset") == offset)
    layers = differences.filter(pl.col("head").is_null())
    value = {
        (*(row[name] for name in _PLACE), row["segmentation"], row["layer"]): row["value"]
        for row in layers.select(*_PLACE, "segmentation", "layer", "value").iter_rows(named=True)
    }
    outcome = {(*(row[name] for name in _PLACE), row["segmentation"]): row["outcome"] for row in frame.iter_rows(named=True)}
    ruled = {
        (
            row["model"],
            row["condition"],
            row["region"],
            row["segmentation"],
            row["query_offset"],
            row["layer"],
            row["stratum"],
        ): row["passed"]
        for row in rule_outs.filter(pl.col("head").is_null()).iter_rows(named=True)
    }
    out = []
    for row in frame.iter_rows(named=True):
        place, own = tuple(row[name] for name in _PLACE), row["segmentation"]
        flags = []
        for other in sorted({key[-1] for key in outcome if key[:-1] == place} - {own}):
            twin = value.get((*place, other, row["layer"]))
            if twin is not None and twin * row["value"] < 0:
                flags.append(f"the sign differs under {other}")
            if outcome[(*place, other)] != row["outcome"]:
                flags.append(f"{outcome[(*place, other)]} under {other}")
        at = (row["tuned"], row["condition"], row["region"], own, row["query_offset"], row["layer"])
        out.append({**row, "rule_outs": {key[-1]: passed for key, passed in ruled.items() if key[:-1] == at}, "flags": flags})
    return out
