"""``residue shells cross-run``: success against failure on matched prompts, feature by feature; from prompt files or from two saved runs.

1. Two files: what every head and MLP writes at the last row is read on both prompts of a pair; pairs are lines of one ``id`` (without ids: of one number).
2. Two run folders: features are numbers that both runs hold for the same items: attention of heads (``attention_stats``), scores of heads, or direct logit
   attributions of heads. No model is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._across import digest, measure_together, tensors_of, TOGETHER
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
from symbolic_residue.errors import ConfigError

__all__ = ["cross_run_command", "run_features_of"]

Side = Annotated[Path | None, typer.Option(help="Prompts, one JSON object a line, or a saved run.", show_default=False)]

_TABLES: dict[str, tuple[str, ...]] = {
    "attention_stats": ("entropy", "distance", "max", "sink"),
    "head_scores": ("value",),
    "heads": ("dla",),
}
"""Table of a saved run → the columns that are features of its heads."""


def cross_run_command(
    success: Side = None,
    failure: Side = None,
    table: Annotated[
        str | None,
        typer.Option(
            "--table",
            help="Of saved runs: attention_stats, head_scores or heads. Default: the first both have.",
            show_default=False,
        ),
    ] = None,
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
    """What differs inside between matched prompts that succeed and that fail, per head and MLP?

    Lines of the files: {"id": …, "prompt": …}; one id in both files is one pair. The first of "tags", where every line of --failure has some, names the
    frame: pairs of one frame are one unit.
    """
    if success is None or failure is None:
        raise ConfigError("Give --success and --failure.", why="The comparison is of matched prompts.")
    common: dict[str, Any] = {"output": output, "resume": resume, "seed": seed, "report": not no_report, "as_json": json}
    if success.is_dir() and failure.is_dir():
        raise typer.Exit(_saved(success, failure, table, common))
    if success.is_dir() or failure.is_dir():
        raise ConfigError("One side is a run folder and the other is not.", todo="Give two prompt files, or two runs.")
    if table is not None:
        raise ConfigError("--table belongs to saved runs.", why="From prompts, the features are what heads and MLPs write.")
    from symbolic_residue.prompts import PromptSet, read_prompts

    good, bad = read_prompts(success), read_prompts(failure)
    for path, some in ((success, good), (failure, bad)):
        if some.bad:
            line = some.bad[0]
            raise ConfigError(f"Line {line.number} of {path} cannot be used: {line.reason}.", why="Every prompt needs its match.")
    there = {item.id: item for item in bad.items}
    alone = [item.id for item in good.items if item.id not in there] + sorted(set(there) - {item.id for item in good.items})
    if alone:
        raise ConfigError(
            f"{alone[0]!r} is in one of the files only.", why="Every prompt needs its match.", todo="Match them by id."
        )
    if len(good.items) < 2:
        raise ConfigError("One pair has no spread.", todo="Give more pairs.")
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from symbolic_residue.diagnose import cross_item, cross_together
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.shells.across import feature_names

    instrument = Instrument(loaded)

    def together(run: Any, items: Any, progress: Any) -> Any:
        import numpy as np

        names = feature_names(instrument)
        kept = tensors_of(run, "run_features", items)
        both = np.stack(kept) if kept else np.zeros((0, 2, len(names)))
        tags = [there[item.id].tags for item in items]
        return cross_together(
            both[:, 0],
            both[:, 1],
            names,
            item=TOGETHER,
            what="Length of what each head and MLP writes into the residual stream at the last row",
            frames=[tag[0] for tag in tags] if tags and all(tags) else None,
            seed=seed,
        )

    code = measure_together(
        kind="cross-run",
        loaded=loaded,
        prompts=PromptSet(good.items, []),
        config={"failure_sha256": digest(bad), "chat": chat},
        each=lambda item, progress: cross_item(instrument, item, there[item.id], chat=chat, seed=seed),
        together=together,
        **common,
    )
    raise typer.Exit(code)


def _saved(success: Path, failure: Path, table: str | None, common: dict[str, Any]) -> int:
    """Two saved runs into one item."""
    from symbolic_residue.diagnose import cross_together
    from symbolic_residue.prompts import PromptItem, PromptSet
    from symbolic_residue.store import RunFolder

    runs = [RunFolder.open(path) for path in (success, failure)]
    used, names, arrays, items = run_features_of(runs, table)
    hashes = [run.manifest.provenance.get("weights_sha256") for run in runs]
    same = "" if hashes[0] == hashes[1] else "; the runs are of different models"
    what = f"Numbers of heads in the table {used} of two saved runs ({success.name} and {failure.name}{same})"
    return measure_items(
        kind="cross-run",
        loaded=None,
        provenance={**runs[1].manifest.provenance, "success_run": str(success), "failure_run": str(failure)},
        prompts=PromptSet([PromptItem(id=TOGETHER, prompt=f"{len(items)} items")], []),
        config={"table": used, "items": items, "seed": common["seed"]},
        work=lambda item, progress: cross_together(arrays[0], arrays[1], names, item=TOGETHER, what=what, seed=common["seed"]),
        **common,
    )


def run_features_of(runs: Any, table: str | None = None) -> tuple[str, list[tuple[int, str]], list[Any], list[str]]:
    """Features of the items that both runs hold: the table used, (layer, name) of each feature, ``[pair, feature]`` of each run, and the items.

    Raises:
        ConfigError: no such table, none that both runs have, or fewer than two items in both.
    """
    import polars as pl

    if table is not None and table not in _TABLES:
        raise ConfigError(f"{table!r} holds no features of heads.", todo=f"Use one of: {', '.join(_TABLES)}.")
    for name in [table] if table else _TABLES:
        frames = [_long(run.table(name), name) for run in runs]
        shared = [item for item in frames[0]["item"].unique(maintain_order=True) if item in set(frames[1]["item"])]
        if len(shared) < 2:
            continue
        wide = [
            frame.filter(pl.col("item").is_in(shared)).pivot(on="item", index=["layer", "feature"], values="x").drop_nulls()
            for frame in frames
        ]
        both = (
            wide[0]
            .select("layer", "feature")
            .join(wide[1].select("layer", "feature"), on=["layer", "feature"], maintain_order="left")
        )
        if both.is_empty():
            continue
        arrays = [
            both.join(one, on=["layer", "feature"], how="left", maintain_order="left").select(shared).to_numpy().T for one in wide
        ]
        return name, [(int(layer), str(feature)) for layer, feature in both.rows()], arrays, shared
    said = f"the table {table}" if table else "a table of heads"
    raise ConfigError(
        f"The runs do not share {said} for two items or more.",
        why=f"Features are read from: {', '.join(_TABLES)}; items are matched by their ids.",
    )


def _long(frame: Any, table: str) -> Any:
    """``item, layer, feature, x`` of one table; of several targets the first."""
    import polars as pl

    head = pl.format("head {}", pl.col("head"))
    if table == "attention_stats":
        long = frame.unpivot(on=list(_TABLES[table]), index=["item", "layer", "head"], variable_name="what", value_name="x")
        named = long.with_columns(feature=pl.format("{} {}", head, pl.col("what")))
    elif table == "head_scores":
        named = frame.with_columns(feature=pl.format("{} {}", head, pl.col("score")), x=pl.col("value"))
    else:
        first = frame.filter(pl.col("target") == pl.col("target").first().over("item"))
        named = first.with_columns(feature=pl.format("{} DLA", head), x=pl.col("dla"))
    return (
        named.filter(pl.col("x").is_finite())
        .select("item", "layer", "feature", "x")
        .unique(["item", "layer", "feature"], maintain_order=True)
    )
