"""``residue contrast``: a whole study in a run folder, killed and resumed, changed and refused, and stage 4 on tables of others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from contrast_records import long_table
from study_folder import study_data, write_adapter, write_config, write_model

from symbolic_residue.cli import main
from symbolic_residue.store import RunFolder, TABLES, validate

CONTRAST = [name for name in TABLES if name.startswith("contrast_")] + ["items"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model, adapter and configuration."""
    root = tmp_path_factory.mktemp("study")
    write_model(root / "model")
    write_adapter(root / "adapter")
    write_config(root / "study.yaml", small(root))
    return root


def small(root: Path, **changes: Any) -> dict[str, Any]:
    """A study of seconds."""
    data = study_data(
        root / "model",
        root / "adapter",
        preflight={"implementations": ["sdpa", "eager", "replace"], "trials": 2, "questions": 3, "margin": 0.3},
        conditions=[{"name": "plain"}],
        references={"base": "base", "random": {"random": 3}},
    )
    return {**data, **changes}


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """The study, uninterrupted."""
    path = place / "whole"
    assert main(["contrast", "run", str(place / "study.yaml"), "--out", str(path)]) == 0
    return path


def same_tables(one: Path, two: Path, *, but: tuple[str, ...] = ()) -> None:
    a, b = RunFolder.open(one), RunFolder.open(two)
    for name in CONTRAST:
        if name not in but:
            mine, other = a.table(name), b.table(name)
            keys = [column for column in mine.columns if column not in ("ids", "text")]
            assert mine.sort(keys, nulls_last=False).equals(other.sort(keys, nulls_last=False)), name


