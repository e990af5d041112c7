"""``residue concepts train`` and ``report``: a run folder, what is shown, and what is refused without a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_folder import write_model

from symbolic_residue.cli import main
from symbolic_residue.concepts import ConceptText, Corpus, open_concept_run, read_record, write_corpus
from symbolic_residue.store import RunFolder, validate

EVENTS = ("mill", "river", "gate", "table", "book", "harbour")
TOLD = {
    "baseline": "Anna put the {} there in the evening",
    "joy": "Ben asks for the {} with a smile",
    "fear": "They see the {} and turn home",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("concepts") / "model"))


def texts() -> list[ConceptText]:
    return [ConceptText(c, event, told.format(event)) for event in EVENTS for c, told in TOLD.items()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_corpus(Corpus(tuple(texts())), tmp_path_factory.mktemp("texts") / "corpus"))


@pytest.fixture(scope="module")
def trained(model: str, corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report."""
    path = tmp_path_factory.mktemp("trained") / "run"
    assert main(["concepts", "train", corpus, "-m", model, "-o", str(path), "--seed", "2"]) == 0
    assert main(["concepts", "report", str(path)]) == 0
    return path


def test_a_corpus_becomes_a_run_with_its_report(trained: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = RunFolder.open(trained).manifest
    assert manifest.kind == "concepts" and manifest.status == "complete" and validate(trained) == []
    assert RunFolder.open(trained).done_items() == ["directions", "quality"]
    run = open_concept_run(trained)
    assert manifest.provenance["weights_sha256"] == run.directions.model.weights_sha256 and manifest.provenance["seed"] == 2
    assert manifest.config["pooling"] == "last" and manifest.config["corpus_sha256"] == run.corpus.sha256
    report = read_record(trained, "quality.json")
    assert report is not None and report["seed"] == 2 and report["n_scenarios"] == 6 and report["n_texts"] == 18
    assert not (trained / "quality.parts").exists() and (trained / "report.html").exists()
    capsys.readouterr()
    assert main(["concepts", "report", str(trained), "--no-report"]) == 0  # read, not made again
    shown = capsys.readouterr().out
    for concept in ("joy", "fear"):
        one = report["concepts"][concept]
        auc = one["layers"][str(one["chosen"]["layer"])]["auc"]
        row = next(line for line in shown.splitlines() if line.startswith(concept))
        assert row.split()[:4] == [concept, "6", str(one["chosen"]["layer"]), f"{auc['value']:.2f}"]
        assert f"{auc['null_mean']:.2f}" in row and f"{auc['p_model']:.3f}" in row
    assert "words alone" in shown and "chosen by looking" in shown and "not ranked" not in shown
    assert main(["runs", "list", str(trained.parent), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["kind"] == "concepts"
    assert main(["runs", "show", str(trained)]) == 0 and main(["report", str(trained)]) == 0


def test_another_folder_to_stand_in_changes_nothing(
    model: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(model).parent)
    words = [
        "concepts",
        "train",
        corpus,
        "-m",
        "model",
        "-o",
        str(tmp_path / "run"),
        "--concepts",
        "fear",
        "--layers",
        "1",
        "--json",
    ]
    assert main(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["concepts"] == ["fear"] and shown["layers"] == [1] and shown["texts"] == 12 and shown["not_ranked"] == []
    monkeypatch.chdir(tmp_path)
    assert main(["concepts", "report", "run", "--no-report", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["concepts"]
    assert row["layer"] == 1 and row["other_negatives"]["auc"] is None  # there is no other concept
    assert row["nearest"] == [] and row["ridge_r2"]["value"] is None


def test_a_layer_fixed_beforehand_has_its_own_p(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["concepts", "report", str(trained), "--layer", "0", "--no-report", "--json"]) == 0
    shown = {row["concept"]: row for row in json.loads(capsys.readouterr().out)["concepts"]}
    report: Any = read_record(trained, "quality.json")
    auc = report["concepts"]["joy"]["layers"]["0"]["auc"]
    assert shown["joy"]["layer"] == 0 and shown["joy"]["p"] == auc["p"] and shown["joy"]["p_over"] == "this layer alone"
    assert shown["joy"]["p_concepts"] is None and shown["joy"]["words_alone"]["n"] == 6
    assert shown["joy"]["other_negatives"]["against"] == "others"
    assert main(["concepts", "report", str(trained), "--layer", "9"]) == 2
    assert "There are no directions of layer 9" in capsys.readouterr().err


def test_the_same_command_goes_on_and_another_is_refused(
    model: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, words = tmp_path / "run", ["concepts", "train", corpus, "-m", model, "-o", str(tmp_path / "run")]
    with monkeypatch.context() as patched:
        patched.setattr("symbolic_residue.concepts._study.find_directions", _stop)
        assert main(words) == 130
    assert RunFolder.open(path).manifest.status == "interrupted"
    assert main(["concepts", "report", str(path)]) == 5 and "not finished" in capsys.readouterr().err
    before = (path / "activations" / "resid_0.npy").stat().st_mtime_ns
    assert main([*words, "--batch-size", "3", "--side", "left"]) == 0
    manifest = RunFolder.open(path).manifest
    assert manifest.status == "complete" and manifest.config["batch_size"] == 3
    assert (path / "activations" / "resid_0.npy").stat().st_mtime_ns == before
    capsys.readouterr()
    assert main([*words, "--estimator", "lda"]) == 5
    assert "estimator is 'lda' and was 'difference'" in capsys.readouterr().err.replace("\n", " ")
    assert RunFolder.open(path).manifest.config["estimator"] == "difference"
    made: list[str] = []
    with monkeypatch.context() as patched:
        from symbolic_residue.concepts import _study_quality as study

        real = study.write_record

        def once(folder: Path, name: str, content: Any) -> Path:
            if made:
                raise KeyboardInterrupt
            made.append(name)
            return real(folder, name, content)

        patched.setattr(study, "write_record", once)
        assert main(["concepts", "report", str(path), "--no-report"]) == 130
    assert made == ["quality.parts/000.json"] and not (path / "quality.json").exists()
    part = path / made[0]
    block = json.loads(part.read_text())
    block["block"]["mark"] = "taken over"
    part.write_text(json.dumps(block))
    assert main(["concepts", "report", str(path), "--no-report"]) == 0
    report: Any = read_record(path, "quality.json")
    assert report["concepts"]["fear"]["mark"] == "taken over" and "mark" not in report["concepts"]["joy"]


def _stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def _few(folder: Path) -> None:
    """Fear in one scenario only."""
    for event in EVENTS[1:]:
        (folder / "paired" / event / "fear.txt").unlink()


def test_a_concept_of_few_texts_runs_and_is_not_ranked(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_corpus(Corpus(tuple(texts())), tmp_path / "corpus")
    _few(folder)
    assert main(["concepts", "train", str(folder), "-m", model, "-o", str(tmp_path / "run")]) == 0
    assert "'fear' has 1 of 5 texts at least: it is measured and not ranked" in capsys.readouterr().out
    assert main(["concepts", "report", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "fear is not ranked: 1 positives; 5 are needed" in shown and "fear *" in shown


def _no_baseline(folder: Path) -> None:
    (folder / "paired" / "mill" / "baseline.txt").unlink()


def _twice(folder: Path) -> None:
    (folder / "paired" / "mill" / "joy.txt").write_text(TOLD["joy"].format("river"))


def _empty(folder: Path) -> None:
    (folder / "paired" / "mill" / "joy.txt").write_text("\n")


def _latin(folder: Path) -> None:
    (folder / "paired" / "mill" / "joy.txt").write_bytes(b"caf\xe9 in the evening")


def _long(folder: Path) -> None:
    (folder / "paired" / "mill" / "joy.txt").write_text("the mill in the evening " * 400)


def _nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "options", "code", "said"),
    [
        (_no_baseline, [], 2, "scenario 'mill' has no neutral telling"),
        (_twice, [], 2, "duplicate"),
        (_empty, [], 2, "joy.txt:1: empty"),
        (_latin, [], 2, "joy.txt:1: not UTF-8"),
        (_long, [], 2, "too long"),
        (_nothing, ["--layers", "1-9"], 2, "There is no layer 2"),
        (_nothing, ["--layers", "a"], 2, "names no layers"),
        (_nothing, ["--layers", "3-1"], 2, "names no layers"),
        (_nothing, ["--layers", "0-99999999999"], 2, "There is no layer"),
        (_nothing, ["--concepts", "hope"], 2, "There is no concept 'hope'"),
        (_nothing, ["--pooling", "first"], 2, "is no pooling"),
        (_nothing, ["--pooling", "mean_last_m", "--m", "200"], 2, "200 are to be averaged"),
        (_nothing, ["--estimator", "x"], 2, "is no estimator"),
        (_nothing, ["--against", "x"], 2, "is no choice of negatives"),
        (_nothing, ["--side", "up"], 2, "is no side"),
    ],
)
def test_bad_texts_and_options_are_refused_and_leave_nothing(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, options: list[str], code: int, said: str
) -> None:
    folder = write_corpus(Corpus(tuple(texts())), tmp_path / "corpus")
    spoil(folder)
    assert main(["concepts", "train", str(folder), "-m", model, "-o", str(tmp_path / "run"), *options]) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and "bug" not in err
    assert not (tmp_path / "run").exists()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _nan(path: Path) -> None:
    array = np.load(path)
    array[2] = np.nan
    np.save(path, array)


@pytest.mark.parametrize(
    ("name", "damage", "code", "said"),
    [
        ("readout.safetensors", _cut, 3, "sha256 differs"),
        ("readout.json", _cut, 3, "no readable directions"),
        ("readout.safetensors", Path.unlink, 3, "no readable directions"),
        ("activations/resid_1.npy", _cut, 5, "cannot be read"),
        ("activations/resid_1.npy", _nan, 5, "of 18 texts are whole"),
        ("training.json", _cut, 5, "cannot be read"),
        ("quality.json", _cut, 5, "cannot be read"),
        ("corpus.jsonl", _cut, 5, "cannot be read"),
        ("manifest.json", _cut, 5, "is no manifest"),
    ],
)
def test_damaged_files_are_refused_by_name(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Any, code: int, said: str
) -> None:
    import shutil

    path = tmp_path / "run"
    shutil.copytree(trained, path)
    damage(path / name)
    assert main(["concepts", "report", str(path)]) == code
    err = capsys.readouterr().err
    assert said in err.replace("\n", " ") and "Traceback" not in err and "bug" not in err


def test_another_model_and_folders_that_are_none_are_refused(
    trained: Path, model: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(trained, tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    manifest["config"]["model"] = str(
        write_model(tmp_path / "other", hidden_act="gelu", initializer_range=0.5, num_hidden_layers=3)
    )
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    assert main(["concepts", "report", str(tmp_path / "run")]) == 3
    assert "belong to another model" in capsys.readouterr().err
    assert main(["concepts", "report", str(tmp_path / "none")]) == 5
    assert "There is no folder" in capsys.readouterr().err
    assert main(["concepts", "train", str(tmp_path / "none"), "-m", model]) == 2
    assert "There is no corpus" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert main(["concepts", "train", corpus, "-m", model, "-o", str(tmp_path / "full")]) == 5
    assert "holds no run" in capsys.readouterr().err
    assert main(["concepts", "train", corpus, "-m", str(tmp_path / "no-model"), "-o", str(tmp_path / "x")]) == 3
    assert not (tmp_path / "x").exists()


def test_weights_that_are_not_finite_are_refused(corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiny_models import build, tiny_tokenizer

    model = build("llama", max_position_embeddings=512)
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert main(["concepts", "train", corpus, "-m", str(tmp_path / "model"), "-o", str(tmp_path / "run")]) == 3
    assert "NaN" in capsys.readouterr().err and not (tmp_path / "run").exists()
