"""What a measurement of token trees says at its end: a verdict a question with its control, and the published metric beside the controlled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from symbolic_residue.cli._common import echo_json

__all__ = ["show_verdicts"]


def show_verdicts(path: Path, page: Path | None, *, as_json: bool) -> None:
    """Print the verdicts of a run; nothing is left out in JSON."""
    from symbolic_residue.store import RunFolder

    run = RunFolder.open(path)
    rows = run.table("parallel_verdicts").drop("item").fill_nan(None).to_dicts()
    failed = run.table("items").filter(status="failed").select("item", "error").to_dicts()
    if as_json:
        echo_json({"run": str(path), "report": None if page is None else str(page), "verdicts": rows, "failed": failed})
        return
    from rich.console import Console
    from rich.markup import escape

    from symbolic_residue.figures import visible

    console = Console(highlight=False)
    for row in failed:
        console.print(
            f"[bold]{escape(visible(row['item']))}[/]: [red]failed[/] {escape(visible(row['error'] or ''))}", soft_wrap=True
        )
    if rows:
        _print(console, rows)
    console.print(f"run: {escape(str(path))}", soft_wrap=True)
    if page is not None:
        console.print(f"report: {escape(str(page))}", soft_wrap=True)


def _print(console: Any, rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from symbolic_residue.parallel import QUESTIONS

    table = Table(box=None, pad_edge=False)
    for name in ("question", "verdict", "value [95 % interval]", "n", "control [95 % interval]"):
        table.add_column(name, justify="right" if name == "n" else "left", header_style="dim")
    judged = [row for row in rows if row["quantity"] == "verdict"]
    for row in judged:
        control = "—" if row["control"] is None else _number(row, "control_")
        table.add_row(row["question"], f"[bold]{row['outcome']}[/]", escape(_number(row)), str(row["n"]), escape(control))
    console.print(table)
    for row in judged:
        said = f"{row['question']}: {QUESTIONS.get(row['question'], '')} Control: {row['control'] or 'none'}. {row['note'] or ''}"
        console.print(f"[dim]{escape(said.strip())}[/]", soft_wrap=True)
    measured = [row for row in rows if row["question"] in ("bias", "prediction") and row["outcome"] in ("measured", "undecided")]
    shown = [row for row in measured if row["question"] == "bias" or row["arm"] in ("shared", "unique")]
    shown += [row for row in rows if row["quantity"].startswith("published")]
    if shown:
        console.print("[dim]Measured, not judged:[/]")
    for row in shown:
        arm = f" ({row['arm']}{' / ' + row['reference'] if row['reference'] else ''})"
        label = " — not controlled, for comparison only" if row["quantity"].startswith("published") else ""
        console.print(f"  {escape(row['quantity'] + arm)}: {escape(_number(row))}, n = {row['n']}[dim]{label}[/]", soft_wrap=True)


def _number(row: dict[str, Any], prefix: str = "") -> str:
    value, low, high = (row[f"{prefix}{name}"] for name in ("value", "low", "high"))
    if value is None:
        return "not measured"
    unit = "" if prefix or row["unit"] in ("ratio",) else f" {row['unit']}"
    return f"{value:.3f}{unit} [{low:.3f}, {high:.3f}]" if low is not None else f"{value:.3f}{unit} (no interval)"
