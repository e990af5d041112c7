"""Sections of a contrast's report as plain values: text, names of figures, tables, and what is folded away; HTML is not made here.

A section whose tables are absent says what was not run and the command that runs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from symbolic_residue.figures import number
from symbolic_residue.report._contrast_answer import mediation_rows
from symbolic_residue.report._contrast_figures import conditions_of, headline_layer
from symbolic_residue.report._contrast_load import ContrastRun, grid, HEADLINE, measured
from symbolic_residue.report._contrast_tables import gate_tables, ticked, window_table

__all__ = ["sections"]

_STRATA = {
    "C1": "earlier rows of the same answer, at random",
    "C2": "rows just before the behaviour",
    "C3": "rows of rare tokens of the same answer",
    "C4": "true ends of answers without the behaviour (other answers)",
    "C5": "rows that follow the same token",
}


def sections(run: ContrastRun, drawn: Iterable[str]) -> list[dict[str, Any]]:
    """``name, title, text (paragraphs), figures, tables, folded ([{summary, figures, tables}]), missing`` of every section but the samples."""
    names = list(drawn)
    made = [_preflight(run), _rates(run, names), _strata(run), _judged(run, names), _heads(run), _causal(run, names)]
    return [{"text": [], "figures": [], "tables": [], "folded": [], "missing": None, **section} for section in made]


def _not_run(run: ContrastRun, what: str, stage: str, more: str = "") -> str:
    return f"{what} {more + ' ' if more else ''}Run: {run.command(stage)}"


def _preflight(run: ContrastRun) -> dict[str, Any]:
    section = {"name": "preflight", "title": "Preflight: does the attention implementation change behaviour?"}
    rows = run.rows("contrast_preflight")
    if not rows:
        need = "" if run.get("preflight") else "It needs the field preflight in the configuration."
        return {**section, "missing": _not_run(run, "The implementations were not compared.", "preflight", need)}
    cells = [
        [
            row["check"],
            row["condition"] or "all",
            measured(row),
            f"± {number(row['margin'])}" if row["margin"] is not None else "—",
            str(row["n"]),
            row["outcome"],
            row["note"] or "",
        ]
        for row in rows
    ]
    columns = {
        "check": False,
        "condition": False,
        "value [90 % interval]": False,
        "margin": True,
        "n": True,
        "outcome": False,
        "note": False,
    }
    text = "Equivalent: the whole interval lies inside the margin (two one-sided tests). A small difference alone shows nothing."
    return {**section, "text": [text], "tables": [grid("Checks", columns, cells)]}


def _rates(run: ContrastRun, names: list[str]) -> dict[str, Any]:
    section = {"name": "rates", "title": "How often the behaviour is shown"}
    rows = run.rows("contrast_rates")
    if not rows:
        return {**section, "missing": _not_run(run, "No answers were drawn.", "generate")}
    cells = [
        [
            row["condition"],
            row["model"],
            row["behaviour"],
            str(row["hits"]),
            measured(row, "rate", signed=False),
            str(row["n"]),
            "—" if row["n_effective"] is None else f"{row['n_effective']:.0f}",
        ]
        for row in rows
    ]
    columns = {
        "condition": False,
        "model": False,
        "behaviour": False,
        "with it": True,
        "rate [Wilson 95 %]": False,
        "answers": True,
        "worth": True,
    }
    text = "Of the counted trials, whose number was fixed beforehand. "
    if any(row["n_effective"] is None for row in rows):
        text += "The interval takes answers as independent; those to one question hang together."
    else:
        text += "Answers to one question hang together: the interval is that of the independent answers that they are worth."
    return {
        **section,
        "text": [text],
        "figures": [n for n in names if n.startswith("rates")],
        "tables": [grid("Rates", columns, cells)],
    }


def _strata(run: ContrastRun) -> dict[str, Any]:
    section = {"name": "strata", "title": "Controls: filled and missing"}
    rows = run.rows("contrast_missing", model=run.tuned) or run.rows("contrast_missing")
    if not rows:
        return {**section, "missing": _not_run(run, "The controls were not counted.", "analyse")}
    cells = [
        [
            row["condition"],
            f"{row['stratum']}: {_STRATA.get(row['stratum'], 'rows')}",
            str(row["examples"]),
            str(row["with_rows"]),
            "—" if row["missing"] is None else str(row["missing"]),
        ]
        for row in rows
    ]
    columns = {
        "condition": False,
        "stratum": False,
        "answers with the behaviour": True,
        "answers with such rows": True,
        "missing": True,
    }
    marked = [bool(row["missing"]) or not row["with_rows"] for row in rows]
    text = "A control that could not be filled is missing, not zero. C4 is of answers without the behaviour; those that were cut have no true end."
    return {**section, "text": [text], "tables": [grid("Control strata", columns, cells, marked)]}


def _judged(run: ContrastRun, names: list[str]) -> dict[str, Any]:
    section = {"name": "layers", "title": "Layer by layer"}
    if "contrast_layers" not in run.tables:
        return {**section, "missing": _not_run(run, "The records were not judged.", "analyse")}
    text = [
        "At the row that emits the behaviour: attention on a region less that of the control rows of the same answer, share of the row's attention, mean over "
        "heads. Tuned − reference is of the same tokens under both models; it alone decides.",
    ]
    figures, folded = [], []
    for i, condition in enumerate(conditions_of(run), 1):
        mine = [n for n in names if n.startswith(f"c{i}_")]
        figures += [n for n in mine if n.removeprefix(f"c{i}_") in ("layers", "differences", "strata", "trajectory", "regions")]
        more = [n for n in mine if n.removeprefix(f"c{i}_") in ("differences_content", "differences_consuming")]
        layer = headline_layer(run, condition)
        if layer is not None:
            text.append(
                f"{condition}: trajectory and regions are drawn at layer {layer}, which the verdict on the first region names: chosen by looking."
            )
        tables = gate_tables(run, condition)
        if more:
            folded.append(
                {
                    "summary": f"{condition}: differences under the other segmentation, and at the row that consumes",
                    "figures": more,
                    "tables": [],
                }
            )
        if tables:
            folded.append({"summary": f"{condition}: gates of every layer", "figures": [], "tables": tables})
    notes = [
        line
        for row in run.items.to_dicts()
        if row["item"].startswith("analysis/")
        for line in (row["text"] or "").split("\n")
        if line
    ]
    tables = [window_table(run)]
    if notes:
        tables.append(grid("What could not be evaluated", {"note": False}, [[note] for note in dict.fromkeys(notes)]))
    figures += [n for n in names if n == "shifts"]
    return {**section, "text": text, "figures": figures, "tables": [t for t in tables if t["rows"]], "folded": folded}


def _heads(run: ContrastRun) -> dict[str, Any]:
    section = {"name": "heads", "title": "Heads: chosen on half of the questions, tested on the other half"}
    rows = run.rows("contrast_heads", query_offset=HEADLINE)
    if not rows:
        return {
            **section,
            "missing": "Single heads were not chosen: the configuration needs readout.heads: true, and four questions at least.",
        }
    region, most = run.predicted[0], 10
    rows = [row for row in rows if row["region"] == region] or rows
    shown = [row for row in rows if row["rank"] <= most and row["segmentation"] == rows[0]["segmentation"]]
    cells = [
        [
            row["condition"],
            row["model"],
            row["region"],
            f"{row['layer']}.{row['head']}",
            number(row["chosen_value"], signed=True),
            measured(row),
            number(row["p"]),
            str(row["n"]),
            str(row["clusters"]),
            ticked(row["holds"]),
        ]
        for row in shown
    ]
    columns = {
        "condition": False,
        "model": False,
        "region": False,
        "head": False,
        "chosen on": True,
        "tested [interval]": False,
        "p": True,
        "answers": True,
        "questions": True,
        "holds": False,
    }
    return {
        **section,
        "tables": [grid(f"Heads, segmentation {rows[0]['segmentation']}", columns, cells, [row["holds"] is True for row in shown])],
    }


def _causal(run: ContrastRun, names: list[str]) -> dict[str, Any]:
    section = {"name": "causal", "title": "Does it matter? Causal follow-ups"}
    if "contrast_effects" not in run.tables:
        need = "" if run.get("causal", "analyses") else "It needs the field causal.analyses in the configuration."
        return {
            **section,
            "missing": _not_run(
                run, "No causal follow-up was run: where the model looks does not say that it matters.", "causal", need
            ),
        }
    figures = [
        n
        for i, _ in enumerate(conditions_of(run), 1)
        for n in names
        if n.removeprefix(f"c{i}_") in ("lens", "components", "patching", "patching_back", "knock_out", "surgery")
        and n.startswith(f"c{i}_")
    ]
    cells = [
        [
            row["condition"],
            row["model"],
            row["part"],
            f"{measured(row)} {row['unit']}",
            f"{measured(row, 'control', 'control_low', 'control_high')}",
            number(row["criterion"]),
            row["outcome"],
            str(row["n"]),
            str(row["clusters"]),
            row["why"] or "",
        ]
        for row in mediation_rows(run)
    ]
    columns = {
        "condition": False,
        "direction": False,
        "part": False,
        "share [interval]": False,
        "control": False,
        "criterion": True,
        "outcome": False,
        "answers": True,
        "questions": True,
        "why": False,
    }
    tables = (
        [
            grid(
                "Mediation: all patterns of one model in the other (tuned into base: sufficiency; base into tuned: necessity)",
                columns,
                cells,
            )
        ]
        if cells
        else []
    )
    done = set(run.tables["contrast_effects"]["analysis"])
    lacking = [name for name in ("lens", "components", "patch", "knock-out", "surgery", "mediation") if name not in done]
    text = [f"Not run: {', '.join(lacking)}. Name them in causal.analyses, then: {run.command('causal')}"] if lacking else []
    return {**section, "text": text, "figures": figures, "tables": tables}
