"""The answer of a contrast for a terminal: the sentence, then a row a condition and region with everything that a number needs beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from symbolic_residue.figures import number, visible
from symbolic_residue.report._contrast_answer import answer_rows, answer_sentence, DISAGREE, mediation_rows, unanswered
from symbolic_residue.report._contrast_load import load_contrast, measured
from symbolic_residue.store import RunFolder

__all__ = ["contrast_summary"]


def contrast_summary(run: Path | str | RunFolder) -> Any:
    """What a run of kind ``contrast`` found, as something that ``rich`` prints; only the predicted region where one was predicted.

    Raises:
        StoreError: no run folder. RunDamagedError: a table cannot be read.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    found = load_contrast(run)
    rows = answer_rows(found)
    if not rows:
        return Group(Text(visible(unanswered(found)), style="bold"))
    predicted, _ = found.predicted
    shown = [row for row in rows if row["region"] == predicted] or rows
    table = Table(box=None, pad_edge=False)
    titles = {"condition": "left", "region": "left", "verdict": "left", f"{rows[0]['tuned']} − {rows[0]['reference']}": "left", "p": "right",
              "n (questions)": "right", "could be seen": "right", "null models": "left"}  # fmt: skip
    for title, side in titles.items():
        table.add_column(visible(title), justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in shown:
        cells = [
            row["condition"],
            row["region"],
            "; ".join(f"{name}: {outcome}" for name, outcome in row["outcomes"].items())
            if row["final"] == DISAGREE
            else row["final"],
            f"{measured(row)} layer {row['layer']}",
            number(row["p"]),
            f"{row['n']} ({row['clusters']})",
            number(row["detectable"]),
            "; ".join(f"{null['tuned']} {measured(null)}" for null in row["null_models"]) or "none",
        ]
        table.add_row(*(Text(visible(cell)) for cell in cells))
    notes = [
        f"{row['condition']}: {row['part']} {row['model']} {measured(row)} {row['unit']}, n = {row['n']}: {row['outcome']}"
        for row in mediation_rows(found)
    ]
    return Group(Text(visible(answer_sentence(found, rows)), style="bold"), table, *(Text(visible(note)) for note in notes))
