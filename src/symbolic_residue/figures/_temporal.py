"""The figure of TEMPORAL-INFERENCE: its curves, one below the other."""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.figures._altair import altair
from symbolic_residue.figures._curves import curves

if TYPE_CHECKING:
    import polars

__all__ = ["temporal_coherence"]


def temporal_coherence(frame: polars.DataFrame) -> Any:
    """Coherence against the distance of the shift, and along the continuation, each with interval and controls.

    Args:
        frame: table ``curves`` of one item.

    Raises:
        ConfigError: missing columns or no rows. MissingExtraError: no Altair.
    """
    alt = altair()
    names = list(dict.fromkeys(frame["curve"].to_list())) or [None]
    if len(names) == 1:
        return curves(frame, names[0])
    charts = [curves(frame, name) for name in names]
    config = charts[0].config
    for chart in charts:
        chart.config = alt.Undefined
    joined = alt.vconcat(*charts).resolve_scale(color="independent", strokeDash="independent")
    joined.config = config
    return joined
