"""Three figures by layer: where the last row looks, what attention and MLP add, and how far the OV circuits push each candidate.

1. ``attention_by_region``: mass of the final row averaged over heads, stacked by region; one bar a layer, full height = 1.
   The attention sink is grey and at the bottom: its mass is real, but says little about the prompt.
2. ``components``: direct contribution to the logit difference by component and layer, with the running sum as a line.
3. ``ov_strength``: strength toward each candidate by layer.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, TYPE_CHECKING

from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import CANDIDATES, DASHES, INK, region_colours
from symbolic_residue.figures._text import visible

if TYPE_CHECKING:
    import polars

__all__ = ["attention_by_region", "components", "ov_strength"]

_WIDTH, _HEIGHT = 640, 200
_OUTSIDE = "outside the layers"
_ORDER = ("sink", "special", "system", "user", "text", "assistant_header", "answer", "self")


def attention_by_region(attention: polars.DataFrame) -> Any:
    """Attention mass of the last row by layer and region (share of 1), averaged over heads.

    Args:
        attention: table ``attention`` of one item: ``layer, head, region, mass``.

    Raises:
        ConfigError: missing columns, no rows, several items. MissingExtraError: no Altair.
    """
    alt = altair()
    sums: dict[tuple[int, str], float] = defaultdict(float)
    heads: dict[int, set[int]] = defaultdict(set)
    for row in rows(attention, "attention", ("layer", "head", "region", "mass")):
        heads[row["layer"]].add(row["head"])
        sums[row["layer"], row["region"]] += row["mass"] or 0.0
    # Mean over every head of the layer: a head without a row for a region gives it no mass.
    present = {region for _, region in sums}
    order = [name for name in _ORDER if name in present] + sorted(present - set(_ORDER))
    data = [
        {"layer": layer, "region": region, "mass": total / len(heads[layer]), "rank": order.index(region)}
        for (layer, region), total in sums.items()
    ]
    colours = region_colours(order)
    chart = (
        alt.Chart(inline(data))
        .mark_bar(stroke="white", strokeWidth=0.5, aria=False)
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap="greedy")),
            y=alt.Y("mass:Q", title="attention mass of the last row", stack="zero", scale=alt.Scale(domain=[0, 1], clamp=True)),
            color=alt.Color(
                "region:N",
                title="region",
                sort=order,
                scale=alt.Scale(domain=order, range=[colours[name] for name in order]),
                legend=alt.Legend(orient="bottom", columns=min(len(order), 6)),
            ),
            order=alt.Order("rank:Q"),
        )
        .properties(width=_WIDTH, height=_HEIGHT)
    )
    return styled(chart)


def components(components: polars.DataFrame) -> Any:
    """Contribution of attention, MLP and the rest to the logit difference (logits), by layer, with the running sum.

    Args:
        components: table ``components`` of one item and one target: ``target, component, layer, contribution``; layer −1 where
            the component belongs to none. With several targets the first is drawn.

    Raises:
        ConfigError: missing columns, no rows, several items. MissingExtraError: no Altair.
    """
    alt = altair()
    data = rows(components, "components", ("target", "component", "layer", "contribution"))
    data = [row for row in data if row["target"] == data[0]["target"]]
    layers = sorted({row["layer"] for row in data if row["layer"] >= 0})
    outside = list(dict.fromkeys(_short(row["component"]) for row in data if row["layer"] < 0))
    order = (
        [name for name in outside if name == "emb"] + [str(layer) for layer in layers] + [name for name in outside if name != "emb"]
    )
    kinds = list(dict.fromkeys(row["component"] for row in data if row["layer"] >= 0))
    kinds = [name for name in ("attention", "mlp") if name in kinds] + [name for name in kinds if name not in ("attention", "mlp")]
    bars = [
        {
            "place": _short(row["component"]) if row["layer"] < 0 else str(row["layer"]),
            "kind": _OUTSIDE if row["layer"] < 0 else row["component"],
            "contribution": row["contribution"] or 0.0,
        }
        for row in data
    ]
    by_place: dict[str, float] = defaultdict(float)
    for bar in bars:
        by_place[bar["place"]] += bar["contribution"]
    running, total = [], 0.0
    for place in order:
        total += by_place[place]
        running.append({"place": place, "total": total})
    domain = [*kinds, *([_OUTSIDE] if outside else [])]
    palette = {"attention": "#0072b2", "mlp": "#e08214", _OUTSIDE: "#77777c"}
    colours = [palette.get(name, CANDIDATES[2 + index % 4]) for index, name in enumerate(domain)]
    angle = -45 if any(len(name) > 4 for name in outside) else 0
    overlap = "greedy" if len(order) > 45 else False
    x = alt.X("place:N", sort=order, title="layer", axis=alt.Axis(labelAngle=angle, labelOverlap=overlap, labelLimit=90))
    y = alt.Y("contribution:Q", title="contribution (logits)")
    legend = alt.Legend(orient="top")
    colour = alt.Color("kind:N", title=None, sort=domain, scale=alt.Scale(domain=domain, range=colours), legend=legend)
    columns = (
        alt.Chart(inline([bar for bar in bars if bar["kind"] != _OUTSIDE])).mark_bar(aria=False).encode(x=x, y=y, color=colour)
    )
    if len(kinds) > 1:
        columns = columns.encode(xOffset=alt.XOffset("kind:N", sort=kinds, scale=alt.Scale(domain=kinds)))
    rest = alt.Chart(inline([bar for bar in bars if bar["kind"] == _OUTSIDE])).mark_bar(aria=False).encode(x=x, y=y, color=colour)
    line = alt.Chart(inline(running)).mark_line(interpolate="step", stroke=INK, strokeWidth=1.4, strokeDash=[5, 2], aria=False)
    zero = alt.Chart(inline([{"y": 0}])).mark_rule(stroke="#8a8a8e", aria=False).encode(y="y:Q")
    layered = alt.layer(zero, columns, rest, line.encode(x=x, y=alt.Y("total:Q")))
    return styled(layered.properties(width=_WIDTH, height=_HEIGHT))


def _short(component: str) -> str:
    return "emb" if component.startswith("embed") else component


def ov_strength(ov: polars.DataFrame) -> Any:
    """OV strength toward each candidate by layer (logits); one line a candidate, at most six.

    Args:
        ov: table ``ov`` of one item: ``layer, token, strength``.

    Raises:
        ConfigError: missing columns, no rows, several items. MissingExtraError: no Altair.
    """
    alt = altair()
    data = rows(ov, "ov", ("layer", "token", "strength"))
    tokens = list(dict.fromkeys(row["token"] for row in data))[: len(CANDIDATES)]
    labels = [visible(token, spaces="all") for token in tokens]
    data = [{**row, "token": visible(row["token"], spaces="all")} for row in data if row["token"] in tokens]
    scale = alt.Scale(domain=labels, range=list(CANDIDATES[: len(labels)]))
    dashes = alt.Scale(domain=labels, range=DASHES[: len(labels)])
    key = alt.Legend(orient="bottom", symbolType="stroke", symbolOpacity=1, symbolSize=500, symbolStrokeWidth=2.2)
    chart = (
        alt.Chart(inline(data))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=22, filled=True, aria=False), aria=False)
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap="greedy")),
            y=alt.Y("strength:Q", title="OV strength (logits)"),
            color=alt.Color("token:N", title="candidate", sort=labels, scale=scale, legend=key),
            strokeDash=alt.StrokeDash("token:N", title="candidate", sort=labels, scale=dashes, legend=key),
        )
        .properties(width=_WIDTH, height=_HEIGHT)
    )
    return styled(chart)
