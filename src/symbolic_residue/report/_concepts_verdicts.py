"""``heads.json`` on the page: the verdict of each concept's heads beside everything it was compared with, overlap of heads, and the question about families."""

from __future__ import annotations

from typing import Any

from symbolic_residue.figures import diverging_colour, number
from symbolic_residue.report._concepts_answer import listed, measured, p_text, span
from symbolic_residue.report._concepts_load import ConceptsRun
from symbolic_residue.report._contrast_load import grid

__all__ = ["family_view", "heads_sentence", "not_judged", "overlap_map", "verdict_tables"]

WORDS = {
    "few heads": "carried by few heads", "redundant": "in few heads and in others as well (redundant)", "spread": "spread over many heads",
    "undecided": "undecided", "not read": "not read",
}  # fmt: skip
_STATISTICS = {
    "concentration": "log participation ratio of selectivity², minus that of permuted labels",
    "share": "share of the few largest in selectivity², minus that of permuted labels",
    "strength": "log of all selectivity², minus that of permuted labels",
    "adjusted": "concentration with strength regressed out",
}


def heads_sentence(run: ConceptsRun) -> str:
    """The verdicts in one sentence, and the answer to the question about families; empty without ``heads.json``."""
    if run.heads is None:
        return ""
    groups: dict[str, list[str]] = {}
    for concept, one in run.heads["concepts"].items():
        groups.setdefault(one["model"]["verdict"], []).append(concept)
    parts = [
        f"{WORDS.get(name, name)}: {listed(groups[name])}"
        for name in (*WORDS, *(g for g in groups if g not in WORDS))
        if name in groups
    ]
    if others := not_judged(run):
        parts.append(f"not judged: {listed([concept for concept, _ in others])}")
    said = f"By heads (a few: {run.heads['k']} of {run.heads['n_heads']}): {'; '.join(parts)}."
    families = run.heads["families"]
    return (
        said
        if families["answer"] is None
        else f"{said} {families['question']} {str(families['answer']).capitalize()}: {families['reason']}"
    )


def verdict_tables(run: ConceptsRun) -> list[dict[str, Any]]:
    """Whole model, then the layer stated beforehand: verdicts with AUCs, and the conditions that held."""
    if run.heads is None:
        return []
    places = {"model": "over all heads of the model", "layer": f"over the heads of layer {run.heads['layer']}, stated beforehand"}
    found = []
    for part, where in places.items():
        blocks = {concept: one[part] for concept, one in run.heads["concepts"].items()}
        found.append(
            {"verdicts": _verdicts(run, blocks, where), "conditions": _conditions(blocks, where), "whole": part == "model"}
        )
    return found


def _verdicts(run: ConceptsRun, blocks: dict[str, dict[str, Any]], where: str) -> dict[str, Any]:
    cells = []
    for concept, one in blocks.items():
        reads, words = one["readouts"], (run.heads or {})["words_alone"].get(concept)
        cells.append(
            [
                concept, one["verdict"], one["verdict_strict"], f"{one['k']} of {one['n_heads']}", str(one["n_scenarios"]),
                *(_auc(reads[name]) for name in ("few", "all", "rest", "next", "random", "residual")), measured(words, between="\n"),
            ]
        )  # fmt: skip
    columns = {"concept": False, "verdict": False, "at margin .05": False, "few": True, "scenarios": True, "AUC of the few [95 %]": False, "all heads": False,
               "all others": False, "the next few": False, "random sets": False, "residual stream": False, "words alone": False}  # fmt: skip
    return grid(f"Verdicts {where}", columns, cells, [one["verdict"] == "few heads" for one in blocks.values()])


def _auc(reading: dict[str, Any]) -> str:
    null = reading.get("null")
    beside = "" if null is None else f"\n({number(null['mean'])}; {p_text(null['p'])})"
    return f"{number(reading['auc'])}\n{span(reading)}{beside}"


def _conditions(blocks: dict[str, dict[str, Any]], where: str) -> dict[str, Any]:
    """Every concept and condition: held or not, its value, and the p or bound that decided."""
    names = list(dict.fromkeys(c["name"] for one in blocks.values() for c in one["conditions"]))
    cells = []
    for concept, one in blocks.items():
        by_name = {c["name"]: c for c in one["conditions"]}
        row = []
        for name in names:
            c = by_name.get(name)
            row.append(
                "—"
                if c is None
                else f"{'✓' if c['holds'] else '✗'} {number(c['value'], signed=True)}\n{number(c['p_or_bound'], signed=True)}"
            )
        cells.append([concept, *row])
    meanings = {c["name"]: c["meaning"] for one in blocks.values() for c in one["conditions"]}
    columns = {"concept": False, **{name.replace("_", " "): False for name in names}}
    table = grid(f"Conditions of “few heads” {where}: value, and below it the p or one-sided bound that decides", columns, cells)
    return table | {
        "reasons": [(concept, one["reason"]) for concept, one in blocks.items()],
        "meanings": [(name.replace("_", " "), meanings[name]) for name in names],
    }


