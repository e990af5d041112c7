"""``residue shells integrate`` on a tiny model: one item a shell, one for all, refused shells as failed items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import main
from symbolic_residue.shells import Progress, quiet, SHELLS, ValueCollapseConfig, ValueCollapseShell
from symbolic_residue.shells._registry import ShellEntry
from symbolic_residue.store import RunFolder, validate

__all__ = ["NeedsFact", "ValueCollapseConfig"]  # looked up by the registry

TEXT = "The mill stands where the river turns. The mill stands where the"


class NeedsFact(ValueCollapseShell):
    def run(self, input_text: str, fact: str, *, seed: int = 0, progress: Progress = quiet) -> Any:  # type: ignore[override]
        return super().run(input_text, seed=seed, progress=progress)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_every_shell_has_an_item_and_all_have_one(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = SHELLS["value-collapse"]
    monkeypatch.setitem(SHELLS, "twin", entry)
    words = ["shells", "integrate", TEXT, "-m", model, "-s", "value-collapse", "-s", "twin", "--elsewhere", "Anna put the red book"]
    assert main([*words, "-o", "run"]) == 0
    assert "together" in capsys.readouterr().out
    assert validate("run") == []
    run = RunFolder.open("run")
    assert set(run.done_items()) == {"value-collapse", "twin", "together"}
    head = run.table("overlap").filter(pl.col("level") == "head").row(0, named=True)
    assert head["shared"] == head["first_n"] == head["second_n"] == 1  # a shell agrees with itself
    assert head["crossed_n"] == 2
    assert run.table("verdicts")["item"].n_unique() == 2
    assert "value-collapse" in Path("run/report.html").read_text("utf-8")

    monkeypatch.setitem(SHELLS, "needy", ShellEntry(__name__, "NeedsFact", entry.config, "?"))
    monkeypatch.setattr("symbolic_residue.shells._registry.import_module", _import)
    code = main([*words[:-2], "-s", "needy", "-o", "second", "--no-report"])
    assert code == 1
    second = RunFolder.open("second")
    assert second.failed_items() == ["needy"]
    reasons = dict(second.table("items").select("item", "error").rows())
    assert "fact" in str(reasons["needy"])


def _import(name: str) -> Any:
    import importlib
    import sys

    return sys.modules[__name__] if name == __name__ else importlib.import_module(name)


def test_one_shell_is_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shells", "integrate", TEXT, "-m", model, "-s", "value-collapse"]) == 2
    assert "two shells" in capsys.readouterr().err
    assert not list(tmp_path.glob("residue-runs/*"))


def test_meta_runs_a_shell_in_its_frame(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("frame.txt").write_text("Probe of the gate: one two three.\n", "utf-8")
    Path("texts.jsonl").write_text('{"id": "a", "prompt": "The miller keeps the key"}\n{"id": "b", "prompt": "Anna put the red"}\n')
    words = ["shell", "meta", "value-collapse", "-m", model, "--frame", "frame.txt"]
    assert main([*words, "--file", "texts.jsonl", "-o", "run"]) == 0
    assert validate("run") == []
    shifts = RunFolder.open("run").table("frame_shifts")
    assert set(shifts["n"]) == {2}
    assert main([*words[:-1], "missing.txt", "A text"]) == 2
