"""Run folders survive what happens to runs: existing folders, exceptions, Ctrl-C, kill -9, a full disk."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from symbolic_residue.errors import ConfigError, RunDamagedError, RunExistsError, StoreError, WriteError
from symbolic_residue.store import list_runs, RunFolder, TABLES, validate


def manifest(path: Path) -> dict:
    return json.loads((path / "manifest.json").read_text(encoding="utf-8"))


def test_two_lines_of_polars_read_a_table(run_path, monkeypatch):
    monkeypatch.chdir(run_path.parent)
    frame = pl.read_parquet("run/tables/verdicts")
    assert frame["item"].to_list() == ["a", "b", "b"]
    assert frame.schema == pl.Schema(TABLES["verdicts"])


def test_what_is_written_is_read_back(tmp_path, make):
    written = {name: make.sample(name, "a", 1 if name == "items" else 2) for name in TABLES}
    with make.start(tmp_path / "run", planned=1) as run:
        run.write_item("a", written)
        assert manifest(run.path)["status"] == "running" and manifest(run.path)["items"]["done"] == 1
    again = RunFolder.open(tmp_path / "run")
    for name, frame in written.items():
        assert again.table(name).equals(frame)
    said = manifest(again.path)
    assert said["status"] == "complete" and said["finished"] >= said["created"]
    assert said["items"] == {"planned": 1, "done": 1, "failed": 0}
    assert said["tables"]["heads"] == {"rows": 2, "columns": list(TABLES["heads"])}
    assert said["versions"]["polars"] == pl.__version__ and said["machine"]["cpus"] == os.cpu_count()
    assert validate(again.path) == []
    assert not list((again.path / ".partial").glob("*"))


def test_manifest_has_the_promised_keys(run_path):
    assert list(manifest(run_path)) == [
        "schema_version",
        "kind",
        "command",
        "created",
        "finished",
        "status",
        "items",
        "provenance",
        "config",
        "versions",
        "machine",
        "tables",
        "note",
    ]


def test_item_column_is_filled_in_and_narrow_numbers_widened(tmp_path, make):
    frame = make.sample("heads").drop("item")
    frame = frame.with_columns(pl.col("layer").cast(pl.UInt8), pl.col("dla").cast(pl.Float32), pl.lit(None).alias("p"))
    with make.start(tmp_path / "run") as run:
        run.write_item("x", {"heads": frame.select(reversed(frame.columns)), "items": make.sample("items", "x")})
    kept = RunFolder.open(tmp_path / "run").table("heads")
    assert kept.schema == pl.Schema(TABLES["heads"]) and kept["item"].to_list() == ["x"] and kept["p"].to_list() == [None]


def test_tables_without_rows_or_shards(tmp_path, make):
    with make.start(tmp_path / "run") as run:
        run.write_item("a", {"items": make.sample("items"), "verdicts": make.sample("verdicts").clear()})
    run = RunFolder.open(tmp_path / "run")
    assert run.table("verdicts").shape == (0, len(TABLES["verdicts"])) and run.table("heads").schema == pl.Schema(TABLES["heads"])
    assert len(pl.read_parquet(tmp_path / "run" / "tables" / "verdicts")) == 0 and validate(run.path) == []


def test_tensors_by_name_and_by_item(tmp_path, make):
    base = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    with make.start(tmp_path / "run[1]") as run:
        run.write_item("a", make.item("a"), {"pattern": base.T, "same": base, "np": np.arange(3)})
        run.write_item("b", make.item("b"))
        run.write_item("c", make.item("c"), {"pattern": base + 1})
    run = RunFolder.open(tmp_path / "run[1]")
    found = run.tensors("pattern")
    assert list(found) == ["a", "c"] and torch.equal(found["a"], base.T) and torch.equal(found["c"], base + 1)
    assert set(run.item_tensors("a")) == {"pattern", "same", "np"} and run.item_tensors("b") == {}
    assert len(run.table("verdicts")) == 3 and validate(run.path) == []  # brackets in the path are no wildcard
    with pytest.raises(ConfigError, match="no item"):
        run.item_tensors("z")


def test_tensors_that_cannot_be_kept_are_refused(tmp_path, make):
    run = make.start(tmp_path / "run")
    for bad in ([1, 2], np.array(["text"]), "text"):
        with pytest.raises(StoreError, match="Tensor 'bad'"):
            run.write_item("a", make.item("a"), {"bad": bad})
    assert run.done_items() == [] and not list((tmp_path / "run").glob("t*/**/*.*"))
    run.finish()


NAMES = [
    "../../etc/passwd",
    "a/b\\c",
    "日本語",
    "x" * 5000,
    "CON",
    ".hidden",
    "tab\tand\nline",
    "a",
    "A",
    "*?[]",
    " ",
    "\x00",
    "%s",
]


def test_any_item_id_makes_a_safe_file_name(tmp_path, make):
    with make.start(tmp_path / "run") as run:
        for name in NAMES:
            run.write_item(name, make.item(name), {"t": torch.zeros(1)})
    run = RunFolder.open(tmp_path / "run")
    assert run.done_items() == NAMES and run.table("verdicts")["item"].to_list() == NAMES
    assert list(run.tensors("t")) == NAMES and validate(run.path) == []
    files = [path.name for path in (tmp_path / "run" / "tables" / "items").iterdir()]
    assert len(files) == len(NAMES) and all(name.isascii() and len(name) < 90 for name in files)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize("bad", ["", "\udcff", None, 7])
def test_ids_that_are_no_text_are_refused(tmp_path, make, bad):
    with make.start(tmp_path / "run") as run, pytest.raises(ConfigError):
        run.write_item(bad, make.item("a"))


def test_an_existing_folder_is_refused(run_path, make):
    before = {path: path.read_bytes() for path in run_path.rglob("*") if path.is_file()}
    with pytest.raises(RunExistsError, match="already there"):
        make.start(run_path)
    assert before == {path: path.read_bytes() for path in run_path.rglob("*") if path.is_file()}


def test_a_file_or_foreign_folder_is_refused_even_to_resume(tmp_path, make):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    for name, what in (("file", "is a file"), ("other", "holds no run")):
        with pytest.raises(RunExistsError, match=what):
            make.start(tmp_path / name, resume=True)
    (tmp_path / "empty").mkdir()
    with make.start(tmp_path / "empty", resume=True):
        pass
    assert validate(tmp_path / "empty") == []


def test_a_path_under_a_file_cannot_be_written(tmp_path, make):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be written"):
        make.start(tmp_path / "file" / "run")


def test_exceptions_are_recorded_and_passed_on(tmp_path, make):
    for error, status in ((KeyboardInterrupt(), "interrupted"), (ValueError("odd \udcff"), "failed"), (SystemExit(3), "failed")):
        path = tmp_path / status / type(error).__name__
        with pytest.raises(type(error)), make.start(path) as run:
            run.write_item("a", make.item("a"))
            raise error
        said = manifest(path)
        assert said["status"] == status and said["finished"] and said["note"] and said["items"]["done"] == 1
        assert RunFolder.open(path).done_items() == ["a"] and validate(path) == []
    assert "ValueError: odd" in manifest(tmp_path / "failed" / "ValueError")["note"]


def test_a_run_with_fewer_items_than_planned_is_not_complete(tmp_path, make):
    with make.start(tmp_path / "run", planned=3) as run:
        run.write_item("a", make.item("a"))
    said = manifest(tmp_path / "run")
    assert said["status"] == "interrupted" and "1 of 3" in said["note"]


def test_nothing_is_written_after_the_end(run_path, make, tmp_path):
    with make.start(tmp_path / "run2") as run:
        run.finish(note="early")
        for act in (run.finish, lambda: run.write_item("b", make.item("b")), lambda: RunFolder.open(run_path).write_item("c", {})):
            with pytest.raises(StoreError, match="not open for writing"):
                act()
    assert manifest(tmp_path / "run2")["note"] == "early"


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {here!r})
    from conftest import item, start
    from symbolic_residue.store import _run
    run = start({path!r}, planned=3)
    run.write_item("a", item("a"))
    real = _run.write_bytes
    def write(root, name, data):
        if name.startswith("tables/items"):
            (root / ".partial" / "left-over").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        real(root, name, data)
    _run.write_bytes = write
    run.write_item("b", item("b", 2))
"""


