"""The prompt as the model read it: every token, coloured by its influence, underlined by its region.

1. Consecutive tokens of one region form a run; the run carries the region's underline and, at its start, its name.
2. Colour = influence: how far the top pair's log-odds (nats) fall when the last row may not look at the token. The scale is
   symmetric about 0 and ends at the largest absolute influence of the prompt.
3. A line feed is shown as ``⏎`` and breaks the line; other characters that cannot be seen are shown as escapes.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from symbolic_residue.figures import diverging_colour, number, region_colours, visible

__all__ = ["prompt_view"]

_LARGEST = 8
_STYLES = ("solid", "dotted", "dashed", "double")


def prompt_view(tokens: list[dict[str, Any]], candidates: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the prompt's section shows; ``None`` where the run has no tokens.

    Args:
        tokens: rows of the table ``tokens`` of one item; influence ``None`` where it was not measured.
        candidates: rows of the table ``candidates``, for the names of the top pair.
    """
    if not tokens:
        return None
    tokens = sorted(tokens, key=lambda row: row["position"])
    limit = max((abs(row["influence"]) for row in tokens if row["influence"] is not None), default=0.0)
    names = list(dict.fromkeys(row["region"] for row in tokens))
    colours = region_colours(names)
    runs = [
        {
            "region": region,
            "colour": colours[region],
            "style": _STYLES[names.index(region) % len(_STYLES)],
            "tokens": [_token(row, limit) for row in run],
        }
        for region, run in groupby(tokens, key=lambda row: row["region"])
    ]
    pair = [row["token"] for row in sorted(candidates, key=lambda row: row["rank"])[:2]]
    measured = [row for row in tokens if row["influence"] is not None]
    largest = sorted(measured, key=lambda row: -abs(row["influence"]))[:_LARGEST]
    stops = [{"colour": diverging_colour(limit * at / 4, limit), "at": f"{(at + 4) * 12.5:g}%"} for at in range(-4, 5)]
    return {
        "runs": runs,
        "regions": [
            {
                "name": name,
                "colour": colours[name],
                "style": _STYLES[index % len(_STYLES)],
                "n": sum(row["region"] == name for row in tokens),
            }
            for index, name in enumerate(names)
        ],
        "limit": limit,
        "stops": stops,
        "pair": pair if len(pair) == 2 else None,
        "n": len(tokens),
        "unmeasured": len(tokens) - len(measured),
        "largest": [{**row, "colour": diverging_colour(row["influence"], limit)} for row in largest],
    }


def _token(row: dict[str, Any], limit: float) -> dict[str, Any]:
    text = row["token"]
    facts = [
        f"position {row['position']}",
        f"“{visible(text, spaces='all')}” (id {row['token_id']})",
        f"region {row['region']}",
        f"influence {number(row['influence'], signed=True)} nats" if row["influence"] is not None else "influence not measured",
        f"attention {number(row['attention'])}",
    ]
    return {
        "pieces": [{"space": piece == " ", "text": visible(piece)} for piece in _pieces(text)],
        "colour": diverging_colour(row["influence"], limit),
        "title": " · ".join(facts),
        "breaks": text.count("\n"),
    }


def _pieces(text: str) -> list[str]:
    """``text`` cut at its spaces, each space a piece of its own, so that the page can show it as a faint dot."""
    return [piece for piece in re.split("( )", text) if piece]
