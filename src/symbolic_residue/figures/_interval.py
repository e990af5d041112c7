"""One verdict as a small drawing: value and interval, control and interval, and the criterion, on one axis. Plain SVG, no library.

1. The axis spans every finite number of the row, with 8 % of room at each end.
2. The side of the criterion on which the mode fires is tinted; the criterion is a dashed line.
3. Value = filled circle with a thick bar; control = hollow diamond with a thin bar: shapes differ, not only colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from symbolic_residue.figures._palette import INK, OUTCOMES
from symbolic_residue.figures._text import visible

__all__ = ["finite", "interval_svg", "number"]

_W, _LEFT, _RIGHT = 250, 52, 8
_VALUE_Y, _CONTROL_Y, _AXIS_Y = 22, 42, 58


def finite(value: Any) -> bool:
    """Whether ``value`` is a number that can be shown: not ``None``, NaN or infinite."""
    return value is not None and math.isfinite(value)


def number(value: float | int | None, *, signed: bool = False) -> str:
    """Three significant digits at most, a true minus sign, counts whole; ``—`` where there is no number."""
    if not finite(value):
        return "—"
    assert value is not None
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        text = f"{int(value):+,d}" if signed and value else f"{int(value):,d}"
    elif 1e-3 <= abs(value) < 1e6:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:{'+' if signed else ''},.{digits}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa, exponent = f"{value:{'+' if signed else ''}.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def interval_svg(row: Mapping[str, Any]) -> str:
    """The drawing of one row of the table ``verdicts``; the empty string where the row has no finite value.

    Args:
        row: ``mode, outcome, value, low, high, control_value, control_low, control_high, criterion, direction, unit``.
    """
    if not finite(row["value"]):
        return ""
    marks = [
        row[key]
        for key in ("value", "low", "high", "control_value", "control_low", "control_high", "criterion")
        if finite(row[key])
    ]
    low, high = min(marks), max(marks)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room

    def x(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_W - _LEFT - _RIGHT), 2)

    colour = OUTCOMES.get(row["outcome"], INK)
    parts = []
    if finite(row["criterion"]):
        at = x(row["criterion"])
        start, stop = (at, x(high)) if row["direction"] != "below" else (x(low), at)
        parts.append(f'<rect x="{start}" y="10" width="{round(stop - start, 2)}" height="{_AXIS_Y - 10}" fill="#f6e3d8"/>')
        parts.append(f'<line x1="{at}" x2="{at}" y1="10" y2="{_AXIS_Y}" stroke="{INK}" stroke-width="1.2" stroke-dasharray="4 3"/>')
        anchor = "start" if at < _LEFT + 40 else "end" if at > _W - 60 else "middle"
        parts.append(_text(at, 5, f"criterion {number(row['criterion'])}", anchor))
    parts.append(f'<line x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{_AXIS_Y}" y2="{_AXIS_Y}" stroke="#8a8a8e"/>')
    for mark, anchor in ((low + room, "start"), (high - room, "end")):
        parts.append(f'<line x1="{x(mark)}" x2="{x(mark)}" y1="{_AXIS_Y}" y2="{_AXIS_Y + 4}" stroke="#8a8a8e"/>')
        if high - low > 2 * room or anchor == "start":
            parts.append(_text(x(mark), _AXIS_Y + 15, number(mark), anchor))
    parts.append(_text(0, _VALUE_Y + 4, "value", "start"))
    parts.append(_bar(row["low"], row["high"], _VALUE_Y, x, colour, 4))
    parts.append(f'<circle cx="{x(row["value"])}" cy="{_VALUE_Y}" r="5" fill="{colour}" stroke="white"/>')
    parts.append(_text(0, _CONTROL_Y + 4, "control", "start"))
    if finite(row["control_value"]):
        at = x(row["control_value"])
        parts.append(_bar(row["control_low"], row["control_high"], _CONTROL_Y, x, "#6b6b70", 2))
        parts.append(f'<path d="M{at - 5} {_CONTROL_Y}l5 -5l5 5l-5 5z" fill="white" stroke="#6b6b70" stroke-width="1.6"/>')
    else:
        parts.append(_text(_LEFT, _CONTROL_Y + 4, "none", "start"))
    side = "below" if row["direction"] == "below" else "above"
    label = (
        f"{row['mode']}: value {number(row['value'])}, from {number(row['low'])} to {number(row['high'])}; "
        f"control {number(row['control_value'])}; fires {side} {number(row['criterion'])}"
    )
    return (
        f'<svg class="interval" role="img" aria-label="{escape(visible(label), quote=True)}" viewBox="0 -6 {_W} 82" width="{_W}" height="82" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="10.5" fill="{INK}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _bar(low: Any, high: Any, y: int, x: Any, colour: str, width: int) -> str:
    if not (finite(low) and finite(high)):
        return ""
    return f'<line x1="{x(low)}" x2="{x(high)}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="{width}" stroke-linecap="round"/>'
