"""``residue shell memtrace`` from the command line to the run folder, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import main
from symbolic_residue.store import RunFolder, validate

TEXT = "The mill is red. Ben came home in the evening. The mill is"
FAST = ["--distance", "4", "--distance", "9", "--draws", "3", "--padding", "natural", "--top-heads", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_prompt_becomes_a_valid_run_folder_and_a_report(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--answer", " red", "--foil", " one", "--foil", " two"]
    assert main(["shell", "memtrace", TEXT, "--model", model, "-o", "run", *words, *FAST]) == 0
    assert validate("run") == []
    out = capsys.readouterr().out
    assert "recall decay" in out
    assert "nan" not in out.split()
    assert "priority collision: not measured: There is no second fact to collide with." in out
    assert "not measured" in next(line for line in out.splitlines() if line.startswith("partial recall"))
    run = RunFolder.open("run")
    assert run.table("verdicts")["shell"].unique().to_list() == ["memtrace"]
    assert set(run.table("fits")["model"]) == {"power law", "exponential", "constant"}
    assert 4.0 in run.table("curves")["x"].to_list()
    assert "recall decay" in Path("run/report.html").read_text("utf-8")


def test_a_file_of_questions(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        {"id": "a", "prompt": TEXT, "answer": " red", "foils": [" one", " two"]},
        {"prompt": "There is nothing here. The mill is", "answer": " red"},
        {"id": "c", "prompt": TEXT, "candidates": [" red"]},
    ]
    Path("q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    code = main(["shell", "memtrace", "--file", "q.jsonl", "--model", model, "-o", "run", "--no-report", "--json", *FAST])
    assert code == 1
    told = capsys.readouterr().out
    assert "NaN" not in told  # JSON has no such number
    said = {i["item"]: i for i in json.loads(told)["items"]}
    assert {v["mode"]: v["value"] for v in said["a"]["verdicts"]}["priority collision"] is None
    assert said["a"]["status"] == "done"
    assert "mentions" in said["line-00002"]["summary"]
    assert "unknown key 'candidates'" in said["line-00003"]["summary"]


def test_what_cannot_be_used_is_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, reason in (
        ([], "Give a prompt"),
        ([TEXT, "--file", "q.jsonl"], "not both"),
        (["--file", "q.jsonl", "--fact", "x"], "belongs to a single prompt"),
        ([TEXT, "--padding", "loud"], "paddings"),
        (["  "], "empty"),
    ):
        Path("q.jsonl").write_text(json.dumps({"prompt": TEXT}) + "\n", "utf-8")
        assert main(["shell", "memtrace", *words, "--model", model]) not in (0, 70)
        assert reason in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "name", ["memtrace", "value-collapse", "layer-salience", "temporal-inference", "instruction-disruption", "custom"]
)
def test_every_shell_has_the_options_of_measuring(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from inspect import signature

    from symbolic_residue.cli._shell import shell_app
    from symbolic_residue.cli._shell_common import Common

    command = next(c.callback for c in shell_app.registered_commands if c.name == name)
    assert command is not None
    found = signature(command).parameters
    common = {field: found[field].default for field in Common.__dataclass_fields__}
    assert common == {field: getattr(Common(), field) for field in Common.__dataclass_fields__}
    assert "common" not in found
    assert list(found)[-len(common) :] == list(common)
    assert main(["shell", name, "--help"]) == 0
    said = capsys.readouterr().out
    assert "--resume" in said and "--no-report" in said


def test_a_seed_reaches_the_run(model: str) -> None:
    assert (
        main(["shell", "memtrace", TEXT, "--model", model, "-o", "run", "--answer", " red", "--seed", "5", "--no-report", *FAST])
        == 0
    )
    run = RunFolder.open("run")
    assert run.manifest.provenance["seed"] == run.manifest.config["seed"] == 5
