"""Similarity of prompts to shells, as a map: rows = categories or prompts, columns = shells, colour = similarity; what is called similar is outlined."""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import AGAINST, FOR, INK, NEUTRAL
from symbolic_residue.figures._text import fit, visible

if TYPE_CHECKING:
    import polars

__all__ = ["similarity_map"]

_CELL, _ROW, _LIMIT = 120, 22, 1.5


def similarity_map(similarities: polars.DataFrame) -> Any:
    """Categories × shells: orange away from the shell, blue toward it; the number is the similarity, an outline says ``similar``.

    Args:
        similarities: table ``similarities`` of one item: ``category, shell, outcome, similarity``.

    Raises:
        ConfigError: missing columns, no rows, several items. MissingExtraError: no Altair.
    """
    alt = altair()
    data = [
        {
            "category": fit(visible(row["category"]), 28),
            "shell": fit(visible(row["shell"]), 24),
            "value": row["similarity"],
            "text": "no signature" if row["similarity"] is None else f"{row['similarity']:+.2f}",
            "similar": row["outcome"] == "similar",
        }
        for row in rows(similarities, "similarities", ("category", "shell", "outcome", "similarity"))
    ]
    categories, shells = (list(dict.fromkeys(row[key] for row in data)) for key in ("category", "shell"))
    axis = alt.Axis(labelAngle=0, domain=False, ticks=False, labelLimit=220)
    base = alt.Chart(inline(data)).encode(
        x=alt.X("shell:N", sort=shells, title=None, axis=axis), y=alt.Y("category:N", sort=categories, title=None, axis=axis)
    )
    scale = alt.Scale(domain=[-_LIMIT, 0, _LIMIT], range=[AGAINST, NEUTRAL, FOR], interpolate="rgb", clamp=True)
    title = "similarity (1 = the shell's own shift from null to planted)"
    legend = alt.Legend(orient="top", gradientLength=220, gradientThickness=10, titleLimit=420, tickCount=5)
    squares = base.mark_rect(stroke="white", strokeWidth=0.6, aria=False).encode(
        color=alt.Color("value:Q", title=title, scale=scale, legend=legend)
    )
    outline = base.mark_rect(fillOpacity=0, stroke=INK, strokeWidth=1.8, aria=False).transform_filter("datum.similar")
    words = base.mark_text(fontSize=11, color=INK, aria=False).encode(text="text:N")
    return styled(alt.layer(squares, outline, words).properties(width=_CELL * len(shells), height=_ROW * len(categories)))
