"""The answer of a contrast in plain words, from its tables: what the page says first and the terminal says last.

1. A row is a region in a condition at the row that emits: the verdict under each segmentation (tuned against the main reference), d with interval, p, n
   and clusters, the smallest effect that could have been seen, the null models at the same layer, and what disagrees.
2. The segmentations *agree* where they have one outcome; only then it is the row's outcome. The sign of d is compared at the layer that the first rests on.
3. The sentence on top is about the predicted region (the first region where none was predicted), condition by condition.
"""

from __future__ import annotations

from typing import Any

from symbolic_residue.figures import number
from symbolic_residue.report._contrast_load import ContrastRun, HEADLINE, measured

__all__ = ["DISAGREE", "answer_rows", "answer_sentence", "mediation_rows", "null_rows", "row_sentence", "unanswered"]

DISAGREE = "segmentations disagree"
_PLACE = ("tuned", "reference", "condition", "region", "query_offset")
_FIRST = "full"


def answer_rows(run: ContrastRun) -> list[dict[str, Any]]:
    """One row a condition and region, the predicted region first.

    Returns:
        Columns of the verdict under the first segmentation, and ``final`` (its outcome, or that the segmentations disagree), ``outcomes`` (segmentation →
        outcome), ``sign_differs``, ``null_models`` (see :func:`null_rows`).
    """
    base = run.base
    if base is None:
        return []
    mine = run.rows("contrast_verdicts", tuned=run.tuned, reference=base, query_offset=HEADLINE, head=None)
    value = {
        (row["condition"], row["region"], row["segmentation"], row["layer"]): row["value"]
        for row in run.rows("contrast_differences", tuned=run.tuned, reference=base, query_offset=HEADLINE, head=None)
    }
    places: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in mine:
        places.setdefault((row["condition"], row["region"]), []).append(row)
    found = []
    for (condition, region), rows in places.items():
        rows.sort(key=lambda row: (row["segmentation"] != _FIRST, row["segmentation"]))
        first = rows[0]
        outcomes = {row["segmentation"]: row["outcome"] for row in rows}
        at_layer = [value.get((condition, region, name, first["layer"])) for name in outcomes]
        signs = {x > 0 for x in at_layer if x}
        final = first["outcome"] if len(set(outcomes.values())) == 1 else DISAGREE
        found.append(
            {**first, "final": final, "outcomes": outcomes, "sign_differs": len(signs) > 1, "null_models": null_rows(run, first)}
        )
    predicted, _ = run.predicted
    return sorted(found, key=lambda row: row["region"] != predicted)  # stable: the run's order otherwise


def null_rows(run: ContrastRun, verdict: dict[str, Any]) -> list[dict[str, Any]]:
    """Every null model minus the same reference at the verdict's layer: rows of ``contrast_differences``."""
    wanted = {name: verdict[name] for name in ("reference", "condition", "region", "segmentation", "query_offset", "layer")}
    return [row for row in run.rows("contrast_differences", **wanted, head=None) if row["tuned"] != verdict["tuned"]]


def answer_sentence(run: ContrastRun, rows: list[dict[str, Any]]) -> str:
    """The verdict on the predicted region over all conditions, in one sentence or two; empty without verdicts."""
    if not rows:
        return ""
    region, direction, reference = rows[0]["region"], run.predicted[1], rows[0]["reference"]
    way = "less" if direction == "down" else "more"
    differs = "training changed" if run.untrained(reference) else f"the tuned model differs from {reference} in"
    words = {
        "induced": f"training made the model look at {region} {way}",
        "reduced by training": f"training took away what the base does with {region}",
        "present in base": f"the base already looks at {region} {way}, and no further change by training passed every control",
        "beyond reference": f"the tuned model looks at {region} {way} than {reference}",
        "short of reference": f"the tuned model does not look at {region} {way} as {reference} does",
        "present in reference": f"{reference} looks at {region} {way} too, and no further difference passed every control",
        "undecided": f"whether {differs} attention to {region} is undecided",
        DISAGREE: f"the two segmentations disagree about {region}",
    }
    groups: dict[str, list[str]] = {}
    for row in rows:
        if row["region"] == region:
            groups.setdefault(row["final"], []).append(row["condition"])
    order = [*words, *(name for name in groups if name not in words)]
    parts = [f"{words.get(name, name)} ({', '.join(groups[name])})" for name in order if name in groups]
    said = f"At the row that emits {run.spoken}: {'; '.join(parts)}."
    if not run.untrained(reference):
        said += f" ({reference} is not the model before training: this says nothing about what training did.)"
    return f"{said} {_matters(run)}"


def _matters(run: ContrastRun) -> str:
    outcomes: dict[str, list[str]] = {}
    for row in mediation_rows(run):
        outcomes.setdefault(row["outcome"], []).append(row["condition"])
    if not outcomes:
        return "Whether attention mediates the behaviour was not tested."
    words = {"attention-mediated": "attention mediates it", "not attention-mediated": "attention does not mediate it"}
    parts = [
        f"{words.get(outcome, 'whether attention mediates it is undecided')} ({', '.join(dict.fromkeys(names))})"
        for outcome, names in outcomes.items()
    ]
    return f"Does it matter: {'; '.join(parts)}."


def mediation_rows(run: ContrastRun) -> list[dict[str, Any]]:
    """Rows of ``contrast_effects`` that carry mediation's verdict."""
    return [row for row in run.rows("contrast_effects", analysis="mediation") if row["outcome"] is not None]


def row_sentence(row: dict[str, Any]) -> str:
    """One place in words: outcome, difference with interval and p, what could have been seen, and what disagrees."""
    d = f"{row['tuned']} − {row['reference']} = {measured(row)}"
    p = "no p" if row["p"] is None else f"family-wise p = {number(row['p'])}"
    seen = "" if row["detectable"] is None else f"; {number(row['detectable'])} could have been seen"
    told = ", ".join(f"{outcome} under {name}" for name, outcome in row["outcomes"].items())
    verdict = told if row["final"] == DISAGREE else row["final"]
    sign = "; the sign of the difference is another under the other segmentation" if row["sign_differs"] else ""
    questions = f"{row['clusters']} question{'' if row['clusters'] == 1 else 's'}"
    return (
        f"{row['condition']}, {row['region']}: {verdict}. {d} of the row's attention at layer {row['layer']}, {p}, {row['n']} answers to "
        f"{questions}{seen}{sign}."
    )


def unanswered(run: ContrastRun) -> str:
    """Why there is no verdict, and the command that gets on."""
    if "contrast_examples" not in run.tables and "contrast_layers" not in run.tables:
        return f"No answers were drawn yet, so there is no verdict. Run: {run.command('run')}"
    if "contrast_layers" not in run.tables:
        examples = run.tables.get("contrast_examples")
        if examples is not None and examples["event"].null_count() == examples.height:
            return "No answer shows the behaviour: there is nothing to compare, and no verdict."
        return f"The records are not judged yet, so there is no verdict. Run: {run.command('analyse')}"
    if run.get("analysis", "protocol") == "published":
        return "The published protocol gives no verdict: its gates look at one model, and pass on either side of zero."
    return "There is no verdict: one rests on a reference that reads the same answers, and none was compared. Name one under references."
