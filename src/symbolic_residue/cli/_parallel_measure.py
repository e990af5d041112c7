"""``residue parallel measure``: one token tree a prompt, measured under all arms, and what the prompts answer together.

1. Options are judged first, then the model's positions: what is refused leaves no folder behind.
2. Each prompt is one item: its tree and the tables of its arms. A tree without any set is kept and measured by nothing; it is counted apart.
3. When all prompts are done, the item ``all prompts`` holds the verdicts, and the screen shows them.
4. ``--resume`` goes on with the first prompt that is not there; verdicts are made once all are.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import Adapter, default_output, Device, Dtype, Json, Model, NoReport, open_for_cli, Resume, Seed
from symbolic_residue.cli._parallel_options import config_of, Follow, IgnoreEnd, MaxSiblings, MaxSteps, Mode, Out, Scheme, Threshold
from symbolic_residue.cli._words import words
from symbolic_residue.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from symbolic_residue.diagnose import ItemResult
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.parallel import MeasureConfig, ParallelConfig
    from symbolic_residue.prompts import PromptItem, PromptSet

__all__ = ["KIND", "TOGETHER", "measure_command"]

KIND = "parallel-measure"
"""Kind of the run."""
TOGETHER = "all prompts"
"""The item that holds the verdicts."""

_COUNTS = ("parallel_arms", "parallel_competition", "parallel_output", "parallel_entropy", "parallel_heads", "parallel_intra",
           "parallel_published", "parallel_bias", "parallel_scaling", "parallel_trace", "parallel_pruning")  # fmt: skip


def measure_command(
    prompts: Annotated[str, typer.Option("--prompts", "-f", help="packaged, or a file with one JSON object a line.")] = "packaged",
    number: Annotated[
        int | None,
        typer.Option(
            "-n", "--number", min=1, help="Only so many prompts; packaged ones in turn from each category.", show_default=False
        ),
    ] = None,
    model: Model = "demo",
    adapter: Adapter = None,
    threshold: Threshold = "0.1",
    mode: Mode = None,
    scheme: Scheme = None,
    follow: Follow = None,
    max_steps: MaxSteps = 30,
    max_siblings: MaxSiblings = 20,
    ignore_end: IgnoreEnd = False,
    reach: Annotated[int, typer.Option("--reach", min=1, help="How many steps after a set look at it.")] = 1,
    sweep: Annotated[bool, typer.Option("--sweep/--no-sweep", help="Sweep a bias on siblings' keys.")] = True,
    scaling: Annotated[bool, typer.Option("--scaling/--no-scaling", help="Scale the size of the first set.")] = True,
    margin: Annotated[float, typer.Option("--margin", help="No effect: the whole interval lies within this share of 1.")] = 0.05,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Out = None,
    resume: Resume = False,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Is a token looked at less because it shares its position? All arms, forms and verdicts, a prompt at a time."""
    if not 0 < margin < 1:
        raise ConfigError(f"--margin {margin:g} is no share between 0 and 1.")
    config = config_of(
        threshold=threshold,
        mode=mode,
        scheme=scheme,
        follow=follow,
        max_steps=max_steps,
        max_siblings=max_siblings,
        ignore_end=ignore_end,
    )
    if min(config.schedule.values) == 1 or max_siblings == 1:
        raise ConfigError(
            "There would be nothing to measure.",
            why="Every set holds one token.",
            todo="Lower --threshold, or raise --max-siblings.",
        )
    chosen = _prompts(prompts, number)
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from symbolic_residue.cli._parallel_generate import plain_config
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.parallel import check_rotary, MeasureConfig
    from symbolic_residue.store import RunFolder

    instrument = Instrument(loaded)
    check_rotary(instrument)
    full = MeasureConfig(reach=reach, seed=seed)
    how = replace(full, biases=full.biases if sweep else (), sizes=full.sizes if scaling else ())
    path = out or default_output("parallel-measure")
    digest = hashlib.sha256("\n".join(f"{i.id}\t{i.prompt}\t{i.messages}" for i in chosen.items).encode()).hexdigest()
    kept = {
        "prompts": prompts if prompts == "packaged" else "file",
        "prompts_sha256": digest,
        "tree": plain_config(config),
        "measure": {
            "reach": reach,
            "sweep": sweep,
            "scaling": scaling,
            "epsilons": list(how.epsilons),
            "margin": margin,
            "seed": seed,
        },
    }
    with RunFolder.create(
        path,
        kind=KIND,
        command=["residue", *words.get()],
        provenance=loaded.provenance.model_copy(update={"seed": seed}).model_dump(mode="json"),
        config=kept,
        planned=len(chosen.items) + len(chosen.bad) + 1,
        resume=resume,
    ) as run:
        _measure_all(run, instrument, chosen, config, how)
        if TOGETHER not in run.done_items():
            result = _together(run, margin=margin, seed=seed)
            run.write_item(result.item, result.tables)
    page = None
    if not no_report:
        from symbolic_residue.report import render_report

        page = render_report(path)
    from symbolic_residue.cli._parallel_verdicts import show_verdicts

    show_verdicts(path, page, as_json=json)
    raise typer.Exit(1 if RunFolder.open(path).failed_items() else 0)


