"""The one door to Altair: the import, the look that all figures share, and rows out of a polars frame.

Data goes in as inline rows with explicit types: no global setting of Altair (row limits, themes) is read or changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError, MissingExtraError
from symbolic_residue.figures._palette import INK

if TYPE_CHECKING:
    import polars

__all__ = ["altair", "inline", "rows", "styled"]

FONT = "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
SMALL = 11
"""Font size in pixels of labels; nothing in a figure is under 10."""


def altair() -> Any:
    """The module ``altair``.

    Raises:
        MissingExtraError: the extra ``figures`` is not installed.
    """
    try:
        import altair as module
    except ImportError as error:
        raise MissingExtraError("altair", "figures", needed_for="figures") from error
    return module


def rows(frame: polars.DataFrame, table: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of one item as dicts of ``columns``, with NaN and infinity as ``None`` (JSON has neither).

    Raises:
        ConfigError: a column is missing, there are no rows, or the frame holds several items (they would be drawn on top of
            each other).
    """
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ConfigError(f"The table {table!r} lacks the columns {', '.join(missing)}.", todo=f"It needs: {', '.join(columns)}.")
    if frame.is_empty():
        raise ConfigError(f"The table {table!r} has no rows, so there is nothing to draw.")
    if "item" in frame.columns and frame["item"].n_unique() > 1:
        raise ConfigError(
            f"The table {table!r} holds {frame['item'].n_unique()} items, and a figure shows one.",
            todo="Filter first: frame.filter(pl.col('item') == '…').",
        )
    return [{key: _finite(value) for key, value in row.items()} for row in frame.select(columns).to_dicts()]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def inline(values: list[dict[str, Any]]) -> Any:
    """Rows as Altair's inline data."""
    return altair().InlineData(values=values)


def styled(chart: Any) -> Any:
    """``chart`` with the shared look; apply once, to the outermost chart."""
    grid = "#e4e4e0"
    return (
        chart.configure(font=FONT, background="white", padding=4)
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=SMALL,
            titleFontSize=SMALL,
            titleFontWeight="normal",
            labelColor=INK,
            titleColor=INK,
            gridColor=grid,
            domainColor="#8a8a8e",
            tickColor="#8a8a8e",
            labelLimit=160,
            aria=False,
        )
        .configure_legend(
            labelFontSize=SMALL,
            titleFontSize=SMALL,
            titleFontWeight="normal",
            labelColor=INK,
            titleColor=INK,
            labelLimit=200,
            titleLimit=320,
            aria=False,
        )
        .configure_title(
            fontSize=13,
            fontWeight=600,
            anchor="start",
            color=INK,
            subtitleFontSize=SMALL,
            subtitleColor="#4a4a50",
            offset=8,
            aria=False,
        )
        .configure_header(labelFontSize=12, labelFontWeight=600, labelColor=INK, title=None)
    )
