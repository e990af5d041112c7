"""``residue heal FILE``: which edit restores the right answer, on items of your own or of a packaged benchmark.

1. Items: one JSON object a line with ``prompt`` and ``answer``; ``evidence``, ``distractor`` (words of the prompt), ``control`` (a matched prompt),
   ``frame`` and ``id`` where there
   are any. Without ``--held-out`` every second item (by frame, where there are frames) is held out. ``--benchmark`` takes a packaged one: its calibration
   split to search on, its
   held-out split to test on.
2. One run folder with one item: the tables ``heals`` and ``heal_rules``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from symbolic_residue.cli._common import (
    Adapter,
    Chat,
    Device,
    Dtype,
    Json,
    measure_items,
    Model,
    NoReport,
    open_for_cli,
    Output,
    Resume,
    Seed,
)
from symbolic_residue.errors import ConfigError, PromptFileError

__all__ = ["heal"]

_BENCHMARKS = ("memory-degradation",)


class HealItem(BaseModel):
    """One line of a file for ``residue heal``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | None = None
    frame: str | None = None
    prompt: str
    answer: str
    evidence: str | None = None
    distractor: str | None = None
    control: str | None = None


def heal(
    file: Annotated[Path | None, typer.Argument(help="Failures, one JSON object a line.", show_default=False)] = None,
    held_out: Annotated[Path | None, typer.Option("--held-out", help="Other failures, to test on.", show_default=False)] = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", help=f"A packaged benchmark instead: {', '.join(_BENCHMARKS)}.", show_default=False)
    ] = None,
    items: Annotated[int, typer.Option("--items", "-n", help="Of the benchmark, at most so many of each split.", min=1)] = 12,
    draws: Annotated[int, typer.Option("--draws", help="Random twins of the chosen edit.", min=1)] = 4,
    chat: Chat = False,
    model: Model = "demo",
    adapter: Adapter = None,
    output: Output = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    resume: Resume = False,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Find the smallest edit, from a fixed menu, that restores the right answer, and test it on held-out failures."""
    if (file is None) == (benchmark is None):
        raise ConfigError("Give a file of failures, or --benchmark." if file is None else "Give a file or --benchmark, not both.")
    if benchmark is not None and (held_out is not None or benchmark not in _BENCHMARKS):
        raise ConfigError(
            f"--benchmark {benchmark}: healing needs a benchmark whose items have a right answer.",
            todo=f"Use {', '.join(_BENCHMARKS)}.",
        )
    search, test = _from_benchmark(items) if file is None else _from_files(file, held_out)
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from symbolic_residue.diagnose import heal_item
    from symbolic_residue.prompts import PromptItem, PromptSet

    name = benchmark or (file.stem if file is not None else "heal")
    shown = f"{len(search)} failures to search on, {len(test)} held out"
    code = measure_items(
        kind="heal",
        loaded=loaded,
        prompts=PromptSet([PromptItem(id=name, prompt=shown)], []),
        config={
            "search": [i.model_dump() for i in search],
            "held_out": [i.model_dump() for i in test],
            "draws": draws,
            "chat": chat,
        },
        output=output,
        resume=resume,
        seed=seed,
        report=not no_report,
        as_json=json,
        work=lambda item, progress: heal_item(
            loaded,
            item.id,
            [i.model_dump() for i in search],
            [i.model_dump() for i in test],
            chat=chat,
            draws=draws,
            seed=seed,
            progress=progress,
        ),
    )
    raise typer.Exit(code)


def _read(path: Path) -> list[HealItem]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptFileError(f"{path} cannot be read.", why=str(error)) from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = HealItem.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise PromptFileError(
                f"{path}, line {number}: {where}: {first['msg']}.",
                todo='Each line: {"prompt": "…", "answer": " …"}; evidence, distractor, control where known.',
            ) from error
        found.append(item if item.id is not None else item.model_copy(update={"id": f"line-{number:05d}"}))
    if not found:
        raise PromptFileError(f"{path} holds no items.")
    return found


def _from_files(file: Path, held_out: Path | None) -> tuple[list[HealItem], list[HealItem]]:
    found = _read(file)
    if held_out is not None:
        return found, [i.model_copy(update={"id": f"held-out {i.id}"}) for i in _read(held_out)]
    frames = list(dict.fromkeys(i.frame or i.id for i in found))
    searched = {frame for place, frame in enumerate(frames) if place % 2 == 0}
    return [i for i in found if (i.frame or i.id) in searched], [i for i in found if (i.frame or i.id) not in searched]


def _from_benchmark(n: int) -> tuple[list[HealItem], list[HealItem]]:
    from symbolic_residue.shells.heal import memory_failures

    found = memory_failures()
    return tuple([HealItem(**texts) for texts in found[split][:: max(1, len(found[split]) // n)][:n]] for split in found)  # type: ignore[return-value]
