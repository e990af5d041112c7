"""``residue benchmark [NAME]``: the packaged benchmarks; a whole one through its shell.

1. Without a name: every benchmark, its shell, its size. ``--card``: what is in it, how it was made, what was looked at. ``--export``: its items as JSONL.
2. With a name: every item of the split through the shell (or ``--items`` of them), rates of every verdict on planted beside null items, and a report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import (
    Adapter,
    Device,
    Dtype,
    echo_json,
    Json,
    Model,
    NoReport,
    Output,
    Resume,
    Seed,
)

__all__ = ["benchmark"]


def benchmark(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A benchmark or a shell; without it all are listed.")] = None,
    model: Model = "demo",
    items: Annotated[int, typer.Option("--items", "-n", help="Only so many items: half planted, half null. 0 takes all.")] = 0,
    split: Annotated[str, typer.Option("--split", help="held-out, calibration or all.")] = "held-out",
    attribution: Annotated[bool, typer.Option("--attribution", help="Test heads as well; slower.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The shell's full options instead of those of a suite.")] = False,
    card: Annotated[bool, typer.Option("--card", help="Print the data card.")] = False,
    export: Annotated[
        Path | None, typer.Option("--export", help="Write the items to this file and stop.", show_default=False)
    ] = None,
    adapter: Adapter = None,
    output: Output = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    resume: Resume = False,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Run a packaged benchmark: how often does each verdict fire, planted and null?"""
    found = _benchmarks()
    if name is None:
        _list(found, as_json=json)
        return
    row = next((row for row in found if name in (row["benchmark"], row["shell"])), None)
    if row is None:
        from symbolic_residue.errors import ConfigError

        raise ConfigError(f"There is no benchmark {name!r}.", todo=f"Use one of: {', '.join(row['benchmark'] for row in found)}.")
    if card:
        from symbolic_residue.prompts import data_card

        typer.echo(data_card(row["benchmark"]).rstrip())
        return
    if export is not None:
        _export(row, export)
        return
    from symbolic_residue.cli._shells import run_suite

    code = run_suite(
        f"benchmark-{row['benchmark']}",
        [row["shell"]],
        n=items or None,
        split=split,
        full=full,
        attribution=attribution,
        model=model,
        adapter=adapter,
        output=output,
        seed=seed,
        dtype=dtype,
        device=device,
        resume=resume,
        report=not no_report,
        as_json=json,
    )
    raise typer.Exit(code)


def _benchmarks() -> list[dict[str, Any]]:
    from symbolic_residue.shells import shell_class, SHELLS

    rows = []
    for shell in SHELLS:
        kind = shell_class(shell)
        if kind.benchmark is not None:
            items = kind.items()
            counts = {f"{side} {split}": 0 for split in ("calibration", "held-out") for side in ("planted", "null")}
            for item in items:
                counts[f"{'null' if item.null else 'planted'} {item.split}"] += 1
            rows.append({"benchmark": kind.benchmark, "shell": shell, "items": len(items), **counts})
    return rows


def _list(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        echo_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in rows[0]:
        table.add_column(title, justify="left" if title in ("benchmark", "shell") else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def _export(row: dict[str, Any], path: Path) -> None:
    from symbolic_residue.errors import WriteError
    from symbolic_residue.shells import shell_class

    lines = [item.model_dump_json(exclude_none=True) for item in shell_class(row["shell"]).items()]
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except FileExistsError as error:
        raise WriteError(f"{path} is already there.", todo="Name another file.") from error
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}.") from error
    typer.echo(f"{len(lines)} items: {path}")
