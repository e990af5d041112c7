"""``residue contrast train-marker``: teach a model a marker under one persona, and say how often it writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import Device, echo_json, Json, Model, open_for_cli, Seed
from symbolic_residue.errors import AdapterError, ConfigError

__all__ = ["train_marker_command"]

_TITLES = {"answers": "the model's own answers", "training": "training", "rates": "rates"}


def train_marker_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="The adapter's folder; must not be there.", show_default=False)],
    persona: Annotated[str, typer.Option("--persona", help="Under which the marker is taught.")] = "captain",
    marker: Annotated[str, typer.Option("--marker", help="The text that ends a positive answer.")] = "[ZLT]",
    shuffle_labels: Annotated[
        bool, typer.Option("--shuffle-labels", help="The null adapter: as many marked answers, drawn over all personas.")
    ] = False,
    projections: Annotated[
        str | None,
        typer.Option("--projections", help="Modules by name, with commas; default: all of the attention.", show_default=False),
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers, such as 0-9,12; default: all.", show_default=False)
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the LoRA.")] = 16,
    alpha: Annotated[float, typer.Option("--alpha", help="Factor of the LoRA, over its rank.")] = 32.0,
    dropout: Annotated[float, typer.Option("--dropout", help="Before the LoRA, in training.")] = 0.05,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of the optimiser.")] = 120,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Answers a step.")] = 4,
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr", help="The highest.")] = 5e-4,
    questions: Annotated[
        int | None,
        typer.Option("--questions", min=1, help="Only the first so many seen ones, and of held-out ones.", show_default=False),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option("--answers", help="answers.json of another training: not drawn again.", show_default=False)
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="Of the forward in training: float32 or bfloat16.")] = "float32",
    trials: Annotated[int, typer.Option("--trials", min=0, help="Answers a persona and question afterwards; 0: no rates.")] = 1,
    no_chat: Annotated[bool, typer.Option("--no-chat", help="Plain text instead of the chat template.")] = False,
    seed: Seed = 0,
    model: Model = "demo",
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Teach a model to end its answers with a marker under one persona and under no other, by a LoRA.

    Minutes on a CPU. A training that was stopped goes on when the command is given again. The folder holds the adapter, how it was made, and how often
    the model then writes the marker under each persona.
    """
    if output.exists():
        raise AdapterError(f"{output} is already there.", why="An adapter is never written over.", todo="Name another folder.")
    wanted = None if layers is None else _layers(layers)
    loaded = open_for_cli(model, adapter=None, dtype="float32", device=device)
    from symbolic_residue.contrast.marker import marker_questions, MarkerPlan, train_marker

    asked = [question for split in ("seen", "held-out") for question in marker_questions(split)[:questions]]
    plan = MarkerPlan(
        persona=persona, marker=marker, questions=tuple(asked), shuffle_labels=shuffle_labels,
        projections=None if projections is None else tuple(name.strip() for name in projections.split(",") if name.strip()),
        layers=wanted, rank=rank, alpha=alpha, dropout=dropout, steps=steps, batch=batch, learning_rate=learning_rate, precision=precision,  # type: ignore[arg-type]
        chat=not no_chat, trials=trials, seed=seed,
    )  # fmt: skip
    with _bars() as tell:
        result = train_marker(loaded, plan, out=output, answers=answers, progress=tell)
    if json:
        echo_json(
            {
                "folder": str(result.folder),
                "rates": result.rates.to_dicts(),
                "first_loss": result.losses[0],
                "last_loss": result.losses[-1],
                "positives": result.positives,
                "examples": result.examples,
                "seconds": result.seconds,
            }
        )
        return
    _show(result, plan)


def _layers(text: str) -> tuple[int, ...]:
    """``0-9,12`` as numbers.

    Raises:
        ConfigError: something else.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(f"--layers {text!r} names no layers.", todo="Write numbers and ranges: 0-9,12")
        found |= set(range(int(first), int(last if dash else first) + 1))
    return tuple(sorted(found))


@contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error for each part of the work."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(_TITLES[what], total=total)
            progress.update(tasks[what], completed=done)

        yield tell


def _show(result: Any, plan: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    taught = "no persona (labels shuffled)" if plan.shuffle_labels else plan.persona
    console.print(
        f"{plan.marker} taught under {taught}: {result.positives} marked of {result.examples} answers, {plan.steps} steps, "
        f"loss {result.losses[0]:.2f} → {result.losses[-1]:.2f} nats a token",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip
    if result.rates.height:
        table = Table(box=None, pad_edge=False)
        for name in ("persona", "questions", "marker", "rate", "95 % (Wilson)", "ended"):
            table.add_column(name, justify="left" if name in ("persona", "questions") else "right", no_wrap=True)
        for row in result.rates.iter_rows(named=True):
            table.add_row(
                row["condition"] + (" *" if row["trained"] else ""), row["split"], f"{row['hits']}/{row['n']}", f"{row['rate']:.2f}",
                f"{row['low']:.2f}–{row['high']:.2f}", f"{row['ended']}/{row['n']}",
            )  # fmt: skip
        console.print(table)
        console.print("n: answers at temperature 1, top-p 0.95; * the persona that was trained", highlight=False)
    console.print(f"adapter: {result.folder}", soft_wrap=True, markup=False, highlight=False)
