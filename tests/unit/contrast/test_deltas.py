"""Records to deltas: a hand-computed table, what is paired with what, and what is refused."""

from __future__ import annotations

import polars as pl
import pytest
from contrast_records import long_table

from symbolic_residue.contrast import DELTAS, deltas, missing, RECORDS
from symbolic_residue.errors import RecordError


def record(
    example: str,
    stratum: str,
    mass: float,
    *,
    offset: int = -1,
    row: int = 0,
    cluster: str = "q",
    layer: int = 0,
    region: str = "system",
) -> dict:
    return {
        "model": "m", "condition": "c", "example": example, "cluster": cluster, "layer": layer, "head": None, "region": region,
        "segmentation": "full", "stratum": stratum, "query_offset": offset, "row": row, "mass": mass,
    }  # fmt: skip


def test_a_small_case_by_hand() -> None:
    table = deltas(
        pl.DataFrame(
            [
                record("a", "event", 0.5, row=9), record("a", "C1", 0.1, row=2), record("a", "C1", 0.3, row=3), record("a", "C2", 0.45, row=8),
                record("b", "event", 0.4, row=9), record("b", "C1", 0.25, row=4),
                record("n", "C4", 0.6, row=7),
            ],
            schema_overrides={"head": pl.Int32},
        )
    )  # fmt: skip
    assert table.columns == list(DELTAS)

    def one(example: str, stratum: str) -> dict:
        return table.filter((pl.col("example") == example) & (pl.col("stratum") == stratum)).row(0, named=True)

    assert one("a", "C1")["delta"] == pytest.approx(0.5 - 0.2)
    assert one("a", "C1")["control_rows"] == 2
    assert one("a", "C2")["delta"] == pytest.approx(0.05)
    assert one("b", "C1")["delta"] == pytest.approx(0.15)
    # C4 is of other generations: no delta is made up.
    assert one("n", "C4")["control"] == 0.6
    assert one("n", "C4")["delta"] is None
    assert one("a", "C4") | {"delta": None, "control": None} == one("a", "C4")
    assert one("a", "C4")["mass"] == 0.5
    counted = {row["stratum"]: row for row in missing(table).iter_rows(named=True)}
    assert counted["C1"]["missing"] == 0
    assert counted["C2"]["missing"] == 1  # b has no row of C2: missing, not zero
    assert counted["C4"]["missing"] is None
    assert counted["C4"]["with_rows"] == 1


def test_offsets_do_not_mix() -> None:
    """The row that emits is compared with rows that emit, the row that consumes with rows that consume."""
    table = deltas(
        pl.DataFrame(
            [
                record("a", "event", 0.9, offset=-1),
                record("a", "event", 0.2, offset=0),
                record("a", "C1", 0.5, offset=-1),
                record("a", "C1", 0.1, offset=0),
            ],
            schema_overrides={"head": pl.Int32},
        )
    ).filter(pl.col("stratum") == "C1")
    assert dict(table.select("query_offset", "delta").iter_rows()) == pytest.approx({-1: 0.4, 0: 0.1})


def test_a_trajectory_is_measured_from_the_same_control() -> None:
    rows = [record("a", "event", 0.1 * k, offset=-1 - k) for k in range(4)] + [record("a", "C1", 0.05)]
    table = deltas(pl.DataFrame(rows, schema_overrides={"head": pl.Int32})).filter(pl.col("stratum") == "trajectory")
    assert dict(table.select("lag", "delta").iter_rows()) == pytest.approx({k: 0.1 * k - 0.05 for k in range(4)})
    assert table["query_offset"].unique().to_list() == [-1]


def test_every_delta_is_a_difference_of_means() -> None:
    records = long_table(clusters=3, each=2, layers=2, strata=("C1",), lags=2)
    table = deltas(records).filter(pl.col("stratum") == "C1")
    for row in table.iter_rows(named=True):
        same = pl.all_horizontal(
            pl.col(name) == row[name] for name in ("example", "layer", "region", "segmentation", "query_offset")
        )
        part = records.filter(same)
        event, control = (part.filter(pl.col("stratum") == name)["mass"] for name in ("event", "C1"))
        assert row["delta"] == pytest.approx(event.item() - sum(control) / len(control))
    assert len(table) == 6 * 2 * 3 * 2


GOOD = [record("a", "event", 0.5), record("a", "C1", 0.2)]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*GOOD, record("a", "C1", float("nan"), row=3)], "NaN"),
        ([*GOOD, record("a", "C1", 1.5, row=3)], "between 0 and 1"),
        ([*GOOD, record("a", "event", 0.4)], "weigh twice"),
        ([*GOOD, record("a", "C1", 0.2)], "weigh twice"),
        ([*GOOD, record("a", "C2", 0.2, cluster="other")], "2 clusters"),
        ([*GOOD, record("a", "event", 0.5, layer=1)], "1 of 2 layers"),
        ([record("a", "C1", 0.2)], "no event"),
        ([*GOOD, record("b", "C1", 0.2)], "a stratum of their own"),
    ],
)
def test_records_that_cannot_be_trusted_are_refused(rows: list[dict], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        deltas(pl.DataFrame(rows, schema_overrides={"head": pl.Int32}))


def test_tables_of_another_shape_are_refused() -> None:
    frame = pl.DataFrame(GOOD, schema_overrides={"head": pl.Int32})
    with pytest.raises(RecordError, match="no column region"):
        deltas(frame.drop("region"))
    with pytest.raises(RecordError, match="no records"):
        deltas(frame.clear())
    with pytest.raises(RecordError, match="wrong kind"):
        deltas(frame.with_columns(layer=pl.lit("three")))
    with pytest.raises(RecordError, match="empty places"):
        deltas(frame.with_columns(cluster=pl.lit(None, pl.String)))
    with pytest.raises(RecordError, match="polars"):
        deltas(GOOD)  # pyright: ignore[reportArgumentType]
    assert set(RECORDS) <= set(frame.columns)
