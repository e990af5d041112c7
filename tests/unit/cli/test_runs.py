"""``residue runs``: list, show, validate; as tables and as JSON."""

import json

import polars as pl
import pytest

from symbolic_residue.cli import main
from symbolic_residue.store import RunFolder, TABLES


def table(name: str, **values) -> pl.DataFrame:
    fill = {pl.String: "text", pl.Int64: 1, pl.Float64: 0.5, pl.Boolean: True}
    return pl.DataFrame({c: [values.get(c, fill[type(t)])] for c, t in TABLES[name].items() if c != "item"})


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    options = {"command": "residue diagnose", "provenance": {"model": "[red]m\x1b"}, "config": {"seed": 3}}
    with RunFolder.create("residue-runs/one", kind="diagnose", planned=2, **options) as run:
        for item, outcome in (("a", "fires"), ("b", "absent")):
            verdicts = table("verdicts", shell="value-collapse", mode="flatness", outcome=outcome, direction="above")
            run.write_item(item, {"items": table("items", status="done"), "verdicts": verdicts})
    with pytest.raises(KeyboardInterrupt), RunFolder.create("residue-runs/two", kind="read", planned=2, **options) as run:
        run.write_item("a", {"items": table("items", status="failed")})
        raise KeyboardInterrupt
    return tmp_path / "residue-runs"


def test_no_runs_yet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "list"]) == 0
    assert capsys.readouterr().out == "No runs in residue-runs.\n"
    assert main(["runs", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["runs", "list", "elsewhere"]) == 5
    assert "elsewhere is no folder" in capsys.readouterr().err


def test_list(runs, capsys):
    assert main(["runs", "list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["one", "diagnose", "complete", "2/2", "0"] in [line[:5] for line in lines]
    assert ["two", "read", "interrupted", "0/2", "1"] in [line[:5] for line in lines]
    assert main(["runs", "list", str(runs), "--json"]) == 0
    found = {entry["path"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found[str(runs / "two")]["status"] == "interrupted" and found[str(runs / "one")]["done"] == 2


def test_show(runs, capsys):
    assert main(["runs", "show", "residue-runs/one"]) == 0
    out = capsys.readouterr().out
    assert "[red]m\\x1b" in out and "\x1b" not in out
    assert "2 done, 0 failed of 2 planned" in out and "value-collapse" in out
    assert main(["runs", "show", "residue-runs/one", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["status"] == "complete" and said["config"] == {"seed": 3}
    assert said["verdicts"] == [
        {"shell": "value-collapse", "mode": "flatness", "outcome": outcome, "items": 1} for outcome in ("absent", "fires")
    ]
    assert main(["runs", "show", "residue-runs"]) == 5


def test_validate(runs, capsys):
    assert main(["runs", "validate", "residue-runs/one"]) == 0
    assert capsys.readouterr().out == "residue-runs/one is sound.\n"
    (runs / "one" / "tables" / "verdicts" / "00001-a.parquet").write_bytes(b"junk")
    assert main(["runs", "validate", "residue-runs/one"]) == 5
    assert "tables/verdicts/00001-a.parquet" in capsys.readouterr().out
    assert main(["runs", "validate", "residue-runs/one", "--json"]) == 5
    said = json.loads(capsys.readouterr().out)
    assert not said["sound"] and any("verdicts" in problem["where"] for problem in said["problems"])
    assert main(["runs", "validate", "residue-runs/nowhere", "--json"]) == 5
    assert json.loads(capsys.readouterr().err)["error"] == "StoreError"
