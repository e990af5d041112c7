"""``residue contrast run CONFIG.yaml`` and its stages alone: a study of a tuned model beside its references, in a run folder.

1. A new run opens the tuned model and renders every prompt before the folder is made: what cannot be asked leaves nothing behind.
2. ``--resume DIR`` goes on with the first item that is not there. A field that the file does not name is the run's own, and batch sizes may change. Another
   configuration is refused where answers were drawn that it would have drawn otherwise (what changed is named); where only later stages change, their
   items are removed and made again.
3. The weights must be those that the run was started with.
4. A study that ends early for a reason (the behaviour is never shown; the attention implementation changes it) says why, and the exit code is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import default_output, Json, NoReport
from symbolic_residue.cli._words import words
from symbolic_residue.errors import ConfigError, RunExistsError

if TYPE_CHECKING:
    from symbolic_residue.contrast.study import Models, StudyConfig

__all__ = [
    "KIND",
    "causal_command",
    "force_feed_command",
    "generate_command",
    "go",
    "preflight_command",
    "read_command",
    "report_command",
    "run_command",
]

KIND = "contrast"
"""Kind of the run."""

Config = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="The study; with --resume it may be left out.", show_default=False)
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", "--output", help="Run folder; default residue-runs/TIME-contrast.", show_default=False)
]
ResumeFolder = Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.", show_default=False)]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")]


def run_command(
    config: Config = None,
    out: Out = None,
    resume: ResumeFolder = None,
    until: Annotated[
        str, typer.Option("--until", help="Last stage: preflight, generate, read, force-feed, analyse, causal or report.")
    ] = "report",
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Did training change where the model looks, and does it matter? All stages, from one configuration."""
    from symbolic_residue.contrast.study import STAGES

    order = (*STAGES, "report")
    if until not in order:
        raise ConfigError(f"{until!r} is no stage.", todo=f"Stages: {', '.join(order)}.")
    stages = order[: order.index(until) + 1]
    raise typer.Exit(go(config, out, resume, stages, report=until == "report" and not no_report, as_json=json))


def preflight_command(config: Config = None, out: Out = None, resume: ResumeFolder = None, json: Json = False) -> None:
    """Stage 0: does the attention implementation change behaviour?"""
    raise typer.Exit(go(config, out, resume, ["preflight"], as_json=json))


def generate_command(config: Config = None, out: Out = None, resume: ResumeFolder = None, json: Json = False) -> None:
    """Stage 1: draw answers, and count how often they show the behaviour."""
    raise typer.Exit(go(config, out, resume, ["generate"], as_json=json))


def read_command(run: Run, json: Json = False) -> None:
    """Stage 2: the tuned model reads its own answers."""
    raise typer.Exit(go(None, None, run, ["read"], as_json=json))


def force_feed_command(run: Run, json: Json = False) -> None:
    """Stage 3: every reference reads the same ids."""
    raise typer.Exit(go(None, None, run, ["force-feed"], as_json=json))


def causal_command(run: Run, json: Json = False) -> None:
    """Stage 5: the causal follow-ups."""
    raise typer.Exit(go(None, None, run, ["causal"], as_json=json))


def report_command(run: Run, json: Json = False) -> None:
    """Stage 6: the report and the summary, from the run folder alone."""
    from symbolic_residue.cli._contrast_show import show
    from symbolic_residue.report import render_report
    from symbolic_residue.store import RunFolder

    manifest = RunFolder.open(run).manifest
    if manifest.kind != KIND:
        raise RunExistsError(f"{run} holds a run of kind {manifest.kind!r}.", todo=f"Use: residue report {run}")
    page = render_report(run)
    show(run, region=manifest.config.get("predicted", {}).get("region"), ended=manifest.note, page=page, as_json=json)


def go(
    config: Path | None,
    out: Path | None,
    resume: Path | None,
    stages: Sequence[str],
    *,
    report: bool = False,
    as_json: bool = False,
) -> int:
    """Do some stages in a run folder, new or resumed; returns the exit code."""
    from symbolic_residue.cli._contrast_show import show
    from symbolic_residue.contrast.study import Models, run_stages, Study

    if out is not None and resume is not None:
        raise ConfigError("--out and --resume are two folders for one run.", todo="Give one of them.")
    study = _config(config, resume)
    stages = [stage for stage in stages if stage != "report"]
    ended = ""
    with _progress() as (opening, progress), Models(study, opening) as models:
        if resume is None:
            path, run = _started(study, models, out)
        else:
            path, run = resume, _resumed(study, models, resume, stages)
        with run:
            if stages:
                ended = run_stages(Study(study, run, models, progress), stages)
            run.finish(note=ended)
    page = None
    if report:
        from symbolic_residue.report import render_report

        page = render_report(path)
    show(path, region=study.predicted.region, ended=ended, page=page, as_json=as_json)
    return 1 if ended else 0


