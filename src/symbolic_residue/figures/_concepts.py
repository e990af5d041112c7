"""Figures of a concepts run: small multiples over the layers, and a concept's heads as a map.

1. ``concept_layers``: a panel a concept; line = the value, blue band = its interval, grey band = what permuted labels give, dashed = what it is compared with.
   Filled dots: p ≤ 0.05 over all layers.
2. ``concept_heads``: rows = heads, columns = layers; colour = selectivity over its own mean under permuted labels, so that 1 is chance everywhere.
   Outlined: p ≤ 0.05 over all heads of all layers; a dot: over the heads of the layer only.
"""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._contrast_data import labels
from symbolic_residue.figures._palette import AGAINST, CANDIDATES, FOR, INK, NEUTRAL

if TYPE_CHECKING:
    import polars

__all__ = ["concept_heads", "concept_layers"]

_COLUMNS = 4
_WIDTH, _HEIGHT = 196, 96
_LINES = ("concept", "layer", "value", "low", "high", "null_mean", "null_low", "null_high", "beside", "clear")


def concept_layers(frame: polars.DataFrame, title: str, *, domain: tuple[float, float] | None = None) -> Any:
    """One quantity over the layers, a panel a concept.

    Args:
        frame: ``concept, layer, value, low, high, null_mean, null_low, null_high, beside, clear``; what was not measured is null.
        title: of the vertical axis.
        domain: its range; None takes what the numbers need.

    Raises:
        ConfigError: missing columns, or no rows. MissingExtraError: no Altair.
    """
    alt = altair()
    data = rows(frame, "concepts", _LINES)
    names = labels(list(dict.fromkeys(row["concept"] for row in data)), 24)
    if domain is None:
        drawn = [
            row[key] for row in data for key in ("value", "low", "high", "null_low", "null_high", "beside") if row[key] is not None
        ]
        domain = (min(drawn), max(drawn))
    panels = []
    for index, (concept, shown) in enumerate(names.items()):
        mine = [row for row in data if row["concept"] == concept]
        panels.append(_panel(mine, shown, title if index % _COLUMNS == 0 else None, domain, last=index >= len(names) - _COLUMNS))
    return styled(alt.concat(*panels, columns=_COLUMNS, spacing=12))


def _panel(data: list[dict[str, Any]], name: str, title: str | None, domain: tuple[float, float], *, last: bool) -> Any:
    alt = altair()
    x_axis = alt.Axis(format="d", tickMinStep=1, tickCount=5, grid=False, labels=last)
    x = alt.X("layer:Q", title="layer" if last else None, axis=x_axis, scale=alt.Scale(nice=False, padding=4))
    scale = alt.Scale(domain=list(domain), nice=False, zero=False)

    def y(field: str) -> Any:
        return alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=4))

    def there(field: str) -> Any:
        return alt.Chart(inline([row for row in data if row[field] is not None])).encode(x=x)

    blue, orange = CANDIDATES[:2]
    layers = [
        there("null_low").mark_area(color="#b4b4b8", opacity=0.45, aria=False).encode(y=y("null_low"), y2="null_high:Q"),
        there("null_mean").mark_line(color="#6a6a70", strokeWidth=1, aria=False).encode(y=y("null_mean")),
        there("low").mark_area(color=blue, opacity=0.2, aria=False).encode(y=y("low"), y2="high:Q"),
        there("beside").mark_line(color=orange, strokeDash=[5, 3], strokeWidth=1.4, aria=False).encode(y=y("beside")),
        there("value").mark_line(color=blue, strokeWidth=1.8, aria=False).encode(y=y("value")),
        alt.Chart(inline([row for row in data if row["clear"]])).encode(x=x).mark_point(color=blue, filled=True, size=20, opacity=1, aria=False)
        .encode(y=y("value")),
    ]  # fmt: skip
    if len(data) == 1:  # one layer is no line
        layers.append(there("value").mark_point(color=blue, size=40, aria=False).encode(y=y("value")))
    heading = alt.TitleParams(name, fontSize=12, fontWeight=600, offset=5)
    return alt.layer(*layers).properties(width=_WIDTH, height=_HEIGHT, title=heading)


def concept_heads(frame: polars.DataFrame) -> Any:
    """Selectivity of each head of one concept, over its own mean under permuted labels.

    Args:
        frame: ``layer, head, ratio, clear_model, clear_layer``.

    Raises:
        ConfigError: missing columns, or no rows. MissingExtraError: no Altair.
    """
    alt = altair()
    data = rows(frame, "heads of a concept", ("layer", "head", "ratio", "clear_model", "clear_layer"))
    n_layers, n_heads = len({row["layer"] for row in data}), len({row["head"] for row in data})
    ratios = sorted(row["ratio"] for row in data if row["ratio"] is not None)
    limit = (
        max(2.0, ratios[int(0.98 * (len(ratios) - 1))]) if ratios else 2.0
    )  # one head far above all others would leave the rest pale
    cell = max(13, min(24, 720 // n_layers))
    axis = alt.Axis(labelAngle=0, domain=False, ticks=False, labelOverlap="greedy")
    base = alt.Chart(inline(data)).encode(x=alt.X("layer:O", title="layer", axis=axis), y=alt.Y("head:O", title="head", axis=axis))
    scale = alt.Scale(domain=[0, 1, limit], range=[AGAINST, NEUTRAL, FOR], interpolate="rgb", clamp=True)
    legend = alt.Legend(orient="top", gradientLength=220, gradientThickness=10, titleLimit=520, tickCount=5, format=".2~f")
    said = f"selectivity ÷ its mean under permuted labels{' (darkest: this or more)' if ratios and ratios[-1] > limit else ''}"
    squares = base.mark_rect(stroke="white", strokeWidth=0.5, aria=False).encode(
        color=alt.Color("ratio:Q", title=said, scale=scale, legend=legend)
    )
    outline = base.mark_rect(fillOpacity=0, stroke=INK, strokeWidth=1.6, aria=False).transform_filter("datum.clear_model")
    dots = base.mark_point(shape="circle", filled=True, color=INK, size=14, opacity=1, aria=False).transform_filter(
        "datum.clear_layer && !datum.clear_model"
    )
    return styled(alt.layer(squares, outline, dots).properties(width=cell * n_layers, height=max(12, min(cell, 18)) * n_heads))
