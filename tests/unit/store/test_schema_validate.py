"""Tables against the schema: refused when written, found when validated."""

import json
import math
import re
from pathlib import Path

import polars as pl
import pytest

from symbolic_residue.errors import RunDamagedError, StoreError
from symbolic_residue.store import MAY_BE_MISSING, RunFolder, TABLES, validate
from symbolic_residue.store._schema import ADDED


def test_the_schema_is_that_of_the_interfaces_page():
    page = (Path(__file__).parents[3] / "design" / "interfaces.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| item, (.*) \|$", page, flags=re.MULTILINE)
    assert {name for name, _ in rows} == set(TABLES)
    for name, columns in rows:
        bare = re.sub(r"\([^()]*\)", "", columns)  # remarks in brackets
        wanted = [column.partition(":")[0].strip() for column in bare.split(",")]
        assert ["item", *wanted] == list(TABLES[name])
        typed = dict(re.findall(r"(\w+)\s*: (i64|f64|bool)", bare))
        for column, dtype in typed.items():
            assert TABLES[name][column] == {"i64": pl.Int64, "f64": pl.Float64, "bool": pl.Boolean}[dtype], (name, column)
    for name, optional in MAY_BE_MISSING.items():
        assert optional < set(TABLES[name]) and "item" not in optional


def refused(make, tmp_path, tables, match):
    with make.start(tmp_path / "run", resume=True) as run:
        with pytest.raises(StoreError, match=match):
            run.write_item("a", {"items": make.sample("items")} | tables)
        assert run.done_items() == []
    assert not list((tmp_path / "run").glob("tables/**/*.parquet"))


def test_tables_against_the_schema_are_refused(tmp_path, make):
    good = make.sample("verdicts")
    for tables, match in (
        ({"nonsense": good}, "'nonsense' is no table"),
        ({"verdicts": good.drop("criterion", "note")}, "lacks criterion, note"),
        ({"verdicts": good.with_columns(extra=1)}, "unknown extra"),
        ({"verdicts": good.with_columns(pl.col("value").cast(pl.String))}, "'value' is String where Float64"),
        ({"verdicts": good.with_columns(n=pl.lit(1.5))}, "'n' is Float64 where Int64"),
        ({"verdicts": good.with_columns(n=pl.lit(2**63, pl.UInt64))}, "cannot"),
        ({"verdicts": good.with_columns(item=pl.lit("b"))}, "another item"),
        ({"verdicts": good.with_columns(criterion=pl.lit(math.nan))}, "criterion is missing in 1 of 1"),
        ({"verdicts": good.with_columns(unit=pl.lit(None))}, "unit is missing"),
        ({"verdicts": good.with_columns(high=pl.lit(math.inf))}, "high is infinite"),
        ({"verdicts": good.with_columns(outcome=pl.lit("maybe"))}, "outcome says 'maybe'"),
        ({"items": make.sample("items", rows=2)}, "exactly one row"),
        ({"items": make.sample("items", status="odd")}, "status says 'odd'"),
    ):
        refused(make, tmp_path, tables, match)
    with make.start(tmp_path / "other") as run, pytest.raises(StoreError, match="no row in table 'items'"):
        run.write_item("a", {"verdicts": good})


def test_intervals_and_controls_may_be_missing(tmp_path, make):
    gone = {"low": None, "high": math.nan, "control": None, "control_value": None, "control_n": None}
    with make.start(tmp_path / "run") as run:
        run.write_item("a", {"items": make.sample("items"), "verdicts": make.sample("verdicts", **gone)})
    assert validate(tmp_path / "run") == []


def said(path: Path) -> str:
    return " | ".join(map(str, validate(path)))


def shard(path: Path, table: str, number: int = 1) -> Path:
    return next((path / "tables" / table).glob(f"{number:05d}-*"))


def test_a_sound_run_has_no_problems(run_path):
    assert validate(run_path) == []
    with pytest.raises(StoreError, match="no run folder"):
        validate(run_path / "nowhere")


def test_damage_is_found(run_path, make):
    verdicts = shard(run_path, "verdicts", 2)
    good = verdicts.read_bytes()
    frame = pl.read_parquet(verdicts)
    for damage, match in (
        (lambda: verdicts.write_bytes(good[:-30]), r"00002-b\.parquet: .*Error"),
        (lambda: verdicts.write_bytes(b""), r"00002-b\.parquet"),
        (lambda: verdicts.unlink(), "says 3 rows in table 'verdicts', the folder holds 1"),
        (lambda: frame[:1].write_parquet(verdicts), "says 3 rows in table 'verdicts', the folder holds 2"),
        (lambda: frame.drop("note").write_parquet(verdicts), "lacks column 'note'"),
        (lambda: frame.with_columns(x=1).write_parquet(verdicts), "unknown column 'x'"),
        (lambda: frame.with_columns(pl.col("n").cast(pl.Int32)).write_parquet(verdicts), "'n' is Int32 instead of Int64"),
        (lambda: frame.select(sorted(frame.columns)).write_parquet(verdicts), "another order"),
        (lambda: frame.with_columns(criterion=pl.lit(math.nan)).write_parquet(verdicts), "criterion is missing in 2 of 2"),
        (lambda: frame.with_columns(item=pl.lit("z")).write_parquet(verdicts), "another item than 'b'"),
        (lambda: frame.with_columns(outcome=pl.lit("z")).write_parquet(verdicts), "outcome says 'z'"),
    ):
        damage()
        assert re.search(match, said(run_path)), (match, said(run_path))
        verdicts.write_bytes(good)
    assert validate(run_path) == []


