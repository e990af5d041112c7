"""Figures of a contrast by layer, from the tables of its analysis: one condition, segmentation and offset a figure, one panel a region.

1. ``contrast_layers``: mean delta (event − its controls C1, share of a row's attention) by layer, a line a model; band = interval over clusters.
2. ``contrast_differences``: tuned − reference by layer; grey band = what the data could not have seen; filled = family-wise p ≤ alpha; ringed = the
   verdict rests on the layer. Null models stand beside it as further lines.
3. ``contrast_strata``: layers × control strata; crossed where the event does not exceed that control, ``?`` where it was not evaluated.
4. ``contrast_trajectory``: the rows up to the event, at one layer.

All panels of a figure have one vertical scale. Titles say what n counts and what the interval resamples.
"""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures._altair import altair, inline, styled
from symbolic_residue.figures._contrast_data import (
    at_layer,
    counts,
    domain,
    labels,
    model_scales,
    models_of,
    once,
    place,
    regions_of,
    title,
    where,
    zero,
)
from symbolic_residue.figures._palette import AGAINST, FOR, INK, NEUTRAL

if TYPE_CHECKING:
    import polars

__all__ = [
    "contrast_differences",
    "contrast_layers",
    "contrast_strata",
    "contrast_trajectory",
]

_PANEL, _PANEL_HEIGHT, _COLUMNS = 268, 130, 2
_STRATA = ("C1", "C2", "C3", "C4", "C5")
_BAND = "band: interval over questions"


def contrast_layers(
    layers: polars.DataFrame, *, condition: str | None = None, segmentation: str | None = None, query_offset: int | None = None
) -> Any:
    """Mean delta by layer and model, one panel a region.

    Args:
        layers: table ``contrast_layers``, or ``Gates.layers`` of several models together: ``model, region, layer, head, value, low, high, n, clusters``.
        condition, segmentation, query_offset: which; by default ``full``, −1, and the only condition.

    Raises:
        ConfigError: missing columns, no rows, no such place, a place twice. MissingExtraError: no Altair.
    """
    columns = ("model", "region", "layer", "head", "value", "low", "high", "n", "clusters")
    at = place(layers, "contrast_layers", columns, condition=condition, segmentation=segmentation, query_offset=query_offset)
    data = once([row for row in at.rows if row["head"] is None], ("model", "region", "layer"), "contrast_layers")
    names = labels(models_of(data))
    lines = [{**row, "x": row["layer"], "series": names[row["model"]]} for row in data]
    said = (f"{where(at)}. {counts(data)}; {_BAND}", "")
    return _line_panels(lines, list(names.values()), "layer", "share of attention, event − C1", "Event − control by layer", said)


def contrast_trajectory(
    trajectory: polars.DataFrame,
    *,
    layer: int,
    condition: str | None = None,
    segmentation: str | None = None,
    query_offset: int | None = None,
) -> Any:
    """Mean delta of the rows up to the event at one layer, one panel a region: a rise at the event is at x = 0.

    Args:
        trajectory: table ``contrast_trajectory``: ``model, region, layer, head, lag, value, low, high, n, clusters``.
        layer: which.
        condition, segmentation, query_offset: as :func:`contrast_layers`.

    Raises:
        ConfigError: as :func:`contrast_layers`; no such layer. MissingExtraError: no Altair.
    """
    columns = ("model", "region", "layer", "head", "lag", "value", "low", "high", "n", "clusters")
    at = place(
        trajectory, "contrast_trajectory", columns, condition=condition, segmentation=segmentation, query_offset=query_offset
    )
    data = at_layer([row for row in at.rows if row["head"] is None], layer)
    once(data, ("model", "region", "lag"), "contrast_trajectory")
    names = labels(models_of(data))
    lines = [{**row, "x": -row["lag"], "series": names[row["model"]]} for row in data]
    said = (f"{where(at)} (x = 0). {counts(data)}; {_BAND}", "")
    heading = f"Rows up to the event, layer {layer}"
    return _line_panels(lines, list(names.values()), "rows before the row", "share of attention, row − C1", heading, said)


