"""``residue contrast analyse``: stage 4 alone, on a run folder, or on a table of attention masses that others made."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import default_output, Json, NoReport, Seed
from symbolic_residue.cli._contrast_run import go, KIND
from symbolic_residue.cli._contrast_show import show
from symbolic_residue.cli._words import words
from symbolic_residue.errors import ConfigError, RecordError

__all__ = ["analyse_command"]

Table = Annotated[Path | None, typer.Option(help="A table of attention masses: .parquet, .csv or .jsonl.", show_default=False)]


def analyse_command(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The run folder; or give --records.", show_default=False)
    ] = None,
    records: Table = None,
    reference_records: Table = None,
    tuned: Annotated[
        str | None,
        typer.Option(
            "--tuned", help="Of --records: the model that drew the answers. Default: 'tuned', or the only one.", show_default=False
        ),
    ] = None,
    null: Annotated[
        list[str] | None, typer.Option("--null", help="Of --records: a null model; may be given again.", show_default=False)
    ] = None,
    region: Annotated[
        str, typer.Option("--region", help="Of --records: the region that is predicted to change; shown first.")
    ] = "system",
    direction: Annotated[str, typer.Option("--direction", help="Of --records: predicted: up or down.")] = "up",
    protocol: Annotated[str, typer.Option("--protocol", help="Of --records: strict or published.")] = "strict",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", "--output", help="Of --records: run folder for the tables.", show_default=False)
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Of a run: judge its records anew, e.g. by a newer version.")] = False,
    seed: Seed = 0,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Stage 4: verdicts from saved records; no model is opened.

    Columns of --records: model condition example cluster layer head region segmentation stratum query_offset mass, and row where a control has several
    rows an example. Offset −1 is the row that emits the behaviour's first token.
    """
    if (run is None) == (records is None):
        raise ConfigError("Give a run folder, or --records.", why="Stage 4 works from saved records.")
    if run is not None:
        if reference_records is not None:
            raise ConfigError("--reference-records belongs to --records.", why="A run has its own references.")
        if again:
            from symbolic_residue.store import RunFolder

            if RunFolder.open(run).manifest.kind == KIND:  # another kind is refused below
                with RunFolder.reopen(run, drop=lambda item: item.startswith("analysis/")):
                    pass  # the verdicts go; the stage makes them again
        raise typer.Exit(go(None, None, run, ["analyse"], as_json=json))
    assert records is not None
    if again:
        raise ConfigError("--again belongs to a run folder.", why="Tables of others are judged anew each time.")
    frame = _table(records)
    if reference_records is not None:
        frame = _joined(frame, _table(reference_records))
    path = _judged(
        frame,
        files=[file for file in (records, reference_records) if file is not None],
        tuned=tuned,
        nulls=null or [],
        region=region,
        direction=direction,
        protocol=protocol,
        seed=seed,
        path=out or default_output(KIND),
    )
    page = None
    if not no_report:
        from symbolic_residue.report import render_report

        page = render_report(path)
    show(path, region=region, ended="", page=page, as_json=json)


def _table(path: Path) -> Any:
    """A table of records from a file.

    Raises:
        RecordError: it cannot be read, or is no table of records.
    """
    import polars as pl

    from symbolic_residue.contrast import check_records

    readers = {".parquet": pl.read_parquet, ".csv": pl.read_csv, ".jsonl": pl.read_ndjson, ".ndjson": pl.read_ndjson}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise RecordError(f"{path} is no kind of table that can be read.", todo=f"Give one of: {', '.join(readers)}.")
    try:
        frame = reader(path)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise RecordError(f"{path} cannot be read.", why=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}") from error
    return check_records(frame)


def _joined(frame: Any, other: Any) -> Any:
    """Both tables; a model is in one of them only."""
    import polars as pl

    shared = sorted(set(frame["model"]) & set(other["model"]))
    if shared:
        raise RecordError(
            f"Model {shared[0]!r} is in both tables.",
            why="The reference is another model that read the same ids.",
            todo="Name the models differently in the column 'model'.",
        )
    return pl.concat([frame, other], how="diagonal")


def _judged(
    frame: Any,
    *,
    files: list[Path],
    tuned: str | None,
    nulls: list[str],
    region: str,
    direction: str,
    protocol: str,
    seed: int,
    path: Path,
) -> Path:
    """Every condition of the table, judged into a new run folder."""
    import polars as pl

    from symbolic_residue.contrast import Options
    from symbolic_residue.contrast.study import AnalysisConfig, items_row, judge
    from symbolic_residue.store import RunFolder

    models = frame["model"].unique(maintain_order=True).to_list()
    name = tuned or ("tuned" if "tuned" in models else models[0] if len(models) == 1 else "")
    if name not in models:
        raise ConfigError(
            f"The table holds the models {', '.join(models)}.", why="One of them drew the answers.", todo="Name it with --tuned."
        )
    strange = sorted(set(nulls) - set(models) | (set(nulls) & {name}))
    if strange:
        raise ConfigError(f"--null {strange[0]}: the table holds no such reference ({', '.join(models)}; tuned: {name}).")
    if protocol not in ("strict", "published"):
        raise ConfigError(f"{protocol!r} is no protocol.", todo="Use 'strict' or 'published'.")
    options = Options(direction=direction, seed=seed)  # type: ignore[arg-type]
    analysis = AnalysisConfig(protocol=protocol)  # type: ignore[arg-type]
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    config = {
        "records": hashes, "tuned": name, "nulls": nulls, "predicted": {"region": region, "direction": direction},
        "analysis": analysis.model_dump(mode="json"), "seed": seed,
    }  # fmt: skip
    conditions = frame["condition"].unique(maintain_order=True).to_list()
    provenance = {"records_sha256": hashes, "models": models}
    with RunFolder.create(
        path, kind=KIND, command=["residue", *words.get()], provenance=provenance, config=config, planned=len(conditions)
    ) as run:
        for condition in conditions:
            mine = frame.filter(pl.col("condition") == condition)
            judged = judge(mine, options=options, analysis=analysis, nulls=nulls, tuned=name)
            row = items_row(
                chat=None,
                seed=seed,
                prompt=f"condition {condition}",
                summary=f"{condition}: {judged.summary}",
                text="\n".join(judged.notes) or None,
            )
            run.write_item(f"analysis/{condition}", {"items": row, **judged.tables})
    return path
