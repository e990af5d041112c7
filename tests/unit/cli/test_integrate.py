"""``residue shells integrate`` on a tiny model: one item a shell, one for all, refused shells as failed items."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import main
from symbolic_residue.shells import LayerSalienceShell, Progress, quiet, SHELLS, ValueCollapseConfig, ValueCollapseShell
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
    shells = {"value-collapse", "twin"}
    assert set(run.done_items()) == {*shells, *(f"{name}.elsewhere-1" for name in shells), "together"}
    head = run.table("overlap").filter(pl.col("level") == "head").row(0, named=True)
    assert head["shared"] == head["first_n"] == head["second_n"] == 1  # a shell agrees with itself
    assert head["crossed_n"] == 2
    assert run.table("verdicts")["item"].n_unique() == 4
    assert run.table("blame").filter(pl.col("item") == "twin", pl.col("level") == "head").height == 8  # every head that it scores
    assert "value-collapse" in Path("run/report.html").read_text("utf-8")

    monkeypatch.setitem(SHELLS, "needy", ShellEntry(__name__, "NeedsFact", entry.config, "?"))
    monkeypatch.setattr("symbolic_residue.shells._registry.import_module", _import)
    code = main([*words[:-2], "-s", "needy", "-o", "second", "--no-report"])
    assert code == 1
    second = RunFolder.open("second")
    assert second.failed_items() == ["needy"]
    reasons = dict(second.table("items").select("item", "error").rows())
    assert "fact" in str(reasons["needy"])


def test_a_run_that_was_killed_goes_on_where_it_was(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second shell is killed at work; the run resumed asks only what is lacking, and finds what one that was never stopped finds."""
    monkeypatch.chdir(tmp_path)
    words = ["shells", "integrate", TEXT, "-m", model, "-s", "value-collapse", "-s", "layer-salience", "--no-report"]
    script = (
        "import os, signal, sys\n"
        "from symbolic_residue.cli import main\n"
        "from symbolic_residue.shells import LayerSalienceShell\n"
        "LayerSalienceShell.analyze_residue = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, *words, "-o", "run"], capture_output=True, timeout=120, check=False)
    assert killed.returncode == -9, killed.stderr.decode()[-500:]
    assert RunFolder.open("run").done_items() == ["value-collapse"]
    asked: list[str] = []
    for kind in (ValueCollapseShell, LayerSalienceShell):
        real = kind.run

        def run(self: Any, *given: Any, real: Any = real, **more: Any) -> Any:
            asked.append(self.name)
            return real(self, *given, **more)

        monkeypatch.setattr(kind, "run", run)
    assert main([*words, "-o", "run"]) != 0  # a run is not overwritten unasked
    assert main([*words, "-o", "run", "--resume"]) == 0
    assert asked == ["layer-salience"]
    assert main([*words, "-o", "whole"]) == 0
    one, two = RunFolder.open("run"), RunFolder.open("whole")
    assert one.manifest.status == two.manifest.status == "complete"
    assert one.done_items() == two.done_items() == ["value-collapse", "layer-salience", "together"]
    for name in ("overlap", "blame", "verdicts"):
        assert one.table(name).equals(two.table(name)), name
    capsys.readouterr()
    assert main(["shells", "integrate", "Another text.", *words[3:], "-o", "run", "--resume"]) != 0  # another prompt


def test_a_shell_with_nothing_to_ask_is_left_out_with_its_reason(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a short plain text without orders, of all shells by default: no failure of the command, and the sentence says who is left out and why."""
    monkeypatch.chdir(tmp_path)
    for name in ("memtrace", "temporal-inference"):
        monkeypatch.delitem(SHELLS, name)
    assert main(["shells", "integrate", TEXT, "-m", model, "-o", "run", "--no-report"]) == 0
    run = RunFolder.open("run")
    assert run.failed_items() == ["instruction-disruption"]
    said = dict(run.table("items").select("item", "summary").rows())["together"]
    assert "value-collapse" in said and "instruction-disruption was left out (0 of the text's sentences are instructions" in said
    named = ["-s", "value-collapse", "-s", "layer-salience", "-s", "instruction-disruption"]
    assert main(["shells", "integrate", TEXT, "-m", model, *named, "-o", "second", "--no-report"]) == 1  # asked for by name


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
