"""Which figures a contrast has, in the report's order; the report and the export draw the same ones.

Of each condition at the row that emits: curves by layer, differences (also under the other segmentation and at the row that consumes), controls, trajectory and
regions at one layer: the layer of the verdict on the predicted region. Then peaks and rates of the whole run, and the causal follow-ups of each condition.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import polars as pl

from symbolic_residue import figures
from symbolic_residue.report._contrast_answer import answer_rows
from symbolic_residue.report._contrast_load import ContrastRun, HEADLINE
from symbolic_residue.report._figure_set import Figure

__all__ = ["conditions_of", "contrast_figures", "headline_layer"]

_FOLLOW: dict[str, tuple[str, str, Any]] = {
    "lens": ("lens", "Log P of the behaviour's first token by layer", figures.contrast_lens),
    "components": (
        "components",
        "What each head and MLP adds to the behaviour's first token, tuned − base",
        figures.contrast_components,
    ),
    "patching": ("patch", "Change of log P by patches of the tuned model into the base", figures.contrast_patching),
    "patching_back": (
        "patch",
        "Change of log P by patches of the base into the tuned model",
        partial(figures.contrast_patching, model="base into tuned"),
    ),
    "knock_out": ("knock-out", "Change of log P by the share of a region's attention removed", figures.contrast_knock_out),
    "surgery": ("surgery", "Log P under parts of the adapter", figures.contrast_surgery),
}
"""Figure → analysis in the table ``contrast_effects``, label, how it is drawn."""


def conditions_of(run: ContrastRun) -> list[str]:
    """Names of the conditions that were analysed or followed up, in the run's order."""
    frames = [run.tables[name] for name in ("contrast_layers", "contrast_effects") if name in run.tables]
    return list(dict.fromkeys(name for frame in frames for name in frame["condition"].to_list()))


def headline_layer(run: ContrastRun, condition: str) -> int | None:
    """The layer that the verdict on the predicted region rests on (the largest tuned delta where there is no verdict)."""
    for row in answer_rows(run):
        if row["condition"] == condition:
            return int(row["layer"])
    mine = run.rows("contrast_layers", condition=condition, query_offset=HEADLINE, head=None, model=run.tuned)
    return int(max(mine, key=lambda row: abs(row["value"]))["layer"]) if mine else None


def contrast_figures(run: ContrastRun) -> dict[str, Figure]:
    """The figures that the run's tables allow, by name; a condition's own begin with ``c1_``, ``c2_`` …"""
    found: list[Figure] = []

    def add(name: str, label: str, draw: Any) -> None:
        found.append(Figure(name, label, draw))

    if "contrast_rates" in run.tables:
        for i, (behaviour, frame) in enumerate(_by(run.tables["contrast_rates"], "behaviour")):
            name = "rates" if i == 0 else f"rates_{i + 1}"
            add(name, f"How often each model shows {behaviour}", partial(figures.contrast_rates, frame))
    for i, condition in enumerate(conditions_of(run), 1):
        found += _of_condition(run, condition, f"c{i}_")
    shifts, base = run.tables.get("contrast_shifts"), run.base
    if shifts is not None and base is not None and _has(shifts, tuned=run.tuned, reference=base, query_offset=HEADLINE):
        add("shifts", "Layers where the two models peak", partial(figures.contrast_shifts, shifts, tuned=run.tuned, reference=base))
    return {figure.name: figure for figure in found}


def _of_condition(run: ContrastRun, condition: str, prefix: str) -> list[Figure]:
    found: list[Figure] = []
    layers = _mine(run, "contrast_layers", condition)
    layer = headline_layer(run, condition)
    if layers is not None:
        found.append(
            Figure(
                f"{prefix}layers",
                f"{condition}: event − control by layer and region, each model",
                partial(figures.contrast_layers, layers),
            )
        )
    differences, base = _mine(run, "contrast_differences", condition), run.base
    if differences is not None and base is not None and _has(differences, tuned=run.tuned, reference=base):
        verdicts = run.tables.get("contrast_verdicts")
        alpha = run.get("analysis", "alpha")
        pair = {"tuned": run.tuned, "reference": base, "alpha": float(alpha) if isinstance(alpha, int | float) else 0.05}
        # Pairs against other references are in the tables; beside the main pair stand null models against the same base.
        shown = differences.filter(pl.col("reference") == base)
        for name, segmentation, offset in (
            ("differences", None, None),
            ("differences_content", "content", None),
            ("differences_consuming", None, 0),
        ):
            if all(
                _has(shown, **{key: value})
                for key, value in (("segmentation", segmentation), ("query_offset", offset))
                if value is not None
            ):
                which = "" if name == "differences" else ", segmentation content" if segmentation else ", the row that consumes"
                draw = partial(
                    figures.contrast_differences, shown, verdicts, segmentation=segmentation, query_offset=offset, **pair
                )
                found.append(Figure(prefix + name, f"{condition}: {run.tuned} − {base} by layer and region{which}", draw))
    if layers is not None and _has(layers, model=run.tuned):
        draw = partial(figures.contrast_strata, layers, _mine(run, "contrast_rule_outs", condition), model=run.tuned)
        found.append(Figure(f"{prefix}strata", f"{condition}: event against each control stratum", draw))
    trajectory = _mine(run, "contrast_trajectory", condition)
    if trajectory is not None and layer is not None and _has(trajectory, layer=layer):
        found.append(
            Figure(
                f"{prefix}trajectory",
                f"{condition}: rows up to the event, layer {layer}",
                partial(figures.contrast_trajectory, trajectory, layer=layer),
            )
        )
    if layers is not None and layer is not None:
        found.append(
            Figure(
                f"{prefix}regions",
                f"{condition}: every region at layer {layer}",
                partial(figures.contrast_regions, layers, layer=layer),
            )
        )
    effects = _mine(run, "contrast_effects", condition)
    if effects is not None:
        for name, (analysis, label, draw) in _FOLLOW.items():
            if _drawable(effects, name, analysis):
                found.append(Figure(prefix + name, f"{condition}: {label}", partial(draw, effects)))
    return found


def _drawable(effects: pl.DataFrame, name: str, analysis: str) -> bool:
    mine = effects.filter((pl.col("analysis") == analysis) & (pl.col("unit") != "share"))
    if name in ("patching", "patching_back"):
        mine = mine.filter(
            pl.col("part") != "total", pl.col("model") == ("tuned into base" if name == "patching" else "base into tuned")
        )
    if name in ("lens", "components"):
        mine = mine.filter(pl.col("layer").is_not_null())
    if name == "components":
        mine = mine.filter(pl.col("model") == "tuned − base")
    if name == "lens":
        mine = mine.filter(~pl.col("model").str.contains("−"))
    return not mine.is_empty()


def _mine(run: ContrastRun, table: str, condition: str) -> pl.DataFrame | None:
    frame = run.tables.get(table)
    mine = None if frame is None else frame.filter(pl.col("condition") == condition)
    if mine is not None and "query_offset" in mine.columns and not _has(mine, query_offset=HEADLINE):
        return None
    return None if mine is None or mine.is_empty() else mine


def _has(frame: pl.DataFrame, **wanted: Any) -> bool:
    return not frame.filter(*(pl.col(name) == value for name, value in wanted.items())).is_empty()


def _by(frame: pl.DataFrame, column: str) -> list[tuple[str, pl.DataFrame]]:
    return [(str(key[0]), part) for key, part in frame.partition_by(column, as_dict=True, maintain_order=True).items()]