def overlap_map(run: ConceptsRun) -> dict[str, Any] | None:
    """Shared top heads of every two concepts, coloured by what exceeds the permuted mean."""
    found = None if run.heads is None else run.heads["overlap"]
    if found is None:
        return None
    names, pairs = found["concepts"], {frozenset((row["first"], row["second"])): row for row in found["pairs"]}
    rows = []
    for a in names:
        cells = []
        for b in names:
            row = None if a == b else pairs[frozenset((a, b))]
            cells.append(
                {
                    "text": "" if row is None else f"{row['overlap']} · {row['jaccard']:.2f}", "starts": False,
                    "colour": None if row is None else diverging_colour(row["overlap"] - row["null_mean"], found["k"] / 2),
                    "stands_out": row is not None and row["p_pairs"] <= 0.05,
                    "title": "" if row is None else _pair_title(row, found["k"]),
                }
            )  # fmt: skip
        rows.append({"name": a, "starts": False, "cells": cells})
    clear, chance = (sum(row[key] <= 0.05 for row in found["pairs"]) for key in ("p_pairs", "p_chance"))
    said = (
        f"The {_heads(found['k'])} of largest selectivity of each concept, of {found['n_heads']}. In a cell: how many two share, and Jaccard. Drawn heads "
        f"share {number(found['expected'])} (hypergeometric p ≤ 0.05, uncorrected: {chance} of {len(found['pairs'])} pairs), but permuted labels share "
        f"{number(found['mean_null'])} on average and these {number(found['mean'])} (p {p_text(found['p_mean'])}): concepts have neutral tellings in common. "
        f"Blue: more than permuted labels; outlined: p ≤ 0.05 over all pairs, {clear} of {len(found['pairs'])}."
    )
    columns = {
        "pair": False,
        "shared": True,
        "Jaccard": True,
        "permuted labels": True,
        "p": True,
        "p over pairs": True,
        "p of drawn heads": True,
    }
    cells = [
        [f"{row['first']} / {row['second']}", str(row["overlap"]), number(row["jaccard"]), number(row["null_mean"]),
         *(p_text(row[key]) for key in ("p", "p_pairs", "p_chance"))]
        for row in sorted(found["pairs"], key=lambda one: (one["p_pairs"], -one["overlap"]))
    ]  # fmt: skip
    table = grid("Every pair", columns, cells)
    return {"names": names, "rows": rows, "said": said, "pairs": table}


def _heads(k: int) -> str:
    return "head" if k == 1 else f"{k} heads"


def not_judged(run: ConceptsRun) -> list[tuple[str, str]]:
    """Concepts whose heads were not judged, with the reason."""
    return [] if run.heads is None else [(concept, str(why)) for concept, why in (run.heads.get("not_judged") or {}).items()]


def _pair_title(row: dict[str, Any], k: int) -> str:
    return (
        f"{row['first']}, {row['second']}: {row['overlap']} of {k} shared, Jaccard {number(row['jaccard'])}; permuted labels share "
        f"{number(row['null_mean'])}; p {p_text(row['p'])}, over pairs {p_text(row['p_pairs'])}; drawn heads p {p_text(row['p_chance'])}"
    )


def family_view(run: ConceptsRun) -> dict[str, Any] | None:
    """The question about families: answer, tests and each concept's numbers; None without ``heads.json``."""
    if run.heads is None:
        return None
    found = run.heads["families"]
    if found["answer"] is None:
        return {"question": "", "said": found["reason"], "tables": []}
    first, second = found["families"]
    tables = [_tests(f"{second} minus {first}, all concepts", found["statistics"])]
    only = found["only_read"]
    if only is not None and only["statistics"] is not None:
        n = " and ".join(str(len(group)) for group in only["concepts"])
        tables.append(_tests(f"{second} minus {first}, only concepts that are read ({n})", only["statistics"]))
    values = found["values"]
    cells = [
        [concept, family, *(number(values[name][concept], signed=True) for name in ("concentration", "share", "strength"))]
        for family, group in zip(found["families"], found["concepts"], strict=True) for concept in group
    ]  # fmt: skip
    tables.append(
        grid("Each concept", {"concept": False, "family": False, "concentration": True, "share": True, "strength": True}, cells)
    )
    return {"question": found["question"], "said": f"{str(found['answer']).capitalize()}: {found['reason']}", "tables": tables}


def _tests(caption: str, statistics: dict[str, Any]) -> dict[str, Any]:
    cells = []
    for name, row in statistics.items():
        n = {"n": row["n_first"] + row["n_second"]}
        cells.append(
            [
                name, _STATISTICS.get(name, name), measured(row | n, "difference", "\n", signed=True), p_text(row["p"]), p_text(row["smallest_p"]),
                f"{row['n_second']} and {row['n_first']}", f"{row['ways']:,d}{'' if row['exact'] else ' drawn'}", number(row["detectable"]),
            ]
        )  # fmt: skip
    columns = {"statistic": False, "what it is": False, "difference [95 %]": False, "p": True, "smallest p": True, "concepts": True, "ways": True,
               "found four times of five": True}  # fmt: skip
    return grid(caption, columns, cells, [name == "concentration" for name in statistics])
