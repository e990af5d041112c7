"""Tables of a contrast's report: the answer's rows, the gates of every layer, and the windows.

A cell is text; ``?`` is a gate that was not evaluated, neither passed nor failed.
"""

from __future__ import annotations

from typing import Any

from symbolic_residue.figures import number
from symbolic_residue.report._contrast_answer import answer_rows, DISAGREE
from symbolic_residue.report._contrast_load import ContrastRun, grid, HEADLINE, measured

__all__ = ["answer_tables", "gate_tables", "ticked", "window_table"]

_FLAGS = "ABCDEF"
_GATES = (
    "A: share of examples in the predicted direction. B: interval and family-wise p on the predicted side. C: more than every other region. D: A to C under "
    "both segmentations. E: above each control C2 to C5. F: the rise is at the row, not before. ? = not evaluated."
)


def answer_tables(run: ContrastRun) -> list[dict[str, Any]]:
    """The first screen's tables: the predicted region, then all others."""
    rows = answer_rows(run)
    if not rows:
        return []
    region, _ = run.predicted
    first = [row for row in rows if row["region"] == region]
    rest = [row for row in rows if row["region"] != region]
    pair = f"{rows[0]['tuned']} − {rows[0]['reference']} [interval]"
    columns = {
        "condition": False,
        "region": False,
        "verdict": False,
        pair: False,
        "layer": True,
        "p": True,
        "answers": True,
        "questions": True,
        "could be seen": True,
        "null models": False,
        "segmentations": False,
    }
    made = []
    for caption, part in ((f"The predicted region: {region}", first), ("The other regions" if first else "All regions", rest)):
        cells = [
            [
                row["condition"],
                row["region"],
                row["final"],
                measured(row),
                str(row["layer"]),
                number(row["p"]),
                str(row["n"]),
                str(row["clusters"]),
                number(row["detectable"]),
                _nulls(row),
                _segmentations(row),
            ]
            for row in part
        ]
        if cells:
            made.append(grid(caption, columns, cells, [row["final"] not in ("undecided", DISAGREE) for row in part]))
    return made


def _nulls(row: dict[str, Any]) -> str:
    said = "; ".join(f"{null['tuned']} {measured(null)}" for null in row["null_models"])
    if not said:
        return "none was compared"
    beyond = {True: "tuned moves further", False: "not shown to move further", None: "not compared"}[row["beyond_nulls"]]
    return f"{said}: {beyond}"


def _segmentations(row: dict[str, Any]) -> str:
    if len(row["outcomes"]) < 2:
        return "one only"
    said = "agree" if row["final"] != DISAGREE else "; ".join(f"{name}: {outcome}" for name, outcome in row["outcomes"].items())
    return f"{said}; the sign differs" if row["sign_differs"] else said


def gate_tables(run: ContrastRun, condition: str) -> list[dict[str, Any]]:
    """The gates of the predicted region, a table a model and segmentation; layers that pass A to C stand out."""
    region = run.predicted[0]
    every = run.rows("contrast_layers", condition=condition, query_offset=HEADLINE, head=None)
    known = list(dict.fromkeys(row["region"] for row in every))
    tables = []
    for segmentation in dict.fromkeys(row["segmentation"] for row in every):
        for model in dict.fromkeys(row["model"] for row in every):
            chosen = region if region in known else known[0]
            rows = [row for row in every if (row["segmentation"], row["model"], row["region"]) == (segmentation, model, chosen)]
            cells = [
                [
                    str(row["layer"]),
                    measured(row),
                    number(row["p"]),
                    number(row["share"]),
                    *(ticked(row[flag]) for flag in _FLAGS),
                    "—" if row["rival"] is None else f"{row['rival']} {number(row['margin'], signed=True)}",
                    number(row["detectable"]),
                    str(row["n"]),
                    str(row["clusters"]),
                ]
                for row in rows
            ]
            columns = {
                "layer": True,
                "event − C1 [interval]": False,
                "p": True,
                "share up": True,
                **dict.fromkeys(_FLAGS, False),
                "nearest region": False,
                "could be seen": True,
                "answers": True,
                "questions": True,
            }
            marked = [all(row[flag] is True for flag in "ABC") for row in rows]
            tables.append(grid(f"{chosen}, {model}, segmentation {segmentation}. {_GATES}", columns, cells, marked))
    return tables


def ticked(value: bool | None) -> str:
    """A gate in a cell."""
    return "?" if value is None else "✓" if value else "no"


def window_table(run: ContrastRun) -> dict[str, Any]:
    """Runs of layers that pass A to C."""
    rows = run.rows("contrast_windows", query_offset=HEADLINE, head=None)
    cells = [
        [
            row["condition"],
            row["model"],
            row["region"],
            row["segmentation"],
            f"{row['first']}–{row['last']}",
            str(row["peak_layer"]),
            number(row["peak_value"], signed=True),
            *(ticked(row[flag]) for flag in "DEF"),
        ]
        for row in rows
    ]
    columns = {
        "condition": False,
        "model": False,
        "region": False,
        "segmentation": False,
        "layers": False,
        "peak": True,
        "its delta": True,
        "D": False,
        "E": False,
        "F": False,
    }
    return grid("Windows: runs of layers that pass A to C (a description; layers are no sample)", columns, cells)