def killed(path: Path) -> None:
    code = textwrap.dedent(KILLED).format(here=str(Path(__file__).parent), path=str(path))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_a_killed_run_can_be_read_and_resumed(tmp_path, make):
    path = tmp_path / "run"
    killed(path)
    run = RunFolder.open(path)
    assert run.manifest.status == "running" and run.done_items() == ["a"] and len(run.table("verdicts")) == 1
    assert validate(path) == []
    assert len(pl.read_parquet(path / "tables" / "verdicts")) == 3  # whole files; the last is of the unfinished item
    with make.start(path, planned=3, resume=True) as run:
        assert run.done_items() == ["a"]
        assert len(pl.read_parquet(path / "tables" / "verdicts")) == 1 and not list((path / ".partial").iterdir())
        for name in "bc":
            run.write_item(name, make.item(name))
    run = RunFolder.open(path)
    assert run.done_items() == ["a", "b", "c"] and run.manifest.status == "complete" and validate(path) == []
    assert run.manifest.tables["verdicts"].rows == 3


def test_resume_wants_the_same_run(run_path, make):
    with pytest.raises(RunExistsError) as caught:
        make.start(run_path, resume=True, config={"seed": 1}, provenance={"model": "m", "device": "cuda"})
    assert "config.seed is 1 now and was 0" in caught.value.why and "provenance.device is 'cuda' now" in caught.value.why
    with pytest.raises(RunExistsError, match="kind is 'shell'"):
        make.start(run_path, resume=True, kind="shell")
    with make.start(run_path, resume=True) as run:
        assert run.done_items() == ["a", "b"]
        with pytest.raises(StoreError, match="already in"):
            run.write_item("a", make.item("a"))
    assert validate(run_path) == []


