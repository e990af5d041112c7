"""Figures of a measurement of token trees, from its tables over prompts.

1. ``parallel_layers``: ratio of attention by layer, a line a comparison; band = interval over prompts; filled = p adjusted over layers ≤ 0.05.
2. ``parallel_ratios``: every comparison of a question in its four forms, a dot with its interval; 1 = no effect.
3. ``parallel_curve``: offset, bias, set size or entropy, a line a series.
4. ``parallel_intra``: who looks at whom within a set. ``parallel_heads``: the class of each head. ``parallel_trace``: two siblings through the layers.
5. ``parallel_auc``: how well attention and probability part pruned from surviving tokens; 0.5 = by chance.

Ratios are on a logarithmic axis. n counts prompts, never layers or heads.
"""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._contrast_data import labels, title
from symbolic_residue.figures._palette import CANDIDATES, DASHES, FOR, INK, NEUTRAL

if TYPE_CHECKING:
    import polars

__all__ = [
    "parallel_auc", "parallel_curve", "parallel_heads", "parallel_intra", "parallel_layers", "parallel_ratios", "parallel_trace",
]  # fmt: skip

_KINDS = {"sink": "#b4b4b8", "local": "#56b4e9", "long-range": "#0072b2", "diffuse": "#f0c800", "induction": "#d55e00"}
_FORMS = ("all keys", "prompt excluded", "sink excluded", "distance matched")


def _n(data: list[dict[str, Any]]) -> str:
    counts = sorted({row["n"] for row in data})
    return f"n = {counts[0]} prompts" if counts[0] == counts[-1] else f"n = {counts[0]} to {counts[-1]} prompts"


def _at(value: float, axis: str) -> Any:
    return altair().Chart(inline([{"at": value}])).mark_rule(stroke="#8a8a8e", aria=False).encode(**{axis: "at:Q"})


def _lines(
    data: list[dict[str, Any]], x_title: str, y_title: str, *, log: bool, heading: Any, width: int = 560, height: int = 210
) -> Any:
    """Lines with bands: rows of ``x series value low high``, and ``clear`` where points are filled."""
    alt = altair()
    names = list(dict.fromkeys(row["series"] for row in data))
    if len(names) > len(CANDIDATES):
        raise ConfigError(f"{len(names)} series do not fit into one figure.", todo=f"Choose {len(CANDIDATES)} of them.")
    shown = labels(names, 30)
    data = [{**row, "series": shown[row["series"]]} for row in data]
    order = list(shown.values())
    legend = alt.Legend(
        orient="bottom", symbolType="stroke", symbolSize=400, symbolStrokeWidth=2.2, symbolOpacity=1, labelLimit=320, columns=2
    )
    colour = alt.Color(
        "series:N", title=None, sort=order, legend=legend, scale=alt.Scale(domain=order, range=list(CANDIDATES[: len(order)]))
    )
    dash = alt.StrokeDash(
        "series:N", title=None, sort=order, legend=legend, scale=alt.Scale(domain=order, range=DASHES[: len(order)])
    )
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale(nice=False, zero=False)
    base = alt.Chart(inline(data)).encode(x=alt.X("x:Q", title=x_title, scale=alt.Scale(nice=False, padding=6)), color=colour)
    y = alt.Y("value:Q", title=y_title, scale=scale)
    band = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_area(opacity=0.16, aria=False)
        .encode(y="low:Q", y2="high:Q")
    )
    line = base.mark_line(strokeWidth=2, aria=False).encode(y=y, strokeDash=dash)
    dots = base.mark_point(size=26, filled=True, opacity=1, aria=False).encode(y=y)
    if any("clear" in row for row in data):
        hollow = (
            base.transform_filter("!datum.clear").mark_point(size=22, filled=True, fill="white", opacity=1, aria=False).encode(y=y)
        )
        dots = dots + hollow
    layers = [band, line, dots] if not log else [_at(1.0, "y"), band, line, dots]
    return styled(alt.layer(*layers).properties(width=width, height=height, title=heading))


