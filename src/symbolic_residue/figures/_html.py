"""Verdict cards as HTML: the same markup in a notebook and in the report. Everything from a table is escaped.

One card a mode: outcome (word, shape and colour), the quantity with its interval and n, the control with its own, the criterion
with its source, and a drawing of the three on one axis.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures._interval import finite, interval_svg, number
from symbolic_residue.figures._text import visible

if TYPE_CHECKING:
    import polars

__all__ = ["OUTCOME_SIGNS", "cards_css", "interval_text", "number", "verdict_cards_html"]

OUTCOME_SIGNS = {"fires": "▲", "absent": "○", "undecided": "◐"}

_COLUMNS = (
    "shell", "mode", "outcome", "quantity", "unit", "value", "low", "high", "n", "control", "control_value", "control_low",
    "control_high", "control_n", "criterion", "direction", "criterion_source", "note",
)  # fmt: skip


def interval_text(low: float | None, high: float | None, n: int | None, *, signed: bool = False) -> str:
    """``[low, high]``, or why there is none: ``no interval (n = 1)`` (with spaces that do not break)."""
    if finite(low) and finite(high):
        return f"[{number(low, signed=signed)}, {number(high, signed=signed)}]"
    return "no interval" if n is None else f"no interval (n\xa0=\xa0{n})"


def verdict_cards_html(verdicts_frame: polars.DataFrame, *, style: bool = True, heading: int = 3) -> str:
    """The verdicts of one item as a grid of cards.

    Args:
        verdicts_frame: table ``verdicts``; every row becomes a card.
        style: whether to bring the cards' own style sheet along (a notebook needs it, the report has it).
        heading: level of the cards' headings, 2 to 6.

    Raises:
        ConfigError: a column is missing, or a heading level out of range.
    """
    missing = [column for column in _COLUMNS if column not in verdicts_frame.columns]
    if missing:
        raise ConfigError(f"The table 'verdicts' lacks the columns {', '.join(missing)}.", todo=f"It needs: {', '.join(_COLUMNS)}.")
    if heading not in range(2, 7):
        raise ConfigError(f"heading = {heading}: HTML has levels 2 to 6 below the page's title.")
    found = verdicts_frame.to_dicts()
    cards = [_card(row, several=len({row["shell"] for row in found}) > 1) for row in found]
    return _template().render(cards=cards, css=cards_css() if style else "", level=heading)


def cards_css() -> str:
    """The cards' style sheet; every rule is under the class ``sr-cards``."""
    return files("symbolic_residue.figures").joinpath("cards.css").read_text("utf-8")


def _card(row: dict[str, Any], *, several: bool) -> dict[str, Any]:
    from markupsafe import Markup

    shown = {key: visible(value) if isinstance(value, str) else value for key, value in row.items()}
    unit = f" {shown['unit']}" if shown["unit"] else ""
    return {
        **shown,
        "title": f"{shown['shell']}: {shown['mode']}" if several else shown["mode"],
        "sign": OUTCOME_SIGNS.get(row["outcome"], "?"),
        "class": row["outcome"] if row["outcome"] in OUTCOME_SIGNS else "undecided",
        "value": number(row["value"]) + unit,
        "interval": interval_text(row["low"], row["high"], row["n"]),
        "has_control": finite(row["control_value"]),
        "control_value": number(row["control_value"]) + unit,
        "control_interval": interval_text(row["control_low"], row["control_high"], row["control_n"]),
        "criterion": f"{shown['direction']} {number(row['criterion'])}{unit}" if finite(row["criterion"]) else "none",
        "drawing": Markup(interval_svg(row)),  # built from numbers and escaped text only
    }


@cache
def _template() -> Any:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("symbolic_residue.figures").joinpath("cards.html.j2").read_text("utf-8"))