def test_a_run_is_opened_again_without_the_items_that_have_to_go(tmp_path, make):
    with make.start(tmp_path / "run") as run:
        for name in ("a", "b", "c"):
            run.write_item(name, make.item(name, rows=2))
    with RunFolder.reopen(tmp_path / "run", config={"seed": 1}, drop=lambda name: name != "a") as run:
        assert run.done_items() == ["a"]
        assert run.manifest.status == "running"
        run.write_item("b", make.item("b"))
        with pytest.raises(RunExistsError):
            RunFolder.reopen(tmp_path / "run")
    again = RunFolder.open(tmp_path / "run")
    assert again.table("verdicts")["item"].to_list() == ["a", "a", "b"]
    assert again.manifest.config == {"seed": 1}
    assert again.manifest.provenance == {"model": "m"}
    assert validate(tmp_path / "run") == []
    with RunFolder.reopen(tmp_path / "run") as run:
        assert run.done_items() == ["a", "b"]
    with pytest.raises(StoreError):
        RunFolder.reopen(tmp_path / "none")


def test_a_run_under_way_cannot_be_resumed(tmp_path, make):
    with make.start(tmp_path / "run"), pytest.raises(RunExistsError, match="being written"):
        make.start(tmp_path / "run", resume=True)
    make.start(tmp_path / "run", resume=True).finish()


def test_failed_items_are_kept_and_may_be_written_anew(tmp_path, make):
    path = tmp_path / "run"
    with make.start(path) as run:
        run.write_item("a", make.item("a", 4, status="failed"), {"t": torch.zeros(2)})
        run.write_item("b", make.item("b"))
    assert manifest(path)["items"] == {"planned": None, "done": 1, "failed": 1}
    with make.start(path, resume=True) as run:
        assert run.done_items() == ["b"] and run.failed_items() == ["a"]
        run.write_item("a", {"items": make.sample("items", "a"), "heads": make.sample("heads", "a")})
    run = RunFolder.open(path)
    assert run.done_items() == ["a", "b"] and run.failed_items() == [] and validate(path) == []
    assert run.table("verdicts")["item"].to_list() == ["b"] and run.tensors("t") == {}


