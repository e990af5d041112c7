"""What the figures of a contrast share: one place out of a table, names that stay apart when they are cut, and words for what n counts.

A table of a contrast is keyed by its own columns (model, condition, region, …); ``item`` only says where it was kept. So a figure drops ``item``, takes
one condition, segmentation and offset, and refuses a place that is there twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures._altair import altair, inline, rows
from symbolic_residue.figures._palette import CANDIDATES, DASHES
from symbolic_residue.figures._text import fit, visible

if TYPE_CHECKING:
    import polars

__all__ = [
    "Place", "at_layer", "counts", "domain", "labels", "model_scales", "models_of", "offset_words", "once", "place", "regions_of", "title", "where",
    "zero",
]  # fmt: skip

_PREFERRED: dict[str, Any] = {"segmentation": "full", "query_offset": -1}
_FIRST_MODELS = ("tuned", "base")
_REGIONS = ("system", "user", "text", "assistant_header", "answer", "self", "special", "sink")
_SHAPES = ("circle", "diamond", "square", "triangle-up", "cross", "triangle-down")


@dataclass(frozen=True)
class Place:
    """Rows of one condition, segmentation and offset."""

    rows: list[dict[str, Any]]
    condition: str | None
    segmentation: str | None
    query_offset: int | None


def place(frame: polars.DataFrame, table: str, columns: Sequence[str], **asked: Any) -> Place:
    """The rows of one place; what is not asked is ``full``, −1, or the only value there.

    Args:
        frame: a table of a run, or a frame of the analysis.
        table: its name.
        columns: that the figure needs.
        asked: ``condition``, ``segmentation``, ``query_offset``: the value, or None for the default. Others are not looked at.

    Raises:
        ConfigError: missing columns, no rows, several conditions and none asked, a value that is not there.
    """
    frame = frame.drop("item") if "item" in frame.columns else frame
    wanted = list(dict.fromkeys((*columns, *asked)))
    data = rows(frame, table, wanted)
    chosen: dict[str, Any] = {}
    for name, value in asked.items():
        there = list(dict.fromkeys(row[name] for row in data))
        pick = value
        if pick is None:
            pick = there[0] if len(there) == 1 else _PREFERRED.get(name) if _PREFERRED.get(name) in there else None
            if pick is None:
                raise ConfigError(
                    f"The table {table!r} holds {len(there)} values of {name}, and a figure shows one.",
                    todo=f"Give {name}= one of: {', '.join(map(repr, there))}.",
                )
        if pick not in there:
            raise ConfigError(
                f"The table {table!r} has no {name} {pick!r}.", todo=f"There is: {', '.join(map(repr, there)) or 'nothing'}."
            )
        data = [row for row in data if row[name] == pick]
        chosen[name] = pick
    return Place(data, chosen.get("condition"), chosen.get("segmentation"), chosen.get("query_offset"))


def once(data: list[dict[str, Any]], key: Sequence[str], table: str) -> list[dict[str, Any]]:
    """``data``, each key there once.

    Raises:
        ConfigError: a key that is there twice: one mark would hide another.
    """
    seen: set[tuple[Any, ...]] = set()
    for row in data:
        at = tuple(row[name] for name in key)
        if at in seen:
            said = ", ".join(f"{name} {value!r}" for name, value in zip(key, at, strict=True))
            raise ConfigError(f"The table {table!r} holds one place twice ({said}).", todo="Filter it to one item first.")
        seen.add(at)
    return data


def labels(names: Iterable[str], ems: float = 18) -> dict[str, str]:
    """Each name as it is shown: control characters as signs, cut to ``ems``, and still different from every other."""
    shown: dict[str, str] = {}
    for name in dict.fromkeys(names):
        text, number = fit(visible(str(name), spaces="ends"), ems) or "…", 2
        base = text
        while text in shown.values():
            text, number = f"{base} ({number})", number + 1
        shown[name] = text
    return shown


def models_of(data: Iterable[Mapping[str, Any]], column: str = "model") -> list[str]:
    """Names of the models: tuned, base, then the others as they come."""
    found = list(dict.fromkeys(row[column] for row in data))
    return [name for name in _FIRST_MODELS if name in found] + [name for name in found if name not in _FIRST_MODELS]


def regions_of(data: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the regions in the order of a prompt, the user's own before ``self``, the sink last."""
    found = list(dict.fromkeys(row["region"] for row in data))
    own = [name for name in found if name not in _REGIONS]
    known = [name for name in _REGIONS if name in found]
    last = [name for name in known if name in ("self", "special", "sink")]
    return [name for name in known if name not in last] + own + last