def parallel_layers(layers: polars.DataFrame, question: str) -> Any:
    """Ratio of attention by layer for every comparison of a question.

    Args:
        layers: table ``parallel_layers``: ``question, arm, reference, form, layer, value, low, high, p_adjusted, n``.
        question: which.

    Raises:
        ConfigError: missing columns, or no such question. MissingExtraError: no Altair.
    """
    data = rows(
        layers, "parallel_layers", ("question", "arm", "reference", "form", "layer", "value", "low", "high", "p_adjusted", "n")
    )
    mine = [row for row in data if row["question"] == question]
    if not mine:
        raise ConfigError(f"There are no layers of the question {question!r}.")
    lines = [
        {
            **row,
            "x": row["layer"],
            "series": f"{row['arm']} / {row['reference']}",
            "clear": row["p_adjusted"] is not None and row["p_adjusted"] <= 0.05,
        }
        for row in mine
    ]
    said = f"{_n(mine)}; {mine[0]['form']}; band: 95 % over prompts; filled: p ≤ 0.05, adjusted over layers"
    return _lines(lines, "layer", "ratio of attention", log=True, heading=title(f"{question}: ratio by layer", said))


def parallel_ratios(verdicts: polars.DataFrame, question: str, *, heads: bool = False) -> Any:
    """Every comparison of a question in each form, as ratios; the verdict's own row is left out (it repeats one of them).

    Args:
        verdicts: table ``parallel_verdicts``: ``question, quantity, arm, reference, form, outcome, value, low, high, n, unit``.
        question: which.
        heads: the classes of heads instead.

    Raises:
        ConfigError: missing columns, or no ratio of such a question. MissingExtraError: no Altair.
    """
    columns = ("question", "quantity", "arm", "reference", "form", "value", "low", "high", "n", "unit")
    data = rows(verdicts, "parallel_verdicts", columns)
    mine = [row for row in data if row["question"] == question and row["unit"] == "ratio" and row["value"] is not None]
    mine = [row for row in mine if row["quantity"] != "verdict" and row["quantity"].startswith("heads: ") == heads]
    if not mine:
        raise ConfigError(f"There are no ratios of the question {question!r}.")
    forms = [form for form in _FORMS if any(row["form"] == form for row in mine)]
    forms += [form for form in dict.fromkeys(row["form"] for row in mine) if form not in forms]
    names = labels([f"{row['quantity']} ({row['arm']} / {row['reference']})" for row in mine], 46)
    points = [{**row, "what": names[f"{row['quantity']} ({row['arm']} / {row['reference']})"]} for row in mine]
    heading = title(f"{question}: ratios", f"{_n(mine)}; bars: 95 % over prompts; line: no effect")
    return _dots(points, list(names.values()), forms, at=1.0, x_title="ratio of attention", log=True, heading=heading)


def parallel_auc(verdicts: polars.DataFrame) -> Any:
    """AUC of later attention and of probability for pruned against surviving tokens.

    Args:
        verdicts: table ``parallel_verdicts``.

    Raises:
        ConfigError: missing columns, or no AUC. MissingExtraError: no Altair.
    """
    data = rows(verdicts, "parallel_verdicts", ("question", "quantity", "value", "low", "high", "n", "unit"))
    mine = [row for row in data if row["question"] == "pruning" and row["unit"] == "AUC" and row["value"] is not None]
    if not mine:
        raise ConfigError("There is no AUC.")
    points = [{**row, "what": row["quantity"], "form": "AUC"} for row in mine]
    heading = title("Pruned against surviving tokens", f"{_n(mine)}; bars: 95 % over prompts; line: by chance")
    return _dots(points, [row["quantity"] for row in mine], ["AUC"], at=0.5, x_title="AUC", log=False, heading=heading)


def _dots(
    data: list[dict[str, Any]], order: list[str], forms: list[str], *, at: float, x_title: str, log: bool, heading: Any
) -> Any:
    alt = altair()
    colours = [CANDIDATES[i % len(CANDIDATES)] for i in range(len(forms))]
    legend = alt.Legend(orient="bottom", symbolSize=70, columns=4) if len(forms) > 1 else None
    base = alt.Chart(inline(data)).encode(
        y=alt.Y("what:N", sort=order, title=None, axis=alt.Axis(domain=False, ticks=False, labelLimit=330)),
        yOffset=alt.YOffset("form:N", sort=forms, scale=alt.Scale(domain=forms)),
        color=alt.Color("form:N", title=None, sort=forms, legend=legend, scale=alt.Scale(domain=forms, range=colours)),
    )
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale(domain=[0, 1])
    spans = (
        base.transform_filter("isValid(datum.low) && isValid(datum.high)")
        .mark_rule(strokeWidth=2.2, aria=False)
        .encode(x=alt.X("low:Q", title=x_title, scale=scale), x2="high:Q")
    )
    dots = base.mark_point(size=45, filled=True, opacity=1, aria=False).encode(x=alt.X("value:Q", title=x_title, scale=scale))
    height = max(50, 11 * len(forms) * len(dict.fromkeys(order)) + 10)
    return styled(alt.layer(_at(at, "x"), spans, dots).properties(width=380, height=height, title=heading))


