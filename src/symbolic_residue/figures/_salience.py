"""What a text's tokens receive, layer by layer, and what cancelling them costs.

``salience_heatmap``: rows = layers, the last on top; columns = tokens without the sink, the last 32 at most; orange = less attention than the uniform
share, blue = more (logarithmic); a dot marks cells under the threshold. Below: the fall of ln P(answer) when a token is cancelled, for the tokens
that were.
"""

from __future__ import annotations

import math
from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import AGAINST, FOR, INK, NEUTRAL, OUTCOMES
from symbolic_residue.figures._text import fit, visible

if TYPE_CHECKING:
    import polars

__all__ = ["SALIENCE_POSITIONS", "salience_heatmap"]

SALIENCE_POSITIONS = 32
_CELL, _ROW = 20, 11
_LEAST, _MOST = 1 / 16, 16.0


def salience_heatmap(
    maps: polars.DataFrame,
    salience: polars.DataFrame,
    which: str = "attention received",
    *,
    threshold: float = 0.5,
    last: int = SALIENCE_POSITIONS,
) -> Any:
    """Attention received by layer and token, and what cancelling a token costs.

    Args:
        maps: table ``maps`` of one item: ``map, layer, position, value, unit``.
        salience: table ``salience`` of the same item: ``position, token, kind, fall, blamed``.
        which: the map's name.
        threshold: cells under it are marked.
        last: how many positions to show, counted from the end.

    Raises:
        ConfigError: missing columns, no rows, several items, no such map, ``last`` under 1. MissingExtraError: no Altair.
    """
    alt = altair()
    if last < 1:
        raise ConfigError(f"last = {last}: a heat map needs at least one position.")
    found = rows(maps, "maps", ("map", "layer", "position", "value", "unit"))
    cells = [row for row in found if row["map"] == which and row["value"] is not None]
    if not cells:
        raise ConfigError(f"There is no map {which!r}.", todo=f"Use one of: {', '.join(dict.fromkeys(r['map'] for r in found))}.")
    tokens = {row["position"]: row for row in rows(salience, "salience", ("position", "token", "kind", "fall", "blamed"))}
    positions = sorted({row["position"] for row in cells if row["position"] > 0})[-last:]
    label = {p: f"{fit(visible(tokens[p]['token'], spaces='all'), 8)}  {p}" for p in positions}
    data = [
        {
            "x": label[row["position"]],
            "layer": row["layer"],
            "value": math.log2(min(_MOST, max(_LEAST, row["value"]))),
            "share": row["value"],
            "under": row["value"] < threshold,
        }
        for row in cells
        if row["position"] in label
    ]
    axis = alt.Axis(labelAngle=-60, labelLimit=130, domain=False, ticks=False)
    x = alt.X("x:N", sort=list(label.values()), title="token and position", axis=axis, scale=alt.Scale(domain=list(label.values())))
    y = alt.Y("layer:O", sort="descending", title="layer", axis=alt.Axis(domain=False, ticks=False, labelOverlap="greedy"))
    legend = alt.Legend(orient="top", gradientLength=220, gradientThickness=10, titleLimit=420, values=[-4, -2, 0, 2, 4])
    scale = alt.Scale(domain=[-4, 0, 4], range=[AGAINST, NEUTRAL, FOR], interpolate="rgb")
    base = alt.Chart(inline(data)).encode(x=x, y=y)
    squares = base.mark_rect(stroke="white", strokeWidth=0.4, aria=False).encode(
        color=alt.Color("value:Q", title=f"{which}, log2 of the uniform share", scale=scale, legend=legend)
    )
    dots = base.mark_point(size=5, filled=True, color=INK, opacity=0.75, aria=False).transform_filter("datum.under")
    width = _CELL * len(positions)
    heat = alt.layer(squares, dots).properties(width=width, height=_ROW * len({row["layer"] for row in data}))
    bars = [
        {"x": label[p], "fall": tokens[p]["fall"], "mattered": "yes" if tokens[p]["blamed"] else "no"}
        for p in positions
        if tokens[p]["fall"] is not None
    ]
    if not bars:
        return styled(heat)
    colour = alt.Color(
        "mattered:N",
        title="mattered",
        scale=alt.Scale(domain=["yes", "no"], range=[OUTCOMES["fires"], "#8a8a8e"]),
        legend=alt.Legend(orient="bottom"),
    )
    below = (
        alt.Chart(inline(bars))
        .mark_bar(aria=False)
        .encode(x=x, y=alt.Y("fall:Q", title="fall (nats)"), color=colour)
        .properties(width=width, height=70, title="fall of ln P(answer) when the token is cancelled")
    )
    return styled(alt.vconcat(heat, below, spacing=10).resolve_scale(color="independent"))
