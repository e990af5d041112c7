"""The verdict in one sentence, from the tables alone.

1. The sentence that the question itself wrote (``items.summary``), where it wrote one.
2. Else: what the model does with its two best candidates, then every mode with its outcome, those that fire first:
   "Undecided between “ yes” and “ no”: flatness fires (log-odds of the top two 0.07 nats [0.02, 0.12]); oscillation absent."
   The opening claims "Decides for" only where every mode is absent, and "Undecided between" only where flatness fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from symbolic_residue.figures import interval_text, number

__all__ = ["ORDER", "verdict_sentence"]

ORDER = {"fires": 0, "undecided": 1, "absent": 2}


def verdict_sentence(summary: str | None, verdicts: Sequence[dict[str, Any]], candidates: Sequence[dict[str, Any]]) -> str:
    """One sentence to quote, without the model's name.

    Args:
        summary: what the question wrote; used as it is when not blank.
        verdicts: rows of the table ``verdicts`` of one item.
        candidates: rows of the table ``candidates`` of the item.
    """
    if summary and summary.strip():
        return summary.strip()
    opening = _opening(verdicts, candidates)
    if not verdicts:
        return f"{opening}; no verdict was reached in this run." if opening else "No verdict was reached in this run."
    fires = [f"{row['mode']} fires ({_measured(row)})" for row in verdicts if row["outcome"] == "fires"]
    groups = [fires, *(_group(verdicts, outcome) for outcome in ("undecided", "absent"))]
    told = "; ".join(part for group in groups for part in group)
    return f"{opening}: {told}." if opening else f"{told[:1].upper()}{told[1:]}."


def _opening(verdicts: Sequence[dict[str, Any]], candidates: Sequence[dict[str, Any]]) -> str:
    names = [f"“{row['token']}”" for row in sorted(candidates, key=lambda row: row["rank"])[:2]]
    if len(names) < 2:
        return ""
    outcomes = {row["mode"]: row["outcome"] for row in verdicts}
    if outcomes.get("flatness") == "fires":
        return f"Undecided between {names[0]} and {names[1]}"
    if outcomes and set(outcomes.values()) == {"absent"}:
        return f"Decides for {names[0]} over {names[1]}"
    return f"Leans to {names[0]} over {names[1]}"


def _measured(row: dict[str, Any]) -> str:
    unit = f" {row['unit']}" if row["unit"] else ""
    return f"{row['quantity']} {number(row['value'])}{unit} {interval_text(row['low'], row['high'], row['n'])}"


def _group(verdicts: Sequence[dict[str, Any]], outcome: str) -> list[str]:
    modes = [row["mode"] for row in verdicts if row["outcome"] == outcome]
    if not modes:
        return []
    listed = modes[0] if len(modes) == 1 else f"{', '.join(modes[:-1])} and {modes[-1]}"
    return [f"{listed} {outcome}"]
