"""``residue diagnose``, ``shell``, ``read`` and ``report`` from the command line to the run folder, on a tiny model; and all that can go wrong."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import polars as pl
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import main
from symbolic_residue.store import RunFolder, validate

SENTENCE = "The mill stands where the river turns, and the miller keeps the key to the gate. The mill stands where the"
FAST = ["--variants", "3", "--steps", "2", "--top-heads", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What standard error says of a refused command: one message, no traceback, standard output empty."""
    code = main([*words])
    out, err = capsys.readouterr()
    assert code not in (0, 70), err
    assert "Traceback" not in err
    assert "bug in symbolic_residue" not in err
    assert out == ""
    return " ".join(err.split())


def test_diagnose_fills_a_valid_run_folder_and_a_report(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", SENTENCE, "--model", model, "--output", "run", "--seed", "3"]) == 0
    assert validate("run") == []
    out = capsys.readouterr().out
    assert "flatness" in out
    assert "report.html" in out
    run = RunFolder.open("run")
    assert run.manifest.status == "complete"
    assert run.manifest.provenance["seed"] == 3
    assert run.manifest.command.startswith("residue diagnose")
    verdicts = run.table("verdicts")
    assert verdicts["mode"].to_list() == ["flatness", "oscillation", "value collapse", "confidence fragility"]
    check = run.table("dla_check")
    assert check["error"].abs().max() < 1e-3  # type: ignore[operator]
    # Two lines of polars, as the documentation promises.
    attention = pl.read_parquet("run/tables/attention")
    sums = attention.group_by("layer", "head").agg(pl.col("mass").sum())
    assert sums["mass"].to_list() == pytest.approx([1.0] * 8, abs=1e-4)
    assert run.item_tensors("prompt")["dla_heads"].shape[-2:] == (2, 4)
    page = Path("run/report.html").read_text("utf-8")
    assert "flatness" in page


def test_the_same_seed_gives_the_same_tables(model: str) -> None:
    for name in ("a", "b"):
        assert main(["shell", "value-collapse", SENTENCE, "--model", model, "--output", name, *FAST, "--no-report"]) == 0
    a, b = RunFolder.open("a"), RunFolder.open("b")
    assert a.manifest.tables.keys() == b.manifest.tables.keys()
    for name in a.manifest.tables:
        assert a.table(name).equals(b.table(name)), name
    assert not Path("a/report.html").exists()


def test_json_output(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["shell", "value-collapse", SENTENCE, "--model", model, "--output", "run", *FAST, "--json"]
    assert main([*words, "--candidate", " the", "--candidate", " and", "--chat"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["items"][0]["status"] == "done"
    assert len(found["items"][0]["verdicts"]) == 4
    assert set(RunFolder.open("run").table("candidates")["token"]) == {" the", " and"}
    assert RunFolder.open("run").table("candidates")["source"].unique().to_list() == ["given"]


def test_read_keeps_every_row(model: str) -> None:
    assert main(["read", SENTENCE, "--model", model, "--output", "run", "--span", "keeper=the miller"]) == 0
    assert validate("run") == []
    run = RunFolder.open("run")
    mass, stats, tokens = run.table("readout_mass"), run.table("readout_stats"), run.table("tokens")
    n = len(tokens)
    assert len(stats) == 2 * 4 * n
    assert mass["region"].unique().sort().to_list() == ["answer", "keeper", "self", "sink", "text"]
    sums = mass.group_by("layer", "head", "row").agg(pl.col("mass").sum())["mass"]
    assert (sums - 1).abs().max() < 1e-5  # type: ignore[operator]
    # Row 0 can only see itself.
    assert stats.filter(pl.col("row") == 0)["entropy"].abs().max() < 1e-5  # type: ignore[operator]
    assert main(["read", SENTENCE, "--model", model, "--output", "last", "--rows", "-1"]) == 0
    assert RunFolder.open("last").table("readout_stats")["row"].unique().to_list() == [n - 1]


@pytest.mark.parametrize(("backend", "mode"), [("torch", "observe"), ("blocks", "replace"), ("dense", "observe")])
def test_a_run_says_what_computed_its_readouts(model: str, backend: str, mode: str) -> None:
    """Forced by name, recorded per table, and equal to what is chosen by itself."""
    words = ["read", SENTENCE, "--model", model]
    assert main([*words, "-o", "auto"]) == 0
    assert main([*words, "-o", "forced", "--backend", backend, "--mode", mode]) == 0
    auto, forced = RunFolder.open("auto"), RunFolder.open("forced")
    assert forced.table("readouts").select("table", "backend", "mode").rows() == [
        (name, backend, mode) for name in ("readout_mass", "readout_stats")
    ]
    assert auto.table("readouts")["backend"].unique().to_list() in (["native"], ["torch"])
    assert forced.manifest.config | {"backend": "auto", "mode": "auto"} == auto.manifest.config
    keys = ["layer", "head", "row", "region"]
    both = auto.table("readout_mass").join(forced.table("readout_mass"), on=keys, suffix="_forced", validate="1:1")
    assert len(both) == len(auto.table("readout_mass"))
    assert (both["mass"] - both["mass_forced"]).abs().max() < 1e-5  # type: ignore[operator]


def test_a_backend_that_cannot_run_here_is_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "read", SENTENCE, "--model", model, "-o", "run", "--backend", "triton")
    assert "triton" in said


def test_report_again_with_figures(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shell", "value-collapse", SENTENCE, "--model", model, "--output", "run", *FAST, "--no-report"]) == 0
    capsys.readouterr()
    assert main(["report", "run", "--figures", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["report"]).exists()
    assert {Path(f).suffix for f in found["figures"]} == {".svg", ".png"}


def test_a_bad_line_is_named_and_the_good_ones_run(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        json.dumps({"id": "good", "prompt": SENTENCE}),
        '{"prompt": ',
        json.dumps({"id": "also", "prompt": "Anna put the red"}),
    ]
    Path("prompts.jsonl").write_text("\n".join(lines), "utf-8")
    code = main(["shell", "value-collapse", "--file", "prompts.jsonl", "--model", model, "--output", "run", *FAST])
    assert code == 1
    run = RunFolder.open("run")
    assert run.done_items() == ["good", "also"]
    assert run.failed_items() == ["line-00002"]
    assert "Line 2" in run.table("items").filter(pl.col("status") == "failed")["error"][0]
    assert "line-00002" in capsys.readouterr().out
    assert validate("run") == []


def test_one_over_long_prompt_fails_alone(model: str) -> None:
    lines = [json.dumps({"id": "long", "prompt": "river " * 300}), json.dumps({"id": "short", "prompt": SENTENCE})]
    Path("prompts.jsonl").write_text("\n".join(lines), "utf-8")
    assert main(["shell", "value-collapse", "-f", "prompts.jsonl", "-m", model, "-o", "run", *FAST, "--no-report"]) == 1
    items = RunFolder.open("run").table("items")
    assert "256" in items.filter(pl.col("item") == "long")["error"][0]
    assert items.filter(pl.col("item") == "short")["status"][0] == "done"


def test_script_and_control_characters_are_shown_not_run(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "<script>document.title='run'</script> a \x1b[31mred\x07 key \u202e and the gate"
    assert main(["shell", "value-collapse", nasty, "--model", model, "--output", "run", *FAST]) == 0
    page = Path("run/report.html").read_text("utf-8")
    assert "<script>document.title" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    out = capsys.readouterr().out
    assert "\x1b[31mred" not in out
    assert validate("run") == []


@pytest.mark.parametrize(
    ("words", "say"),
    [
        (["diagnose"], "Give a prompt"),
        (["diagnose", ""], "empty"),
        (["diagnose", "  \n"], "empty"),
        (["diagnose", "a", "--file", "b"], "not both"),
        (["diagnose", "--file", "missing.jsonl"], "missing.jsonl"),
        (["diagnose", "a", "--model", "no-such-model-anywhere"], "no-such-model-anywhere"),
        (["diagnose", "a", "--model", "nobody/nothing"], "residue models fetch demo"),
        (["read", "a", "--rows", "x"], "--rows"),
        (["read", "a", "--span", "nothing"], "NAME=TEXT"),
        (["read", "a", "--backend", "cuda"], "native"),
        (["read", "a", "--mode", "both"], "observe"),
        (["shell", "value-collapse", "a", "--mass", "2"], "mass"),
        (["shell", "value-collapse", "a", "--refiner", "none"], "verdict_refiner"),
        (["report", "nowhere"], "nowhere"),
        (["diagnose", "a", "--dtype", "float7"], "float7"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], say: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert say in refused(capsys, *words)


def test_refusals_on_a_model(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nonsense" in refused(capsys, "diagnose", "a b", "--model", model, "--device", "nonsense")
    Path("empty").mkdir()
    assert "config.json" in refused(capsys, "diagnose", "a", "--model", "./empty")
    Path("there").mkdir()
    Path("there/file").write_text("x")
    assert "there" in refused(capsys, "diagnose", SENTENCE, "--model", model, "--output", "there")
    Path("file").write_text("x")
    assert "file" in refused(capsys, "diagnose", SENTENCE, "--model", model, "--output", "file/run")


def test_a_candidate_of_several_tokens_fails_with_its_pieces(model: str) -> None:
    words = [
        "shell",
        "value-collapse",
        SENTENCE,
        "-m",
        model,
        "-o",
        "run",
        *FAST,
        "--no-report",
        "--candidate",
        " and",
        "--candidate",
        " zebra",
    ]
    assert main(words) == 1
    assert "not one token" in RunFolder.open("run").table("items")["error"][0]


def test_nan_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = build("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    broken.save_pretrained("broken")
    tiny_tokenizer().save_pretrained("broken")
    assert "down_proj" in refused(capsys, "diagnose", SENTENCE, "--model", "./broken")


def test_a_folder_that_cannot_be_written(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "/proc" in refused(capsys, "diagnose", SENTENCE, "--model", model, "--output", "/proc/residue-run")


def test_a_full_disk_keeps_what_was_finished(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from symbolic_residue.store import _run

    Path("prompts.jsonl").write_text("\n".join(json.dumps({"id": f"p{i}", "prompt": SENTENCE}) for i in range(3)), "utf-8")
    real, count = _run.write_bytes, [0]

    def full(root: Path, name: str, data: bytes) -> None:
        if "p1" in name:
            count[0] += 1
            from symbolic_residue.errors import WriteError

            raise WriteError(f"{name} cannot be written: {os.strerror(errno.ENOSPC)}.")
        real(root, name, data)

    words = ["shell", "value-collapse", "-f", "prompts.jsonl", "-m", model, "-o", "run", *FAST, "--no-report"]
    with monkeypatch.context() as patch:
        patch.setattr(_run, "write_bytes", full)
        said = refused(capsys, *words)
    assert os.strerror(errno.ENOSPC) in said
    assert count[0]
    run = RunFolder.open("run")
    assert run.done_items() == ["p0"]
    assert run.manifest.status == "failed"
    assert main([*words, "--resume"]) == 0
    assert RunFolder.open("run").done_items() == ["p0", "p1", "p2"]


def test_ctrl_c_keeps_what_was_finished_and_the_manifest_says_so(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from symbolic_residue.shells import ValueCollapseShell

    Path("prompts.jsonl").write_text("\n".join(json.dumps({"id": f"p{i}", "prompt": SENTENCE}) for i in range(3)), "utf-8")
    real, calls = ValueCollapseShell.analyze_residue, [0]

    def interrupted(self, residue, **options):
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return real(self, residue, **options)

    monkeypatch.setattr(ValueCollapseShell, "analyze_residue", interrupted)
    words = ["shell", "value-collapse", "-f", "prompts.jsonl", "-m", model, "-o", "run", *FAST, "--no-report"]
    assert main(words) == 130
    assert "Traceback" not in capsys.readouterr().err
    run = RunFolder.open("run")
    assert run.manifest.status == "interrupted"
    assert run.done_items() == ["p0"]
    assert validate("run") == []
    assert main([*words, "--resume"]) == 0
    assert RunFolder.open("run").done_items() == ["p0", "p1", "p2"]
    assert RunFolder.open("run").manifest.status == "complete"
