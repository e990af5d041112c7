"""Rows of the report's tables: heads, sensitivity, refiners, the check of the attribution, and what stands in the manifest.

Every function takes plain rows of one item, in which what was not measured is ``None``, and returns plain rows to show; none of
them formats HTML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

__all__ = ["TOP_HEADS", "changed_words", "flatten", "head_rows", "sensitivity_rows", "sink_mass"]

TOP_HEADS = 12
"""Heads with the largest attribution in the table; confirmed heads are always in it."""

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


def head_rows(heads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each target its heads to list: the ``TOP_HEADS`` with the largest absolute DLA, and every confirmed head.

    Returns:
        ``[{"target", "rows", "n_heads", "n_confirmed", "n_tested"}]``, targets in the table's order.
    """
    found = []
    for target in dict.fromkeys(row["target"] for row in heads):
        mine = sorted((row for row in heads if row["target"] == target), key=lambda row: -abs(_or_zero(row["dla"])))
        listed = [row for index, row in enumerate(mine) if index < TOP_HEADS or row["confirmed"]]
        found.append(
            {
                "target": target,
                "rows": listed,
                "n_heads": len(mine),
                "n_confirmed": sum(bool(row["confirmed"]) for row in mine),
                "n_tested": sum(row["ablation"] is not None for row in mine),
            }
        )
    return found


def sensitivity_rows(rows: list[dict[str, Any]], prompt: str) -> list[dict[str, Any]]:
    """Edited prompts with what changed in the wording; the unedited one (variant 0), where there, comes first.

    Each row gains ``diff``: pieces ``(kind, text)``, see ``changed_words``; ``share``: its divergence as a share of the largest.
    """
    largest = max((_or_zero(row["js"]) for row in rows), default=0.0)
    ordered = sorted(rows, key=lambda row: row["variant"])
    base = next((row["text"] for row in ordered if row["variant"] == 0), prompt)
    return [
        {
            **row,
            "diff": changed_words(base, row["text"]),
            "share": _or_zero(row["js"]) / largest if largest > 0 else 0.0,
            "base": row["variant"] == 0,
        }
        for row in ordered
    ]


def changed_words(before: str, after: str, *, context: int = 4) -> list[tuple[str, str]]:
    """``after`` against ``before`` by words: ``("same" | "ins" | "del" | "gap", text)``; a gap stands for words left out.

    Args:
        before: the text without the edit.
        after: the text with it.
        context: how many words and spaces of unchanged text to keep on each side of a change.
    """
    a, b = _WORDS.findall(before), _WORDS.findall(after)
    pieces: list[tuple[str, str]] = []
    steps = SequenceMatcher(None, a, b, autojunk=len(a) > 2000).get_opcodes()
    for index, (kind, a0, a1, b0, b1) in enumerate(steps):
        if kind == "equal":
            head = [] if index == 0 else a[a0 : a0 + 2 * context]
            tail = [] if index == len(steps) - 1 else a[max(a1 - 2 * context, a0 + len(head)) : a1]
            if len(steps) == 1 or len(head) + len(tail) >= a1 - a0:
                pieces.append(("same", "".join(a[a0:a1])))
                continue
            pieces += [("same", "".join(head)), ("gap", "…"), ("same", "".join(tail))]
        else:
            pieces += [("del", "".join(a[a0:a1])), ("ins", "".join(b[b0:b1]))]
    return [(kind, text) for kind, text in pieces if text]


def sink_mass(attention: list[dict[str, Any]]) -> float | None:
    """Mean mass of the last row on the region ``sink`` over layers and heads; ``None`` where the run has no such region."""
    masses = [row["mass"] for row in attention if row["region"] == "sink" and row["mass"] is not None]
    return sum(masses) / len(masses) if masses else None


def flatten(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as ``(dotted name, text)`` rows; lists of plain values in one row; nothing is left out."""
    if isinstance(value, Mapping) and value:
        return [row for key, part in value.items() for row in flatten(part, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and any(isinstance(part, Mapping | list) for part in value):
        return [row for index, part in enumerate(value) for row in flatten(part, f"{name}[{index}]")]
    if isinstance(value, list):
        return [(name, ", ".join(str(part) for part in value) or "(empty)")]
    return [(name, "none" if value is None or value == {} else "(empty)" if value == "" else str(value))]


def _or_zero(value: float | None) -> float:
    return 0.0 if value is None else value
