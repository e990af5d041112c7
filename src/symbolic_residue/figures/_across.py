"""Figures across shells: which heads several shells blame, and one head's attention beside what it writes.

``blame_map``: rows = heads, columns = layers; the deeper the blue, the more shells blame the head; heads that an intervention confirmed for at least one
shell are outlined. ``qk_ov``: a head's attention rows, and under them what each key adds to a token's logit through the head.
"""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.errors import ConfigError
from symbolic_residue.figures._altair import altair, inline, rows, styled
from symbolic_residue.figures._palette import AGAINST, FOR, INK, NEUTRAL
from symbolic_residue.figures._text import fit, visible

if TYPE_CHECKING:
    import polars

__all__ = ["blame_map", "qk_ov"]

_SHADES = ["#cfe6ee", "#8cc1de", "#4f9bcb", "#2a6fa8", "#174a75"]


def blame_map(blame: polars.DataFrame) -> Any:
    """Heads by layer, coloured by the number of shells that blame them; heads that none blames are left white.

    Args:
        blame: table ``blame`` of one item: ``level, layer, unit, shell, blamed, confirmed, by``.

    Raises:
        ConfigError: missing columns, several items, no head that is blamed. MissingExtraError: no Altair.
    """
    alt = altair()
    cells = [
        r for r in rows(blame, "blame", ("level", "layer", "unit", "shell", "blamed", "confirmed", "by")) if r["level"] == "head"
    ]
    if not cells:
        raise ConfigError("No shell blames a head, so there is nothing to draw.")
    heads: dict[tuple[int, int], dict[str, Any]] = {}
    for row in cells:
        entry = heads.setdefault(
            (row["layer"], int(row["unit"])),
            {"layer": row["layer"], "head": int(row["unit"]), "shells": str(row["by"]), "confirmed": False},
        )
        entry["confirmed"] = entry["confirmed"] or bool(row["confirmed"])
    counts = [str(k) for k in range(1, max(int(e["shells"]) for e in heads.values()) + 1)]
    n_layers = max(layer for layer, _ in heads) + 1
    cell = max(14, min(22, 660 // n_layers))
    axis = alt.Axis(labelAngle=0, domain=False, ticks=False, labelOverlap="greedy")
    layers, head_numbers = list(range(n_layers)), list(range(max(head for _, head in heads) + 1))
    base = alt.Chart(inline(list(heads.values()))).encode(
        x=alt.X("layer:O", title="layer", axis=axis, scale=alt.Scale(domain=layers)),
        y=alt.Y("head:O", title="head", axis=axis, scale=alt.Scale(domain=head_numbers)),
    )
    shades = [_SHADES[min(i, len(_SHADES) - 1)] for i in range(len(counts))]
    squares = base.mark_rect(stroke="white", strokeWidth=0.5, aria=False).encode(
        color=alt.Color(
            "shells:N",
            title="shells that blame the head",
            scale=alt.Scale(domain=counts, range=shades),
            legend=alt.Legend(orient="top"),
        )
    )
    outline = base.mark_rect(fillOpacity=0, stroke=INK, strokeWidth=2, aria=False).transform_filter("datum.confirmed")
    return styled(alt.layer(squares, outline).properties(width=cell * n_layers, height=18 * len(head_numbers)))


def qk_ov(
    attention: polars.DataFrame,
    ov_keys: polars.DataFrame,
    tokens: polars.DataFrame,
    *,
    layer: int,
    head: int,
    target: str | None = None,
    last: int = 24,
) -> Any:
    """One head: attention of the last queries on the last keys, and under it what each key adds to the target through the head.

    Args:
        attention: table ``attention_rows`` of one item: ``layer, head, query, key, weight``.
        ov_keys: table ``ov_keys``: ``layer, head, position, target, strength``.
        tokens: ``position, token``.
        layer, head: which head; ``target`` may be left out where there is only one.
        last: how many keys, counted from the end. Position 0 is always shown, since the sink is there.

    Raises:
        ConfigError: missing columns, several items, no such head or target. MissingExtraError: no Altair.
    """
    alt = altair()
    cells = [
        r
        for r in rows(attention, "attention_rows", ("layer", "head", "query", "key", "weight"))
        if (r["layer"], r["head"]) == (layer, head)
    ]
    bars = [
        r
        for r in rows(ov_keys, "ov_keys", ("layer", "head", "position", "target", "strength"))
        if (r["layer"], r["head"]) == (layer, head)
    ]
    names = list(dict.fromkeys(r["target"] for r in bars))
    chosen = names[0] if target is None and len(names) == 1 else target
    if not cells or chosen not in names:
        raise ConfigError(
            f"There is no view of head {layer}.{head} toward {chosen!r}.",
            todo=f"Targets of this head: {', '.join(names) or 'none'}.",
        )
    words = {r["position"]: r["token"] for r in rows(tokens, "tokens", ("position", "token"))}
    every = sorted(words)
    shown = sorted({0, *every[-last:]})
    label = {p: f"{fit(visible(words[p], spaces='all'), 8)}  {p}" for p in every}
    queries = sorted({r["query"] for r in cells})
    x = alt.X(
        "key:N",
        sort=[label[p] for p in shown],
        title="key",
        axis=alt.Axis(labelAngle=-60, labelLimit=130, domain=False, ticks=False),
        scale=alt.Scale(domain=[label[p] for p in shown]),
    )
    data = [{"query": label[r["query"]], "key": label[r["key"]], "weight": r["weight"]} for r in cells if r["key"] in shown]
    width = 20 * len(shown)
    heat = (
        alt.Chart(inline(data))
        .mark_rect(stroke="white", strokeWidth=0.5, aria=False)
        .encode(
            x=x,
            y=alt.Y("query:N", sort=[label[p] for p in queries], title="query", axis=alt.Axis(domain=False, ticks=False)),
            color=alt.Color(
                "weight:Q",
                title=f"attention of head {layer}.{head}",
                scale=alt.Scale(domain=[0, 1], range=[NEUTRAL, FOR], interpolate="rgb"),
                legend=alt.Legend(orient="top", gradientLength=160, gradientThickness=10, titleLimit=320),
            ),
        )
        .properties(width=width, height=16 * len(queries))
    )
    strengths = [
        {"key": label[r["position"]], "strength": r["strength"]} for r in bars if r["target"] == chosen and r["position"] in shown
    ]
    bar = (
        alt.Chart(inline(strengths))
        .mark_bar(aria=False)
        .encode(
            x=x,
            y=alt.Y("strength:Q", title=f"logits toward {visible(str(chosen), spaces='ends')}"),
            color=alt.condition("datum.strength < 0", alt.value(AGAINST), alt.value(FOR)),
        )
        .properties(width=width, height=110)
    )
    return styled(alt.vconcat(heat, bar, spacing=14))