def contrast_differences(
    differences: polars.DataFrame,
    verdicts: polars.DataFrame | None = None,
    *,
    tuned: str = "tuned",
    reference: str = "base",
    alpha: float = 0.05,
    condition: str | None = None,
    segmentation: str | None = None,
    query_offset: int | None = None,
) -> Any:
    """Tuned − reference by layer with its interval, the smallest effect that could have been seen, and every other pair of models beside it.

    Args:
        differences: table ``contrast_differences``: ``tuned, reference, region, layer, head, value, low, high, p, n, clusters, detectable``.
        verdicts: table ``contrast_verdicts``; the layers that a verdict rests on are ringed.
        tuned, reference: the pair that is judged.
        alpha: of the family-wise p.
        condition, segmentation, query_offset: as :func:`contrast_layers`.

    Raises:
        ConfigError: as :func:`contrast_layers`; no such pair. MissingExtraError: no Altair.
    """
    alt = altair()
    columns = ("tuned", "reference", "region", "layer", "head", "value", "low", "high", "p", "n", "clusters", "detectable")
    at = place(
        differences, "contrast_differences", columns, condition=condition, segmentation=segmentation, query_offset=query_offset
    )
    found = once([row for row in at.rows if row["head"] is None], ("tuned", "reference", "region", "layer"), "contrast_differences")
    pairs = list(dict.fromkeys((row["tuned"], row["reference"]) for row in found))
    if (tuned, reference) not in pairs:
        there = ", ".join(f"{a} − {b}" for a, b in pairs)
        raise ConfigError(f"There is no difference {tuned} − {reference}.", todo=f"There is: {there}.")
    pairs.sort(key=lambda pair: pair != (tuned, reference))
    names = labels([f"{a} − {b}" for a, b in pairs], 24)
    rests = _rests_on(verdicts, at, tuned, reference)
    data = []
    for row in found:
        mine = (row["tuned"], row["reference"]) == (tuned, reference)
        inside = row["low"] is None or row["high"] is None or row["low"] <= 0 <= row["high"]
        data.append(
            {
                "region": row["region"], "x": row["layer"], "value": row["value"], "low": row["low"], "high": row["high"],
                "series": names[f"{row['tuned']} − {row['reference']}"], "main": mine,
                "unseen": row["detectable"] if mine else None,
                "shown": bool(mine and not inside and row["p"] is not None and row["p"] <= alpha),
                "rests": mine and (row["region"], row["layer"]) in rests,
            }
        )  # fmt: skip
    scales = model_scales(list(names.values()), field="series")
    reach = [{"value": sign * (row["unseen"] or 0.0)} for row in data for sign in (-1, 1)]
    y_scale = alt.Scale(domain=domain([*data, *reach], "value", "low", "high"), nice=False)
    panels = []
    regions = regions_of(data)
    shown = labels(regions)
    for region in regions:
        mine = inline(
            [{**row, "under": None if row["unseen"] is None else -row["unseen"]} for row in data if row["region"] == region]
        )
        base = alt.Chart(mine).encode(x=_whole_axis("layer"))
        y = alt.Y("value:Q", title="difference of shares", scale=y_scale)
        unseen = base.mark_area(color="#9a9a9e", opacity=0.22, aria=False).encode(y=alt.Y("under:Q", scale=y_scale), y2="unseen:Q")
        band = base.mark_area(opacity=0.16, aria=False).encode(y=alt.Y("low:Q"), y2="high:Q", color=scales["color"])
        line = base.mark_line(strokeWidth=1.8, aria=False).encode(y=y, color=scales["color"], strokeDash=scales["strokeDash"])
        dots = (
            base.transform_filter("datum.shown")
            .mark_point(size=34, filled=True, opacity=1, aria=False)
            .encode(y=y, color=scales["color"])
        )
        ring = (
            base.transform_filter("datum.rests")
            .mark_point(size=95, filled=False, strokeWidth=1.6, color=INK, aria=False)
            .encode(y=y)
        )
        panels.append(
            alt.layer(unseen.transform_filter("datum.main"), zero(), band, line, dots, ring).properties(
                width=_PANEL, height=_PANEL_HEIGHT, title=_small(shown[region])
            )
        )
    main = [row for row in found if (row["tuned"], row["reference"]) == (tuned, reference)]
    lines = (
        f"{where(at)}. {counts(main, 'pairs of deltas')}; {_BAND}",
        f"Filled: family-wise p ≤ {alpha:g}. Ringed: the verdict rests on it. Grey: too small to have been seen (80 % power, one layer)",
    )
    return _joined(panels, title(f"{names[f'{tuned} − {reference}']} by layer, same tokens", *lines))


