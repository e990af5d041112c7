"""Tables that any shell may bring, as rows to show: scores of heads, and every table that has no section of its own.

Each function takes the rows of one item and returns plain values; none formats HTML. Long tables are cut, and say how long they are.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from symbolic_residue.report._load import Run

__all__ = ["OTHER_ROWS", "OWN_SECTION", "other_tables", "score_rows"]

OWN_SECTION = frozenset(
    (
        *(
            "items",
            "tokens",
            "verdicts",
            "candidates",
            "traces",
            "refiners",
            "transfer",
            "lens",
            "heads",
            "components",
            "dla_check",
        ),
        *(
            "attention",
            "attention_stats",
            "readout_mass",
            "readout_stats",
            "readouts",
            "curves",
            "head_scores",
            "maps",
            "shell_items",
        ),
        *("sensitivity", "ov", "changes"),
        *("failure_graphs", "failure_parts", "failure_units"),
        *("across", "endings", "overruled", "ghosts", "disruption", "cross_run", "attention_rows", "ov_keys", "ov_heads"),
    )
)
"""Tables that have their place in the item's sections."""

OTHER_ROWS = 40
"""Rows shown of a table without a section of its own; the run folder has them all."""

_SCORES = 12


def score_rows(frame: pl.DataFrame | None) -> list[dict[str, Any]]:
    """For each score its heads with the largest values: ``[{"score", "unit", "rows", "n_heads"}]``, in the table's order.

    Args:
        frame: table ``head_scores`` of one item.
    """
    if frame is None:
        return []
    found = []
    for (score,), group in frame.fill_nan(None).group_by("score", maintain_order=True):
        best = group.sort(pl.col("value").abs(), descending=True, nulls_last=True, maintain_order=True).head(_SCORES)
        found.append({"score": score, "unit": group["unit"][0], "rows": best.to_dicts(), "n_heads": group.height})
    return found


def other_tables(run: Run, item: str) -> list[dict[str, Any]]:
    """The item's tables that have no section of their own: ``[{"name", "columns", "numeric", "rows", "n"}]``; empty columns are left out."""
    found = []
    for name in run.tables:
        frame = None if name in OWN_SECTION else run.of(name, item)
        if frame is None:
            continue
        frame = frame.drop("item").fill_nan(None)
        columns = [column for column in frame.columns if frame[column].null_count() < frame.height]
        found.append(
            {
                "name": name,
                "columns": columns,
                "numeric": {column for column in columns if frame.schema[column].is_numeric()},
                "rows": frame.select(columns).head(OTHER_ROWS).to_dicts(),
                "n": frame.height,
            }
        )
    return found
