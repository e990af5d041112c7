"""Figures across shells: which heads several shells blame.

``blame_map``: rows = heads, columns = layers; the deeper the blue, the more shells blame the head; heads that an intervention confirmed for at least one
shell are outlined.
"""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import INK

if TYPE_CHECKING:
    import polars

__all__ = ["blame_map"]

_SHADES = ["#cfe6ee", "#8cc1de", "#4f9bcb", "#2a6fa8", "#174a75"]


def blame_map(blame: polars.DataFrame) -> Any:
    """Heads by layer, coloured by the number of shells that blame them; heads that none blames are left white.

    Args:
        blame: table ``blame`` of one item: ``level, layer, unit, shell, blamed, confirmed, by``.

    Raises:
        ConfigError: missing columns, several items, no head that is blamed. MissingExtraError: no Altair.
    """
    alt = altair()
    cells = [
        r for r in rows(blame, "blame", ("level", "layer", "unit", "shell", "blamed", "confirmed", "by")) if r["level"] == "head"
    ]
    if not cells:
        raise ConfigError("No shell blames a head, so there is nothing to draw.")
    heads: dict[tuple[int, int], dict[str, Any]] = {}
    for row in cells:
        entry = heads.setdefault(
            (row["layer"], int(row["unit"])),
            {"layer": row["layer"], "head": int(row["unit"]), "shells": str(row["by"]), "confirmed": False},
        )
        entry["confirmed"] = entry["confirmed"] or bool(row["confirmed"])
    counts = [str(k) for k in range(1, max(int(e["shells"]) for e in heads.values()) + 1)]
    n_layers = max(layer for layer, _ in heads) + 1
    cell = max(14, min(22, 660 // n_layers))
    axis = alt.Axis(labelAngle=0, domain=False, ticks=False, labelOverlap="greedy")
    layers, head_numbers = list(range(n_layers)), list(range(max(head for _, head in heads) + 1))
    base = alt.Chart(inline(list(heads.values()))).encode(
        x=alt.X("layer:O", title="layer", axis=axis, scale=alt.Scale(domain=layers)),
        y=alt.Y("head:O", title="head", axis=axis, scale=alt.Scale(domain=head_numbers)),
    )
    shades = [_SHADES[min(i, len(_SHADES) - 1)] for i in range(len(counts))]
    squares = base.mark_rect(stroke="white", strokeWidth=0.5, aria=False).encode(
        color=alt.Color(
            "shells:N",
            title="shells that blame the head",
            scale=alt.Scale(domain=counts, range=shades),
            legend=alt.Legend(orient="top"),
        )
    )
    outline = base.mark_rect(fillOpacity=0, stroke=INK, strokeWidth=2, aria=False).transform_filter("datum.confirmed")
    return styled(alt.layer(squares, outline).properties(width=cell * n_layers, height=18 * len(head_numbers)))
