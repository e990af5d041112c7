"""Event minus control, within one generation.

1. Per example, layer, head, region, segmentation, offset and control stratum: ``delta = mass(event row) − mean over the example's control rows``.
   Only rows of one generation are subtracted, so that what differs between prompts cancels.
2. A stratum whose examples have no event (C4: answers without the behaviour) is *unpaired*: event examples keep ``mass`` and no ``control``, control
   examples keep ``control`` and no ``mass``; no ``delta`` is made up. The gates compare the two samples.
3. An example without rows of a stratum has no delta there: missing, not zero (:func:`missing` counts them).
4. *Trajectory*: event rows up to ``LAGS`` rows before the offset, minus the same control mean as at the offset itself (stratum ``trajectory``,
   ``lag`` rows before).
"""

from __future__ import annotations

import polars as pl

from symbolic_residue.contrast._codes import key_codes, plain
from symbolic_residue.contrast._records import DELTAS, encoded_records, EVENT, TRAJECTORY
from symbolic_residue.errors import RecordError

__all__ = ["LAGS", "deltas", "missing"]

LAGS = 10
"""Rows before the behaviour that a trajectory goes back."""

_PLACE = ["model", "condition", "example", "cluster", "layer", "head", "region", "segmentation"]


def deltas(records: pl.DataFrame, *, reference: str = "C1") -> pl.DataFrame:
    """The delta form of a long table of attention masses.

    Args:
        records: columns as in ``RECORDS`` (``model condition example cluster layer head region segmentation stratum query_offset mass``, optional ``row``).
        reference: the stratum whose mean the trajectory is measured from.

    Returns:
        Columns as in ``DELTAS``, sorted; masses are shares of a row's attention.

    Raises:
        RecordError: records that cannot be trusted (see :func:`check_records`), no event rows, or controls of an example that has no event although
        its stratum is paired.
    """
    frame = encoded_records(records)
    stratum_type = frame.schema["stratum"]
    event = frame.filter(pl.col("stratum") == EVENT).drop("stratum")
    if not len(event):
        raise RecordError(
            "There are no event records.",
            why="Without the behaviour there is nothing to compare.",
            todo=f"Their stratum is {EVENT!r}.",
        )
    event = event.select([*_PLACE, "query_offset", "mass"])
    rows = frame.filter(pl.col("stratum") != EVENT)
    controls = (
        rows.with_columns(key_codes(rows, [*_PLACE, "stratum", "query_offset"]))
        .group_by("code")
        .agg(
            pl.col([*_PLACE, "stratum", "query_offset"]).first(),
            pl.col("mass").mean().alias("control"),
            pl.len().cast(pl.Int32).alias("control_rows"),
        )
        .drop("code")
    )
    has_event = event.select("model", "condition", "example").unique().with_columns(has=pl.lit(True))
    controls = controls.join(has_event, on=["model", "condition", "example"], how="left").with_columns(
        pl.col("has").fill_null(False)
    )
    kinds = controls.group_by("stratum").agg(pl.col("has").any().alias("any"), pl.col("has").all().alias("all"))
    mixed = kinds.filter(pl.col("any") & ~pl.col("all"))["stratum"].sort().to_list()
    if mixed:
        raise RecordError(
            f"Stratum {', '.join(mixed)} has rows of examples with the behaviour and of examples without it.",
            why="Within one generation a control is subtracted; between generations it is not.",
            todo="Give the rows of answers without the behaviour a stratum of their own.",
        )
    paired = (
        controls.filter("has").drop("has").join(event, on=[*_PLACE, "query_offset"], how="inner", nulls_equal=True)
        .with_columns(delta=pl.col("mass") - pl.col("control"), lag=pl.lit(0, pl.Int32))
    )  # fmt: skip
    parts = [paired.select(list(DELTAS))]
    for stratum in kinds.filter(~pl.col("any"))["stratum"].sort():
        others = controls.filter(pl.col("stratum") == stratum)
        offsets = others["query_offset"].unique()
        parts.append(_unpaired(others, mass=None))
        parts.append(
            _unpaired(
                event.filter(pl.col("query_offset").is_in(offsets.implode())).with_columns(stratum=pl.lit(stratum, stratum_type)),
                control=None,
            )
        )
    parts.append(_trajectory(event, paired.filter(pl.col("stratum").cast(pl.String) == reference)))
    keys = ["model", "condition", "segmentation", "region", "query_offset", "stratum", "lag", "cluster", "example", "layer", "head"]
    found = pl.concat(parts)
    return plain(found[key_codes(found, keys).arg_sort()])


def missing(table: pl.DataFrame) -> pl.DataFrame:
    """How many event examples have no rows of each stratum.

    Args:
        table: from :func:`deltas`.

    Returns:
        ``model, condition, stratum, examples`` (with the event), ``with_rows``, ``missing`` (null for unpaired strata, whose own ``with_rows``
        counts their examples).
    """
    frame = table.filter((pl.col("stratum") != TRAJECTORY) & (pl.col("lag") == 0))
    group = ["model", "condition"]
    total = frame.filter(pl.col("mass").is_not_null()).group_by(group).agg(pl.col("example").n_unique().alias("examples"))
    rows = frame.group_by([*group, "stratum"]).agg(
        pl.col("example").filter(pl.col("control").is_not_null()).n_unique().alias("with_rows"),
        pl.col("delta").is_null().all().alias("unpaired"),
    )
    each = rows.join(total, on=group).with_columns(
        missing=pl.when("unpaired").then(None).otherwise(pl.col("examples").cast(pl.Int64) - pl.col("with_rows"))
    )
    return each.select([*group, "stratum", "examples", "with_rows", "missing"]).sort([*group, "stratum"])


def _unpaired(rows: pl.DataFrame, **empty: None) -> pl.DataFrame:
    given = {name: pl.lit(value, DELTAS[name]) for name, value in empty.items()}
    absent = {name: pl.lit(None, DELTAS[name]) for name in ("delta", "control_rows") if name not in rows.columns}
    return rows.with_columns(lag=pl.lit(0, pl.Int32), **given, **absent).select(list(DELTAS))


def _trajectory(event: pl.DataFrame, reference: pl.DataFrame) -> pl.DataFrame:
    base = reference.select([*_PLACE, "query_offset", "control", "control_rows"])
    rows = event.rename({"query_offset": "at"})
    joined = base.join(rows, on=_PLACE, how="inner", nulls_equal=True).with_columns(lag=pl.col("query_offset") - pl.col("at"))
    return (
        joined.filter((pl.col("lag") >= 0) & (pl.col("lag") <= LAGS))
        .with_columns(delta=pl.col("mass") - pl.col("control"), stratum=pl.lit(TRAJECTORY, reference.schema["stratum"]))
        .select(list(DELTAS))
    )
