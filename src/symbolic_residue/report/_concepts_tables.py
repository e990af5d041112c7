"""Tables of a concepts run, as plain values: how well each concept is read, what its direction is, its outliers, its heads; and all numbers as CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from symbolic_residue.figures import number
from symbolic_residue.report._concepts_answer import measured, p_text, with_null
from symbolic_residue.report._concepts_load import ConceptsRun
from symbolic_residue.report._contrast_load import grid

__all__ = ["direction_table", "head_table", "layers_csv", "outlier_rows", "readout_table", "unranked"]

TOP_HEADS = 12
LOWEST = 3
"""Texts shown of each concept, besides every outlier."""


def readout_table(run: ConceptsRun, layer: int | None = None) -> dict[str, Any]:
    """A row a concept: how well it is read, in its chosen layer or in one."""
    mine, theirs = ("others", "baseline") if run.quality["against"] == "others" else ("baseline", "others")
    cells, marked = [], []
    for concept, one in run.quality["concepts"].items():
        at = run.chosen(concept) if layer is None else layer
        if str(at) not in one["layers"]:
            continue
        block = run.at(concept, at)
        auc = block["auc"]
        null = "—" if auc["null_mean"] is None else f"{number(auc['null_mean'])}\n± {number(auc['null_sd'])}"
        words = {key: run.words(concept, key) for key in ("baseline", "others")}
        said = {True: "above chance", False: "not told from chance", None: "not tested"}[run.above_chance(concept)]
        cells.append(
            [
                concept,
                run.family(concept) or "—",
                f"{one['n_scenarios']}{'' if one['paired'] else ' folds'}",
                str(at),
                measured(auc, between="\n"),
                null,
                p_text(auc.get("p_model")),
                *([p_text(one["chosen"]["p_concepts"]), said] if layer is None else []),
                measured(block.get("pairs_in_order"), between="\n"),
                measured(words[mine], between="\n"),
                *([_rival(one["other_negatives"])] if layer is None else []),
                measured(words[theirs], between="\n"),
            ]
        )
        marked.append(bool(layer is None and run.above_chance(concept)))
    columns = {"concept": False, "family": False, "scenarios": True, "layer": True, "held-out AUC [95 %]": False, "under permuted labels": False,
               "p over layers": True, **({"p over layers and concepts": True, "verdict": False} if layer is None else {}), "pairs in order [95 %]": False,
               f"words alone, {_SHORT[mine]}": False, **({f"AUC against {_SHORT[theirs]}": False} if layer is None else {}),
               f"words alone, {_SHORT[theirs]}": False}  # fmt: skip
    where = "in its chosen layer" if layer is None else f"in layer {layer}"
    return grid(f"How well each concept is read {where}", columns, cells, marked)


_SHORT = {"baseline": "neutral", "others": "other concepts"}


def _rival(block: dict[str, Any]) -> str:
    """AUC against the other kind of negatives, with interval, null and its own p."""
    auc = block["auc"]
    if auc is None or auc["value"] is None:
        return "—"
    return f"{measured(auc, between=chr(10))}\n({number(auc.get('null_mean'))}; {p_text(auc.get('p'))})"


def direction_table(run: ConceptsRun, layer: int | None = None) -> dict[str, Any]:
    """A row a concept: what its direction is made of, and what leaks into it."""
    cells = []
    for concept, one in run.quality["concepts"].items():
        at = run.chosen(concept) if layer is None else layer
        if str(at) not in one["layers"]:
            continue
        block = run.at(concept, at)
        mlp, ridge, length, scenario = (block[key] for key in ("mlp", "ridge_r2", "length", "scenario"))
        neuron = "" if mlp.get("value") is None else f" neuron {mlp['neuron']}"
        r = "—" if length.get("r") is None else measured(length, "r", "\n", signed=True)
        leaks = [
            *(["length"] if length.get("r") is not None and (length["low"] > 0 or length["high"] < 0) else []),
            *(["scenario"] if scenario.get("p") is not None and scenario["p"] <= 0.05 else []),
        ]
        cells.append(
            [
                concept, str(at), with_null(block["between_within"]), with_null(block["pc_share"]),
                with_null(mlp).replace("\n", f"{neuron}\n", 1), with_null(ridge), _own(ridge), r, number(length.get("length_alone_auc")),
                with_null(scenario), " and ".join(leaks) or "none seen",
            ]
        )  # fmt: skip
    columns = {"concept": False, "layer": True, "between / within": False, "first component of differences": False, "largest |cosine| with a neuron": False,
               "explained by other concepts (R²)": False, "its own?": False, "r with length [95 %]": False, "AUC of length alone": True,
               "share between scenarios": False, "leaks": False}  # fmt: skip
    return grid(
        "What each direction is, in the same layers" if layer is None else f"What each direction is in layer {layer}",
        columns,
        cells,
    )


def _own(ridge: dict[str, Any]) -> str:
    p = ridge.get("p")
    return "—" if p is None else "redundant" if p <= 0.05 else "unique" if p >= 0.95 else "undecided"


def unranked(run: ConceptsRun) -> list[tuple[str, str]]:
    """Concepts that are measured and not ranked, with the reason."""
    return [(concept, str(one["why_not_ranked"])) for concept, one in run.quality["concepts"].items() if not one["ranked"]]


def outlier_rows(run: ConceptsRun, concept: str) -> dict[str, Any]:
    """The tellings of one concept that point least where the others do: the lowest three and every outlier, with their texts."""
    found, numbers = run.at(concept)["alignment"], run.quality["concepts"][concept]["positive_rows"]
    if not found.get("by_scenario"):
        return {"reason": found.get("reason") or "Not measured.", "rows": []}
    ordered = sorted(zip(numbers, found["by_text"], strict=True), key=lambda item: (item[1], item[0]))
    outliers = set(found["outlier_texts"])
    rows = []
    for index, (number_, value) in enumerate(ordered):
        if index >= LOWEST and number_ not in outliers:
            continue
        text = run.texts[number_] if number_ < len(run.texts) else {"scenario": None, "text": None}
        scenario = text["scenario"]
        rows.append(
            {
                "scenario": f"text {number_}" if scenario is None else scenario, "value": value, "outlier": number_ in outliers, "text": text["text"],
                "neutral": run.neutral(scenario) if scenario is not None else None,
            }
        )  # fmt: skip
    return {
        "reason": "",
        "rows": rows,
        "median": found["median"],
        "n": len(ordered),
        "outliers": len(outliers),
        "scenarios": len(found["by_scenario"]),
    }


def head_table(run: ConceptsRun, concept: str) -> dict[str, Any] | None:
    """The heads that stand out most over all layers, with everything measured of them."""
    block = run.quality["concepts"][concept].get("per_head")
    if not block or not block.get("layers"):
        return None
    found = []
    for layer, one in block["layers"].items():
        raw, write = {h: value for h, value, _ in one["top_heads"]}, {h: rest for h, *rest in one["write"]}
        direct = {row["head"]: row for row in one.get("direct_null", [])}
        for row in one["by_selectivity"]:
            h = row["head"]
            ratio = row["selectivity"] / row["null_mean"] if row["null_mean"] > 0 else 0.0
            found.append((row["p_model"], -ratio, int(layer), h, row, raw.get(h), write[h], direct.get(h)))
    found.sort(key=lambda one: one[:4])
    cells = [
        [
            f"{layer}.{h}", number(raw), number(row["selectivity"]), number(row["null_mean"]), p_text(row["p_layer"]), p_text(p),
            number(write[0]), number(write[1], signed=True), "—" if direct is None else number(direct["mean"], signed=True),
            "—" if direct is None else p_text(direct["p_layer"]), f"{100 * write[2]:.0f} %",
        ]
        for p, _, layer, h, row, raw, write, direct in found[:TOP_HEADS]
    ]  # fmt: skip
    columns = {"head": False, "raw norm": True, "selectivity": True, "under permuted labels": True, "p in the layer": True, "p in the model": True,
               "write norm": True, "direct": True, "direct, permuted labels": True, "p of direct in the layer": True,
               "share of the layer's |direct|": True}  # fmt: skip
    caption = f"{concept}: the {len(cells)} heads of {len(found)} that stand out most"
    return grid(caption, columns, cells, [one[0] <= 0.05 for one in found[:TOP_HEADS]])


def layers_csv(run: ConceptsRun) -> str:
    """Every concept in every layer, as CSV to four digits."""
    names = ["auc", "auc_low", "auc_high", "n", "null_mean", "null_sd", "p", "p_model", "pairs_in_order", "between_within", "between_within_p", "pc_share",
             "pc_share_null", "pc_share_p", "mlp", "mlp_null", "mlp_p", "ridge_r2", "ridge_r2_null", "ridge_r2_p", "length_r", "scenario_share",
             "scenario_share_p", "alignment_median"]  # fmt: skip
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["concept", "layer", *names])
    for concept, one in run.quality["concepts"].items():
        for layer in sorted(one["layers"], key=int):
            b = one["layers"][layer]
            auc, pc, mlp, ridge = b["auc"], b["pc_share"], b["mlp"], b["ridge_r2"]
            values = [
                *(auc.get(key) for key in ("value", "low", "high", "n", "null_mean", "null_sd", "p", "p_model")),
                (b.get("pairs_in_order") or {}).get("value"), b["between_within"].get("value"), b["between_within"].get("p"),
                *(part.get(key) for part in (pc, mlp, ridge) for key in ("value", "null_mean", "p")),
                b["length"].get("r"), b["scenario"].get("value"), b["scenario"].get("p"), b["alignment"].get("median"),
            ]  # fmt: skip
            safe = f"'{concept}" if concept[:1] in "=+-@\t\r" else concept  # a spreadsheet would run it
            table.writerow([safe, layer, *("" if v is None else f"{v:.4g}" for v in values)])
    return out.getvalue()
