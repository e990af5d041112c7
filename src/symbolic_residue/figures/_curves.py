"""Two figures that every shell can use: lines with their intervals, and one number for each layer and token.

1. ``curves``: the lines of one ``curve`` of the table ``curves``: x = what was varied, band = interval, controls dashed grey beside.
2. ``layer_token_map``: rows = layers, the last on top; columns = tokens, the last 24 at most.
"""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import AGAINST, CANDIDATES, DASHES, FOR, NEUTRAL
from symbolic_residue.figures._text import fit, visible

if TYPE_CHECKING:
    import polars

__all__ = ["MAP_POSITIONS", "MOST_SERIES", "curves", "layer_token_map"]

MAP_POSITIONS = 24
MOST_SERIES = len(CANDIDATES)
"""Lines that one figure of curves holds, controls not counted."""
_CELL, _ROW = 26, 14
_COLUMNS = ("curve", "series", "x", "x_unit", "value", "low", "high", "n", "unit")


def curves(frame: polars.DataFrame, curve: str | None = None, *, log_x: bool = False) -> Any:
    """Lines of one curve with their intervals; at most six series, and any number of controls (series whose name begins with ``control``).

    Args:
        frame: table ``curves`` of one item: ``curve, series, x, x_unit, value, low, high, n, unit``.
        curve: which; may be left out where there is only one.
        log_x: a symmetric logarithmic x axis (0 stays at 0).

    Raises:
        ConfigError: missing columns, no rows, several items, no such curve, too many series. MissingExtraError: no Altair.
    """
    alt = altair()
    data = rows(frame, "curves", _COLUMNS)
    names = list(dict.fromkeys(row["curve"] for row in data))
    if curve is None and len(names) == 1:
        curve = names[0]
    if curve not in names:
        raise ConfigError(f"There is no curve {curve!r}.", todo=f"Use one of: {', '.join(names)}.")
    data = [{**row, "series": visible(row["series"])} for row in data if row["curve"] == curve]
    series = list(dict.fromkeys(row["series"] for row in data))
    main = [name for name in series if not name.startswith("control")]
    if len(main) > len(CANDIDATES):
        raise ConfigError(f"{len(main)} series do not fit into one figure.", todo=f"Filter to {len(CANDIDATES)} of them.")
    order = [*main, *(name for name in series if name not in main)]
    greys = ["#8a8a8e"] * (len(order) - len(main))
    legend = alt.Legend(orient="bottom", symbolType="stroke", symbolSize=400, symbolStrokeWidth=2.2, labelLimit=320, columns=2)
    colour = alt.Color(
        "series:N", title=None, sort=order, legend=legend, scale=alt.Scale(domain=order, range=[*CANDIDATES[: len(main)], *greys])
    )
    dashes = [*DASHES[: len(main)], *([3, 3] for _ in greys)]
    dash = alt.StrokeDash("series:N", title=None, sort=order, legend=legend, scale=alt.Scale(domain=order, range=dashes))
    scale = alt.Scale(type="symlog", constant=8) if log_x else alt.Scale(nice=False)
    unit, x_unit = data[0]["unit"], data[0]["x_unit"]
    base = alt.Chart(inline(data)).encode(
        x=alt.X("x:Q", title=x_unit, scale=scale, axis=alt.Axis(labelOverlap="greedy", tickCount=8)), color=colour
    )
    y = alt.Y("value:Q", title=f"{curve} ({unit})" if unit else curve)
    band = base.mark_area(opacity=0.16, aria=False).encode(y=alt.Y("low:Q"), y2="high:Q")
    line = base.mark_line(strokeWidth=2, aria=False).encode(y=y, strokeDash=dash)
    dots = base.mark_point(size=18, filled=True, opacity=1, aria=False).encode(y=y)
    return styled(alt.layer(band, line, dots).properties(width=560, height=220))


def layer_token_map(
    maps: polars.DataFrame, tokens: polars.DataFrame, which: str | None = None, *, last: int = MAP_POSITIONS
) -> Any:
    """One number for each layer and token: orange below 0, blue above.

    Args:
        maps: table ``maps`` of one item: ``map, layer, position, value, unit``.
        tokens: table ``tokens`` of the same item: ``position, token``.
        which: the map's name; may be left out where there is only one.
        last: how many positions to show, counted from the end.

    Raises:
        ConfigError: missing columns, no rows, several items, no such map, ``last`` under 1. MissingExtraError: no Altair.
    """
    alt = altair()
    if last < 1:
        raise ConfigError(f"last = {last}: a map needs at least one position.")
    cells = rows(maps, "maps", ("map", "layer", "position", "value", "unit"))
    names = list(dict.fromkeys(row["map"] for row in cells))
    if which is None and len(names) == 1:
        which = names[0]
    if which not in names:
        raise ConfigError(f"There is no map {which!r}.", todo=f"Use one of: {', '.join(names)}.")
    cells = [row for row in cells if row["map"] == which]
    words = {row["position"]: row["token"] for row in rows(tokens, "tokens", ("position", "token"))}
    positions = sorted({row["position"] for row in cells})[-last:]
    label = {p: f"{fit(visible(words.get(p, '?'), spaces='all'), 8)}  {p}" for p in positions}
    data = [
        {"x": label[row["position"]], "layer": row["layer"], "value": row["value"]} for row in cells if row["position"] in label
    ]
    limit = max((abs(row["value"]) for row in data if row["value"] is not None), default=1.0) or 1.0
    negative = any((row["value"] or 0.0) < 0 for row in data)
    scale = (
        alt.Scale(domain=[-limit, 0, limit], range=[AGAINST, NEUTRAL, FOR], interpolate="rgb")
        if negative
        else alt.Scale(domain=[0, limit], range=[NEUTRAL, FOR], interpolate="rgb")
    )
    unit = cells[0]["unit"]
    legend = alt.Legend(orient="top", gradientLength=220, gradientThickness=10, titleLimit=420, tickCount=5)
    chart = (
        alt.Chart(inline(data))
        .mark_rect(stroke="white", strokeWidth=0.5, aria=False)
        .encode(
            x=alt.X(
                "x:N",
                sort=list(label.values()),
                title="token and position",
                axis=alt.Axis(labelAngle=-60, labelLimit=130, domain=False, ticks=False),
            ),
            y=alt.Y("layer:O", sort="descending", title="layer", axis=alt.Axis(domain=False, ticks=False, labelOverlap="greedy")),
            color=alt.Color("value:Q", title=f"{which} ({unit})" if unit else which, scale=scale, legend=legend),
        )
        .properties(width=_CELL * len(positions), height=_ROW * len({row["layer"] for row in data}))
    )
    return styled(chart)
