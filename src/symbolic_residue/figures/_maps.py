"""Two maps over the model's depth: what the logit lens reads at each layer and position, and what each head adds.

1. ``lens_heatmap`` (nostalgebraist 2020, the logit lens): rows = layers, the last on top; columns = positions, the last 24 at
   most; the cell says the top token there. Cells whose top token is already the model's final next token are outlined.
2. ``head_map``: direct logit attribution of each head (Elhage et al. 2021), orange against and blue for; heads that an
   intervention confirmed are outlined.
"""

from __future__ import annotations

from typing import Any, Literal, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import AGAINST, FOR, INK, NEUTRAL
from symbolic_residue.figures._text import fit, visible

if TYPE_CHECKING:
    import polars

__all__ = ["LENS_POSITIONS", "head_map", "lens_heatmap"]

LENS_POSITIONS = 24
_CELL = 40  # px; 24 columns and the axis fill a landscape A4 page at full size
_ROW = 17
_SHADES = ["#fdfdf8", "#cfe6ee", "#8cc1de", "#4f9bcb"]  # light enough for dark text everywhere


def lens_heatmap(
    lens: polars.DataFrame,
    tokens: polars.DataFrame,
    *,
    colour: Literal["entropy", "answer_probability"] = "entropy",
    last: int = LENS_POSITIONS,
) -> Any:
    """Logit lens by layer and position; colour = entropy (nats; dark = sure) or the probability of the final top token.

    Args:
        lens: table ``lens`` of one item: ``layer, position, top_token, entropy, answer_probability``.
        tokens: table ``tokens`` of the same item: ``position, token``.
        colour: the quantity shown by the cells' colour.
        last: how many positions to show, counted from the end.

    Raises:
        ConfigError: missing columns, no rows, several items, ``last`` under 1. MissingExtraError: no Altair.
    """
    alt = altair()
    if last < 1:
        raise ConfigError(f"last = {last}: a heat map needs at least one position.")
    cells = rows(lens, "lens", ("layer", "position", "top_token", "entropy", "answer_probability"))
    names = {row["position"]: row["token"] for row in rows(tokens, "tokens", ("position", "token"))}
    positions = sorted({row["position"] for row in cells})[-last:]
    shown = set(positions)
    top_layer = max(row["layer"] for row in cells)
    final = {row["position"]: row["top_token"] for row in cells if row["layer"] == top_layer}.get(positions[-1])
    label = {position: f"{fit(visible(names.get(position, '?'), spaces='all'), 8)}  {position}" for position in positions}
    data = [
        {
            "x": label[row["position"]],
            "layer": row["layer"],
            "colour": row[colour],
            "text": fit(visible(row["top_token"], spaces="all"), _CELL / 10 - 0.35),
            "final": row["top_token"] == final,
        }
        for row in cells
        if row["position"] in shown
    ]
    n_layers = len({row["layer"] for row in data})
    x = alt.X(
        "x:N",
        sort=list(label.values()),
        title="token and position",
        axis=alt.Axis(labelAngle=-60, labelLimit=130, domain=False, ticks=False),
    )
    y = alt.Y("layer:O", sort="descending", title="layer", axis=alt.Axis(domain=False, ticks=False))
    title, shades = (
        ("entropy (nats); dark = sure", _SHADES[::-1]) if colour == "entropy" else ("probability of the final top token", _SHADES)
    )
    extent = [row["colour"] for row in data if row["colour"] is not None]
    domain = [0, max(extent, default=1.0) or 1.0] if colour == "entropy" else [0, 1]
    legend = alt.Legend(orient="top", gradientLength=220, gradientThickness=10, titleLimit=320, tickCount=5)
    base = alt.Chart(inline(data)).encode(x=x, y=y)
    squares = base.mark_rect(stroke="white", strokeWidth=0.6, aria=False).encode(
        color=alt.Color("colour:Q", title=title, scale=alt.Scale(domain=domain, range=shades), legend=legend)
    )
    outline = base.mark_rect(fillOpacity=0, stroke=INK, strokeWidth=1.4, aria=False).transform_filter("datum.final")
    words = base.mark_text(fontSize=10, color=INK, aria=False).encode(text="text:N").transform_filter("datum.text != ''")
    return styled(alt.layer(squares, outline, words).properties(width=_CELL * len(positions), height=_ROW * n_layers))


def head_map(heads: polars.DataFrame) -> Any:
    """Direct logit attribution by layer and head (logits), one map a target; confirmed heads are outlined.

    Args:
        heads: table ``heads`` of one item: ``layer, head, target, dla, confirmed``.

    Raises:
        ConfigError: missing columns, no rows, several items. MissingExtraError: no Altair.
    """
    alt = altair()
    data = rows(heads, "heads", ("layer", "head", "target", "dla", "confirmed"))
    limit = max((abs(row["dla"]) for row in data if row["dla"] is not None), default=1.0) or 1.0
    layers, n_heads = sorted({row["layer"] for row in data}), len({row["head"] for row in data})
    cell = max(14, min(22, 660 // len(layers)))
    panels = []
    for target in dict.fromkeys(row["target"] for row in data):
        mine = [row for row in data if row["target"] == target]
        axis = alt.Axis(labelAngle=0, domain=False, ticks=False, labelOverlap="greedy")
        base = alt.Chart(inline(mine)).encode(
            x=alt.X("layer:O", title="layer", axis=axis), y=alt.Y("head:O", title="head", axis=axis, sort="ascending")
        )
        squares = base.mark_rect(stroke="white", strokeWidth=0.5, aria=False).encode(
            color=alt.Color(
                "dla:Q",
                title="direct logit attribution (logits)",
                scale=alt.Scale(domain=[-limit, 0, limit], range=[AGAINST, NEUTRAL, FOR], interpolate="rgb"),
                legend=alt.Legend(
                    orient="top", gradientLength=220, gradientThickness=10, format="+.2f", titleLimit=320, tickCount=5
                ),
            )
        )
        outline = base.mark_rect(fillOpacity=0, stroke=INK, strokeWidth=2.2, aria=False).transform_filter("datum.confirmed")
        panel = alt.layer(squares, outline).properties(width=cell * len(layers), height=max(14, min(cell, 18)) * n_heads)
        panels.append(panel.properties(title=f"toward {visible(target, spaces='ends')}"))
    return styled(alt.vconcat(*panels, spacing=18) if len(panels) > 1 else panels[0])