@pytest.fixture
def disk(monkeypatch):
    """A disk that can be filled: afterwards every write of more than ``room`` bytes fails."""
    real = Path.open

    class Disk:
        room = None

        def open(self, path, mode="r", *args, **options):
            handle = real(path, mode, *args, **options)
            if mode == "wb" and self.room is not None:
                write = handle.write

                class Full:
                    def __enter__(self):
                        return self

                    def __exit__(self, *_):
                        handle.close()

                    def write(_, data):
                        if len(data) > self.room:
                            write(data[: self.room])
                            raise OSError(errno.ENOSPC, "No space left on device")
                        return write(data)

                    flush, fileno = handle.flush, handle.fileno

                return Full()
            return handle

    full = Disk()
    monkeypatch.setattr(Path, "open", lambda path, mode="r", *args, **options: full.open(path, mode, *args, **options))
    return full


@pytest.mark.parametrize("manifest_fits", [True, False])
def test_a_full_disk(tmp_path, make, disk, manifest_fits):
    path = tmp_path / "run"
    with pytest.raises(WriteError, match="disk is full") as caught, make.start(path) as run:
        run.write_item("a", make.item("a"))
        disk.room = 2600 if manifest_fits else 0
        big = make.sample("tokens", "b", 20_000).with_columns(
            pl.Series("position", np.random.default_rng(0).integers(0, 2**60, 20_000))
        )
        run.write_item("b", {"verdicts": make.sample("verdicts", "b")} | make.item("b") | {"tokens": big})
    disk.room = None
    assert not list(path.glob("t*/**/*00002*")) and not list((path / ".partial").glob("*"))
    run = RunFolder.open(path)
    assert run.done_items() == ["a"] and len(run.table("verdicts")) == 1
    if manifest_fits:
        assert run.manifest.status == "failed" and "disk is full" in run.manifest.note
    else:
        assert run.manifest.status == "running" and any("manifest.json cannot be written" in n for n in caught.value.__notes__)
    assert validate(path) == []
    with make.start(path, resume=True) as run:
        run.write_item("b", make.item("b"))
    assert validate(path) == [] and RunFolder.open(path).manifest.status == "complete"


@pytest.mark.parametrize("at", range(4))
def test_ctrl_c_inside_a_write_leaves_a_sound_run(tmp_path, make, monkeypatch, at):
    from symbolic_residue.store import _run

    real, calls, path = _run.write_bytes, [], tmp_path / "run"

    def write(root, name, data):
        calls.append(name)
        if len(calls) == at + 1:
            if at % 2:
                real(root, name, data)
            raise KeyboardInterrupt
        real(root, name, data)

    with pytest.raises(KeyboardInterrupt), make.start(path) as run:
        run.write_item("a", make.item("a"))
        monkeypatch.setattr(_run, "write_bytes", write)
        run.write_item("b", make.item("b"), {"t": torch.zeros(1)})
    monkeypatch.undo()
    assert manifest(path)["status"] == "interrupted" and validate(path) == []
    assert RunFolder.open(path).done_items() == (["a", "b"] if at == 3 else ["a"])


def test_files_beside_the_tables(run_path):
    run = RunFolder.open(run_path)
    assert run.write_file("figures/ü.svg", "<svg>ü</svg>").read_text(encoding="utf-8") == "<svg>ü</svg>"
    run.write_file("report.html", b"1")
    run.write_file("report.html", b"2")
    assert (run_path / "report.html").read_bytes() == b"2" and validate(run_path) == []
    for name in ("manifest.json", "tables/items/x", "../x", "/x", "", "."):
        with pytest.raises(ConfigError, match="no name"):
            run.write_file(name, b"")


