"""`residue heal` on a shell, on a suite's run, cut off and resumed; what cannot be healed is refused and says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tiny_models import build, tiny_tokenizer

from symbolic_residue.cli import main
from symbolic_residue.diagnose import heal_item, items_row, run_groups
from symbolic_residue.errors import ConfigError, NoRightAnswerError
from symbolic_residue.shells import shell_class, TemporalInferenceConfig
from symbolic_residue.store import RunFolder, validate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "tiny"
    build("llama", max_position_embeddings=2048).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def verdict(shell: str, mode: str, outcome: str) -> dict[str, Any]:
    return {
        "shell": shell, "mode": mode, "outcome": outcome, "quantity": "q", "unit": "nats", "value": -1.0, "low": -2.0, "high": -0.5, "n": 6,
        "control": "c", "control_value": 0.0, "control_low": None, "control_high": None, "control_n": 6, "criterion": 0.0, "direction": "below",
        "criterion_source": "given", "note": "",
    }  # fmt: skip


def tables(fires: dict[str, list[str]]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """``shell_items`` and ``verdicts`` of temporal items: item id → modes that fire."""
    items = {i.id: i for i in shell_class("temporal-inference").items()}
    rows, verdicts = [], []
    for name, modes in fires.items():
        item, key = items[name], f"temporal-inference.{name}"
        rows.append(
            {"item": key, "shell": "temporal-inference", "benchmark": "temporal-coherence", "benchmark_item": name, "kind": item.kind,
             "frame": item.frame, "split": item.split, "null": item.null, "planted": ", ".join(item.modes)}
        )  # fmt: skip
        for mode in ("drift", "ordering reversal", "causal confusion"):
            verdicts.append({"item": key, **verdict("temporal-inference", mode, "fires" if mode in modes else "absent")})
    return pl.DataFrame(rows), pl.DataFrame(verdicts)


def made_run(path: Path, model: str, fires: dict[str, list[str]], **changes: Any) -> Path:
    """A suite's run with these verdicts."""
    from symbolic_residue.models import load_model

    shell_items, verdicts = tables(fires)
    provenance = {**load_model(model).provenance.model_dump(mode="json"), **changes}
    config = {"shells": {"temporal-inference": TemporalInferenceConfig.quick(wordings=2, top_heads=0).model_dump(mode="json")}}
    with RunFolder.create(path, kind="shells", command="residue shells run", provenance=provenance, config=config) as run:
        for key in shell_items["item"]:
            row = items_row(prompt="p", text=None, chat=False, n_tokens=None, seed=0, status="done", error=None, summary="s")
            mine = {"shell_items": shell_items, "verdicts": verdicts}
            run.write_item(key, {"items": row, **{n: f.filter(pl.col("item") == key) for n, f in mine.items()}})
    return path


ORDER = [f"order-{i:02d}" for i in range(1, 5)]


def test_a_run_is_healed_where_its_verdicts_fire(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fires = {
        **{name: ["ordering reversal"] for name in ORDER},
        "order-05": [],
        "cause-01": ["causal confusion"],
        "echo-01": ["drift"],
    }
    fires["null-right-order-01"] = ["ordering reversal"]
    run = made_run(tmp_path / "suite", folder, fires)
    out = tmp_path / "healed"
    assert main(["heal", str(run), "--model", folder, "--draws", "1", "-o", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert "temporal-inference: drift (1 item): left out" in " ".join(said.err.split())
    assert {i["item"] for i in json.loads(said.out)["items"]} == {
        "temporal-inference: the right order",
        "temporal-inference: the right cause and effect",
    }
    assert validate(out) == []
    kept = RunFolder.open(out)
    groups = {g["right"]: g for g in kept.manifest.config["groups"]}
    assert groups["the right order"]["search"] == [
        f"{name} (ordering reversal)" for name in ORDER
    ]  # not the null one, nor the one that is absent
    assert kept.manifest.config["left_out"] == {"temporal-inference: drift": 1}
    heals = kept.table("heals").filter(pl.col("item") == "temporal-inference: the right order")
    assert set(heals["failure"]) <= {"order-01", "order-03"}  # the others are held out
    assert set(heals["prompts"]) <= {4}  # the run's two wordings, in both orders
    assert "heal rules" in (out / "report.html").read_text("utf-8") or heals.is_empty()


def test_a_run_without_anything_to_heal_is_refused(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def err(*words: str) -> str:
        assert main(["heal", *words]) == 2
        return " ".join(capsys.readouterr().err.split())

    none = made_run(tmp_path / "none", folder, {"order-01": []})
    assert "No verdict of the run fires" in err(str(none), "--model", folder)
    drift = made_run(tmp_path / "drift", folder, {"echo-01": ["drift"]})
    assert "drift has no right answer" in err(str(drift), "--model", folder)
    other = made_run(tmp_path / "other", folder, {"order-01": ["ordering reversal"]}, weights_sha256="0" * 64)
    assert "another model" in err(str(other), "--model", folder)
    assert "own options" in err(str(other), "--full")
    assert "Give one of" in err("--shell", "memtrace", "--benchmark", "memory-degradation")
    assert "drift has no right answer" in err("--shell", "temporal-inference", "--mode", "drift")
    assert "no shell" in err("--shell", "tea-leaves")
    assert "--held-out belongs to a file" in err("--shell", "memtrace", "--held-out", "x.jsonl")
    path = tmp_path / "failures.jsonl"
    path.write_text('{"prompt": "a b", "answer": " c"}', "utf-8")
    assert "--mode belongs to" in err(str(path), "--mode", "drift")
    with pytest.raises(ConfigError, match="no items of packaged"):
        run_groups(pl.DataFrame(), pl.DataFrame())
    shell_items, verdicts = tables({"echo-01": ["drift"]})
    with pytest.raises(NoRightAnswerError, match="many continuations"):
        run_groups(shell_items, verdicts)


def test_a_shell_is_healed_item_by_item_and_resumed(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, done = tmp_path / "run", []
    words = [
        "heal",
        "--shell",
        "temporal-inference",
        "-n",
        "2",
        "--draws",
        "1",
        "--model",
        folder,
        "-o",
        str(run),
        "--json",
        "--no-report",
    ]

    def cut_off(*args: Any, **options: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(args[1])
        return heal_item(*args, **options)

    monkeypatch.setattr("symbolic_residue.diagnose.heal_item", cut_off)
    assert main(words) == 130
    monkeypatch.undo()
    assert RunFolder.open(run).done_items() == ["temporal-inference: the right order"]
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    assert [i["item"] for i in json.loads(capsys.readouterr().out)["items"]] == ["temporal-inference: the right cause and effect"]
    assert validate(run) == []
    assert main([*words[:3], "-n", "1", *words[5:], "--resume"]) == 5  # another config
