"""Figures of a contrast's causal follow-ups, from the table ``contrast_effects``: one condition a figure.

1. ``contrast_lens``: log P of the behaviour's first token by the logit lens at the emitting row, tuned and base, with the control rows dotted.
2. ``contrast_components``: layers × heads (and MLP), what each adds to that token's logit; outlined where the family-wise p is at most alpha.
3. ``contrast_patching``: one panel a part, layers × places: how far log P of the behaviour moves; outlined where the interval lies beyond the control's.
4. ``contrast_knock_out``: change of log P by the share of a region's attention that is taken away, beside random keys of equal mass.
5. ``contrast_surgery``: log P under parts of the adapter less the base's; ticks: the same part of a null adapter.

Bands and lines are intervals over questions; titles say n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures._altair import altair, inline, styled
from symbolic_residue.figures._contrast_data import counts, domain, labels, model_scales, models_of, once, place, title, zero
from symbolic_residue.figures._palette import AGAINST, FOR, INK, NEUTRAL

if TYPE_CHECKING:
    import polars

__all__ = ["contrast_components", "contrast_knock_out", "contrast_lens", "contrast_patching", "contrast_surgery"]

_COLUMNS = (
    "analysis", "model", "part", "place", "layer", "head", "dose", "value", "low", "high", "n", "clusters", "control", "control_low", "control_high", "p",
    "unit",
)  # fmt: skip
_KEY = ("model", "part", "place", "layer", "head", "dose", "unit")
_INTERVAL = "interval over questions"
_WHOLE = "all layers"


def contrast_lens(effects: polars.DataFrame, *, condition: str | None = None) -> Any:
    """Log P of the behaviour's first token after each layer, nats, at the row that emits it.

    Args:
        effects: table ``contrast_effects``.
        condition: which; may be left out where there is only one.

    Raises:
        ConfigError: missing columns, no such rows, several conditions and none named, a place twice. MissingExtraError: no Altair.
    """
    alt = altair()
    found = [row for row in _rows(effects, "lens", condition) if row["layer"] is not None and "−" not in row["model"]]
    found = _some(found, "lens by layer")
    names = labels(models_of(found))
    data = [{**row, "series": names[row["model"]]} for row in found]
    scales = model_scales(list(names.values()), field="series")
    base = alt.Chart(inline(data)).encode(x=_layer_axis(), color=scales["color"])
    y = alt.Y("value:Q", title=f"log P ({data[0]['unit']})")
    layers = [
        base.mark_area(opacity=0.16, aria=False).encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(strokeWidth=2, aria=False).encode(y=y, strokeDash=scales["strokeDash"]),
        base.mark_point(size=14, filled=True, opacity=1, aria=False).encode(y=y),
    ]
    if any(row["control"] is not None for row in data):
        layers.append(base.mark_line(strokeWidth=1, opacity=0.7, strokeDash=[1, 3], aria=False).encode(y=alt.Y("control:Q")))
    said = (f"{counts(found)}; band: {_INTERVAL}. Thin dots: the same token at other rows of the answers",)
    return styled(
        alt.layer(*layers).properties(width=580, height=210, title=title("Where the behaviour's first token rises", *said))
    )


def contrast_components(
    effects: polars.DataFrame, *, model: str = "tuned − base", alpha: float = 0.05, condition: str | None = None
) -> Any:
    """What each head and MLP adds to the logit of the behaviour's first token, layers × heads.

    Args:
        effects: table ``contrast_effects``.
        model: tuned, base, or their difference.
        alpha: of the family-wise p that outlines a cell.
        condition: as :func:`contrast_lens`.

    Raises:
        ConfigError: as :func:`contrast_lens`. MissingExtraError: no Altair.
    """
    every = [row for row in _rows(effects, "components", condition) if row["model"] == model]
    found = _some([row for row in every if row["layer"] is not None], f"components of {model}")
    heads = [str(head) for head in sorted({row["head"] for row in found if row["head"] is not None})]
    others = list(labels([row["part"] for row in found if row["head"] is None], 8).values())
    shown = labels([row["part"] for row in found if row["head"] is None], 8)
    data = [
        {
            "layer": row["layer"], "column": shown[row["part"]] if row["head"] is None else str(row["head"]), "value": row["value"],
            "found": row["p"] is not None and row["p"] <= alpha,
        }
        for row in found
    ]  # fmt: skip
    rest = "; ".join(f"{name} {_signed(value)}" for name, value in _rest(every))
    said = (
        f"{labels([model])[model]}; {counts(found)}. Outlined: family-wise p ≤ {alpha:g} (flips whole questions)",
        f"Outside the layers: {rest}" if rest else "",
    )
    unit = labels([found[0]["unit"]])[found[0]["unit"]]
    columns = [*heads, *others]
    width = max(12, min(24, 600 // len(columns)))
    chart = _map(
        data,
        columns,
        "head (right: whole parts)",
        f"added to the logit ({unit})",
        width=width,
        found=True,
        angle=-60 if others else 0,
    )
    return styled(chart.properties(title=title("Which parts write the behaviour's first token", *said)))


def contrast_patching(effects: polars.DataFrame, *, model: str = "tuned into base", condition: str | None = None) -> Any:
    """How far a patch moves log P of the behaviour's first token: one panel a part, layers × places, all layers at once on top.

    Args:
        effects: table ``contrast_effects``.
        model: direction of the patch.
        condition: as :func:`contrast_lens`.

    Raises:
        ConfigError: as :func:`contrast_lens`. MissingExtraError: no Altair.
    """
    alt = altair()
    every = [row for row in _rows(effects, "patch", condition) if row["model"] == model and row["unit"] != "share"]
    found = _some([row for row in every if row["part"] != "total"], f"patches {model}")
    total = [row for row in every if row["part"] == "total"]
    limit = max(abs(row["value"]) for row in found) or 1.0
    depth = sorted({row["layer"] for row in found if row["layer"] is not None}, reverse=True)
    order = [*([_WHOLE] if any(row["layer"] is None for row in found) else []), *map(str, depth)]
    parts = list(dict.fromkeys(row["part"] for row in found))
    places = labels([row["place"] for row in found], 10)
    shown = labels(parts, 10)
    panels = []
    for part in parts:
        data = [
            {"layer": _WHOLE if row["layer"] is None else str(row["layer"]), "column": places[row["place"]], "value": row["value"], "found": _beyond(row)}
            for row in found
            if row["part"] == part
        ]  # fmt: skip
        chart = _map(
            data,
            list(places.values()),
            None,
            f"change of log P ({found[0]['unit']})",
            width=22,
            found=True,
            angle=-60,
            order=order,
            limit=limit,
        )
        panels.append(chart.properties(title=alt.TitleParams(shown[part], fontSize=12, fontWeight="normal", frame="group")))
    reach = f"Donor − recipient: {_signed(total[0]['value'])}. " if total else ""
    said = (
        f"{counts(found)}. {reach}Outlined: the interval lies beyond that of an equally large change",
        "Rows are replaced at the place named, one layer at a time; on top in all layers at once",
    )
    chart = alt.concat(*panels, columns=max(1, min(4, 620 // (22 * len(places) + 60))), spacing=18)
    return styled(chart.resolve_scale(color="shared").properties(title=title(f"Patching, {labels([model])[model]}", *said)))


def contrast_knock_out(effects: polars.DataFrame, *, condition: str | None = None) -> Any:
    """Change of log P by the share of a region's attention that is taken away at the emitting row, one panel a region.

    Args:
        effects: table ``contrast_effects``.
        condition: as :func:`contrast_lens`.

    Raises:
        ConfigError: as :func:`contrast_lens`. MissingExtraError: no Altair.
    """
    alt = altair()
    found = _some([row for row in _rows(effects, "knock-out", condition) if row["dose"] is not None], "knock-outs")
    found = [row for row in found if "−" not in row["model"]] or found
    places = list(dict.fromkeys(row["place"] for row in found))
    texts = {(row["model"], row["place"]): f"{row['model']}, {row['place']}" for row in found}
    names = labels(texts.values(), 22)
    order = [names[texts[model, at]] for model in models_of(found) for at in places if (model, at) in texts]
    data = [{**row, "series": names[texts[row["model"], row["place"]]]} for row in found]
    scales = model_scales(order, field="series")
    y_scale = alt.Scale(domain=domain(data, "value", "low", "high"), nice=False)
    panels = []
    regions = labels([row["part"] for row in found])
    for region, shown in regions.items():
        base = alt.Chart(inline([row for row in data if row["part"] == region])).encode(
            x=alt.X("dose:Q", title="share of the region's attention removed", scale=alt.Scale(domain=[0, 1])),
            color=scales["color"],
        )
        y = alt.Y("value:Q", title="change of log P (nats)", scale=y_scale)
        spans = base.mark_rule(strokeWidth=1.4, aria=False).encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q")
        line = base.mark_line(strokeWidth=2, aria=False).encode(y=y, strokeDash=scales["strokeDash"])
        dots = base.mark_point(size=30, filled=True, opacity=1, aria=False).encode(y=y)
        small = alt.TitleParams(shown, fontSize=12, fontWeight="normal", frame="group")
        valid = spans.transform_filter("isValid(datum.low) && isValid(datum.high)")
        panels.append(alt.layer(zero(), valid, line, dots).properties(width=268, height=130, title=small))
    said = (f"{counts(found)}; lines: {_INTERVAL}. Random keys: others of the same attention, the control",)
    chart = alt.concat(*panels, columns=2, spacing=22, title=title("Does it matter that the row looks there?", *said))
    return styled(chart.resolve_scale(color="shared", strokeDash="shared"))


def contrast_surgery(effects: polars.DataFrame, *, condition: str | None = None) -> Any:
    """Log P of the behaviour under parts of the adapter less the base's: a bar a part, grouped by the layers that keep it.

    Args:
        effects: table ``contrast_effects``.
        condition: as :func:`contrast_lens`.

    Raises:
        ConfigError: as :func:`contrast_lens`. MissingExtraError: no Altair.
    """
    alt = altair()
    every = [row for row in _rows(effects, "surgery", condition) if row["unit"] != "share"]
    own = models_of(every)[:1]
    found = _some([row for row in every if row["model"] in own], "surgery")
    places, parts = labels([row["place"] for row in found], 14), labels([row["part"] for row in found], 14)
    data = [{**row, "place": places[row["place"]], "part": parts[row["part"]]} for row in found]
    order, kinds = list(places.values()), list(parts.values())
    scales = model_scales(kinds, field="part")
    scales["color"].legend = alt.Legend(orient="bottom", labelLimit=320, title="projections kept")
    base = alt.Chart(inline(data)).encode(
        y=alt.Y("place:N", sort=order, title=None, axis=alt.Axis(domain=False, ticks=False, labelLimit=230)),
        yOffset=alt.YOffset("part:N", sort=kinds, scale=alt.Scale(domain=kinds)),
    )
    bars = base.mark_bar(aria=False).encode(
        x=alt.X(
            "value:Q", title="log P less the base's (nats)", scale=alt.Scale(domain=domain(data, "value", "low", "high", "control"))
        ),
        color=scales["color"],
    )
    spans = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(color=INK, aria=False)
        .encode(x="low:Q", x2="high:Q")
    )
    ticks = (
        base.transform_filter("isValid(datum.control)").mark_tick(color="#6b6b70", thickness=2.5, aria=False).encode(x="control:Q")
    )
    said = (f"{labels(own)[own[0]]}; {counts(found)}; lines: {_INTERVAL}. Grey ticks: the same part of the null adapter",)
    height = max(60, 12 * len(order) * len(kinds) + 8 * len(order))
    return styled(
        alt.layer(bars, spans, ticks, zero("x")).properties(
            width=430, height=height, title=title("Which part of the adapter carries it", *said)
        )
    )


# ------------------------------------------------------------------ parts


def _rows(effects: polars.DataFrame, analysis: str, condition: str | None) -> list[dict[str, Any]]:
    """Rows of one analysis and condition, each place once."""
    at = place(effects, "contrast_effects", _COLUMNS, condition=condition)
    return once([row for row in at.rows if row["analysis"] == analysis and row["value"] is not None], _KEY, "contrast_effects")


def _some(found: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    if not found:
        raise ConfigError(f"There are no effects of {what}.", todo="Name another model or condition, or run that follow-up.")
    return found


def _rest(rows: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [(labels([row["part"]])[row["part"]], row["value"]) for row in rows if row["layer"] is None]


def _beyond(row: dict[str, Any]) -> bool:
    """Whether the interval lies beyond the control's on either side; without a control nothing is outlined."""
    bounds = [row[name] for name in ("low", "high", "control_low", "control_high")]
    if any(bound is None for bound in bounds):
        return False
    low, high, control_low, control_high = bounds
    return low > max(control_high, 0.0) or high < min(control_low, 0.0)


