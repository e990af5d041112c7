"""``residue heal FILE|RUN``, ``residue heal --shell NAME``: which edit restores the right answer, on failures of your own, of a suite's run, or of a benchmark.

1. A file: one JSON object a line with ``prompt`` and ``answer``; ``wrong`` (the answer it stands against), ``evidence``, ``distractor`` (words of
   the prompt), ``control`` (a matched prompt), ``frame`` and ``id`` where there are any. Without ``--held-out`` every second item (by frame, where
   there are frames) is held out.
2. A run folder: items of packaged benchmarks on which a verdict fires, held out by frame.
3. ``--shell`` or ``--benchmark``: what a benchmark plants; its calibration split to search on, its held-out split to test on.
4. One run folder, an item for each right answer, with the tables ``heals`` and ``heal_rules``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from symbolic_residue.cli._common import (
    Adapter,
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

if TYPE_CHECKING:
    from symbolic_residue.diagnose import HealingGroup

__all__ = ["heal"]


class HealItem(BaseModel):
    """One line of a file for ``residue heal``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | None = None
    frame: str | None = None
    prompt: str
    answer: str
    wrong: str | None = None
    evidence: str | None = None
    distractor: str | None = None
    control: str | None = None


def heal(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE|RUN]", help="Failures, one JSON object a line; or the run folder of a suite.", show_default=False
        ),
    ] = None,
    held_out: Annotated[Path | None, typer.Option("--held-out", help="Other failures, to test on.", show_default=False)] = None,
    shell: Annotated[
        str | None,
        typer.Option(
            "--shell", "-s", help="What this shell's benchmark plants; with a run, this shell's failures only.", show_default=False
        ),
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", help="The same by the benchmark's name.", show_default=False)
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--mode", help="One failure mode only, as 'ordering reversal'.", show_default=False)
    ] = None,
    items: Annotated[
        int,
        typer.Option("--items", "-n", help="Of a benchmark, at most so many of each split and right answer. 0 takes all.", min=0),
    ] = 12,
    draws: Annotated[int, typer.Option("--draws", help="Random twins of the chosen edit.", min=1)] = 4,
    full: Annotated[bool, typer.Option("--full", help="Prompts of the shell's full options instead of those of a suite.")] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Render the prompts of a file as a user's turn by the chat template.")
    ] = False,
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
    run = source if source is not None and source.is_dir() else None
    if sum(x is not None for x in (source, benchmark)) + (shell is not None and run is None) != 1:
        raise ConfigError(
            "Give one of: a file of failures, a run folder, --shell, --benchmark.",
            todo="With a run folder, --shell may name one of its shells.",
        )
    if source is None or run is not None:
        refused = [name for name, given in (("--held-out", held_out is not None), ("--chat", chat)) if given]
        if refused:
            raise ConfigError(f"{refused[0]} belongs to a file of failures.")
        groups, config = _groups(run, shell, benchmark, items or None, mode, full)
        _heal_groups(
            groups, config, run, model=model, adapter=adapter, output=output, seed=seed, dtype=dtype, device=device, resume=resume,
            report=not no_report, as_json=json, draws=draws,
        )  # fmt: skip
    assert source is not None
    if mode is not None or full:
        raise ConfigError(f"{'--mode' if mode is not None else '--full'} belongs to a shell, a benchmark or a run.")
    search, test = _from_files(source, held_out)
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from symbolic_residue.diagnose import heal_item
    from symbolic_residue.prompts import PromptItem, PromptSet
    from symbolic_residue.shells.heal import Failure, failure_of

    def made() -> tuple[list[Failure], list[Failure]]:
        limit = loaded.parts.max_context
        sets = [
            [failure_of(loaded.tokenizer, chat=chat, max_tokens=limit, **i.model_dump()) for i in side] for side in (search, test)
        ]
        return sets[0], sets[1]

    shown = f"{len(search)} failures to search on, {len(test)} held out"
    code = measure_items(
        kind="heal",
        loaded=loaded,
        prompts=PromptSet([PromptItem(id=source.stem, prompt=shown)], []),
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
            loaded, item.id, made, shown=shown, chat=chat, draws=draws, seed=seed, progress=progress
        ),
    )
    raise typer.Exit(code)


def _groups(
    run: Path | None, shell: str | None, benchmark: str | None, items: int | None, mode: str | None, full: bool
) -> tuple[list[HealingGroup], dict[str, Any]]:
    """What is healed, and under which options of the shells."""
    from symbolic_residue.diagnose import benchmark_groups, run_groups
    from symbolic_residue.shells import config_class

    if run is None:
        groups = benchmark_groups(str(shell or benchmark), items, mode=mode)
        kind = config_class(groups[0].shell)
        return groups, {"shells": {groups[0].shell: (kind.make if full else kind.quick)()}, "left_out": {}}
    if full:
        raise ConfigError("--full belongs to a shell or a benchmark.", why="A run has its own options.")
    from symbolic_residue.store import RunFolder

    folder = RunFolder.open(run)
    groups, left = run_groups(folder.table("shell_items"), folder.table("verdicts"), shell=shell, mode=mode)
    saved = folder.manifest.config.get("shells", {})
    configs = {group.shell: config_class(group.shell).make(**saved.get(group.shell, {})) for group in groups}
    return groups, {"shells": configs, "left_out": left}


def _heal_groups(groups: list[HealingGroup], config: dict[str, Any], run: Path | None, *, draws: int, **rest: Any) -> None:
    """Each group is one item of the run folder; ends the command."""
    loaded = open_for_cli(rest["model"], adapter=rest["adapter"], dtype=rest["dtype"], device=rest["device"])
    if run is not None:
        from symbolic_residue.store import RunFolder

        made_on = RunFolder.open(run).manifest.provenance
        if made_on.get("weights_sha256") != loaded.provenance.weights_sha256:
            raise ConfigError(
                f"{run} was made on another model ({made_on.get('model')}).",
                why="Its failures are not this model's.",
                todo=f"Give --model {made_on.get('model')}.",
            )
    if config["left_out"]:
        told = ", ".join(f"{name} ({n} {'item' if n == 1 else 'items'})" for name, n in config["left_out"].items())
        typer.echo(f"No answer is right for {told}: left out.", err=True)
    from symbolic_residue.diagnose import heal_item, make_failures
    from symbolic_residue.prompts import PromptItem, PromptSet
    from symbolic_residue.shells import make_shell

    named = {group.name: group for group in groups}
    shells = {name: make_shell(name, loaded, options) for name, options in config["shells"].items()}
    shown = {
        name: f"{group.right}: {len(group.search)} planted items"
        + (", held out by frame" if group.by_frame else f" to search on, {len(group.held_out)} held out")
        for name, group in named.items()
    }
    code = measure_items(
        kind="heal",
        loaded=loaded,
        prompts=PromptSet([PromptItem(id=name, prompt=shown[name]) for name in named], []),
        config={
            "groups": [group.config() for group in groups],
            "shells": {name: options.model_dump(mode="json") for name, options in config["shells"].items()},
            "left_out": config["left_out"],
            "draws": draws,
        },
        output=rest["output"],
        resume=rest["resume"],
        seed=rest["seed"],
        report=rest["report"],
        as_json=rest["as_json"],
        work=lambda item, progress: heal_item(
            loaded,
            item.id,
            lambda: make_failures(shells[named[item.id].shell], named[item.id], seed=rest["seed"]),
            shown=shown[item.id],
            draws=draws,
            seed=rest["seed"],
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
                todo='Each line: {"prompt": "…", "answer": " …"}; wrong, evidence, distractor, control where known.',
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
