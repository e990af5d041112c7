"""What the commands on a folder of directions share: opening its run for writing, its model, and a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import open_for_cli
from symbolic_residue.errors import ConfigError, RunExistsError

if TYPE_CHECKING:
    from symbolic_residue.models import LoadedModel
    from symbolic_residue.store import RunFolder

__all__ = ["KIND", "RunArgument", "bar", "keep_item", "number_list", "open_model_of", "reopened"]

KIND = "concepts"
"""Kind of the run."""

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A folder of: residue concepts train", show_default=False)]


def number_list(text: str, option: str) -> tuple[int, ...]:
    """``0-9,12`` as numbers.

    Raises:
        ConfigError: something else.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(f"{option} {text!r} names no layers.", todo="Write numbers and ranges: 0-9,12")
        if int(last if dash else first) > 9999:
            raise ConfigError(f"There is no layer {last if dash else first}.", todo="See the model's layers: residue models show")
        found |= set(range(int(first), int(last if dash else first) + 1))
    return tuple(sorted(found))


@contextmanager
def reopened(path: Path, config: dict[str, Any] | None = None, drop: Callable[[str], bool] | None = None) -> Iterator[RunFolder]:
    """The run in ``path``, open for writing; it ends complete, interrupted or failed.

    Raises:
        RunExistsError: it holds another kind of run.
        StoreError, RunDamagedError: there is none that can be read.
    """
    from symbolic_residue.store import RunFolder

    kind = RunFolder.open(path).manifest.kind
    if kind != KIND:
        raise RunExistsError(f"{path} holds a run of kind {kind!r}.", todo="Give the folder of: residue concepts train")
    with RunFolder.reopen(path, config=config, drop=drop) as run:
        yield run


def keep_item(run: RunFolder, item: str, summary: str, *, seed: int) -> None:
    """Note in the run that a part of it is whole."""
    import polars as pl

    row = {
        "prompt": "",
        "text": None,
        "chat": False,
        "n_tokens": None,
        "seed": seed,
        "status": "done",
        "error": None,
        "summary": summary,
    }
    run.write_item(item, {"items": pl.DataFrame([row])})


def open_model_of(path: Path) -> LoadedModel:
    """The model that the run was made with, as it was opened then; its hash is checked where the directions are read."""
    from symbolic_residue.store import RunFolder

    config = RunFolder.open(path).manifest.config
    adapter = config.get("adapter")
    return open_for_cli(
        str(config.get("model", "demo")),
        adapter=Path(adapter) if adapter else None,
        dtype=str(config.get("dtype", "float32")),
        device=str(config.get("device", "cpu")),
    )


@contextmanager
def bar(first: str) -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error; called with what is being done and the share of the whole."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(first, total=1.0)

        def tell(what: str, share: float) -> None:
            progress.update(task, completed=share, description=escape(what[:40]))

        yield tell
