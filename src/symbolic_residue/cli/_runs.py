"""``residue runs``: what run folders hold.

1. ``list [FOLDER]``: one line a run, newest first.
2. ``show RUN``: how the run ended, what was measured, the size of its tables, and its verdicts counted.
3. ``validate RUN``: every file checked; exit code 5 where something is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._errors import visible
from symbolic_residue.errors import RunDamagedError

__all__ = ["DEFAULT_FOLDER", "runs_app"]

DEFAULT_FOLDER = Path("residue-runs")
"""Where runs are kept when no folder is named: in the current folder."""

runs_app = typer.Typer(help="List, show and validate runs.", no_args_is_help=True, add_completion=False)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@runs_app.command("list")
def list_command(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The folder that holds the runs.")] = DEFAULT_FOLDER,
    as_json: _Json = False,
) -> None:
    """List the runs in a folder, newest first."""
    from symbolic_residue.store import list_runs

    # The default folder comes into being with the first run: without it there are no runs, and nothing is wrong.
    runs = [] if folder == DEFAULT_FOLDER and not folder.exists() else list_runs(folder)
    if as_json:
        keys = ("kind", "status", "created", "finished", "command", "planned", "done", "failed", "problem")
        _print_json([{"path": str(run.path)} | {key: getattr(run, key) for key in keys} for run in runs])
        return
    if not runs:
        typer.echo(f"No runs in {visible(folder)}.")
        return
    rows = []
    for run in runs:
        items = f"{run.done}/{run.planned}" if run.planned is not None else str(run.done)
        rows.append([run.path.name, run.kind, run.status, items, str(run.failed), run.created, run.problem or run.command])
    _print_table(["run", "kind", "status", "done", "failed", "created (UTC)", "command"], rows)


@runs_app.command("show")
def show_command(run: _Run, as_json: _Json = False) -> None:
    """Show what a run is, how it ended, and what it holds."""
    from symbolic_residue.store import RunFolder

    folder = RunFolder.open(run)
    manifest = folder.manifest.model_dump(mode="json")
    counts = folder.table("verdicts").group_by("shell", "mode", "outcome").len(name="items").sort("shell", "mode", "outcome")
    if as_json:
        _print_json({"path": str(run)} | manifest | {"verdicts": counts.to_dicts()})
        return
    items = manifest["items"]
    planned = f" of {items['planned']} planned" if items["planned"] is not None else ""
    facts = [
        ["run", str(run)],
        ["kind", manifest["kind"]],
        ["command", manifest["command"]],
        ["status", f"{manifest['status']}{' – ' + manifest['note'] if manifest['note'] else ''}"],
        ["created", manifest["created"]],
        ["finished", manifest["finished"] or "–"],
        ["items", f"{len(folder.done_items())} done, {len(folder.failed_items())} failed{planned}"],
        *([f"provenance.{key}", _short(value)] for key, value in manifest["provenance"].items()),
        *([f"config.{key}", _short(value)] for key, value in manifest["config"].items()),
    ]
    _print_table(["", ""], facts, header=False)
    if manifest["tables"]:
        _print_table(["table", "rows"], [[name, str(info["rows"])] for name, info in manifest["tables"].items()])
    if len(counts):
        _print_table(["shell", "mode", "outcome", "items"], [[str(value) for value in row] for row in counts.rows()])


@runs_app.command("validate")
def validate_command(run: _Run, as_json: _Json = False) -> None:
    """Check every file of a run against the schema."""
    from symbolic_residue.store import validate

    problems = validate(run)
    if as_json:
        _print_json({"path": str(run), "sound": not problems, "problems": [{"where": p.where, "what": p.what} for p in problems]})
    elif problems:
        _print_table(["file", "problem"], [[p.where, p.what] for p in problems])
    else:
        typer.echo(f"{visible(run)} is sound.")
    if problems:
        raise typer.Exit(RunDamagedError.exit_code)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print_table(columns: list[str], rows: list[list[str]], *, header: bool = True) -> None:
    """Print a plain table; cells are text, whatever markup or control characters they hold."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, show_header=header, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    Console(highlight=False).print(table)
