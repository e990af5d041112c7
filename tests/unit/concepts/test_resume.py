"""A pass whose rows go to a folder: stopped and killed anywhere it goes on to the same rows; other texts' rows, damage and a full disk are refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import _row_files, collect, open_pooled, Pooled
from symbolic_residue.errors import RunDamagedError, RunExistsError, WriteError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap

TEXTS = [
    f"Anna put the {word} under the table{' again' * (i % 4)}."
    for i, word in enumerate(["mill", "river", "gate", "book", "answer", "door"] * 2)
]
OPTIONS: dict[str, Any] = {"batch_size": 3}


def instrument_of(name: str = "llama", **changes: Any) -> Instrument:
    return Instrument(wrap(build(name, **changes), tiny_tokenizer()))


@pytest.fixture
def instrument() -> Instrument:
    return instrument_of()


def never(instrument: Instrument, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instrument, "run", lambda *_, **__: pytest.fail("it ran"))


def equal(one: Pooled, other: Pooled) -> None:
    for a, b in ((one.resid, other.resid), (one.heads, other.heads)):
        assert set(a) == set(b)
        for i in a:
            np.testing.assert_array_equal(a[i], b[i])
    np.testing.assert_array_equal(one.n_tokens, other.n_tokens)
    assert (one.pooling, one.m, one.skipped, one.beside) == (other.pooling, other.m, other.skipped, other.beside)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop", [0, 3, 6, 12])
def test_stopped_after_any_batch_it_goes_on_to_the_same_rows(
    stop: int, instrument: Instrument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halt(done: int, total: int) -> None:
        if done == stop:
            raise Stopped

    whole = collect(instrument, TEXTS, **OPTIONS)
    with pytest.raises(Stopped):
        collect(instrument, TEXTS, folder=tmp_path, progress=halt, **OPTIONS)
    ran: list[int] = []
    plain = instrument.run
    monkeypatch.setattr(instrument, "run", lambda batch, **o: (ran.append(len(batch.ids)), plain(batch, **o))[1])
    seen: list[tuple[int, int]] = []
    equal(collect(instrument, TEXTS, folder=tmp_path, progress=lambda *at: seen.append(at), **OPTIONS), whole)
    assert seen == [(k, 12) for k in range(stop, 13, 3)]  # what is there is not run again
    assert sum(ran) == 12 - stop
    equal(open_pooled(tmp_path), whole)


def test_a_finished_folder_is_opened_without_running_the_model(
    instrument: Instrument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instrument = instrument_of("bamba")
    whole = collect(instrument, TEXTS, folder=tmp_path / "deep" / "rows", pooling="mean_last_m", m=3, **OPTIONS)
    never(instrument, monkeypatch)
    equal(
        collect(instrument, TEXTS, folder=tmp_path / "deep" / "rows", pooling="mean_last_m", m=3, batch_size=5, side="left"), whole
    )
    found = open_pooled(tmp_path / "deep" / "rows")
    equal(found, whole)
    assert found.m == 3 and found.skipped and not found.resid[0].flags.writeable


CHILD = """
import sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_resume import TEXTS, instrument_of
from symbolic_residue.concepts import collect
def slow(done, total):
    print(done, flush=True)
    if done == 6:
        time.sleep(60)
