"""Units × shells: how strongly each unit tells a shell's planted items from its null items; what survives the correction is outlined."""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import AGAINST, FOR, INK, NEUTRAL
from symbolic_residue.figures._text import fit, visible

if TYPE_CHECKING:
    import polars

__all__ = ["alignment_map"]

_CELL, _ROW = 120, 16


def alignment_map(alignments: polars.DataFrame) -> Any:
    """Units × shells: blue = more active on planted items, orange = on null items; outlined where p is at most 0.05.

    Args:
        alignments: table ``alignments`` of one item: ``layer, unit, shell, effect, aligned``.

    Raises:
        ConfigError: missing columns, no rows, several items. MissingExtraError: no Altair.
    """
    alt = altair()
    data = [
        {
            "unit": f"{row['layer']}.{row['unit']}",
            "shell": fit(visible(row["shell"]), 24),
            "effect": row["effect"],
            "aligned": row["aligned"],
        }
        for row in rows(alignments, "alignments", ("layer", "unit", "shell", "effect", "aligned"))
    ]
    units, shells = (list(dict.fromkeys(row[key] for row in data)) for key in ("unit", "shell"))
    axis = alt.Axis(labelAngle=0, domain=False, ticks=False, labelLimit=220)
    base = alt.Chart(inline(data)).encode(
        x=alt.X("shell:N", sort=shells, title=None, axis=axis),
        y=alt.Y("unit:N", sort=units, title="unit (layer.number)", axis=axis),
    )
    scale = alt.Scale(domain=[-1, 0, 1], range=[AGAINST, NEUTRAL, FOR], interpolate="rgb")
    legend = alt.Legend(orient="top", gradientLength=220, gradientThickness=10, titleLimit=420, tickCount=5)
    squares = base.mark_rect(stroke="white", strokeWidth=0.6, aria=False).encode(
        color=alt.Color("effect:Q", title="planted against null (2 AUC − 1)", scale=scale, legend=legend)
    )
    outline = base.mark_rect(fillOpacity=0, stroke=INK, strokeWidth=1.6, aria=False).transform_filter("datum.aligned")
    return styled(alt.layer(squares, outline).properties(width=_CELL * len(shells), height=_ROW * len(units)))
