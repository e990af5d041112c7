"""A token tree to look at: columns of sets by step, as plain values; HTML is not made here.

1. A column is a step. Its first token is the top path; its siblings follow by falling probability. Tokens deleted or hidden by pruning are marked, end-of-text
   tokens stand last with their probability.
2. Probability is shown twice: as the number, and as shade and size (both by its square root, so that small ones can be told apart).
3. Trees longer than :data:`MOST_STEPS` are cut, and it is said.
"""

from __future__ import annotations

import math
from typing import Any

from symbolic_residue.figures import number
from symbolic_residue.report._load import Run

__all__ = ["MOST_STEPS", "shade", "tree_view"]

MOST_STEPS = 400
"""Columns of a tree on the page."""

_WHITE, _FULL = (255, 255, 255), (134, 184, 226)
_SMALL, _LARGE = 12.0, 19.0
"""Font sizes in pixels of a token with probability 0 and 1."""


def shade(probability: float) -> str:
    """Background of a token: white at 0, blue at 1; dark text on it keeps a contrast of 8 to 1."""
    share = math.sqrt(min(max(probability, 0.0), 1.0))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(_WHITE, _FULL, strict=True))


def tree_view(run: Run, item: str) -> dict[str, Any] | None:
    """``tree`` (text, alternatives, stop, keys), ``columns``, ``rows`` (statistics by step), ``n_steps, n_tokens, n_sets, n_gone``; None without a tree."""
    trees = run.rows("parallel_trees", item)
    if not trees:
        return None
    tokens: dict[int, list[dict[str, Any]]] = {}
    for row in run.rows("parallel_tokens", item):
        tokens.setdefault(row["step"], []).append(row)
    steps = run.rows("parallel_steps", item)
    whole = [row for mine in tokens.values() for row in mine]
    return {
        "tree": trees[0],
        "columns": [_column(row, tokens.get(row["step"], [])) for row in steps[:MOST_STEPS]],
        "rows": steps[:MOST_STEPS],
        "cut": max(len(steps) - MOST_STEPS, 0),
        "n_steps": len(steps),
        "n_tokens": len(whole),
        "n_sets": sum(row["size"] > 1 for row in steps),
        "n_gone": sum(row["gone"] is not None for row in whole),
        "n_endings": sum(row["ending"] is not None for row in steps),
    }


def _column(step: dict[str, Any], tokens: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "step": step["step"],
        "ending": step["ending"],
        "tokens": [
            {
                "text": row["text"],
                "p": row["probability"],
                "top": row["rank"] == 0,
                "gone": row["gone"] is not None,
                "style": f"background:{shade(row['probability'])};font-size:{_SMALL + (_LARGE - _SMALL) * math.sqrt(row['probability']):.1f}px",
                "title": _title(row),
            }
            for row in sorted(tokens, key=lambda row: row["rank"])
        ],
    }


def _title(row: dict[str, Any]) -> str:
    said = f"step {row['step']}, rank {row['rank']}: token {row['token']}, probability {number(row['probability'])}, position {row['position']:.6g}, "
    said += f"slot {row['slot']}" if row["slot"] >= 0 else "deleted from the cache"
    if row["score"] is not None:
        said += f", attention received {number(row['score'])}"
    return said + (f", taken out before step {row['gone']}" if row["gone"] is not None else "")