def model_scales(shown: Sequence[str], *, field: str = "model", legend: str = "bottom") -> dict[str, Any]:
    """``color``, ``strokeDash`` and ``shape`` of models, so that they differ without colour too."""
    alt = altair()
    n = range(len(shown))
    key = alt.Legend(orient=legend, symbolType="stroke", symbolOpacity=1, symbolSize=400, symbolStrokeWidth=2.2, labelLimit=320)
    colours = alt.Scale(domain=list(shown), range=[CANDIDATES[(1, 0, 2, 3, 4, 5)[i % 6]] for i in n])
    return {
        "color": alt.Color(f"{field}:N", title=None, sort=list(shown), legend=key, scale=colours),
        "strokeDash": alt.StrokeDash(
            f"{field}:N",
            title=None,
            sort=list(shown),
            legend=key,
            scale=alt.Scale(domain=list(shown), range=[DASHES[i % len(DASHES)] for i in n]),
        ),
        "shape": alt.Shape(
            f"{field}:N",
            title=None,
            sort=list(shown),
            legend=None,
            scale=alt.Scale(domain=list(shown), range=[_SHAPES[i % len(_SHAPES)] for i in n]),
        ),
    }


def domain(data: Iterable[Mapping[str, Any]], *columns: str) -> list[float]:
    """The smallest and largest number of the columns with a little room, 0 among them: one axis for all panels of a figure."""
    found: list[float] = [row[name] for row in data for name in columns if row.get(name) is not None]
    low, high = min([0.0, *found]), max([0.0, *found])
    room = (high - low) * 0.06 or 0.01
    return [low - room if low < 0 else 0.0, high + room if high > 0 else 0.0]


def counts(data: Iterable[Mapping[str, Any]], what: str = "examples") -> str:
    """``n = 44 examples of 12 questions``; ranges where the rows differ."""
    data = list(data)
    n, clusters = (sorted({row[name] for row in data if row.get(name) is not None}) for name in ("n", "clusters"))
    said = f"n = {_range(n)} {what}" if n else f"n of {what} not recorded"
    return f"{said} of {_range(clusters)} question{'' if clusters == [1] else 's'}" if clusters else said


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]}–{values[-1]}"


def offset_words(offset: int | None) -> str:
    """What a row at an offset does."""
    if offset in (-1, 0):
        return "the row that emits the behaviour" if offset == -1 else "the row that consumes the behaviour's first token"
    return "rows of all offsets" if offset is None else f"row {offset:+d}".replace("-", "−")


def title(text: str, *subtitles: str) -> Any:
    """A title with its subtitles; what the tables say arrives here already visible."""
    alt = altair()
    return alt.TitleParams(fit(text, 74), subtitle=[fit(line, 88) for line in subtitles if line], subtitlePadding=3)


def at_layer(data: list[dict[str, Any]], layer: int) -> list[dict[str, Any]]:
    """The rows of one layer.

    Raises:
        ConfigError: there are none.
    """
    there = sorted({row["layer"] for row in data})
    if layer not in there:
        raise ConfigError(f"There is no layer {layer}.", todo=f"There are: {', '.join(map(str, there)) or 'none'}.")
    return [row for row in data if row["layer"] == layer]


def where(at: Place, *, condition: bool = True) -> str:
    """The place in words: condition, row, segmentation."""
    name = [_short(at.condition, 20)] if condition and at.condition is not None else []
    return ", ".join([*name, offset_words(at.query_offset), f"segmentation {_short(at.segmentation, 12)}"])


def zero(axis: str = "y") -> Any:
    """The line at 0."""
    return altair().Chart(inline([{"at": 0}])).mark_rule(stroke="#8a8a8e", aria=False).encode(**{axis: "at:Q"})


def _short(name: str | None, ems: float) -> str:
    return fit(visible(str(name), spaces="ends"), ems)
