"""The figures of a concepts run, from its JSON: AUC over the layers, the heads' maps, how concentrated they are."""

from __future__ import annotations

from functools import partial
from typing import Any

import polars as pl

from symbolic_residue import figures
from symbolic_residue.report._concepts_answer import listed
from symbolic_residue.report._concepts_load import ConceptsRun
from symbolic_residue.report._figure_set import Figure

__all__ = ["concept_figures", "head_figures"]

_Z = 1.96
_TYPES = {"concept": pl.String, "layer": pl.Int64, "value": pl.Float64, "low": pl.Float64, "high": pl.Float64, "null_mean": pl.Float64,
          "null_low": pl.Float64, "null_high": pl.Float64, "beside": pl.Float64, "clear": pl.Boolean}  # fmt: skip


def concept_figures(run: ConceptsRun) -> dict[str, Figure]:
    """Small multiples over the layers, by name."""
    found = {"auc": _auc_figure(run)}
    for name, key, null, limit, title in (
        ("participation", "participation_ratio", "participation_null", 1, "heads taking part"),
        ("concentration", "head_concentration", "concentration_null", 0, "share of the top heads"),
    ):
        rows = []
        for concept, layer, block in _head_layers(run):
            mean, sd = block[null]["mean"], block[null]["sd"]
            most = block["n_heads"] if limit else 1.0
            rows.append(
                {
                    "concept": concept, "layer": layer, "value": block[key], "null_mean": mean,
                    "null_low": max(mean - _Z * sd, limit), "null_high": min(mean + _Z * sd, most),
                    "beside": most if limit else block["uniform"], "clear": block[null]["p"] <= 0.05,
                }
            )  # fmt: skip
        whole = all(block["k"] == block["n_heads"] for _, _, block in _head_layers(run))
        if rows and (limit or not whole):
            label = (
                "Participation ratio of the heads by layer (1: one head has it all; dashed: all equal)"
                if limit
                else "Share of the heads with the largest raw norms in the sum of all, by layer (dashed: equal heads)"
            )
            found[name] = Figure(name, label, partial(figures.concept_layers, pl.DataFrame(rows, schema=_TYPES), title))
    return found


def _auc_figure(run: ConceptsRun) -> Figure:
    rows, against = [], run.quality["against"]
    for concept, one in run.quality["concepts"].items():
        words = run.words(concept, against)
        for layer in sorted(one["layers"], key=int):
            auc = one["layers"][layer]["auc"]
            null = auc["null_mean"] is not None
            rows.append(
                {
                    "concept": concept, "layer": int(layer), "value": auc["value"], "low": auc["low"], "high": auc["high"],
                    "null_mean": auc["null_mean"],
                    "null_low": max(auc["null_mean"] - _Z * auc["null_sd"], 0.0) if null else None,
                    "null_high": min(auc["null_mean"] + _Z * auc["null_sd"], 1.0) if null else None,
                    "beside": None if words is None else words["value"], "clear": auc["p_model"] is not None and auc["p_model"] <= 0.05,
                }
            )  # fmt: skip
    frame = pl.DataFrame(rows, schema=_TYPES)
    lowest = min(row[key] for row in rows for key in ("value", "low", "null_low") if row[key] is not None)
    domain = (min(0.3, int(lowest * 10) / 10), 1.0)
    label = "Held-out AUC over the layers, a panel a concept, with its interval, its permutation null and what words alone give"
    return Figure("auc", label, partial(figures.concept_layers, frame, "held-out AUC", domain=domain))


def head_figures(run: ConceptsRun) -> dict[str, Figure]:
    """A map of selectivity a concept, by concept."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for concept, layer, block in _head_layers(run):
        rows.setdefault(concept, []).extend(
            {
                "layer": layer, "head": one["head"], "ratio": one["selectivity"] / one["null_mean"] if one["null_mean"] > 0 else None,
                "clear_model": one["p_model"] <= 0.05, "clear_layer": one["p_layer"] <= 0.05,
            }
            for one in block["by_selectivity"]
        )  # fmt: skip
    return {
        concept: Figure(f"heads_{index}", _head_label(concept, mine), partial(figures.concept_heads, pl.DataFrame(mine)))
        for index, (concept, mine) in enumerate(rows.items())
    }


def _head_label(concept: str, rows: list[dict[str, Any]]) -> str:
    clear = [f"{row['layer']}.{row['head']}" for row in rows if row["clear_model"]]
    said = f"{len(clear)} of {len(rows)} heads stand out: {listed(clear)}" if clear else f"none of {len(rows)} heads stands out"
    return f"Selectivity of every head for {concept}, layers across, heads down; {said}"


def _head_layers(run: ConceptsRun) -> list[tuple[str, int, dict[str, Any]]]:
    return [
        (concept, int(layer), block)
        for concept, one in run.quality["concepts"].items()
        for layer, block in sorted(((one.get("per_head") or {}).get("layers") or {}).items(), key=lambda item: int(item[0]))
    ]