def earlier(path: Path, table: str, columns: frozenset[str]) -> None:
    """Make the table's files and the manifest what a version wrote that had no such columns."""
    for file in (path / "tables" / table).iterdir():
        pl.read_parquet(file).drop(columns).write_parquet(file)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["tables"][table]["columns"] = [name for name in TABLES[table] if name not in columns]
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("table", list(ADDED))
def test_columns_that_came_later_are_read_as_null_in_runs_of_before(tmp_path, make, table):
    path = tmp_path / "run"
    with make.start(path, planned=2) as run:
        run.write_item("a", {"items": make.sample("items"), table: make.sample(table, rows=2)})
        run.finish(note="stopped")
    assert MAY_BE_MISSING[table] >= ADDED[table]
    earlier(path, table, ADDED[table])
    assert validate(path) == []
    found = RunFolder.open(path).table(table)
    assert found.schema == pl.Schema(TABLES[table])
    assert found.select(ADDED[table]).null_count().row(0) == (2,) * len(ADDED[table])
    # Going on with it, items of both kinds stand side by side.
    with make.start(path, planned=2, resume=True) as run:
        run.write_item("b", {"items": make.sample("items", "b"), table: make.sample(table, "b")})
    assert validate(path) == []
    found = RunFolder.open(path).table(table)
    assert found["item"].to_list() == ["a", "a", "b"]
    assert found[sorted(ADDED[table])[0]].is_null().to_list() == [True, True, False]
    # Any other column that is missing is damage still, and so is one of several.
    for gone in ({"hits"}, {"hits", *ADDED[table]}, {sorted(ADDED[table])[0]}):
        file = shard(path, table, 2)
        good = file.read_bytes()
        pl.read_parquet(file).drop(gone).write_parquet(file)
        assert "lacks column" in said(path)
        with pytest.raises(RunDamagedError, match="other columns"):
            RunFolder.open(path).table(table)
        file.write_bytes(good)


def test_stray_files_are_found(run_path):
    (run_path / "tables" / "nonsense").mkdir()
    (run_path / "tables" / "verdicts" / "00009-z.parquet").write_bytes(shard(run_path, "verdicts").read_bytes())
    (run_path / "tables" / "items" / "notes.txt").write_text("hello")
    text = said(run_path)
    assert (
        "tables/nonsense: no table" in text
        and "00009-z.parquet: belongs to no finished item" in text
        and "notes.txt: is no shard" in text
    )


def test_lost_items_are_found(run_path):
    shard(run_path, "items").unlink()
    text = said(run_path)
    assert "says 2 items done, the folder holds 1" in text and "00001-a.parquet: belongs to no finished item" in text


def test_damaged_tensors_are_found(tmp_path, make):
    import torch

    with make.start(tmp_path / "run") as run:
        for name in "ab":
            run.write_item(name, make.item(name), {"t": torch.ones(4)})
    first, second = sorted((tmp_path / "run" / "tensors").iterdir())
    good = first.read_bytes()
    first.write_bytes(good[:-3])
    assert "00001-a.safetensors: cannot be read" in said(tmp_path / "run")
    with pytest.raises(RunDamagedError, match="cannot be read"):
        RunFolder.open(tmp_path / "run").tensors("t")
    first.write_bytes(second.read_bytes())
    assert "holds tensors of item 'b', not 'a'" in said(tmp_path / "run")


def test_manifest_problems_are_found(run_path):
    file = run_path / "manifest.json"
    good = json.loads(file.read_text())
    for change, match in (
        ({"schema_version": 2}, "schema 2"),
        ({"status": "odd"}, "status"),
        ({"surplus": 1}, "surplus"),
        ({"items": good["items"] | {"planned": 7}}, "says complete, but 2 of 7"),
        ({"items": good["items"] | {"failed": 1}}, "says 1 items failed, the folder holds 0"),
        ({"status": "running", "items": good["items"] | {"done": 9}}, "says 9 items, the folder holds 2"),
        ({"tables": {}}, "says 0 rows in table 'items'"),
    ):
        file.write_text(json.dumps(good | change))
        assert match in said(run_path)
    file.unlink()
    assert "manifest.json" in said(run_path)


def test_reading_damage_is_refused_by_name(run_path):
    bad = shard(run_path, "verdicts", 2)
    frame = pl.read_parquet(bad)
    frame.drop("note").write_parquet(bad)
    with pytest.raises(RunDamagedError, match=r"00002-b\.parquet has other columns"):
        RunFolder.open(run_path).table("verdicts")
    bad.write_bytes(b"junk")
    with pytest.raises(RunDamagedError, match=r"00002-b\.parquet cannot be read"):
        RunFolder.open(run_path).table("verdicts")
    shard(run_path, "items").write_bytes(b"junk")
    with pytest.raises(RunDamagedError, match=r"00001-a\.parquet cannot be read"):
        RunFolder.open(run_path)


def test_truncation_anywhere_is_found(run_path):
    bad = shard(run_path, "verdicts", 2)
    good = bad.read_bytes()
    for length in range(0, len(good), max(1, len(good) // 40)):
        bad.write_bytes(good[:length])
        assert validate(run_path), length