def parallel_curve(curves: polars.DataFrame, curve: str, *, unit: str, series: tuple[str, ...] | None = None) -> Any:
    """One of the curves over prompts.

    Args:
        curves: table ``curves``: ``curve, series, x, x_unit, value, low, high, n, unit``.
        curve: ``parallel offset``, ``parallel bias``, ``parallel scaling`` or ``parallel entropy``.
        unit: of the series to draw (``ratio``, ``share``, ``nats``).
        series: which, in this order; None takes all of the unit.

    Raises:
        ConfigError: missing columns, nothing to draw, or more than six series. MissingExtraError: no Altair.
    """
    data = rows(curves, "curves", ("curve", "series", "x", "x_unit", "value", "low", "high", "n", "unit"))
    mine = [r for r in data if r["curve"] == curve and r["unit"] == unit and (series is None or r["series"] in series)]
    if not mine:
        raise ConfigError(f"There is nothing to draw of {curve!r} in {unit}.")
    if series is not None:
        mine.sort(key=lambda row: series.index(row["series"]))
    said = f"{_n(mine)}; band: 95 % over prompts" + ("; line: no effect" if unit == "ratio" else "")
    names = {"ratio": "ratio of attention", "share": "share", "nats": "nats"}
    return _lines(
        mine, mine[0]["x_unit"], names.get(unit, unit), log=unit == "ratio", heading=title(curve.removeprefix("parallel "), said)
    )


def parallel_intra(intra: polars.DataFrame, *, most: int = 4) -> Any:
    """Attention within a set: rows look at columns, mean over layers and prompts; a panel a mode and size.

    Args:
        intra: table ``parallel_intra`` of all prompts, their means over ``item``: ``mode, size, layer, query_rank, key_rank, value``.
        most: sizes from 2 up to this one.

    Raises:
        ConfigError: missing columns, or no set of such a size. MissingExtraError: no Altair.
    """
    alt = altair()
    import polars as pl

    frame = intra.drop("item") if "item" in intra.columns else intra
    rows(frame, "parallel_intra", ("mode", "size", "query_rank", "key_rank", "value"))
    mean = frame.filter(pl.col("size") <= most).group_by("mode", "size", "query_rank", "key_rank").agg(pl.col("value").mean())
    data = mean.sort("mode", "size", "query_rank", "key_rank").to_dicts()
    if not data:
        raise ConfigError(f"There is no set of 2 to {most} tokens.")
    limit = max(row["value"] for row in data) or 1.0
    panels = []
    for mode in dict.fromkeys(row["mode"] for row in data):
        for size in sorted({row["size"] for row in data if row["mode"] == mode}):
            cells = [{**row, "said": f"{row['value']:.2f}"} for row in data if (row["mode"], row["size"]) == (mode, size)]
            base = alt.Chart(inline(cells)).encode(
                x=alt.X("key_rank:O", title="key", axis=alt.Axis(labelAngle=0, orient="top", ticks=False, domain=False)),
                y=alt.Y("query_rank:O", title="row", axis=alt.Axis(ticks=False, domain=False)),
            )
            fill = base.mark_rect(aria=False).encode(
                color=alt.Color("value:Q", legend=None, scale=alt.Scale(domain=[0, limit], range=[NEUTRAL, FOR]))
            )
            text = base.mark_text(fontSize=11, color=INK, aria=False).encode(text="said:N")
            panels.append(alt.layer(fill, text).properties(width=48 * size, height=24 * size, title=f"{mode}, {size} tokens"))
    modes = list(dict.fromkeys(row["mode"] for row in data))
    each = [alt.hconcat(*[p for p in panels if str(p.title).startswith(f"{mode},")], spacing=26) for mode in modes]
    return styled(alt.vconcat(*each, spacing=14))


