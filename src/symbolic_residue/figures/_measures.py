"""Figures of measures across shells: heads whose attention differs from the control, and the parts behind silence.

1. ``disruption_map``: rows = heads, columns = layers; blue = more than in the control, orange = less; outlined where q ≤ 0.05.
2. ``silence_parts``: one bar a component, the strongest first: blue silences, orange pushes content; a grey tick is the same on the controls.
"""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import AGAINST, FOR, INK, NEUTRAL

if TYPE_CHECKING:
    import polars

__all__ = ["disruption_map", "silence_parts"]

_LEVEL = 0.05
_PARTS = 16


def disruption_map(disruption: polars.DataFrame, metric: str) -> Any:
    """Difference from the control of one metric, by layer and head.

    Args:
        disruption: table ``disruption`` of one item: ``layer, head, metric, difference, q, unit``.
        metric: which.

    Raises:
        ConfigError: missing columns, no rows, several items, no such metric. MissingExtraError: no Altair.
    """
    alt = altair()
    every = rows(disruption, "disruption", ("layer", "head", "metric", "difference", "q", "unit"))
    data = [{**row, "found": row["q"] <= _LEVEL} for row in every if row["metric"] == metric]
    if not data:
        raise ConfigError(
            f"There is no metric {metric!r}.", todo=f"Use one of: {', '.join(dict.fromkeys(r['metric'] for r in every))}."
        )
    limit = max(abs(row["difference"] or 0.0) for row in data) or 1.0
    layers, heads = sorted({row["layer"] for row in data}), sorted({row["head"] for row in data})
    axis = alt.Axis(labelAngle=0, domain=False, ticks=False, labelOverlap="greedy")
    base = alt.Chart(inline(data)).encode(
        x=alt.X("layer:O", title="layer", axis=axis, scale=alt.Scale(domain=layers)),
        y=alt.Y("head:O", title="head", axis=axis, scale=alt.Scale(domain=heads)),
    )
    scale = alt.Scale(domain=[-limit, 0, limit], range=[AGAINST, NEUTRAL, FOR], interpolate="rgb")
    legend = alt.Legend(orient="top", gradientLength=220, gradientThickness=10, titleLimit=420, tickCount=5)
    title = f"{metric}, prompt − control ({data[0]['unit']})"
    squares = base.mark_rect(stroke="white", strokeWidth=0.5, aria=False).encode(
        color=alt.Color("difference:Q", title=title, scale=scale, legend=legend)
    )
    outline = base.mark_rect(fillOpacity=0, stroke=INK, strokeWidth=1.6, aria=False).transform_filter("datum.found")
    cell = max(14, min(22, 660 // len(layers)))
    return styled(alt.layer(squares, outline).properties(width=cell * len(layers), height=18 * len(heads)))


def silence_parts(overruled: polars.DataFrame) -> Any:
    """The strongest parts of logit(end) − logit(content), with their intervals; grey ticks: the same on the controls.

    Args:
        overruled: table ``overruled`` of one item: ``component, layer, head, contribution, low, high, control``.

    Raises:
        ConfigError: missing columns, no rows, several items. MissingExtraError: no Altair.
    """
    alt = altair()
    found = rows(overruled, "overruled", ("component", "layer", "head", "contribution", "low", "high", "control"))
    found.sort(key=lambda row: -abs(row["contribution"]))
    data = [
        {**row, "part": _name(row), "sign": "silences" if row["contribution"] > 0 else "pushes content"} for row in found[:_PARTS]
    ]
    y = alt.Y("part:N", sort=[row["part"] for row in data], title=None, axis=alt.Axis(domain=False, ticks=False))
    colour = alt.Color(
        "sign:N",
        title=None,
        scale=alt.Scale(domain=["silences", "pushes content"], range=[FOR, AGAINST]),
        legend=alt.Legend(orient="top"),
    )
    base = alt.Chart(inline(data)).encode(y=y)
    layers = [
        base.mark_bar(aria=False).encode(
            x=alt.X("contribution:Q", title="part of logit(end) − logit(content), nats"), color=colour
        ),
        base.transform_filter("isValid(datum.low)").mark_rule(aria=False, color=INK).encode(x="low:Q", x2="high:Q"),
        base.transform_filter("isValid(datum.control)")
        .mark_tick(aria=False, color="#6b6b70", thickness=2.5, size=14)
        .encode(x="control:Q"),
    ]
    return styled(alt.layer(*layers).properties(width=520, height=18 * len(data)))


def _name(row: dict[str, Any]) -> str:
    if row["component"] == "head":
        return f"head {row['layer']}.{row['head']}"
    return f"{row['component']} {row['layer']}" if row["layer"] >= 0 else str(row["component"])
