"""Two figures of a verdict: how the candidates' probabilities move while the model refines, and each number beside its control.

1. ``probability_traces``: one small panel a refiner; x = step, y = a candidate's share of the candidates' mass. The prompt
   itself is the thick line; edited variants of it are thin lines behind. At most six candidates, those with the largest share.
2. ``verdict_intervals``: one row a mode, each on its own scale (units differ): value and interval, the control's, the criterion.
"""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import CANDIDATES, DASHES, OUTCOMES
from symbolic_residue.figures._text import visible

if TYPE_CHECKING:
    import polars

__all__ = ["MAX_LINES", "probability_traces", "verdict_intervals"]

MAX_LINES = len(CANDIDATES)

_REFINERS = {
    "rollout": "rollout: append top token",
    "soft": "soft: feed back mean embedding",
    "layers": "layers: lens over depth",
}


def _ticks(data: list[dict[str, Any]]) -> list[int]:
    """At most seven whole steps, evenly spread; a short trace gets each of its own."""
    steps = sorted({row["step"] for row in data})
    every = max(1, -(-len(steps) // 7))
    return steps[::every]


def probability_traces(traces: polars.DataFrame) -> Any:
    """Share of the candidates' mass by step, one panel a refiner (rollout, soft, layers, then any other).

    Args:
        traces: table ``traces`` of one item: ``refiner, variant, step, token, share``; share in 0..1.

    Raises:
        ConfigError: missing columns, no rows, several items. MissingExtraError: no Altair.
    """
    alt = altair()
    data = rows(traces, "traces", ("refiner", "variant", "step", "token", "share"))
    largest: dict[str, float] = {}
    for row in data:
        if row["variant"] == 0:
            largest[row["token"]] = max(largest.get(row["token"], 0.0), row["share"] or 0.0)
    shown = sorted(largest, key=lambda token: -largest[token])[:MAX_LINES]
    labels = [visible(token, spaces="all") for token in shown]
    data = [{**row, "token": visible(row["token"], spaces="all")} for row in data if row["token"] in shown]
    refiners = sorted(
        {row["refiner"] for row in data}, key=lambda name: (list(_REFINERS).index(name) if name in _REFINERS else 99, name)
    )
    key = alt.Legend(orient="bottom", symbolType="stroke", symbolOpacity=1, symbolSize=500, symbolStrokeWidth=2.2)
    colour = alt.Color(
        "token:N", title="candidate", sort=labels, scale=alt.Scale(domain=labels, range=list(CANDIDATES[: len(labels)])), legend=key
    )
    dash = alt.StrokeDash(
        "token:N", title="candidate", sort=labels, scale=alt.Scale(domain=labels, range=DASHES[: len(labels)]), legend=key
    )
    panels = []
    for index, refiner in enumerate(refiners):
        mine = [row for row in data if row["refiner"] == refiner]
        base = alt.Chart().encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(format="d", values=_ticks(mine)), scale=alt.Scale(nice=False)),
            y=alt.Y(
                "share:Q",
                title="share of the candidates' mass" if index == 0 else None,
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format=".1f", tickCount=5),
            ),
            color=colour,
        )
        thick = base.mark_line(strokeWidth=2.2, aria=False).encode(strokeDash=dash).transform_filter("datum.variant == 0")
        dots = base.mark_point(size=14, filled=True, opacity=1, aria=False).transform_filter("datum.variant == 0")
        layers = [thick, dots]
        if any(row["variant"] != 0 for row in mine):
            thin = (
                base.mark_line(strokeWidth=0.8, opacity=0.3, aria=False)
                .encode(detail="variant:N")
                .transform_filter("datum.variant != 0")
            )
            layers.insert(0, thin)
        title = alt.TitleParams(_REFINERS.get(refiner, refiner), fontSize=12, fontWeight="normal", frame="group")
        panels.append(alt.layer(*layers, data=inline(mine)).properties(width=178, height=170, title=title))
    chart = alt.hconcat(*panels, spacing=34, bounds="flush").resolve_scale(color="shared", strokeDash="shared")
    return styled(chart)


def verdict_intervals(verdicts: polars.DataFrame) -> Any:
    """Every mode's value, interval and control against its criterion; one row a mode, each row on its own scale.

    Args:
        verdicts: table ``verdicts`` of one item: ``mode, outcome, quantity, unit, value, low, high, control, control_value,
            control_low, control_high, criterion``.

    Raises:
        ConfigError: missing columns, no rows, several items. MissingExtraError: no Altair.
    """
    alt = altair()
    columns = (
        "mode",
        "outcome",
        "quantity",
        "unit",
        "value",
        "low",
        "high",
        "control_value",
        "control_low",
        "control_high",
        "criterion",
    )
    panels = []
    for row in rows(verdicts, "verdicts", columns):
        unit = f" ({row['unit']})" if row["unit"] else ""
        points = [
            {"what": "value", "at": row["value"], "low": row["low"], "high": row["high"]},
            {"what": "control", "at": row["control_value"], "low": row["control_low"], "high": row["control_high"]},
        ]
        data = inline([point for point in points if point["at"] is not None])
        shape = alt.Shape("what:N", legend=None, scale=alt.Scale(domain=["value", "control"], range=["circle", "diamond"]))
        colour = alt.Color(
            "what:N",
            legend=None,
            scale=alt.Scale(domain=["value", "control"], range=[OUTCOMES.get(row["outcome"], "#333333"), "#77777c"]),
        )
        y = alt.Y("what:N", title=None, sort=["value", "control"], axis=alt.Axis(grid=False, ticks=False, domain=False))
        x = alt.X(
            "at:Q", title=f"{row['quantity']}{unit}", scale=alt.Scale(zero=False, nice=True, padding=12), axis=alt.Axis(tickCount=6)
        )
        bars = alt.Chart(data).mark_rule(strokeWidth=3, aria=False).encode(y=y, x=alt.X("low:Q"), x2="high:Q", color=colour)
        dots = alt.Chart(data).mark_point(filled=True, size=90, opacity=1, aria=False).encode(y=y, x=x, color=colour, shape=shape)
        layers = [bars.transform_filter("isValid(datum.low) && isValid(datum.high)"), dots]
        if row["criterion"] is not None:
            line = alt.Chart(inline([{"at": row["criterion"]}])).mark_rule(
                strokeDash=[4, 3], strokeWidth=1.5, color="#16181d", aria=False
            )
            layers.append(line.encode(x="at:Q"))
        title = f"{row['mode']}: {row['outcome']}"
        panels.append(alt.layer(*layers).properties(width=520, height=46, title=alt.TitleParams(title, fontSize=12)))
    return styled(alt.vconcat(*panels, spacing=14).resolve_scale(color="independent", x="independent"))
