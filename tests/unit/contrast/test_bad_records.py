"""Records that are cut off, doubled, holed or mixed are refused with their place; what cannot be estimated is said, not faked."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from contrast_records import long_table

from symbolic_residue.contrast import deltas, diff_of_diffs, gates, missing, Options, read_records, select_heads, verdict
from symbolic_residue.errors import RecordError

FAST = Options(n_resamples=300)
GOOD = long_table(clusters=6, each=1, layers=2, strata=("C1", "C2"), segmentations=("full",))
HERE = (pl.col("example") == "q1.0") & (pl.col("stratum") == "C1")


def test_records_come_back_from_a_file_and_from_a_folder(tmp_path: Path) -> None:
    GOOD.write_parquet(tmp_path / "a.parquet")
    whole = read_records(tmp_path / "a.parquet")
    assert deltas(whole).equals(deltas(GOOD))
    (tmp_path / "run").mkdir()
    for i, (_, part) in enumerate(GOOD.with_columns(item=pl.lit("x")).partition_by("example", as_dict=True).items()):
        part.write_parquet(tmp_path / "run" / f"{i:05}.parquet")
    assert deltas(read_records(str(tmp_path / "run"))).equals(deltas(GOOD))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    file = tmp_path / "records.parquet"
    GOOD.write_parquet(file)
    data = file.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-1], b"", b"model,condition\n"):
        file.write_bytes(damaged)
        with pytest.raises(RecordError, match=r"records\.parquet cannot be read as Parquet") as refused:
            read_records(file)
        assert refused.value.todo
    with pytest.raises(RecordError, match="no records at"):
        read_records(tmp_path / "elsewhere.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="no records at"):
        read_records(tmp_path / "empty")
    for i, table in enumerate((GOOD, GOOD.with_columns(mass=pl.lit([1.0])))):
        table.write_parquet(tmp_path / "empty" / f"{i}.parquet")
    with pytest.raises(RecordError, match="fit together"):
        read_records(tmp_path / "empty")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (GOOD.with_columns(mass=pl.when(HERE).then(float("nan")).otherwise("mass")), "NaN"),
        (GOOD.with_columns(mass=pl.when(HERE).then(float("inf")).otherwise("mass")), "infinite"),
        (pl.concat([GOOD, GOOD.head(1)]), "weigh twice"),
        (GOOD.filter(~(HERE & (pl.col("layer") == 1))), "1 of 2 layers"),
        (GOOD.with_columns(cluster=pl.when(HERE).then(pl.lit("elsewhere")).otherwise("cluster")), "2 clusters"),
        (GOOD.with_columns(mass=pl.lit(None, pl.Float64)), "empty places"),
    ],
)
def test_bad_records_name_the_file_and_the_example(bad: pl.DataFrame, said: str, tmp_path: Path) -> None:
    bad.write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(RecordError, match=said) as refused:
        read_records(tmp_path / "bad.parquet")
    assert "bad.parquet" in str(refused.value)
    with pytest.raises(RecordError, match=said):
        deltas(bad)


def test_one_cluster_has_no_interval_anywhere() -> None:
    ours, theirs = (
        deltas(
            long_table(
                clusters=1, each=12, layers=3, strata=("C1", "C2"), lags=6, unpaired=True, model=model, effect=effect, seed=seed
            )
        )
        for model, effect, seed in (("tuned", {1: 0.1}, 1), ("base", {}, 2))
    )
    found = gates(ours, options=FAST)
    assert found.layers["low"].null_count() == len(found.layers)
    assert found.layers["p"].null_count() == len(found.layers)
    assert found.layers["detectable"].null_count() == len(found.layers)
    for flag in "BCEF":
        assert found.layers[flag].null_count() == len(found.layers)
    assert found.rule_outs["low"].null_count() == len(found.rule_outs)
    assert found.trajectory["low"].null_count() == len(found.trajectory)
    assert not len(found.windows)
    assert any("one cluster only" in note for note in found.notes)
    difference = diff_of_diffs(ours, theirs, options=FAST)
    assert difference.frame["low"].null_count() == len(difference.frame)
    null = diff_of_diffs(theirs.with_columns(model=pl.lit("random")), theirs, options=FAST)
    table = verdict(found, gates(theirs, options=FAST), difference, nulls=[null], options=FAST)
    assert table["outcome"].unique().to_list() == ["undecided"]
    assert "clusters: 1" in table["why"][0]
    assert table["beyond_nulls"].any() is False
    assert table["margin"].is_not_null().all()  # the value is known; its interval is not
    assert table["margin_low"].null_count() == len(table)


def test_a_stratum_that_cannot_be_filled_is_missing_and_counted() -> None:
    holed = GOOD.filter(~((pl.col("stratum") == "C2") & pl.col("example").is_in(["q0.0", "q3.0"])))
    table = deltas(holed)
    counts = {row["stratum"]: (row["examples"], row["with_rows"], row["missing"]) for row in missing(table).iter_rows(named=True)}
    assert counts == {"C1": (6, 6, 0), "C2": (6, 4, 2)}
    found = gates(table, options=FAST)
    assert found.layers["n"].unique().to_list() == [6]
    assert found.rule_outs["n"].unique().to_list() == [4]
    none = gates(deltas(GOOD.filter(pl.col("stratum") != "C2")), options=FAST)
    assert not len(none.rule_outs)
    assert none.layers["E"].null_count() == len(none.layers)
    with pytest.raises(RecordError, match="no deltas of stratum 'C1'"):
        gates(deltas(GOOD.filter(pl.col("stratum") != "C1")))


def test_models_of_different_depth_are_not_compared() -> None:
    deep = long_table(clusters=6, each=1, layers=4, strata=("C1", "C2"), segmentations=("full",), model="base")
    both = deltas(pl.concat([GOOD, deep]))  # each is whole in itself
    with pytest.raises(RecordError, match="lacks layers"):
        gates(both)
    tuned, base = (both.filter(pl.col("model") == name) for name in ("tuned", "base"))
    for call in (diff_of_diffs, select_heads):
        with pytest.raises(RecordError):
            call(tuned, base)
    with pytest.raises(RecordError, match="different shape"):
        diff_of_diffs(tuned, base)
