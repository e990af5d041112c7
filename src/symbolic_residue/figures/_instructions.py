"""Two instructions at once: what share of the answers follows which."""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import CANDIDATES

if TYPE_CHECKING:
    import polars

__all__ = ["instruction_conflict"]

_OUTCOMES = ("both", "followed", "only a", "only b", "only c", "neither")
_COLOURS = ("#4d4d4d", "#4d4d4d", CANDIDATES[0], CANDIDATES[1], CANDIDATES[3], "#d9d9d6")
_ORDER = ("alone a", "alone b", "a then b", "b then a", "control: a then c", "control: c then a")


def instruction_conflict(rates: polars.DataFrame) -> Any:
    """One bar a frame, divided by what its answers follow; one panel an arrangement.

    Args:
        rates: table ``instruction_rates`` of one item.

    Raises:
        ConfigError: missing columns, no rows, several items. MissingExtraError: no Altair.
    """
    alt = altair()
    found = rows(rates, "instruction_rates", ("condition", "order", "arrangement", "outcome", "share", "n"))
    data: list[dict[str, Any]] = []
    for row in found:
        if row["outcome"] not in _OUTCOMES:
            continue
        words = row["condition"] if len(row["order"]) == 1 else " then ".join(row["order"])
        frame = f"control: {words}" if row["condition"] == "control" else words
        data.append(row | {"frame": frame})
        if row["outcome"] == "followed":
            data.append(row | {"frame": frame, "outcome": "neither", "share": 1.0 - row["share"]})
    if not data:
        raise ConfigError("The table 'instruction_rates' holds no shares of answers.")
    there = [name for name in _OUTCOMES if any(row["outcome"] == name for row in data)]
    colours = [_COLOURS[_OUTCOMES.index(name)] for name in there]
    for row in data:
        row["rank"] = there.index(row["outcome"])
    arrangements = list(dict.fromkeys(row["arrangement"] for row in data))
    bars = [
        alt.Chart(inline([row for row in data if row["arrangement"] == arrangement]), title=arrangement)
        .mark_bar(stroke="white", strokeWidth=1, aria=False)
        .encode(
            x=alt.X("share:Q", stack="zero", title="share of answers", scale=alt.Scale(domain=[0, 1])),
            y=alt.Y("frame:N", sort=list(_ORDER), title=None),
            color=alt.Color(
                "outcome:N",
                title="the answer follows",
                sort=there,
                scale=alt.Scale(domain=there, range=colours),
                legend=alt.Legend(orient="bottom"),
            ),
            order=alt.Order("rank:Q"),
        )
        .properties(width=460, height=24 * len({row["frame"] for row in data}))
        for arrangement in arrangements
    ]
    return styled(bars[0] if len(bars) == 1 else alt.vconcat(*bars))