def contrast_strata(
    layers: polars.DataFrame,
    rule_outs: polars.DataFrame | None = None,
    *,
    model: str = "tuned",
    condition: str | None = None,
    segmentation: str | None = None,
    query_offset: int | None = None,
) -> Any:
    """Event − each control stratum, layers × C1 to C5, one panel a region.

    Args:
        layers: table ``contrast_layers``: C1, with its gate B.
        rule_outs: table ``contrast_rule_outs``: C2 to C5; a stratum without rows stays white.
        model: which.
        condition, segmentation, query_offset: as :func:`contrast_layers`.

    Raises:
        ConfigError: as :func:`contrast_layers`; no such model. MissingExtraError: no Altair.
    """
    alt = altair()
    asked = {"condition": condition, "segmentation": segmentation, "query_offset": query_offset}
    at = place(layers, "contrast_layers", ("model", "region", "layer", "head", "value", "n", "clusters", "B"), **asked)
    first = [{**row, "stratum": "C1", "passed": row["B"], "control_n": row["n"]} for row in at.rows]
    more: list[dict[str, Any]] = []
    if rule_outs is not None and not rule_outs.is_empty():
        columns = ("model", "region", "layer", "head", "stratum", "value", "n", "control_n", "clusters", "passed")
        same = {"condition": at.condition, "segmentation": at.segmentation, "query_offset": at.query_offset}
        more = place(rule_outs, "contrast_rule_outs", columns, **same).rows
    cells = [row for row in (*first, *more) if row["head"] is None and row["model"] == model]
    if not cells:
        raise ConfigError(f"There is no model {model!r}.", todo=f"There is: {', '.join(models_of(at.rows))}.")
    once(cells, ("region", "layer", "stratum"), "contrast_rule_outs")
    names = {}
    for stratum in (*_STRATA, *sorted({row["stratum"] for row in cells} - set(_STRATA))):
        mine = [row for row in cells if row["stratum"] == stratum and row["value"] is not None]
        n, others = max((row["n"] for row in mine), default=0), max((row["control_n"] or 0 for row in mine), default=0)
        names[stratum] = f"{stratum}: not filled" if not mine else f"{stratum}: {n}" + (f" | {others}" if others != n else "")
    sign = {True: "", False: "×", None: "?"}
    data = [
        {
            "region": row["region"],
            "layer": row["layer"],
            "stratum": names[row["stratum"]],
            "value": row["value"],
            "mark": sign[row["passed"]],
        }
        for row in cells
        if row["value"] is not None
    ]
    limit = max((abs(row["value"]) for row in data), default=0.0) or 1.0
    depth = sorted({row["layer"] for row in data})
    height = max(10, min(16, 420 // len(depth)))
    colour = alt.Color(
        "value:Q", title="event − control (share of attention)",
        scale=alt.Scale(domain=[-limit, 0, limit], range=[AGAINST, NEUTRAL, FOR], interpolate="rgb"),
        legend=alt.Legend(orient="bottom", gradientLength=220, gradientThickness=10, titleLimit=420, tickCount=5),
    )  # fmt: skip
    order = list(names.values())
    rows_axis = alt.Axis(domain=False, ticks=False, labelOverlap="greedy")
    panels = []
    regions = regions_of(data)
    shown = labels(regions, 9)
    for region in regions:
        base = alt.Chart(inline([row for row in data if row["region"] == region])).encode(
            x=alt.X("stratum:N", sort=order, title=None, scale=alt.Scale(domain=order), axis=alt.Axis(labelAngle=-60, domain=False, ticks=False)),
            y=alt.Y("layer:O", title="layer", scale=alt.Scale(domain=depth[::-1]), axis=rows_axis),
        )  # fmt: skip
        squares = base.mark_rect(stroke="white", strokeWidth=0.5, aria=False).encode(color=colour)
        marks = base.mark_text(fontSize=11, color=INK, aria=False).encode(text="mark:N")
        panels.append(
            alt.layer(squares, marks).properties(width=21 * len(order), height=height * len(depth), title=_small(shown[region]))
        )
    paired = [row for row in cells if row["stratum"] == "C1"]
    lines = (
        f"{where(at)}; {labels([model])[model]}. {counts(paired)}; each stratum with its n (C4: with | without)",
        "× = not shown to be beyond this control (C1: gate B; others: interval over questions). ? = not evaluated",
    )
    return _joined(panels, title("Event against each control", *lines), columns=4)


# ------------------------------------------------------------------ parts


def _line_panels(
    data: list[dict[str, Any]], names: list[str], x_title: str, y_title: str, heading: str, said: tuple[str, ...]
) -> Any:
    """One panel a region with a line and a band a series, on one scale."""
    alt = altair()
    scales = model_scales(names, field="series")
    y_scale = alt.Scale(domain=domain(data, "value", "low", "high"), nice=False)
    panels = []
    regions = regions_of(data)
    shown = labels(regions)
    for region in regions:
        base = alt.Chart(inline([row for row in data if row["region"] == region])).encode(
            x=_whole_axis(x_title), color=scales["color"]
        )
        y = alt.Y("value:Q", title=y_title, scale=y_scale)
        band = base.mark_area(opacity=0.16, aria=False).encode(y=alt.Y("low:Q", scale=y_scale), y2="high:Q")
        line = base.mark_line(strokeWidth=2, aria=False).encode(y=y, strokeDash=scales["strokeDash"])
        dots = base.mark_point(size=12, filled=True, opacity=1, aria=False).encode(y=y)
        panels.append(
            alt.layer(zero(), band, line, dots).properties(width=_PANEL, height=_PANEL_HEIGHT, title=_small(shown[region]))
        )
    return _joined(panels, title(heading, *said))


def _joined(panels: list[Any], heading: Any, columns: int = _COLUMNS) -> Any:
    chart = altair().concat(*panels, columns=columns, spacing=22, title=heading)
    return styled(chart.resolve_scale(color="shared", strokeDash="shared"))


def _whole_axis(name: str) -> Any:
    alt = altair()
    return alt.X(
        "x:Q",
        title=name,
        scale=alt.Scale(nice=False),
        axis=alt.Axis(format="d", tickMinStep=1, tickCount=10, grid=False, labelOverlap="greedy"),
    )


def _small(text: str) -> Any:
    return altair().TitleParams(text, fontSize=12, fontWeight="normal", frame="group")


def _rests_on(verdicts: polars.DataFrame | None, at: Any, tuned: str, reference: str) -> set[tuple[str, int]]:
    """(region, layer) on which the verdicts of this place rest."""
    if verdicts is None:
        return set()
    columns = ("tuned", "reference", "condition", "region", "segmentation", "query_offset", "head", "layers")
    wanted = {
        "tuned": tuned, "reference": reference, "condition": at.condition, "segmentation": at.segmentation, "query_offset": at.query_offset,
        "head": None,
    }  # fmt: skip
    missing = [name for name in columns if name not in verdicts.columns]
    if missing:
        raise ConfigError(f"The table 'contrast_verdicts' lacks the columns {', '.join(missing)}.")
    mine = [row for row in verdicts.select(columns).to_dicts() if all(row[name] == value for name, value in wanted.items())]
    return {(row["region"], int(layer)) for row in mine for layer in row["layers"].split()}