def _config(config: Path | None, resume: Path | None) -> StudyConfig:
    from symbolic_residue.contrast.study import continued_config, load_config, read_config
    from symbolic_residue.store import RunFolder

    given = None if config is None else load_config(config)
    if given is not None and resume is None:
        return given
    if resume is None:
        raise ConfigError("There is no configuration.", todo="Give a YAML file (see examples/contrast.yaml), or --resume DIR.")
    manifest = RunFolder.open(resume).manifest
    _check_kind(resume, manifest)
    if given is None:
        return read_config(manifest.config)
    study, kept = continued_config(manifest.config, given)
    for name, value in kept.items():
        typer.echo(f"{name}: {value!r} as the run was started; {config} does not name it.", err=True)
    return study


def _check_kind(path: Path, manifest: Any) -> None:
    if manifest.kind != KIND or "model" not in manifest.config:
        raise RunExistsError(
            f"{path} holds a run of kind {manifest.kind!r} that is no study of a model.",
            why="Its stages need the configuration of a study.",
            todo="Give the folder of a run of: residue contrast run",
        )


def _started(study: StudyConfig, models: Models, out: Path | None) -> tuple[Path, Any]:
    """A new folder, once the model is there and every prompt can be asked."""
    from symbolic_residue.contrast.study import check_prompts, Study
    from symbolic_residue.store import RunFolder

    path = out or default_output(KIND)
    if path.exists():
        raise RunExistsError(
            f"{path} is already there.",
            why="A run never overwrites another.",
            todo=f"Choose another folder, or use: --resume {path}",
        )
    check_prompts(Study(study, _NoFolder(), models))  # type: ignore[arg-type]
    command = ["residue", *words.get()]
    return path, RunFolder.create(
        path, kind=KIND, command=command, provenance=_provenance(study, models), config=study.model_dump(mode="json")
    )


class _NoFolder:
    """Stands where nothing is written yet."""


def _resumed(study: StudyConfig, models: Models, path: Path, stages: Sequence[str]) -> Any:
    """The run in ``path``, open for writing, without the items that a changed configuration makes anew."""
    from symbolic_residue.contrast.study import changes, read_config
    from symbolic_residue.store import RunFolder

    old = RunFolder.open(path)
    _check_kind(path, old.manifest)
    if not stages:
        return RunFolder.reopen(path)
    config, done = study.model_dump(mode="json"), [*old.done_items(), *old.failed_items()]
    before = read_config(old.manifest.config).model_dump(mode="json")  # with the fields that a later version has added
    changes(before, config, done)  # refused before a model is opened
    moved: set[str] = set()
    provenance = old.manifest.provenance
    if set(stages) - {"analyse"}:
        provenance = _provenance(study, models)
        then, after = (
            {k: v for k, v in one.items() if k not in ("references", "versions")} for one in (old.manifest.provenance, provenance)
        )
        odd = [f"{name} was {then.get(name)!r} and is {after.get(name)!r}" for name in after if then.get(name) != after[name]]
        if odd and old.manifest.config.get("model") == config["model"] and old.manifest.config.get("adapter") == config["adapter"]:
            raise RunExistsError(
                f"{path} was started with other weights or another tokenizer.", why="; ".join(odd) + ".", todo="Use another folder."
            )
        was, now = ((one.get("references") or {}) for one in (old.manifest.provenance, provenance))
        moved = {name for name in now if name in was and was[name] != now[name]}
    _, goes = changes(before, config, done, moved=moved)
    return RunFolder.reopen(path, config=config, provenance=provenance, drop=goes)


def _provenance(study: StudyConfig, models: Models) -> dict[str, Any]:
    """What is measured: the tuned model, and the adapters of its references by their hash."""
    from symbolic_residue.contrast.study import TUNED

    found = models.get(TUNED).loaded.provenance.model_copy(update={"seed": study.seed}).model_dump(mode="json")
    return {**found, "references": models.references()}


@contextmanager
def _progress() -> Iterator[tuple[Callable[[str], None], Callable[[str, str, float], None]]]:
    """A bar a stage, on standard error."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}
        first = bar.add_task("opening the model", total=None)

        def opening(name: str) -> None:
            bar.update(first, description=escape(f"opening {name}"), visible=True)

        def progress(stage: str, item: str, share: float) -> None:
            bar.update(first, visible=False)
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=1.0)
            bar.update(tasks[stage], completed=share, description=escape(f"{stage}: {item[:40]}" if item else stage))

        yield opening, progress
