"""The end of a contrast for a terminal: preflight and rates, the answer in a sentence, then a row a condition and region with everything that a number
needs beside it, the other references, causal follow-ups, and what could not be filled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from symbolic_residue.figures import number, visible
from symbolic_residue.report._contrast_answer import answer_rows, answer_sentence, DISAGREE, unanswered
from symbolic_residue.report._contrast_load import ContrastRun, HEADLINE, load_contrast, measured
from symbolic_residue.store import RunFolder

__all__ = ["contrast_summary"]


def contrast_summary(run: Path | str | RunFolder) -> Any:
    """What a run of kind ``contrast`` found, as something that ``rich`` prints; only the predicted region where one was predicted.

    Raises:
        StoreError: no run folder. RunDamagedError: a table cannot be read.
    """
    from rich.console import Group

    found = load_contrast(run)
    return Group(*_before(found), *_answer(found), *_beside(found))


def _text(line: str, style: str = "") -> Any:
    from rich.text import Text

    return Text(visible(line), style=style)


def _table(titles: dict[str, str], rows: list[list[str]]) -> Any:
    """Titles with the side on which their column stands, and cells."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title, side in titles.items():
        table.add_column(visible(title), justify=side, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _before(run: ContrastRun) -> list[Any]:
    """Preflight and rates."""
    made = [
        _text(f"preflight, {row['condition'] or 'all conditions'}: {row['check']}: {row['outcome']}: {measured(row)}, margin {number(row['margin'])}, "
              f"n = {row['n']}")
        for row in run.rows("contrast_preflight") if not row["check"].startswith("largest")
    ]  # fmt: skip
    rates = [
        [row["condition"], row["model"], f"{row['hits']}/{row['n']}", f"[{100 * row['low']:.0f}, {100 * row['high']:.0f}] %"]
        for row in run.rows("contrast_rates")
    ]
    if rates:
        made.append(_table({"rate of the behaviour": "left", "model": "left", "trials": "right", "Wilson 95 %": "left"}, rates))
    return made


def _shown(run: ContrastRun) -> list[dict[str, Any]]:
    """Rows of the predicted region; all where none was predicted."""
    rows = answer_rows(run)
    return [row for row in rows if row["region"] == run.predicted[0]] or rows


def _answer(run: ContrastRun) -> list[Any]:
    """The sentence and its rows."""
    rows = answer_rows(run)
    if not rows:
        return [_text(unanswered(run), "bold")]
    titles = {"condition": "left", "region": "left", "verdict": "left", f"{rows[0]['tuned']} − {rows[0]['reference']}": "left", "p": "right",
              "n (questions)": "right", "could be seen": "right", "null models": "left"}  # fmt: skip
    cells = [
        [
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
        for row in _shown(run)
    ]
    return [_text(answer_sentence(run, rows), "bold"), _table(titles, cells)]


def _beside(run: ContrastRun) -> list[Any]:
    """What disagrees, the other references, causal follow-ups, and what could not be filled."""
    shown = _shown(run)
    made = [
        _text(
            f"! {row['condition']}, {row['region']}: the sign of the difference is another under the other segmentation", "yellow"
        )
        for row in shown
        if row["sign_differs"]
    ]
    regions = {row["region"] for row in shown}
    for row in run.rows("contrast_verdicts", query_offset=HEADLINE, head=None):
        if row["region"] in regions and row["reference"] != run.base:
            where = f"{row['condition']}, {row['region']}, against {row['reference']} ({row['segmentation']})"
            made.append(
                _text(
                    f"{where}: {row['outcome']}: {measured(row)} layer {row['layer']}, n = {row['n']} ({row['clusters']} questions)"
                )
            )
    made += [
        _text(
            f"{row['condition']}, {row['analysis']}: {row['part']} {row['model']} {measured(row)} {row['unit']}, n = {row['n']}: {row['outcome']}"
        )
        for row in run.rows("contrast_effects")
        if row["outcome"] is not None
    ]
    made += [_text(row["summary"]) for row in run.items.to_dicts() if row["item"].startswith("analysis/") and row["summary"]]
    for row in run.rows("contrast_missing", model=run.tuned):
        if row["missing"]:
            cut = "answers without the behaviour were cut"
            what = cut if row["stratum"] == "C4" else f"of {row['examples']} answers have no such rows"
            made.append(_text(f"{row['condition']}, {row['stratum']}: {row['missing']} {what}", "dim"))
    return made
