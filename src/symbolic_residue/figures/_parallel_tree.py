"""Figure of one token tree's steps: entropy and disagreement above, the size of the sets below."""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import CANDIDATES, DASHES, FOR

if TYPE_CHECKING:
    import polars

__all__ = ["parallel_steps"]


def parallel_steps(steps: polars.DataFrame) -> Any:
    """Entropy of the distribution that chose each set, disagreement of the rows mixed into it (nats), and how many tokens the set holds.

    Args:
        steps: table ``parallel_steps`` of one item: ``step, threshold, above, mass, entropy, disagreement, size``.

    Raises:
        ConfigError: missing columns, no rows, several items. MissingExtraError: no Altair.
    """
    alt = altair()
    data = rows(steps, "parallel_steps", ("step", "entropy", "disagreement", "size", "above", "threshold"))
    names = {"entropy": "entropy", "disagreement": "disagreement of the rows"}
    lines = [{"step": row["step"], "series": said, "value": row[name]} for row in data for name, said in names.items()]
    order = list(names.values())
    legend = alt.Legend(orient="bottom", symbolType="stroke", symbolSize=400, symbolStrokeWidth=2.2)
    x = alt.X("step:Q", title=None, scale=alt.Scale(nice=False, padding=8), axis=alt.Axis(format="d", tickMinStep=1))
    upper = (
        alt.Chart(inline(lines))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=18), aria=False)
        .encode(
            x=x,
            y=alt.Y("value:Q", title="nats"),
            color=alt.Color(
                "series:N", title=None, sort=order, legend=legend, scale=alt.Scale(domain=order, range=list(CANDIDATES[:2]))
            ),
            strokeDash=alt.StrokeDash(
                "series:N", title=None, sort=order, legend=legend, scale=alt.Scale(domain=order, range=DASHES[:2])
            ),
        )
        .properties(width=560, height=130)
    )
    lower = (
        alt.Chart(inline(data))
        .mark_bar(color=FOR, width=8, aria=False)
        .encode(
            x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False, padding=8), axis=alt.Axis(format="d", tickMinStep=1)),
            y=alt.Y("size:Q", title="tokens in the set", axis=alt.Axis(format="d", tickMinStep=1)),
        )
        .properties(width=560, height=80)
    )
    return styled(alt.vconcat(upper, lower, spacing=6))
