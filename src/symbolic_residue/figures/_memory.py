"""Memory against distance, with the curves fitted to it."""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

import numpy as np

from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._curves import curves
from symbolic_residue.figures._palette import CANDIDATES

if TYPE_CHECKING:
    import polars

__all__ = ["memory_decay"]

_POINTS = 60


def memory_decay(memory: polars.DataFrame, fits: polars.DataFrame) -> Any:
    """Memory (nats) against distance, one line a kind of padding; thin lines are the model with the smallest AIC of each.

    Args:
        memory: rows of the table ``curves`` of one curve and item.
        fits: table ``fits`` of the same item; may be empty.

    Raises:
        ConfigError: missing columns, no rows, several items or curves, too many series. MissingExtraError: no Altair.
    """
    alt = altair()
    chart = curves(memory, log_x=True)
    best = [row for row in fits.iter_rows(named=True) if row["difference"] == 0 and row["model"] != "constant"]
    if not best:
        return chart
    data = rows(memory, "curves", ("series", "x", "value"))
    series = list(dict.fromkeys(row["series"] for row in data))
    far = max(row["x"] for row in data)
    points = []
    for row in best:
        x = np.expm1(np.linspace(0.0, np.log1p(far), _POINTS))
        y = row["a"] * ((1 + x) ** -row["b"] if row["model"] == "power law" else np.exp(-row["b"] * x))
        name = f"{row['series']}: {row['model']}, b = {row['b']:.3g}"
        points += [{"x": float(a), "fit": float(b), "name": name, "series": row["series"]} for a, b in zip(x, y, strict=True)]
    colours = [CANDIDATES[series.index(row["series"]) % len(CANDIDATES)] for row in best]
    names = list(dict.fromkeys(p["name"] for p in points))
    fitted = (
        alt.Chart(inline(points))
        .mark_line(strokeWidth=1, strokeDash=[1, 2], aria=False)
        .encode(
            x=alt.X("x:Q"),
            y=alt.Y("fit:Q"),
            color=alt.Color(
                "name:N",
                title="fit",
                sort=names,
                scale=alt.Scale(domain=names, range=colours),
                legend=alt.Legend(orient="bottom", labelLimit=320, columns=2, symbolType="stroke"),
            ),
        )
    )
    return styled(alt.layer(chart, fitted).resolve_scale(color="independent"))