def test_config_is_kept_as_json_can(tmp_path, make):
    config = {
        "path": Path("a/b"),
        "list": (1, 2.5),
        "n": np.int64(4),
        "x": np.float32(0.5),
        "s": "ü\udcff",
        "none": None,
        3: {"deep": True},
    }
    with make.start(tmp_path / "run", config=config, command=["residue", "diagnose", "a b"]):
        pass
    said = manifest(tmp_path / "run")
    assert said["config"] == {"path": "a/b", "list": [1, 2.5], "n": 4, "x": 0.5, "s": "ü\\udcff", "none": None, "3": {"deep": True}}
    assert said["command"] == "residue diagnose 'a b'"
    make.start(tmp_path / "run", config=config, resume=True).finish()
    for i, bad in enumerate((float("nan"), object(), b"bytes")):
        with pytest.raises(ConfigError, match=r"config\.x"):
            make.start(tmp_path / f"bad{i}", config={"x": bad})
        assert not (tmp_path / f"bad{i}").exists()


def test_opening_what_is_no_run(tmp_path, run_path):
    with pytest.raises(StoreError, match="no run folder"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(RunDamagedError, match=r"no manifest\.json"):
        RunFolder.open(tmp_path)
    with pytest.raises(StoreError, match="'nonsense' is no table"):
        RunFolder.open(run_path).table("nonsense")
    said = manifest(run_path)
    (run_path / "manifest.json").write_text(json.dumps(said | {"schema_version": 99, "new": 1}))
    with pytest.raises(RunDamagedError, match="schema 99"):
        RunFolder.open(run_path)
    (run_path / "manifest.json").write_text('{"kind":')
    with pytest.raises(RunDamagedError, match="no manifest"):
        RunFolder.open(run_path)


def test_list_runs(tmp_path, run_path, make):
    with pytest.raises(KeyboardInterrupt), make.start(tmp_path / "second", planned=5) as run:
        run.write_item("a", make.item("a", status="failed"))
        raise KeyboardInterrupt
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    runs = {run.path.name: run for run in list_runs(tmp_path)}
    assert set(runs) == {"run", "second", "broken"}
    assert (runs["run"].status, runs["run"].done) == ("complete", 2)
    assert (runs["second"].status, runs["second"].failed, runs["second"].planned) == ("interrupted", 1, 5)
    assert runs["broken"].status == "damaged" and "no manifest" in runs["broken"].problem
    assert [run.created for run in list_runs(tmp_path)] == sorted((run.created for run in runs.values()), reverse=True)
    with pytest.raises(StoreError, match="no folder"):
        list_runs(tmp_path / "nowhere")


def test_some_items_and_some_rows_are_read_in_portions(tmp_path, make, monkeypatch):
    from symbolic_residue.store import _run, _shards

    items = ("a", "b", "c", "d")
    with make.start(tmp_path / "run") as run:
        for item in items:
            run.write_item(item, {"items": make.sample("items", item, 1), "heads": make.sample("heads", item, 2)})
    monkeypatch.setattr(_shards, "_PORTION", 1)
    sizes, read = [], _run.read_shards
    monkeypatch.setattr(_run, "read_shards", lambda shards, name: sizes.append(len(shards)) or read(shards, name))
    run = RunFolder.open(tmp_path / "run")
    whole = run.table("heads")
    assert sizes.pop() == 4
    assert run.table("heads", items=["d", "b", "nothing"]).equals(whole.filter(pl.col("item").is_in(["b", "d"])))
    sizes.clear()
    first = pl.int_range(pl.len()).over("item") == 0
    assert run.table("heads", where=first).equals(whole.filter(first))
    assert sizes == [1, 1, 1, 1]
    some = run.table("heads", items=[], where=first)
    assert some.is_empty() and some.schema == pl.Schema(TABLES["heads"])
    sizes.clear()
    again = RunFolder.reopen(tmp_path / "run")  # counts what is on disk
    again.finish()
    assert set(sizes) == {1} and again.manifest.tables["heads"].rows == 8
