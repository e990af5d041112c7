"""The corpus of signatures: what is added is found again, whole or not at all, and damage is named."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from symbolic_residue.cli import main
from symbolic_residue.errors import ConfigError, RunDamagedError, RunExistsError, StoreError
from symbolic_residue.store import Corpus, RunFolder, TABLES

NAMES = ["a", "b", "c", "d"]
SPANS = np.ones(4)


def entry(item: str, values: list[float | None], model: str = "m") -> tuple[dict[str, Any], pl.DataFrame]:
    facts = {"run": "r", "item": item, "created": "2026-01-01", "model": model, "weights_sha256": model * 3, "kind": "read"}
    frame = pl.DataFrame(
        {"component": NAMES, "group": ["g"] * 4, "value": values, "unit": ["share"] * 4, "source": ["tables"] * 4},
        schema_overrides={"value": pl.Float64},
    )
    return facts | {"text": f"text of {item}", "summary": ""}, frame


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    made = Corpus.open(tmp_path / "corpus", create=True)
    made.add([entry("x", [0.1, 0.2, 0.3, 0.4]), entry("y", [0.9, 0.8, 0.7, 0.6]), entry("z", [0.1, 0.3, 0.3, None])])
    return made


def test_what_is_added_is_there_for_the_next(corpus: Corpus) -> None:
    again = Corpus.open(corpus.path)
    assert [e.item for e in again.entries] == ["x", "y", "z"]
    matrix = again.matrix(NAMES)
    assert matrix[0].tolist() == [0.1, 0.2, 0.3, 0.4] and math.isnan(matrix[2, 3])
    assert again.signature(again.entries[1]).schema == pl.Schema(TABLES["signatures"])


def test_search_ranks_by_distance_over_shared_components(corpus: Corpus) -> None:
    _, query = entry("q", [0.1, 0.2, 0.3, None])
    found = corpus.search(query, NAMES, SPANS)
    assert found["item"].to_list() == ["x", "z", "y"] and found["shared"].to_list() == [3, 3, 3]
    columns = [[0.1, 0.9, 0.1], [0.2, 0.8, 0.3], [0.3, 0.7, 0.3]]
    scale = [np.std(c, ddof=1) for c in columns]
    want = math.sqrt(sum(((q - v) / s) ** 2 for q, v, s in zip((0.1, 0.2, 0.3), (0.9, 0.8, 0.7), scale, strict=True)) / 3)
    assert found["distance"][0] == 0 and found["distance"][2] == pytest.approx(want)
    assert found["ratio"][2] == pytest.approx(found["distance"][2] / found["typical"][2])
    assert corpus.search(query, NAMES, SPANS, top=1)["item"].to_list() == ["x"]
    assert corpus.search(query, NAMES, SPANS, without=corpus.entries[0].key)["item"].to_list() == ["z", "y"]
    assert len(corpus.search(entry("q", [0.1, 0.2, None, None])[1], NAMES, SPANS)) == 0  # two shared components are no match


def test_other_models_are_left_out_unless_asked_for(corpus: Corpus) -> None:
    corpus.add([entry("w", [0.1, 0.2, 0.3, 0.4], model="n")])
    query = entry("q", [0.1, 0.2, 0.3, 0.4])[1]
    assert "w" not in corpus.search(query, NAMES, SPANS, weights_sha256="mmm")["item"].to_list()
    assert "w" in corpus.search(query, NAMES, SPANS)["item"].to_list()


def test_duplicates_are_refused_or_replaced(corpus: Corpus) -> None:
    with pytest.raises(RunExistsError, match="'x' of r"):
        corpus.add([entry("new", [0, 0, 0, 0]), entry("x", [0.5] * 4)])
    assert [e.item for e in Corpus.open(corpus.path).entries] == ["x", "y", "z"]  # all or none
    corpus.add([entry("x", [0.5] * 4)], replace=True)
    again = Corpus.open(corpus.path)
    assert [e.item for e in again.entries] == ["x", "y", "z"] and again.matrix(NAMES)[0].tolist() == [0.5] * 4
    assert len(list((corpus.path / "signatures").iterdir())) == 3


def test_damage_is_named(corpus: Corpus) -> None:
    file = next((corpus.path / "signatures").glob(f"{corpus.entries[1].key}*"))
    data = file.read_bytes()
    file.write_bytes(data[:-1] + b"?")
    with pytest.raises(RunDamagedError, match=file.name):
        corpus.search(entry("q", [0.1] * 4)[1], NAMES, SPANS)
    file.unlink()
    with pytest.raises(RunDamagedError, match=file.name):
        Corpus.open(corpus.path).matrix(NAMES)
    corpus.add([entry("y", [0.9, 0.8, 0.7, 0.6])], replace=True)
    assert Corpus.open(corpus.path).matrix(NAMES).shape == (3, 4)
    (corpus.path / "corpus.json").write_text('{"corpus_version": 99}')
    with pytest.raises(RunDamagedError, match="version 99"):
        Corpus.open(corpus.path)
    (corpus.path / "corpus.json").write_text("no")
    with pytest.raises(RunDamagedError, match="no corpus manifest"):
        Corpus.open(corpus.path)


def test_refusals(tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(StoreError, match="no corpus"):
        Corpus.open(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(RunExistsError, match="no corpus"):
        Corpus.open(tmp_path / "full", create=True)
    with pytest.raises(ConfigError, match="top"):
        corpus.search(entry("q", [0.1] * 4)[1], NAMES, SPANS, top=0)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_corpus import Corpus, entry
from symbolic_residue.store import _corpus
corpus = Corpus.open({path!r})
real = _corpus.write_bytes
def write(root, name, data):
    if name == {at!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    real(root, name, data)
_corpus.write_bytes = write
corpus.add([entry("late", [0.2] * 4), entry("x", [0.5] * 4)], replace=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_a_killed_write_changes_nothing(corpus: Corpus) -> None:
    before = Corpus.open(corpus.path).matrix(NAMES)
    code = textwrap.dedent(KILLED).format(here=str(Path(__file__).parent), path=str(corpus.path), at="corpus.json")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert len(list((corpus.path / "signatures").iterdir())) == 5  # two files that no manifest names
    again = Corpus.open(corpus.path)
    assert np.array_equal(again.matrix(NAMES), before, equal_nan=True)
    again.add([entry("late", [0.2] * 4)])
    assert len(list((corpus.path / "signatures").iterdir())) == 4
    assert [e.item for e in Corpus.open(corpus.path).entries] == ["x", "y", "z", "late"]


# -- the command line --------------------------------------------------------------------------------------------------------


def make_run(path: Path, shift: float, items: int = 2) -> None:
    with RunFolder.create(
        path, kind="value-collapse", command="x", provenance={"model": "m", "weights_sha256": "abc"}, config={}, planned=None
    ) as run:
        for i in range(items):
            js = pl.DataFrame(
                {"variant": [1, 2], "kind": ["k"] * 2, "text": ["t"] * 2, "js": [0.1 * shift, 0.2 * shift + 0.01 * i], "top_token": ["a"] * 2,
                 "top_probability": [0.5] * 2, "changed": [False, shift > 1]}
            )  # fmt: skip
            curves = pl.DataFrame(
                {"curve": ["c"] * 2, "series": ["s"] * 2, "x": [0.0, 1.0], "x_unit": ["u"] * 2, "value": [1.0, 0.3 * shift], "low": [None] * 2,
                 "high": [None] * 2, "n": [1, 1], "unit": ["u"] * 2},
                schema_overrides={"low": pl.Float64, "high": pl.Float64},
            )  # fmt: skip
            row = {
                "prompt": f"text {i}",
                "text": "t",
                "chat": False,
                "n_tokens": 3,
                "seed": 0,
                "status": "done",
                "error": None,
                "summary": "[red]so",
            }
            run.write_item(
                f"i{i}", {"items": pl.DataFrame([row], schema_overrides={"error": pl.String}), "sensitivity": js, "curves": curves}
            )


def test_add_search_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("one"), 0.5)
    make_run(Path("two"), 2.0)
    assert main(["corpus", "list"]) == 5
    assert "no corpus" in capsys.readouterr().err
    assert main(["corpus", "add", "one", "two"]) == 0
    assert "4 added; 4 in residue-corpus" in capsys.readouterr().out
    assert main(["corpus", "add", "one"]) == 5
    assert "already in" in capsys.readouterr().err
    assert main(["corpus", "add", "one", "--replace", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] == 4
    assert main(["corpus", "search", "one"]) == 2
    assert "--item" in capsys.readouterr().err
    assert main(["corpus", "search", "one", "--item", "i0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert (found[0]["run"], found[0]["item"]) == ("one", "i1") and len(found) == 3  # not itself
    assert main(["corpus", "search", "one", "--item", "i0", "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert "Compared with 3 of 4 entries." in out and "[red]so" in out
    assert main(["corpus", "list", "--json"]) == 0
    assert [e["item"] for e in json.loads(capsys.readouterr().out)] == ["i0", "i1", "i0", "i1"]
    assert main(["corpus", "list"]) == 0
    assert "value-collapse" in capsys.readouterr().out
    assert len(list(Path("residue-corpus/signatures").iterdir())) == 4
