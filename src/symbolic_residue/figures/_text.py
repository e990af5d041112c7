"""Text made visible: what a reader cannot see, or what would change how the page reads, is shown as an escape.

1. C0 controls become their Unicode pictures (``␀``), except line feed ``⏎``, tab ``⇥`` and carriage return ``␍``.
2. C1 controls, bidirectional marks and overrides (UAX #9), zero-width and format characters, line and paragraph separators,
   tags, surrogates and noncharacters become ``⟨U+XXXX⟩``: shown raw they would hide or reorder what stands beside them.
3. A space can be shown as ``·`` (``spaces="all"`` for tokens; ``"ends"`` where only a leading or trailing space is news).
"""

from __future__ import annotations

import unicodedata
from typing import Literal

__all__ = ["display_width", "fit", "visible"]

_NAMED = {"\n": "⏎", "\t": "⇥", "\x7f": "␡", "\xa0": "⍽"}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str, *, spaces: Literal["none", "ends", "all"] = "none") -> str:
    """``text`` with every control, format and override character as a visible escape; nothing else is changed.

    Args:
        text: any string, lone surrogates included.
        spaces: which spaces become ``·``: none, those at the two ends, or all.
    """
    shown = "".join(_escape(character) for character in text)
    if spaces == "all":
        return shown.replace(" ", "·")
    if spaces == "ends":
        body = shown.strip(" ")
        if not body:
            return "·" * len(shown)
        start = shown.index(body)
        return "·" * start + body + "·" * (len(shown) - start - len(body))
    return shown


def _escape(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if character < " ":
        return chr(0x2400 + ord(character))
    if unicodedata.category(character) in _HIDDEN:
        return f"⟨U+{ord(character):04X}⟩"
    return character


def display_width(text: str) -> float:
    """Width in ems of a sans-serif face, roughly: 1 for wide East Asian and emoji, 0 for combining marks, else 0.56."""
    return sum(
        0.0 if unicodedata.combining(c) else 1.0 if unicodedata.east_asian_width(c) in "WF" else 0.8 if c in "mwMW@⏎" else 0.56
        for c in text
    )


def fit(text: str, ems: float) -> str:
    """``text`` cut with ``…`` so that it is at most ``ems`` wide; the empty string where not even one character fits."""
    if display_width(text) <= ems:
        return text
    cut = text
    while cut and display_width(cut) + 0.9 > ems:
        cut = cut[:-1]
    return cut + "…" if cut else ""