def _prompts(given: str, number: int | None) -> PromptSet:
    """The prompts to measure, ``number`` of them at most.

    Raises:
        PromptFileError: a file that cannot be used. ConfigError: a prompt with the name of the item of verdicts.
    """
    from symbolic_residue.prompts import parallel_prompts, PromptItem, PromptSet, read_prompts

    if given != "packaged":
        found = read_prompts(Path(given))
        if any(item.id == TOGETHER for item in found.items):
            raise ConfigError(f"A prompt is called {TOGETHER!r}.", why="So is the item that holds the verdicts.", todo="Rename it.")
        return PromptSet(found.items[:number], found.bad)
    groups: dict[str, list[PromptItem]] = defaultdict(list)
    for p in parallel_prompts():
        groups[p.category].append(PromptItem(id=p.id, prompt=p.prompt, tags=(p.category,)))
    in_turn = [item for row in zip_longest(*groups.values()) for item in row if item is not None]
    return PromptSet(in_turn[:number], [])


def _measure_all(run: Any, instrument: Instrument, chosen: PromptSet, config: ParallelConfig, how: MeasureConfig) -> None:
    from symbolic_residue.cli._common import item_progress
    from symbolic_residue.diagnose import failed_item

    there = {*run.done_items()}
    with item_progress(len(chosen.items)) as update:
        for item in chosen.items:
            if item.id in there:
                update(item.id, "already measured", 1.0)
                continue
            result = _work(instrument, item, config, how, lambda what, share, name=item.id: update(name, what, share))
            run.write_item(result.item, result.tables)
    for line in chosen.bad:
        name = f"line-{line.number:05d}"
        if name not in {*run.done_items(), *run.failed_items()}:
            bad = failed_item(name, line.text, f"Line {line.number}: {line.reason}", chat=False, seed=0)
            run.write_item(bad.item, bad.tables)


def _work(instrument: Instrument, item: PromptItem, config: ParallelConfig, how: MeasureConfig, progress: Any) -> ItemResult:
    """One prompt: its tree, and every arm."""
    from symbolic_residue.cli._parallel_generate import read_prompt
    from symbolic_residue.diagnose import failed_item, ItemResult, items_row
    from symbolic_residue.errors import InputError
    from symbolic_residue.parallel import decode, measure_prompt, tree_tables

    asked = item.prompt if item.prompt is not None else item.messages[-1]["content"] if item.messages else ""
    try:
        built = read_prompt(instrument, item, chat=False)
        (tree,) = decode(
            instrument,
            [built.ids],
            config,
            checked=True,
            on_step=lambda g: progress("growing", 0.3 * (g.number + 1) / config.max_steps),
        )
        if tree.stop == "interrupted":
            raise KeyboardInterrupt
        progress("measuring", 0.3)
        several = sum(len(step.tokens) > 1 for step in tree.steps)
        seen = sum(len(step.tokens) > 1 for step in tree.steps[:-1])
        measured = measure_prompt(instrument, tree, how, checked=True) if seen else {}
    except InputError as error:
        return failed_item(item.id, asked, str(error), chat=item.messages is not None, seed=how.seed)
    progress("done", 1.0)
    said = f"{len(tree.steps)} steps, {several} sets of several tokens" + ("." if seen else "; no set that a later step looks at.")
    row = items_row(
        prompt=asked, text=built.text, chat=built.chat, n_tokens=len(built), seed=how.seed, status="done", error=None, summary=said
    )
    return ItemResult(item.id, {"items": row, **tree_tables(tree), **measured}, {}, said)


def _together(run: Any, *, margin: float, seed: int) -> ItemResult:
    """Verdicts of all prompts; a failed item where no prompt could be measured."""
    from symbolic_residue.diagnose import failed_item, ItemResult, items_row
    from symbolic_residue.parallel import verdicts

    frames: dict[str, pl.DataFrame] = {name: run.table(name) for name in _COUNTS}
    n = frames["parallel_arms"]["item"].n_unique()
    if not n:
        return failed_item(
            TOGETHER, "", "No prompt grew a set that a later step looks at: nothing was measured.", chat=False, seed=seed
        )
    tables = verdicts(frames, margin=margin, seed=seed)
    said = f"{n} prompts measured of {len(run.done_items())}."
    row = items_row(prompt=TOGETHER, text=None, chat=False, n_tokens=None, seed=seed, status="done", error=None, summary=said)
    return ItemResult(TOGETHER, {"items": row, **tables}, {}, said)
