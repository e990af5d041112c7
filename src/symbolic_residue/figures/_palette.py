"""Colours that survive colour blindness and a grey printer.

Lines and regions use Okabe and Ito's eight colours (jfly.uni-koeln.de/color); signed numbers use orange for against and blue
for, through near-white, and never get so dark that black text on them falls under a contrast of 4.5 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["AGAINST", "CANDIDATES", "DASHES", "FOR", "INK", "NEUTRAL", "OUTCOMES", "diverging_colour", "region_colours"]

INK = "#16181d"
NEUTRAL = "#f6f6f4"
FOR = "#5b9bd5"
AGAINST = "#f0933f"

CANDIDATES = ("#0072b2", "#d55e00", "#009e73", "#a8508a", "#8a6d00", "#4d4d4d")
"""Line colours in order of rank."""

DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [10, 2], [4, 4]]
"""Dash patterns in order of rank, so that lines differ without colour too."""

OUTCOMES = {"fires": "#b03a00", "absent": "#00639c", "undecided": "#5f5f66"}

_REGIONS = {
    "sink": "#b4b4b8",
    "system": "#a8508a",
    "user": "#0072b2",
    "text": "#0072b2",
    "assistant_header": "#e08214",
    "answer": "#009e73",
    "special": "#8a6d00",
    "self": "#3c3c42",
}
_MORE = ("#56b4e9", "#d55e00", "#f0c800", "#7a3fa0", "#66a61e", "#c2185b")


def region_colours(names: Sequence[str]) -> dict[str, str]:
    """One colour a region, in the order given; the sink is always grey. Names of the user's own spans get further colours."""
    own = [name for name in names if name not in _REGIONS]
    return {name: _REGIONS[name] if name in _REGIONS else _MORE[own.index(name) % len(_MORE)] for name in names}


def diverging_colour(value: float | None, limit: float) -> str | None:
    """Hex colour of ``value`` between ``-limit`` (orange) and ``limit`` (blue); ``None`` for a value that is missing or not finite."""
    if value is None or not math.isfinite(value):
        return None
    share = 0.0 if limit <= 0 else max(-1.0, min(1.0, value / limit))
    end = FOR if share >= 0 else AGAINST
    mixed = (round(a + (b - a) * abs(share)) for a, b in zip(_rgb(NEUTRAL), _rgb(end), strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
