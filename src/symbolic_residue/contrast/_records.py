"""The long table that the analysis of a contrast takes: attention mass by row, and nothing about the model that made it.

1. One record is the attention mass of one *row* (query position) on one region, in one layer and head (``head`` null: the mean over heads).
2. The *event* is the first token of the behaviour, at position p of its example. ``query_offset`` −1 is row p − 1, which emits the token (its logits
   choose it); 0 is row p, which consumes it. A control token at position c is read in the same way: −1 is row c − 1. Event rows at smaller offsets
   are the trajectory.
3. ``stratum`` says which token the row belongs to: ``event`` or a control (``C1`` … ``C5``). A control may have several rows an example, told apart
   by ``row``.
4. ``example`` is one generation, ``cluster`` what its questions share: the unit that is resampled.
5. The table is checked before anything is computed: names, kinds, finite masses between 0 and 1, one event row an example and offset, one cluster an
   example, every row with all layers and heads. What fails is refused, never dropped.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from symbolic_residue.contrast._codes import encoded, key_codes, plain
from symbolic_residue.errors import RecordError

__all__ = ["CONTROLS", "DELTAS", "EVENT", "RECORDS", "TRAJECTORY", "check_deltas", "check_records", "read_records"]

EVENT = "event"
TRAJECTORY = "trajectory"
CONTROLS: dict[str, str] = {
    "C1": "earlier rows of the same answer, drawn at random",
    "C2": "the rows just before the behaviour, the emitting row left out",
    "C3": "rows of rare tokens of the same answer",
    "C4": "rows at the true end of answers without the behaviour (other generations: unpaired)",
    "C5": "rows that follow the same token as the behaviour does",
}
"""Control strata → what their rows are."""

_KEYS: dict[str, pl.DataType] = {
    "model": pl.String(),
    "condition": pl.String(),
    "example": pl.String(),
    "cluster": pl.String(),
    "layer": pl.Int32(),
    "head": pl.Int32(),
    "region": pl.String(),
    "segmentation": pl.String(),
    "stratum": pl.String(),
    "query_offset": pl.Int32(),
}
RECORDS: dict[str, pl.DataType] = {**_KEYS, "mass": pl.Float64()}
"""Columns of the long table. ``row`` (position, integer) may be added, and is needed where a control has several rows an example."""

DELTAS: dict[str, pl.DataType] = {
    **_KEYS,
    "lag": pl.Int32(),
    "mass": pl.Float64(),
    "control": pl.Float64(),
    "delta": pl.Float64(),
    "control_rows": pl.Int32(),
}
"""Columns of the delta form: ``mass`` of the event row, mean ``control``, ``delta`` = mass − control; ``lag`` rows before the event's (0 but for the
trajectory)."""

_SLACK = 1e-3
"""Masses come from float32 softmaxes: sums over keys may pass 1 by rounding."""


def check_records(records: pl.DataFrame) -> pl.DataFrame:
    """The records with their columns in order and of their kinds.

    Raises:
        RecordError: what the module's step 5 refuses; the offending value is named.
    """
    return plain(encoded_records(records))


def encoded_records(records: pl.DataFrame) -> pl.DataFrame:
    """:func:`check_records` with texts as :func:`encoded`; the categories of ``stratum`` include ``event`` and ``trajectory``."""
    frame = encoded(_columns(records, RECORDS, extra=("row",)), {"stratum": (EVENT, TRAJECTORY)})
    _finite(frame, "mass")
    low, high = frame.select(low=pl.col("mass").min(), high=pl.col("mass").max()).row(0)
    if low < -_SLACK or high > 1 + _SLACK:
        raise RecordError(f"Attention mass runs from {low:.4g} to {high:.4g}.", why="A share of attention lies between 0 and 1.")
    unit = [name for name in _KEYS if name != "cluster"] + [name for name in ("row",) if name in frame.columns]
    events = _doubled(frame.filter(pl.col("stratum") == EVENT), [name for name in unit if name != "row"])
    doubled = _doubled(frame, unit) if "row" in frame.columns else None
    if events is not None or doubled is not None:
        bad = next(found for found in (events, doubled) if found is not None).sort(unit[:3]).row(0, named=True)
        raise RecordError(
            f"Example {bad['example']!r} of {bad['model']!r} has {bad['len']} records of one kind (layer {bad['layer']}, region {bad['region']!r}, "
            f"stratum {bad['stratum']!r}, offset {bad['query_offset']}).",
            why="Counted twice, it would weigh twice.",
            todo="Give each record once; rows of a control are told apart by a column 'row'.",
        )
    _one_cluster(frame)
    _whole(frame, "row" in frame.columns)
    return frame


def read_records(path: str | Path) -> pl.DataFrame:
    """The checked records of a Parquet file, or of all Parquet files in a folder (a run's ``tables/contrast_records``).

    Raises:
        RecordError: no such file, a file that is damaged or no Parquet, or records that :func:`check_records` refuses; the file is named.
    """
    where = Path(path)
    files = sorted(where.glob("*.parquet")) if where.is_dir() else [where]
    if not files or not files[0].is_file():
        raise RecordError(f"There are no records at {where}.", todo="Give a Parquet file, or a folder with some.")
    frames = []
    for file in files:
        try:
            frames.append(pl.read_parquet(file))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise RecordError(
                f"{file} cannot be read as Parquet.",
                why=str(error).splitlines()[0][:300],
                todo="It may have been cut off while it was copied: compare its size with the original, or write it again.",
            ) from error
    try:
        return check_records(pl.concat(frames, how="diagonal_relaxed"))
    except RecordError as error:
        raise RecordError(f"{where}: {error.what}", why=error.why, todo=error.todo) from error
    except pl.exceptions.PolarsError as error:
        raise RecordError(f"The files in {where} do not fit together.", why=str(error).splitlines()[0][:300]) from error


def check_deltas(deltas: pl.DataFrame) -> pl.DataFrame:
    """The deltas with their columns in order and of their kinds; ``lag`` may be missing (0) and ``control_rows`` too (null).

    Raises:
        RecordError: a column is missing or of another kind, NaN, an example in two clusters, or an example with some layers only.
    """
    given = deltas
    if "lag" not in given.columns:
        given = given.with_columns(lag=pl.lit(0, pl.Int32))
    for name in ("mass", "control", "control_rows"):
        if name not in given.columns:
            given = given.with_columns(pl.lit(None, DELTAS[name]).alias(name))
    frame = encoded(_columns(given, DELTAS), {})
    for name in ("mass", "control", "delta"):
        bad = frame.filter(pl.col(name).is_nan() | pl.col(name).is_infinite())
        if len(bad):
            raise _not_finite(bad, name)
    loose = frame.filter(pl.col("delta").is_null() & pl.col("mass").is_null() & pl.col("control").is_null())
    if len(loose):
        raise RecordError(f"{len(loose)} delta records hold no number.", todo="Leave them out, or find where they come from.")
    key = [name for name in _KEYS if name != "cluster"] + ["lag"]
    doubled = _doubled(frame, key)
    if doubled is not None:
        bad = doubled.sort(key[:3]).row(0, named=True)
        raise RecordError(
            f"Example {bad['example']!r} of {bad['model']!r} has {bad['len']} deltas of one kind (layer {bad['layer']}, region {bad['region']!r}, "
            f"stratum {bad['stratum']!r}).",
            why="Counted twice, it would weigh twice.",
        )
    _one_cluster(frame)
    return plain(frame)


def _columns(records: pl.DataFrame, schema: dict[str, pl.DataType], extra: tuple[str, ...] = ()) -> pl.DataFrame:
    if not isinstance(records, pl.DataFrame):
        raise RecordError(
            f"Records are a {type(records).__name__}.", todo="Give a polars DataFrame (polars.from_pandas(frame) makes one)."
        )
    if "head" not in records.columns:
        records = records.with_columns(head=pl.lit(None, pl.Int32))
    missing = [name for name in schema if name not in records.columns]
    if missing:
        raise RecordError(f"The records have no column {', '.join(missing)}.", todo=f"The columns are: {', '.join(schema)}.")
    if not len(records):
        raise RecordError("There are no records.", why="Nothing can be estimated from no values.")
    kept = [*schema, *(name for name in extra if name in records.columns)]
    try:
        frame = records.select([pl.col(name).cast(schema.get(name, pl.Int64())) for name in kept])
    except (pl.exceptions.InvalidOperationError, pl.exceptions.ComputeError) as error:
        raise RecordError("A column of the records is of the wrong kind.", why=str(error).splitlines()[0][:300]) from error
    nullable = {"head", "mass", "control", "delta", "control_rows"} if "delta" in schema else {"head"}
    for name in schema:
        if name not in nullable and frame[name].null_count():
            raise RecordError(
                f"Column {name!r} has {frame[name].null_count()} empty places.", todo="Leave these records out, or fill them."
            )
    return frame


def _finite(frame: pl.DataFrame, name: str) -> None:
    bad = frame.filter(~pl.col(name).is_finite())
    if len(bad):
        raise _not_finite(bad, name)


def _not_finite(bad: pl.DataFrame, name: str) -> RecordError:
    at = bad.row(0, named=True)
    return RecordError(
        f"{len(bad)} records hold a {name} that is NaN or infinite (first: example {at['example']!r}, layer {at['layer']}, region {at['region']!r}).",
        why="They would turn every statistic into a number without meaning.",
        todo="A stratum that could not be filled has no records; it is counted as missing.",
    )


def _doubled(frame: pl.DataFrame, unit: list[str]) -> pl.DataFrame | None:
    """What is there more than once, with its count ``len``; None where nothing is."""
    if key_codes(frame, unit).n_unique() == len(frame):
        return None
    return plain(frame.group_by(unit).len().filter(pl.col("len") > 1))


def _one_cluster(frame: pl.DataFrame) -> None:
    bad = frame.group_by("model", "condition", "example").agg(pl.col("cluster").n_unique().alias("n")).filter(pl.col("n") > 1)
    if len(bad):
        at = bad.sort("example").row(0, named=True)
        raise RecordError(f"Example {at['example']!r} is in {at['n']} clusters.", why="An example is resampled with one cluster.")


def _whole(frame: pl.DataFrame, rows: bool) -> None:
    """Every row has every layer and head that its model has: a hole is lost data, not a zero."""
    cell = ["model", "condition", "example", "region", "segmentation", "stratum", "query_offset"] + (["row"] if rows else [])
    each = frame.group_by([*cell, pl.col("head").is_null().alias("means")]).agg(pl.struct("layer", "head").n_unique().alias("n"))
    most = each.group_by("model", "means").agg(pl.col("n").max().alias("most"))
    bad = each.join(most, on=["model", "means"]).filter(pl.col("n") < pl.col("most"))
    if len(bad):
        at = bad.sort("example", "stratum").row(0, named=True)
        raise RecordError(
            f"Example {at['example']!r}, stratum {at['stratum']!r}, region {at['region']!r} has {at['n']} of {at['most']} layers and heads.",
            why="Records were lost; a missing mass is not zero.",
            todo="Read this example again.",
        )
