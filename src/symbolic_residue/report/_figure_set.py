"""Which figures an item has, in the report's order; the report and the export draw the same ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl

from symbolic_residue import figures
from symbolic_residue.report._load import Run

__all__ = ["Figure", "item_figures", "last_row_attention"]


@dataclass(frozen=True)
class Figure:
    """One figure of one item: ``name`` (also the file's), ``label`` (its text alternative) and how to draw it."""

    name: str
    label: str
    draw: Callable[[], Any]


def item_figures(run: Run, item: str) -> dict[str, Figure]:
    """The figures that the item's tables allow, by name; a missing table leaves its figures out."""
    found: list[Figure] = []

    def add(name: str, label: str, table: str, draw: Callable[[pl.DataFrame], Any]) -> None:
        frame = run.of(table, item)
        if frame is not None:
            found.append(Figure(name, label, lambda: draw(frame)))

    add("verdict_intervals", "Value, control and criterion of each mode", "verdicts", figures.verdict_intervals)
    add("probability_traces", "Share of each candidate by step, one panel a refiner", "traces", figures.probability_traces)
    tokens, lens = run.of("tokens", item), run.of("lens", item)
    if tokens is not None and lens is not None:
        found.append(
            Figure(
                "lens_entropy", "Logit lens by layer and position, coloured by entropy", lambda: figures.lens_heatmap(lens, tokens)
            )
        )
        found.append(
            Figure(
                "lens_answer",
                "Logit lens by layer and position, coloured by the probability of the final top token",
                lambda: figures.lens_heatmap(lens, tokens, colour="answer_probability"),
            )
        )
    found += _curves(run.of("curves", item))
    maps = run.of("maps", item)
    if maps is not None and tokens is not None:
        for which in maps["map"].unique(maintain_order=True):
            draw = partial(figures.layer_token_map, maps, tokens, which)
            found.append(Figure(f"map_{_slug(which)}", f"{which}, by layer and token", draw))
    found += _across(run, item)
    add("head_map", "Direct logit attribution by layer and head; confirmed heads outlined", "heads", figures.head_map)
    attention = last_row_attention(run, item)
    if attention is not None:
        label = "Attention mass of the last row by region and layer"
        found.append(Figure("attention_by_region", label, lambda: figures.attention_by_region(attention)))
    add("components", "Contribution of attention and MLP to the logit difference, by layer", "components", figures.components)
    add(
        "instruction_conflict",
        "What share of the answers follows which instruction",
        "instruction_rates",
        figures.instruction_conflict,
    )
    add("ov_strength", "OV strength toward each candidate, by layer", "ov", figures.ov_strength)
    return {figure.name: figure for figure in found}


def _across(run: Run, item: str) -> list[Figure]:
    """Figures of measures across shells; their names begin with the measure's."""
    found = []
    overruled, disruption, keys = (run.of(name, item) for name in ("overruled", "disruption", "ov_keys"))
    if overruled is not None:
        label = "The strongest parts of logit(end) − logit(content); line: 95 % interval, grey tick: the same on the controls"
        found.append(Figure("silence_parts", label, lambda: figures.silence_parts(overruled)))
    if disruption is not None:
        # The metric in which most heads differ; of several the one with the smallest p.
        counts = disruption.group_by("metric", maintain_order=True).agg(
            (pl.col("q") <= 0.05).sum().alias("found"), pl.col("p").min()
        )
        metric = counts.sort("found", "p", descending=[True, False], maintain_order=True)["metric"][0]
        label = f"{metric} of each head against the control; outlined: q ≤ 0.05. The other metrics are in the table disruption"
        found.append(Figure("disruption_map", label, lambda: figures.disruption_map(disruption, metric)))
    rows, tokens = run.of("attention_rows", item), run.of("tokens", item)
    if rows is not None and keys is not None and tokens is not None:
        for i, (layer, head, target) in enumerate(keys.select("layer", "head", "target").unique(maintain_order=True).rows(), 1):
            label = f"Head {layer}.{head}: where the last rows look (position 0 is the sink), and what each key adds to the last row's logit of {target!r}"
            draw = partial(figures.qk_ov, rows, keys, tokens, layer=layer, head=head, target=target)
            found.append(Figure(f"attention_view_{i}", label, draw))
    return found


def _curves(frame: pl.DataFrame | None) -> list[Figure]:
    """One figure a curve; a curve of more lines than a figure holds is cut into several, each with all its controls."""
    if frame is None:
        return []
    found = []
    for curve in frame["curve"].unique(maintain_order=True):
        mine = frame.filter(pl.col("curve") == curve)
        series = mine["series"].unique(maintain_order=True).to_list()
        controls = [name for name in series if name.startswith("control")]
        main = [name for name in series if name not in controls]
        for start in range(0, max(1, len(main)), figures.MOST_SERIES):
            part = mine.filter(pl.col("series").is_in([*main[start : start + figures.MOST_SERIES], *controls]))
            name = f"curve_{_slug(curve)}{'' if start == 0 else f'_{start // figures.MOST_SERIES + 1}'}"
            # Distances go over three powers of ten, layers and steps do not.
            x = part["x"]
            log = bool(x.min() >= 0 and x.max() >= 100)  # type: ignore[operator]
            label = f"{curve} by {part['x_unit'][0]}"
            found.append(Figure(name, label, partial(figures.curves, part, curve, log_x=log)))
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "unnamed"


def last_row_attention(run: Run, item: str) -> pl.DataFrame | None:
    """Table ``attention`` of the item; a run that read attention at rows of the user's choice has its last row in ``readout_mass``."""
    frame, asked = run.of("attention", item), run.of("readout_mass", item)
    if frame is None and asked is not None:
        return asked.filter(pl.col("row") == pl.col("row").max())
    return frame
