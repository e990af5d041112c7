"""Figures of a contrast in bars and dots.

1. ``contrast_regions``: a bar a region and model, at one layer: tuned, base, and the null models that were read.
2. ``contrast_shifts``: the layers where tuned and reference peak, and how far apart they are with the interval.
3. ``contrast_rates``: how often each model shows the behaviour, with Wilson's interval and the counts.
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
from symbolic_residue.figures._palette import INK

if TYPE_CHECKING:
    import polars

__all__ = ["contrast_rates", "contrast_regions", "contrast_shifts"]


def contrast_regions(
    layers: polars.DataFrame,
    *,
    layer: int,
    condition: str | None = None,
    segmentation: str | None = None,
    query_offset: int | None = None,
) -> Any:
    """Mean delta of every region at one layer, a bar a model: tuned, base, and the null models that were read.

    Args:
        layers: table ``contrast_layers``.
        layer: which.
        condition, segmentation, query_offset: as :func:`contrast_layers`.

    Raises:
        ConfigError: as :func:`contrast_layers`; no such layer. MissingExtraError: no Altair.
    """
    alt = altair()
    columns = ("model", "region", "layer", "head", "value", "low", "high", "n", "clusters")
    at = place(layers, "contrast_layers", columns, condition=condition, segmentation=segmentation, query_offset=query_offset)
    found = once(at_layer([row for row in at.rows if row["head"] is None], layer), ("model", "region"), "contrast_layers")
    regions, models = labels(regions_of(found), 10), labels(models_of(found))
    data = [{**row, "region": regions[row["region"]], "model": models[row["model"]]} for row in found]
    order = list(models.values())
    scale = alt.Scale(domain=domain(data, "value", "low", "high"), nice=False)
    base = alt.Chart(inline(data)).encode(
        x=alt.X("region:N", sort=list(regions.values()), title=None, axis=alt.Axis(labelAngle=0, domain=False, ticks=False)),
        xOffset=alt.XOffset("model:N", sort=order, scale=alt.Scale(domain=order)),
    )
    y = alt.Y("value:Q", title="share of attention, event − C1", scale=scale)
    colour = model_scales(order)["color"]
    colour.legend = alt.Legend(orient="bottom", labelLimit=320)
    bars = base.mark_bar(aria=False).encode(y=y, color=colour)
    spans = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(color=INK, aria=False)
        .encode(y="low:Q", y2="high:Q")
    )
    lines = (f"{where(at)}. {counts(found)}; lines: interval over questions",)
    chart = alt.layer(bars, spans, zero()).properties(
        width=580, height=200, title=title(f"Event − control by region, layer {layer}", *lines)
    )
    return styled(chart)


def contrast_shifts(
    shifts: polars.DataFrame,
    *,
    tuned: str = "tuned",
    reference: str = "base",
    segmentation: str | None = None,
    query_offset: int | None = None,
) -> Any:
    """Where tuned and reference peak (left), and by how many layers the peak moved with its interval (right); a row a condition and region.

    Args:
        shifts: table ``contrast_shifts``: ``tuned, reference, condition, region, tuned_peak, reference_peak, shift, low, high, n, clusters``.
        tuned, reference: the pair.
        segmentation, query_offset: as :func:`contrast_layers`.

    Raises:
        ConfigError: as :func:`contrast_layers`; no such pair. MissingExtraError: no Altair.
    """
    alt = altair()
    columns = ("tuned", "reference", "condition", "region", "tuned_peak", "reference_peak", "shift", "low", "high", "n", "clusters")
    at = place(shifts, "contrast_shifts", columns, segmentation=segmentation, query_offset=query_offset)
    found = [row for row in at.rows if (row["tuned"], row["reference"]) == (tuned, reference)]
    if not found:
        raise ConfigError(f"There is no shift of {tuned} from {reference}.")
    once(found, ("condition", "region"), "contrast_shifts")
    several = len({row["condition"] for row in found}) > 1
    regions = regions_of(found)
    found.sort(key=lambda row: regions.index(row["region"]))
    found.sort(key=lambda row: row["condition"])
    texts = {id(row): f"{row['condition']} · {row['region']}" if several else row["region"] for row in found}
    names = labels(texts.values(), 16)
    models = labels([tuned, reference])
    peaks = [
        {"place": names[texts[id(row)]], "model": models[which], "layer": row[column]}
        for row in found
        for which, column in ((tuned, "tuned_peak"), (reference, "reference_peak"))
    ]
    moved = [{"place": names[texts[id(row)]], "shift": row["shift"], "low": row["low"], "high": row["high"]} for row in found]
    order = list(names.values())
    height = max(60, 20 * len(order))
    y = alt.Y("place:N", sort=order, title=None, axis=alt.Axis(domain=False, ticks=False, labelLimit=230))
    scales = model_scales(list(models.values()))
    scales["color"].legend = scales["shape"].legend = alt.Legend(orient="bottom", symbolSize=70)
    left = alt.Chart(inline(peaks)).encode(
        y=y, x=alt.X("layer:Q", title="layer of the largest delta", axis=alt.Axis(format="d", tickMinStep=1))
    )
    dots = left.mark_point(size=60, filled=True, opacity=0.9, aria=False).encode(color=scales["color"], shape=scales["shape"])
    right = alt.Chart(inline(moved)).encode(
        y=alt.Y("place:N", sort=order, title=None, axis=alt.Axis(labels=False, domain=False, ticks=False))
    )
    spans = right.transform_filter("isValid(datum.low) && isValid(datum.high)").mark_rule(strokeWidth=2.4, color=INK, aria=False)
    ends = right.mark_point(size=55, filled=True, opacity=1, color=INK, aria=False).encode(x="shift:Q")
    spans = spans.encode(
        x=alt.X("low:Q", title="layers moved (interval over questions)", axis=alt.Axis(format="d", tickMinStep=1)), x2="high:Q"
    )
    panels = [
        alt.layer(dots).properties(width=205, height=height),
        alt.layer(zero("x"), spans, ends).properties(width=205, height=height),
    ]
    head = title("Where the layers peak", f"{where(at, condition=False)}. {counts(found, 'pairs')}")
    return styled(alt.hconcat(*panels, spacing=20, title=head).resolve_scale(color="shared", shape="shared"))


def contrast_rates(rates: polars.DataFrame, *, behaviour: str | None = None) -> Any:
    """How often each model shows the behaviour, by condition, with Wilson's interval and the counts.

    Args:
        rates: table ``contrast_rates``: ``model, condition, behaviour, hits, n, rate, low, high``, and ``n_effective`` where the interval counts it.
        behaviour: which; may be left out where there is only one.

    Raises:
        ConfigError: missing columns, no rows, no such behaviour, a place twice. MissingExtraError: no Altair.
    """
    alt = altair()
    columns = ["model", "condition", "hits", "n", "rate", "low", "high"]
    columns += [name for name in ("n_effective",) if name in rates.columns]  # absent from tables of earlier versions
    found = place(rates, "contrast_rates", columns, behaviour=behaviour).rows
    once(found, ("model", "condition"), "contrast_rates")
    conditions, models = labels([row["condition"] for row in found], 16), labels(models_of(found))
    data = [
        {
            **row, "condition": conditions[row["condition"]], "model": models[row["model"]],
            "low": None if row["low"] is None else max(0.0, row["low"]), "high": None if row["high"] is None else min(1.0, row["high"]),
            "said": f"{row['hits']} of {row['n']}",
        }
        for row in found
    ]  # fmt: skip
    order, shown = list(models.values()), list(conditions.values())
    scales = model_scales(order)
    scales["color"].legend = scales["shape"].legend = alt.Legend(orient="bottom", symbolSize=70)
    base = alt.Chart(inline(data)).encode(
        y=alt.Y("condition:N", sort=shown, title=None, axis=alt.Axis(domain=False, ticks=False, labelLimit=230)),
        yOffset=alt.YOffset("model:N", sort=order, scale=alt.Scale(domain=order)),
        color=scales["color"],
    )
    x_title = "share of answers with the behaviour"
    spans = base.mark_rule(strokeWidth=2.4, aria=False).encode(
        x=alt.X("low:Q", title=x_title, scale=alt.Scale(domain=[0, 1])), x2="high:Q"
    )
    dots = base.mark_point(size=55, filled=True, opacity=1, aria=False).encode(x="rate:Q", shape=scales["shape"])
    words = base.mark_text(align="left", dx=6, fontSize=10, aria=False).encode(x=alt.X("high:Q"), text="said:N")
    name = labels([found[0]["behaviour"]], 40)[found[0]["behaviour"]]
    worth = all(row.get("n_effective") is not None for row in found)
    counted = "count as what they are worth" if worth else "are taken as independent"
    head = title(f"How often: {name}", f"Wilson's 95 % interval over answers; those to one question {counted}")
    return styled(alt.layer(spans, dots, words).properties(width=430, height=max(50, 17 * len(order) * len(shown)), title=head))
