"""``residue concepts report RUN``: how good each direction is, beside its controls, and the page.

1. ``quality.json`` is made concept by concept; stopped, the same command goes on.
2. The layer shown has the largest held-out AUC of those with p ≤ 0.05 over all layers. It is chosen by looking, so that p is family-wise over the layers, and
   Holm's over the concepts (of each one's smallest p) stands beside it. ``--layer`` shows a layer fixed beforehand, with that layer's own p.
3. Words alone, without any model, stand beside every AUC.
"""

from __future__ import annotations

import shlex
from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import echo_json, Json, NoReport
from symbolic_residue.cli._concepts_run import bar, keep_item, open_model_of, reopened, RunArgument
from symbolic_residue.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["report_command", "table_rows"]


def report_command(
    run: RunArgument,
    draws: Annotated[int, typer.Option("--draws", min=1000, help="Permutations of the labels.")] = 1000,
    layer: Annotated[
        int | None, typer.Option("--layer", min=0, help="Show this layer, fixed beforehand.", show_default=False)
    ] = None,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """How well does each direction tell its concept, and what else could it be? Each number beside its control."""
    from symbolic_residue.concepts import open_concept_run, report_concepts

    layers = open_concept_run(run).directions.layers  # refused before a model is opened
    if layer is not None and layer not in layers:
        raise ConfigError(f"There are no directions of layer {layer}.", todo=f"Layers: {', '.join(map(str, layers))}.")
    loaded = open_model_of(run)
    opened = open_concept_run(run, loaded)
    with reopened(run, drop=lambda item: item == "quality") as folder, bar("quality") as tell:
        report = report_concepts(opened, loaded.parts, n_draws=draws, progress=tell)
        ranked = sum(one["ranked"] for one in report["concepts"].values())
        keep_item(folder, "quality", f"{ranked} of {len(report['concepts'])} concepts ranked; {draws} draws", seed=opened.seed)
    page = None
    if not no_report:
        from symbolic_residue.report import render_report

        page = render_report(run)
    rows = table_rows(report, layer)
    if json:
        echo_json({"run": str(run), "report": str(page) if page else None, "n_draws": report["n_draws"], "concepts": rows})
        return
    _show(report, rows, layer, run, page)


def table_rows(report: dict[str, Any], layer: int | None = None) -> list[dict[str, Any]]:
    """One row a concept, from the content of ``quality.json``; ranked ones by AUC, then the others.

    Args:
        report: of ``quality.json``.
        layer: the layer shown; None is the one that stands out most.
    """
    rows = []
    for concept, one in report["concepts"].items():
        at = one["chosen"]["layer"] if layer is None else layer
        row: dict[str, Any] = {
            "concept": concept, "n_pos": one["n_pos"], "n_neg": one["n_neg"], "n_scenarios": one["n_scenarios"], "paired": one["paired"],
            "ranked": one["ranked"], "why_not_ranked": one["why_not_ranked"], "layer": at, "other_negatives": one["other_negatives"],
        }  # fmt: skip
        rival = "others" if report["against"] == "others" else "baseline"
        words = (report["words_alone"] or {}).get(concept) or {}
        row["words_alone"], row["words_alone_other"] = words.get(rival), words.get(one["other_negatives"]["against"])
        if at is None:
            rows.append(row)
            continue
        block = one["layers"][str(at)]
        auc = block["auc"]
        row |= {
            "auc": {key: auc.get(key) for key in ("value", "low", "high", "n", "n_counts", "method")},
            "null_mean": auc.get("null_mean"),
            "p": auc.get("p_model") if layer is None else auc.get("p"),
            "p_over": "layers" if layer is None else "this layer alone",
            "p_concepts": one["chosen"]["p_concepts"] if layer is None else None,
            "pairs_in_order": block.get("pairs_in_order"),
            **{key: block[key] for key in ("nearest", "ridge_r2", "length", "length_direction", "scenario", "mlp")},
        }
        rows.append(row)
    return sorted(rows, key=lambda row: (not row["ranked"], -((row.get("auc") or {}).get("value") or 0)))


def _show(report: dict[str, Any], rows: list[dict[str, Any]], layer: int | None, run: Path, page: Path | None) -> None:
    from rich.console import Console
    from rich.text import Text

    from symbolic_residue.cli._errors import visible

    console = Console(highlight=False)
    over = "layers" if layer is None else "this layer"
    rival = rows[0]["other_negatives"]["against"]
    tables = [
        _table("concept", "n", "layer", "AUC [95 %]", "null", f"p, {over}", "p, concepts"),
        _table("concept", "pairs in order [95 %]", "words alone [95 %]"),
        _table("concept", f"AUC, {rival} [95 %]", "null", "words alone [95 %]"),
        _table("concept", "nearest", "R² (null)", "one neuron (null)"),
        _table("concept", "length r [95 %]", "along length (null)", "share (null)"),
    ]
    for row in rows:
        name = Text(visible(row["concept"]) + ("" if row["ranked"] else " *"))
        tables[0].add_row(
            name, str(row["n_scenarios"]), _or(row["layer"], "d"), _interval(row.get("auc")), _or(row.get("null_mean"), ".2f"),
            _p(row.get("p")), _p(row.get("p_concepts")),
        )  # fmt: skip
        tables[1].add_row(name, _interval(row.get("pairs_in_order")), _interval(row["words_alone"]))
        other = row["other_negatives"]["auc"]
        tables[2].add_row(name, _interval(other), _or((other or {}).get("null_mean"), ".2f"), _interval(row["words_alone_other"]))
        if row["layer"] is None:
            continue
        nearest = row["nearest"][0] if row["nearest"] else None
        tables[3].add_row(
            name,
            Text("–" if nearest is None else visible(f"{nearest[0]} {nearest[1]:+.2f}")),
            _beside(row["ridge_r2"]),
            _beside(row["mlp"]),
        )
        length = row["length"]
        tables[4].add_row(
            name,
            "–" if length.get("r") is None else f"{length['r']:+.2f} [{length['low']:+.2f}, {length['high']:+.2f}]",
            _beside(row["length_direction"], sign="+"),
            _beside(row["scenario"]),
        )
    counts = "scenarios" if all(row["paired"] for row in rows) else "scenarios, or folds where texts have none"
    rules = {one["chosen"]["rule"] for one in report["concepts"].values() if one["chosen"]["layer"] is not None}
    rule = "; ".join(sorted(rules)) or "none could be"
    chosen = (
        f"The layer was chosen by looking ({rule}): p is over all {len(report['ranking_by_auc'])} layers, "
        "p, concepts is Holm's over the ranked ones, and the interval knows nothing of the choice."
        if layer is None
        else "The layer was fixed by --layer; p is its own and is corrected for nothing."
    )
    notes = [
        f"AUC: held out by scenario, against {report['against']}; n: {counts}; null: {report['n_draws']} permutations within scenarios. {chosen}",
        "Pairs in order: scenarios whose telling scores above its partner. Words alone: the same by naive Bayes on the words of other scenarios, no model.",
        f"AUC, {rival}: the same layer against the other negatives, which takes out what all tellings under a concept share; its layer was not chosen anew.",
        "Nearest: by cosine. R²: of the direction by the other concepts'. One neuron: largest |cosine| with what one neuron writes. "
        f"Nulls: permuted labels, random directions ({report['n_draws_small']} draws; mean of |cosine|).",
        "Length r: score and length in tokens, by scenario. Along length: cosine with the direction in which neutral tellings grow longer. "
        "Share: between scenarios, of the held-out scores' variance.",
    ]
    for table, note in zip(tables, notes, strict=True):
        console.print(table)
        console.print(note + "\n")
    for concept, why in report["not_ranked"].items():
        console.print(Text(visible(f"* {concept} is not ranked: {why}")))
    console.print(Text(f"run: {visible(run)}"), soft_wrap=True)
    if page is not None:
        console.print(Text(f"report: {visible(page)}"), soft_wrap=True)
    console.print(Text(f"heads: residue concepts heads {shlex.quote(visible(run))}"), soft_wrap=True)


def _or(value: Any, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value >= 0.0015 else f"{value:.4f}"


def _interval(one: dict[str, Any] | None) -> str:
    if one is None or one["value"] is None:
        return "–"
    interval = "no interval" if one["low"] is None else f"{one['low']:.2f}, {one['high']:.2f}"
    return f"{one['value']:.2f} [{interval}]"


def _beside(one: dict[str, Any], sign: str = "") -> str:
    """A value and its null's mean."""
    if one.get("value") is None:
        return "–"
    null = one.get("null_mean")
    return f"{one['value']:{sign}.2f} ({'–' if null is None else format(null, '.2f')})"


def _table(*titles: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if title in ("concept", "nearest") else "right", no_wrap=True)
    return table
