"""Two runs beside each other: on how many items each failure mode fires, and how far its value moved."""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import CANDIDATES, INK
from symbolic_residue.figures._text import visible

if TYPE_CHECKING:
    import polars

__all__ = ["run_comparison"]

_COLUMNS = ("base", "other", "shell", "mode", "side", "effect", "effect_low", "effect_high", "rate_base", "rate_other")


def run_comparison(comparison: polars.DataFrame) -> Any:
    """One row a failure mode and side. Left: the share of items on which it fires in each run; right: the mean difference over its standard deviation.

    Args:
        comparison: the frame of a comparison: ``base, other, shell, mode, side, effect, effect_low, effect_high, rate_base, rate_other``.

    Raises:
        ConfigError: missing columns or no rows. MissingExtraError: no Altair.
    """
    alt = altair()
    data = rows(comparison, "comparison", _COLUMNS)
    runs = list(dict.fromkeys([data[0]["base"], *(row["other"] for row in data)]))
    label = [_label(row, len({other["shell"] for other in data}) > 1) for row in data]
    order = list(dict.fromkeys(visible(name) for name in label))
    names = [visible(run) for run in runs]
    colour = alt.Color("run:N", title=None, sort=names, scale=alt.Scale(domain=names, range=_colours(len(names))))
    legend = alt.Legend(orient="bottom", labelLimit=320, symbolSize=90)
    shapes = alt.Shape("run:N", title=None, sort=names, legend=legend, scale=alt.Scale(domain=names, range=_shapes(len(names))))
    y = alt.Y("mode:N", title=None, sort=order, axis=alt.Axis(domain=False, ticks=False, labelLimit=300))
    shares = [
        {"mode": visible(name), "run": visible(run), "share": share}
        for name, row in zip(label, data, strict=True)
        for run, share in ((row["base"], row["rate_base"]), (row["other"], row["rate_other"]))
        if share is not None
    ]
    left = alt.Chart(inline(shares)).encode(
        y=y, x=alt.X("share:Q", title="share of items on which it fires", scale=alt.Scale(domain=[0, 1]))
    )
    dots = left.mark_point(size=70, filled=True, opacity=0.9, aria=False).encode(color=colour, shape=shapes)
    lines = left.mark_line(strokeWidth=1.2, color="#8a8a8e", aria=False).encode(detail="mode:N")
    moved = [
        {"mode": visible(name), "run": visible(row["other"]), **{key: row[key] for key in ("effect", "effect_low", "effect_high")}}
        for name, row in zip(label, data, strict=True)
        if row["effect"] is not None
    ]
    right = alt.Chart(inline(moved)).encode(
        y=alt.Y("mode:N", title=None, sort=order, axis=alt.Axis(labels=False, ticks=False, domain=False)),
        yOffset=alt.YOffset("run:N", sort=names[1:]),
        color=colour,
    )
    title = f"mean difference from {visible(runs[0])}, in standard deviations of the difference"
    bars = right.mark_rule(strokeWidth=2.4, aria=False).encode(x=alt.X("effect_low:Q", title=title), x2="effect_high:Q")
    ends = right.mark_point(size=60, filled=True, opacity=1, aria=False).encode(x="effect:Q", shape=shapes)
    zero = alt.Chart(inline([{"at": 0}])).mark_rule(color=INK, strokeDash=[4, 3], aria=False).encode(x="at:Q")
    height = max(60, 26 * len(order))
    return styled(
        alt.hconcat(
            alt.layer(lines, dots).properties(width=300, height=height),
            alt.layer(zero, bars, ends).properties(width=340, height=height),
            spacing=24,
        ).resolve_scale(y="shared")
    )


def _label(row: dict[str, Any], several: bool) -> str:
    """A row's name: the shell only where there are several, the side only where items are told apart."""
    name = f"{row['shell']}: {row['mode']}" if several else row["mode"]
    return name if row["side"] == "all" else f"{name} ({row['side']})"


def _colours(n: int) -> list[str]:
    return [CANDIDATES[i % len(CANDIDATES)] for i in range(n)]


def _shapes(n: int) -> list[str]:
    kinds = ("circle", "diamond", "square", "triangle-up", "cross", "triangle-down")
    return [kinds[i % len(kinds)] for i in range(n)]