def _map(
    data: list[dict[str, Any]], columns: Sequence[str], x_title: str | None, legend: str, *, width: int, found: bool, angle: int,
    order: Sequence[str] | None = None, limit: float | None = None,
) -> Any:  # fmt: skip
    """Layers × columns in colour, the last layer on top."""
    alt = altair()
    top = limit if limit is not None else max((abs(row["value"]) for row in data), default=0.0) or 1.0
    rows = list(order) if order is not None else sorted({row["layer"] for row in data}, reverse=True)
    height = max(10, min(16, 420 // len(rows)))
    base = alt.Chart(inline(data)).encode(
        x=alt.X(
            "column:N",
            title=x_title,
            scale=alt.Scale(domain=list(columns)),
            axis=alt.Axis(labelAngle=angle, domain=False, ticks=False),
        ),
        y=alt.Y(
            "layer:O", title="layer", scale=alt.Scale(domain=rows), axis=alt.Axis(domain=False, ticks=False, labelOverlap="greedy")
        ),
    )
    colour = alt.Color(
        "value:Q", title=legend, scale=alt.Scale(domain=[-top, 0, top], range=[AGAINST, NEUTRAL, FOR], interpolate="rgb"),
        legend=alt.Legend(orient="bottom", gradientLength=220, gradientThickness=10, titleLimit=420, tickCount=5),
    )  # fmt: skip
    squares = base.mark_rect(stroke="white", strokeWidth=0.5, aria=False).encode(color=colour)
    layers = [squares]
    if found:
        layers.append(base.transform_filter("datum.found").mark_rect(fillOpacity=0, stroke=INK, strokeWidth=1.6, aria=False))
    return alt.layer(*layers).properties(width=width * len(columns), height=height * len(rows))


def _layer_axis() -> Any:
    alt = altair()
    axis = alt.Axis(format="d", tickMinStep=1, tickCount=12, grid=False, labelOverlap="greedy")
    return alt.X("layer:Q", title="layer", scale=alt.Scale(nice=False), axis=axis)


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")
