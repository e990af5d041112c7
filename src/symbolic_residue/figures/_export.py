"""Charts as files' contents: SVG text and PNG bytes, by vl-convert, without a browser and without the network.

SVG is then made small and safe to stand beside others in one page: coordinates are rounded to 0.01 px, ARIA clutter of the
single marks is dropped, what all marks of a group share is said once, and ids get a prefix of the chart's own (two figures'
``gradient_0`` would otherwise be one).
"""

from __future__ import annotations

import hashlib
import io
import re
from html import escape
from typing import Any

from symbolic_residue.errors import ConfigError, MissingExtraError

__all__ = ["to_png", "to_svg"]

_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")
_CLUTTER = re.compile(r' (?:aria-(?:label|hidden|roledescription|describedby)|role|pointer-events|xmlns:xlink)="[^"]*"')
_EMPTY = re.compile(r'<path class="(?:foreground|background)"(?: d="")?(?: d="[^"]*")? (?:display="none"|stroke="transparent")/>')
_ID = re.compile(r'<[^>]*\bid="([^"]+)"')
_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)([^")]+)')
_GROUP = re.compile(r'(<g class="mark-(?:rect|text|symbol)[^>]*>)((?:<path[^>]*/>|<text[^>]*>[^<]*</text>)+)</g>')
_MARK = re.compile(r"<(?:path|text)[^>]*>")
_RGB = re.compile(r'="rgb\((\d+), (\d+), (\d+)\)"')
_FONT = re.compile(r' font-family="[^"]*"')
_TAG = re.compile(r"<[^>]*>")


def to_svg(chart: Any, *, label: str = "") -> str:
    """``chart`` as one ``<svg>`` element; ``label`` becomes its accessible name.

    Raises:
        MissingExtraError: vl-convert is not installed.
    """
    _require()
    buffer = io.StringIO()
    chart.save(buffer, format="svg")
    svg = _TAG.sub(lambda match: _slim(match[0]), buffer.getvalue())
    svg = _EMPTY.sub("", svg)
    fonts = set(_FONT.findall(svg))
    if len(fonts) == 1:  # said once at the root instead of at every word
        svg = _FONT.sub("", svg).replace("<svg", "<svg" + fonts.pop(), 1)
    svg = _own_ids(_GROUP.sub(_hoist, _RGB.sub(_hex, svg)))
    name = f' role="img" aria-label="{escape(label, quote=True)}"' if label else ' role="img"'
    return svg.replace("<svg", "<svg" + name, 1)


def to_png(chart: Any, scale: float = 2) -> bytes:
    """``chart`` as PNG at ``scale`` pixels for each pixel of the design (2 = about 190 dpi).

    Raises:
        ConfigError: a scale that is not positive. MissingExtraError: vl-convert is not installed.
    """
    if not scale > 0:
        raise ConfigError(f"scale = {scale}: it must be above 0.")
    _require()
    buffer = io.BytesIO()
    chart.save(buffer, format="png", scale_factor=scale)
    return buffer.getvalue()


def _own_ids(svg: str) -> str:
    """Ids numbered by their order in this chart (vl-convert counts over all it has drawn), after a prefix from its content."""
    order = {found: f"{number}" for number, found in enumerate(dict.fromkeys(_ID.findall(svg)))}
    plain = _TAG.sub(lambda tag: _REFERENCE.sub(lambda found: found[1] + order.get(found[2], found[2]), tag[0]), svg)
    prefix = "f" + hashlib.sha256(plain.encode()).hexdigest()[:8] + "-"
    return _TAG.sub(lambda tag: _REFERENCE.sub(lambda found: found[1] + prefix + found[2], tag[0]), plain)


def _hoist(group: re.Match[str]) -> str:
    """A group of marks with the attributes that all its marks share said once, at the group (all of these are inherited)."""
    opening, marks = group[1], group[2]
    tags = _MARK.findall(marks)
    for name in ("fill", "stroke", "stroke-width", "text-anchor", "font-size"):
        said = {found[0] if (found := re.findall(rf' {name}="[^"]*"', tag)) else "" for tag in tags}
        if len(said) == 1 and (attribute := said.pop()) and f" {name}=" not in opening:
            marks = _MARK.sub(lambda tag, attribute=attribute: tag[0].replace(attribute, "", 1), marks)
            opening = opening[:-1] + attribute + ">"
    return f"{opening}{marks}</g>"


def _hex(colour: re.Match[str]) -> str:
    return '="#' + "".join(f"{int(channel):02x}" for channel in colour.groups()) + '"'


def _slim(tag: str) -> str:
    # Only tags are touched: the text between them is the model's.
    return _CLUTTER.sub("", _LONG_NUMBER.sub(lambda match: f"{round(float(match[0]), 2) + 0.0:g}", tag))


def _require() -> None:
    try:
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("vl-convert-python", "figures", needed_for="figures as SVG or PNG") from error