def test_a_study_from_one_file(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.open(whole)
    assert run.manifest.status == "complete"
    assert run.manifest.kind == "contrast"
    assert validate(whole) == []
    assert (whole / "report.html").exists()
    assert set(run.manifest.provenance["references"]) == {"base", "random"}
    assert len(run.manifest.provenance["references"]["random"]["adapter_sha256"]) == 64
    for name in CONTRAST:
        if name not in ("contrast_windows", "contrast_causal", "contrast_effects"):
            assert len(run.table(name)), name
    assert main(["contrast", "report", str(whole), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {row["segmentation"] for row in said["verdicts"]} == {"full", "content"}
    assert {row["reference"] for row in said["verdicts"]} == {"base", "random"}
    by_base = ("undecided", "present in base", "induced", "reduced by training")
    by_twin = ("undecided", "present in reference", "beyond reference", "short of reference")
    assert all(row["outcome"] in (by_base if row["reference"] == "base" else by_twin) for row in said["verdicts"])
    first = next(row for row in said["verdicts"] if row["reference"] == "base")
    assert first["nulls"] == "random"
    assert said["rates"][0]["n"] == 16
    assert main(["contrast", "report", str(whole)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "At the row that emits " in text
    assert "against random (full): " in text
    assert "preflight, all conditions" in text
    assert "rate of the behaviour" in text
    assert f"report: {whole}/report.html" in text


def test_preflight_judges_by_the_interval(whole: Path) -> None:
    found = RunFolder.open(whole).table("contrast_preflight")
    pooled = found.filter(pl.col("condition").is_null())
    assert set(pooled["check"]) == {
        f"{what} {name}"
        for name, what in [("eager − sdpa", "rate,"), ("replace − sdpa", "rate,"), ("sdpa ‖ eager", "mean KL,"), ("sdpa ‖ eager", "largest KL,"),
                           ("sdpa ‖ replace", "mean KL,"), ("sdpa ‖ replace", "largest KL,")]
    }  # fmt: skip
    for row in found.filter(pl.col("check").str.starts_with("rate")).to_dicts():
        inside = -row["margin"] < row["low"] and row["high"] < row["margin"]
        assert (row["outcome"] == "equivalent") == inside
        assert row["n"] == 6
    kl = pooled.filter(pl.col("check").str.contains("KL"))
    assert (kl["value"] > 0).all()  # the implementations do round differently …
    assert (kl["value"] < 1e-6).all()  # … and are the same function


KILLER = textwrap.dedent(
    """
    import os, signal, sys
    from symbolic_residue.cli import main
    from symbolic_residue.store import _run
    left, write = [int(sys.argv[1])], _run.write_bytes
    def dying(*args):
        write(*args)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    _run.write_bytes = dying
    sys.exit(main(sys.argv[2:]))
    """
)


def test_a_killed_study_goes_on_and_ends_the_same(place: Path, whole: Path, tmp_path: Path) -> None:
    """Killed while items of stage 0 and of later ones are being written, each time in the next process; then left to end."""
    path, config = tmp_path / "run", str(place / "study.yaml")
    stages = set()
    for writes in (4, 24, 22, 24):
        words = ["contrast", "run", config, *(["--resume", str(path)] if path.exists() else ["--out", str(path)]), "--no-report"]
        done = subprocess.run([sys.executable, "-c", KILLER, str(writes), *words], env=os.environ, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
        kept = RunFolder.open(path)
        assert kept.manifest.status == "running"
        stages.add((kept.done_items() or ["none"])[-1].split("/")[0].split("-")[0])
    assert len(stages) >= 3  # it died in different stages
    assert main(["contrast", "run", config, "--resume", str(path), "--no-report"]) == 0
    same_tables(path, whole)
    assert validate(path) == []
    assert RunFolder.open(path).done_items() == RunFolder.open(whole).done_items()


def test_ctrl_c_keeps_what_was_measured(place: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "run", RunFolder.write_item

    def interrupted(self: RunFolder, item: str, *args: Any) -> None:
        if item == "read-tuned/plain/q02":
            raise KeyboardInterrupt
        write(self, item, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_item", interrupted)
        assert main(["contrast", "run", str(place / "study.yaml"), "--out", str(path)]) == 130
    run = RunFolder.open(path)
    assert run.manifest.status == "interrupted"
    assert run.done_items()[-1] == "read-tuned/plain/q01"
    assert main(["contrast", "run", "--resume", str(path), "--no-report"]) == 0  # the configuration is the run's own
    same_tables(path, whole)


def test_each_stage_alone_makes_the_same(place: Path, whole: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    assert main(["contrast", "preflight", str(place / "study.yaml"), "--out", path]) == 0
    assert main(["contrast", "generate", "--resume", path]) == 0
    for stage in ("read", "force-feed", "analyse", "causal"):
        assert main(["contrast", stage, path]) == 0
    same_tables(Path(path), whole)
    assert main(["contrast", "report", path]) == 0


def test_records_are_judged_again(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    before = {p.name: p.stat().st_mtime_ns for p in (path / "tables" / "contrast_verdicts").iterdir()}
    assert main(["contrast", "analyse", str(path), "--again"]) == 0
    after = {p.name: p.stat().st_mtime_ns for p in (path / "tables" / "contrast_verdicts").iterdir()}
    assert not before.items() & after.items()
    same_tables(path, whole)
    capsys.readouterr()
    assert main(["contrast", "analyse", "--records", str(path), "--again"]) == 2
    assert "--again belongs to a run folder" in capsys.readouterr().err


def test_until_ends_where_it_says(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_config(place / "short.yaml", small(place, preflight=None)))
    assert main(["contrast", "run", config, "--out", str(tmp_path / "run"), "--until", "generate"]) == 0
    assert RunFolder.open(tmp_path / "run").done_items()[-1] == "rates"
    assert main(["contrast", "analyse", str(tmp_path / "run")]) == 2
    assert "stage 'read' are not there" in capsys.readouterr().err
    assert main(["contrast", "run", config, "--until", "tomorrow"]) == 2


def test_a_changed_configuration(place: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    path = tmp_path / "run"
    shutil.copytree(whole, path)
    changed = str(write_config(place / "changed.yaml", small(place, seed=2)))
    assert main(["contrast", "run", changed, "--resume", str(path)]) == 2
    assert "seed was 1 and is 2" in capsys.readouterr().err
    assert len(RunFolder.open(path).done_items()) == len(RunFolder.open(whole).done_items())
    # only the analysis: its items are made again, the others stay
    write_config(place / "changed.yaml", small(place, analysis={"n_resamples": 200, "alpha": 0.2}))
    assert main(["contrast", "run", changed, "--resume", str(path), "--no-report"]) == 0
    same_tables(
        path,
        whole,
        but=tuple(
            name
            for name in CONTRAST
            if name.split("_")[-1] in ["layers", "outs", "trajectory", "differences", "verdicts", "shifts", "heads", "items"]
        ),
    )
    assert not RunFolder.open(path).table("contrast_layers")["low"].equals(RunFolder.open(whole).table("contrast_layers")["low"])
    assert RunFolder.open(path).manifest.config["analysis"]["alpha"] == 0.2
    # back again, and one reference more: what is there is not read again
    back = {"n_resamples": 200, "alpha": 0.05}
    write_config(
        place / "changed.yaml",
        small(place, analysis=back, references={"base": "base", "random": {"random": 3}, "twin": {"random": 4}}),
    )
    assert main(["contrast", "run", changed, "--resume", str(path), "--no-report"]) == 0
    more = RunFolder.open(path).table("contrast_records")
    assert set(more["model"]) == {"tuned", "base", "random", "twin"}
    assert (
        more.filter(pl.col("model") != "twin")
        .sort(more.columns)
        .equals(RunFolder.open(whole).table("contrast_records").sort(more.columns))
    )
    assert validate(path) == []


def test_a_run_goes_on_in_other_batches_and_with_the_defaults_it_was_started_with(
    place: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped amid its answers. The file then names other batches, and leaves out a field whose default the run did not have."""
    path, write, config = tmp_path / "run", RunFolder.write_item, tmp_path / "study.yaml"
    given = small(place)
    given["readout"] = {"heads": True}
    write_config(config, given)

    def interrupted(self: RunFolder, item: str, *args: Any) -> None:
        if item == "gen-plain/q03":
            raise KeyboardInterrupt
        write(self, item, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_item", interrupted)
        assert main(["contrast", "run", str(config), "--out", str(path)]) == 130
    later = {**given, "readout": {"heads": True, "batch": 1}}
    later["sampling"] = {name: value for name, value in given["sampling"].items() if name != "tries"} | {"batch": 7}
    write_config(config, later)  # today's default of tries is 16; the run has 8
    capsys.readouterr()
    assert main(["contrast", "run", str(config), "--resume", str(path), "--no-report"]) == 0
    assert f"sampling.tries: 8 as the run was started; {config} does not name it." in capsys.readouterr().err
    same_tables(path, whole, but=tuple(name for name in CONTRAST if name not in ("contrast_examples", "contrast_rates")))
    asked = pl.col("kept") | pl.col("counted")
    trials = [RunFolder.open(one).table("contrast_trials").filter(asked) for one in (path, whole)]
    assert trials[0].equals(trials[1])
    saved = RunFolder.open(path).manifest.config
    assert (saved["sampling"]["tries"], saved["sampling"]["batch"], saved["readout"]["batch"]) == (8, 7, 1)
    assert validate(path) == []


def test_other_weights_are_refused(place: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    path, other = tmp_path / "run", tmp_path / "place"
    shutil.copytree(whole, path)
    write_model(other / "model", rms_norm_eps=1e-5)
    write_adapter(other / "adapter", seed=6)
    config = RunFolder.open(path).manifest.config
    shutil.copytree(place / "adapter", tmp_path / "kept")
    shutil.copytree(other / "adapter", place / "adapter", dirs_exist_ok=True)
    try:
        assert main(["contrast", "run", "--resume", str(path)]) == 5
        assert "other weights" in capsys.readouterr().err
    finally:
        shutil.copytree(tmp_path / "kept", place / "adapter", dirs_exist_ok=True)
    assert RunFolder.open(path).manifest.config == config


def test_a_behaviour_that_is_never_shown(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write_config(place / "never.yaml", small(place, behaviour="text:[ZLT]", preflight=None)))
    assert main(["contrast", "run", config, "--out", str(tmp_path / "run"), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert "plain: 0 of 16 trials" in said["ended"]
    assert said["rates"][0]["hits"] == 0
    assert said["verdicts"] == []
    assert not any(item.startswith("read-") for item in RunFolder.open(tmp_path / "run").done_items())
    # the same end from any stage
    assert main(["contrast", "run", "--resume", str(tmp_path / "run")]) == 1


def test_what_cannot_be_used_leaves_no_folder(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"adapter": str(tmp_path / "none")}, 3, "adapter"),
        ({"model": str(tmp_path / "none")}, 3, "none"),
        ({"colour": "red"}, 2, "'colour' is no field"),
        ({"questions": []}, 2, "'questions'"),
        ({"references": {"far": {"adapter": str(tmp_path / "none")}}}, 3, "adapter_model.safetensors"),
        ({"questions": ["word " * 600]}, 2, "tokens"),
    ]
    for i, (changes, code, said) in enumerate(cases):
        config = str(write_config(tmp_path / f"{i}.yaml", small(place, **changes)))
        assert main(["contrast", "run", config, "--out", str(tmp_path / "run")]) == code
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert main(["contrast", "run", str(tmp_path / "nothing.yaml")]) == 2
    assert main(["contrast", "run"]) == 2
    assert main(["contrast", "read", str(tmp_path)]) == 5


def test_one_question_has_no_interval(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampling = {"positives": 4, "negatives": 1, "tries": 16, "counted": 4, "max_new_tokens": 40}
    config = small(place, preflight=None, questions=["When did Ben come home?"], sampling=sampling, readout={})
    path = tmp_path / "run"
    assert main(["contrast", "run", str(write_config(tmp_path / "one.yaml", config)), "--out", str(path), "--no-report"]) == 0
    assert "no interval" in " ".join(capsys.readouterr().out.split())
    run = RunFolder.open(path)
    assert run.table("contrast_differences")["low"].null_count() == len(run.table("contrast_differences")) > 0
    assert set(run.table("contrast_verdicts")["outcome"]) == {"undecided"}
    assert "one cluster only" in run.table("items").filter(pl.col("item") == "analysis/plain")["text"][0]


# ------------------------------------------------------------------ tables of others


def test_records_of_others_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"each": 2, "layers": 4, "clusters": 12, "offsets": (-1,)}
    long_table(effect={1: 0.1, 2: 0.1, 3: 0.1}, **options).write_parquet(tmp_path / "tuned.parquet")
    long_table(model="base", seed=1, **options).write_parquet(tmp_path / "base.parquet")
    words = [
        "contrast",
        "analyse",
        "--records",
        str(tmp_path / "tuned.parquet"),
        "--reference-records",
        str(tmp_path / "base.parquet"),
    ]
    assert main([*words, "--out", str(tmp_path / "run"), "--no-report", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {(row["segmentation"], row["outcome"]) for row in said["verdicts"]} == {("full", "induced"), ("content", "induced")}
    assert all(row["flags"] == [] for row in said["verdicts"])
    assert validate(tmp_path / "run") == []
    assert main(["contrast", "report", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdicts"] == said["verdicts"]
    assert main(["contrast", "read", str(tmp_path / "run")]) == 5  # no study of a model
    assert "no study of a model" in capsys.readouterr().err
    # exchanged, training has taken it away
    assert main([*words, "--tuned", "base", "--out", str(tmp_path / "back"), "--no-report", "--json"]) == 0
    assert {row["outcome"] for row in json.loads(capsys.readouterr().out)["verdicts"]} == {"reduced by training"}
    # without a reference there is no verdict
    assert main([*words[:4], "--out", str(tmp_path / "alone"), "--no-report", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["verdicts"] == []
    assert "no reference, so no verdict" in alone["conditions"][0]["summary"]
    assert alone["windows"] > 0


def test_a_sign_that_differs_between_segmentations_is_flagged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"each": 2, "layers": 4, "clusters": 12, "segmentations": ("full",)}
    parts = [
        long_table(effect={2: 0.1}, **options),
        long_table(effect={2: -0.1}, **options).with_columns(segmentation=pl.lit("content")),
    ]
    other = [
        long_table(model="base", seed=1, **options),
        long_table(model="base", seed=1, **options).with_columns(segmentation=pl.lit("content")),
    ]
    pl.concat(parts + other).write_parquet(tmp_path / "all.parquet")
    assert (
        main(["contrast", "analyse", "--records", str(tmp_path / "all.parquet"), "--out", str(tmp_path / "run"), "--no-report"])
        == 0
    )
    assert "the sign of the difference is another under the other segmentation" in " ".join(capsys.readouterr().out.split())


def test_tables_that_cannot_be_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = long_table(each=2, layers=2, clusters=4)
    good.write_parquet(tmp_path / "good.parquet")
    good.with_columns(mass=pl.when(pl.col("layer") == 1).then(float("nan")).otherwise("mass")).write_parquet(
        tmp_path / "nan.parquet"
    )
    good.drop("region").write_csv(tmp_path / "short.csv")
    good.with_columns(model=pl.lit("mine")).vstack(good.with_columns(model=pl.lit("yours"))).write_parquet(tmp_path / "two.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "table.txt").write_text("x")
    for words, said in (
        (["nan.parquet"], "NaN"),
        (["short.csv"], "region"),
        (["bad.parquet"], "cannot be read"),
        (["none.parquet"], "cannot be read"),
        (["table.txt"], "no kind of table"),
        (["two.parquet"], "--tuned"),
        (["good.parquet", "--reference-records", "good.parquet"], "in both tables"),
        (["good.parquet", "--null", "nobody"], "nobody"),
        (["good.parquet", "--direction", "sideways"], "sideways"),
    ):
        shown = [str(tmp_path / word) if "." in word else word for word in words]
        assert main(["contrast", "analyse", "--records", *shown, "--out", str(tmp_path / "run"), "--no-report"]) == 2, words
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert main(["contrast", "analyse"]) == 2