collect(instrument_of(), TEXTS, folder=Path(sys.argv[3]), batch_size=3, progress=slow)
"""


def test_killed_it_goes_on_to_the_same_rows(instrument: Instrument, tmp_path: Path) -> None:
    here = Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(here.parent), str(here), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.strip() == "6":
            break
    with pytest.raises(RunExistsError, match="another process"):
        collect(instrument, TEXTS, folder=tmp_path, **OPTIONS)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    seen: list[int] = []
    found = collect(instrument, TEXTS, folder=tmp_path, progress=lambda done, _: seen.append(done), **OPTIONS)
    assert seen == [6, 9, 12]
    equal(found, collect(instrument, TEXTS, **OPTIONS))


def test_rows_that_a_power_cut_took_are_run_again(instrument: Instrument, tmp_path: Path) -> None:
    """Lost: the rows of one text in one file (zeros, as a file system gives back), and half of the last line."""
    whole = collect(instrument, TEXTS, folder=tmp_path, **OPTIONS)
    rows = np.load(tmp_path / "heads_1.npy", mmap_mode="r+")
    rows[4] = 0
    rows.flush()
    log = tmp_path / "done.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    with pytest.raises(RunDamagedError, match=r"\d+ of 12 texts are whole"):
        open_pooled(tmp_path)
    seen: list[int] = []
    equal(
        collect(instrument, TEXTS, folder=tmp_path, progress=lambda done, _: seen.append(done), **OPTIONS),
        collect(instrument, TEXTS, **OPTIONS),
    )
    assert seen == [6, 9, 12]
    equal(open_pooled(tmp_path), whole)
    (tmp_path / "resid_0.npy").write_bytes(b"no array")
    with pytest.raises(RunDamagedError, match="cannot be read"):
        open_pooled(tmp_path)
    equal(collect(instrument, TEXTS, folder=tmp_path, **OPTIONS), whole)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"texts": [*TEXTS[:-1], "Another text stands here."]}, "texts"),
        ({"texts": TEXTS[::-1]}, "texts"),
        ({"texts": TEXTS[:-1]}, "number of texts"),
        ({"pooling": "last_content"}, "pooling"),
        ({"layers": [1]}, "layers"),
        ({"heads": False}, "heads"),
        ({"weights": True}, "weights"),
    ],
)
def test_rows_of_other_texts_models_or_settings_are_refused_or_thrown_away_where_asked(
    change: dict[str, Any], named: str, instrument: Instrument, tmp_path: Path
) -> None:
    collect(instrument, TEXTS, folder=tmp_path, **OPTIONS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    change = dict(change)
    if change.pop("weights", False):
        instrument = instrument_of()  # hashed when it is first asked for
        instrument.model.get_input_embeddings().weight.data[5] += 1  # type: ignore[operator, union-attr, index]
    texts = change.pop("texts", TEXTS)
    with pytest.raises(RunExistsError, match=rf"other settings .*{named}"):
        collect(instrument, texts, folder=tmp_path, **change, **OPTIONS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    equal(
        collect(instrument, texts, folder=tmp_path, anew=True, **change, **OPTIONS), collect(instrument, texts, **change, **OPTIONS)
    )


def test_a_folder_that_cannot_be_written_or_holds_something_else_is_refused(
    instrument: Instrument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never(instrument, monkeypatch)
    (tmp_path / "file").write_text("a file")
    for folder in (tmp_path / "file", tmp_path / "file" / "rows"):
        with pytest.raises(WriteError, match="file"):
            collect(instrument, TEXTS, folder=folder)
    np.save(tmp_path / "resid_0.npy", np.zeros(3))
    with pytest.raises(RunExistsError, match="nothing says whose"):
        collect(instrument, TEXTS, folder=tmp_path)
    (tmp_path / "rows.json").write_text("{")
    with pytest.raises(RunDamagedError, match="cannot be read"):
        collect(instrument, TEXTS, folder=tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps({"format": 7}))
    with pytest.raises(RunDamagedError, match="another format"):
        open_pooled(tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(RunDamagedError, match="another format"):
        collect(instrument, TEXTS, folder=tmp_path)
    with pytest.raises(RunDamagedError, match="no collected rows"):
        open_pooled(tmp_path / "nowhere")


def test_a_record_without_its_fields_is_refused(instrument: Instrument, tmp_path: Path) -> None:
    collect(instrument, TEXTS[:2], folder=tmp_path)
    head = json.loads((tmp_path / "rows.json").read_text())
    for key in ("n_tokens", "skipped", "names"):
        (tmp_path / "rows.json").write_text(json.dumps({name: value for name, value in head.items() if name != key}))
        with pytest.raises(RunDamagedError, match=key):
            open_pooled(tmp_path)


def test_a_full_disk_is_found_before_the_model_runs(
    instrument: Instrument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        never(instrument, patch)
        with pytest.raises(WriteError, match="disk is full"):
            collect(instrument, TEXTS, folder=tmp_path)
    equal(collect(instrument, TEXTS, folder=tmp_path, **OPTIONS), collect(instrument, TEXTS, **OPTIONS))


def test_a_disk_that_fills_up_meanwhile_loses_nothing_that_was_written(
    instrument: Instrument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = _row_files._write_all, []

    def filling(handle: Any, data: memoryview) -> None:
        calls.append(len(data))
        if len(calls) == 18:  # 13 writes a batch: 3 rows in each of 4 files, and the line
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr(_row_files, "_write_all", filling)
        with pytest.raises(WriteError, match="disk is full"):
            collect(instrument, TEXTS, folder=tmp_path, **OPTIONS)
    seen: list[int] = []
    found = collect(instrument, TEXTS, folder=tmp_path, progress=lambda done, _: seen.append(done), **OPTIONS)
    assert seen == [3, 6, 9, 12]
    equal(found, collect(instrument, TEXTS, **OPTIONS))


FULL = """
import signal, sys, resource
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_resume import TEXTS, instrument_of
from symbolic_residue.concepts import collect
from symbolic_residue.errors import WriteError
instrument = instrument_of()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))  # the space of five rows
try:
    collect(instrument, TEXTS, folder=Path(sys.argv[3]), batch_size=3)
except WriteError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the file size as Linux has them")
def test_space_that_the_system_refuses_is_an_error_and_not_a_signal(instrument: Instrument, tmp_path: Path) -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(here.parent), str(here), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "larger than allowed" in done.stdout
    equal(collect(instrument, TEXTS, folder=tmp_path, **OPTIONS), collect(instrument, TEXTS, **OPTIONS))