def parallel_heads(heads: polars.DataFrame) -> Any:
    """The class of each head, layers upward.

    Args:
        heads: table ``parallel_heads`` over prompts: ``layer, head, kind``.

    Raises:
        ConfigError: missing columns, no rows, or several items. MissingExtraError: no Altair.
    """
    alt = altair()
    data = rows(heads, "parallel_heads", ("layer", "head", "kind", "n"))
    counts = {kind: sum(row["kind"] == kind for row in data) for kind in _KINDS}
    names = {kind: f"{kind}: {count}" for kind, count in counts.items() if count}
    cells = [{**row, "kind": names.get(row["kind"], row["kind"])} for row in data]
    layers, n_heads = len({row["layer"] for row in data}), len({row["head"] for row in data})
    colour = alt.Color(
        "kind:N", title=None, sort=list(names.values()), legend=alt.Legend(orient="right", symbolType="square"),
        scale=alt.Scale(domain=list(names.values()), range=[_KINDS[kind] for kind in names]),
    )  # fmt: skip
    chart = alt.Chart(inline(cells)).mark_rect(stroke="white", aria=False).encode(
        x=alt.X("head:O", title="head", axis=alt.Axis(labelAngle=0, ticks=False, domain=False)),
        y=alt.Y("layer:O", title="layer", sort="descending", axis=alt.Axis(ticks=False, domain=False, labelOverlap=True)),
        color=colour,
    )  # fmt: skip
    return styled(
        chart.properties(width=max(430, 22 * n_heads), height=max(60, 11 * layers), title=title("Classes of heads", _n(data)))
    )


def parallel_trace(trace: polars.DataFrame) -> Any:
    """A set's first two siblings through the layers: a panel a quantity, means over prompts.

    Args:
        trace: table ``parallel_trace`` of all prompts: ``item, arm, rank, layer, received, value_norm, write, lens``.

    Raises:
        ConfigError: missing columns or no rows. MissingExtraError: no Altair.
    """
    alt = altair()
    import polars as pl

    what = {
        "received": "attention received (share)",
        "value_norm": "norm of the value",
        "write": "written into the residual",
        "lens": "lens: ln p of the token itself",
    }
    rows(trace.drop("item") if "item" in trace.columns else trace, "parallel_trace", ("arm", "rank", "layer", *what))
    n = trace["item"].n_unique() if "item" in trace.columns else 1
    mean = trace.group_by("arm", "rank", "layer").agg(pl.col(name).mean() for name in what).sort("arm", "rank", "layer")
    data = [{**row, "series": f"{row['arm']}, {'top token' if row['rank'] == 0 else 'second token'}"} for row in mean.to_dicts()]
    order = list(dict.fromkeys(row["series"] for row in data))
    legend = alt.Legend(orient="bottom", symbolType="stroke", symbolSize=400, symbolStrokeWidth=2.2, columns=4)
    panels = []
    for name, said in what.items():
        base = alt.Chart(inline([{"layer": r["layer"], "series": r["series"], "value": r[name]} for r in data]))
        panels.append(
            base.mark_line(strokeWidth=2, aria=False)
            .encode(
                x=alt.X("layer:Q", axis=alt.Axis(format="d", tickMinStep=1), scale=alt.Scale(nice=False)),
                y=alt.Y("value:Q", title=said, scale=alt.Scale(zero=False, nice=False)),
                color=alt.Color(
                    "series:N",
                    title=None,
                    sort=order,
                    legend=legend,
                    scale=alt.Scale(domain=order, range=list(CANDIDATES[: len(order)])),
                ),
                strokeDash=alt.StrokeDash(
                    "series:N", title=None, sort=order, legend=legend, scale=alt.Scale(domain=order, range=DASHES[: len(order)])
                ),
            )
            .properties(width=300, height=120)
        )
    head = title("One set's first two tokens through the layers", f"mean over n = {n} prompts, no interval: a description")
    return styled(alt.vconcat(alt.hconcat(*panels[:2]), alt.hconcat(*panels[2:]), title=head))
