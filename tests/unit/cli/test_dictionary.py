"""``residue dictionary``: trained, measured on what was held out, shown; stopped and gone on with; refused without a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from study_folder import write_model

from symbolic_residue.cli import main
from symbolic_residue.dictionaries import (
    hold_out,
    open_dictionary,
    read_documents,
    save_dictionary,
    text_sha256,
    trained_texts,
    Transcoders,
)
from symbolic_residue.errors import ConfigError, CorpusError

WORDS = [
    "the",
    "mill",
    "stands",
    "where",
    "river",
    "turns",
    "and",
    "miller",
    "keeps",
    "key",
    "to",
    "gate",
    "of",
    "old",
    "stone",
    "house",
    "by",
    "water",
    "in",
    "evening",
    "Anna",
    "put",
    "red",
    "book",
    "under",
    "table",
]
OPTIONS = [
    "--features",
    "16",
    "-k",
    "3",
    "--steps",
    "20",
    "--batch",
    "32",
    "--context",
    "24",
    "--dead-after",
    "500",
    "--hold-out",
    "0.4",
]


def documents(count: int = 12) -> list[str]:
    draw = torch.Generator().manual_seed(3)
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (40,), generator=draw).tolist()) for _ in range(count)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model, texts, and a dictionary trained on some of them."""
    folder = tmp_path_factory.mktemp("dictionary")
    model = write_model(folder / "model")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents()))
    assert main(["dictionary", "train", str(texts), "-o", str(folder / "made"), "-m", str(model), *OPTIONS]) == 0
    return model, texts, folder / "made"


def test_held_out_documents_are_those_that_were_not_trained_on(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, texts, made = files
    training, kept = hold_out(documents(), 0.4)
    assert trained_texts(made) == {text_sha256(text) for text in training} and 1 < len(kept) < 8
    capsys.readouterr()
    assert main(["dictionary", "evaluate", str(made), str(texts), "-m", str(model), "--tokens", "20", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["documents"], told["trained_on"], told["trained_on_this_model"]) == (len(kept), len(training), True)
    assert [row["layer"] for row in told["layers"]] == [0, 1] and all(row["n"] == len(kept) for row in told["layers"])
    assert all(0 <= row["fvu_low"] <= row["fvu"] <= row["fvu_high"] and row["l0"] <= 3 for row in told["layers"])


def test_what_is_shown(files: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts, made = files
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    assert main(["dictionary", "evaluate", str(made), str(texts), "-m", str(model), "-n", "3"]) == 0
    out = capsys.readouterr().out
    assert "KL up to here" in out and "n = 3 documents" in out and "left out:" in out and "documents that it was trained on" in out
    assert main(["dictionary", "show", str(made)]) == 0
    out = capsys.readouterr().out
    assert "transcoders of" in out and "topk 3" in out and open_dictionary(made).sha256 in out
    assert main(["dictionary", "show", str(made), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layers"][1] == {
        "layer": 1,
        "features": 16,
        "activation": "topk",
        "k": 3,
        "reads": "mlp_in",
        "predicts": "mlp_out",
        "writes_to": [1],
        "skip": False,
    }
    again = ["dictionary", "train", str(texts), "-o", str(made), "-m", str(model), *OPTIONS]
    assert main(again) == 0  # finished: opened
    out = capsys.readouterr().out
    assert (
        "2 layers of 16 features" in out and f"next: residue dictionary evaluate {made} {texts}" in out and "first position" in out
    )


def test_a_dictionary_that_is_worse_than_the_mean_is_called_so(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, texts, made = files
    opened = open_dictionary(made)
    for one in opened.layers.values():
        for decoder in one.decoders.values():
            decoder.mul_(50)
    save_dictionary(Transcoders(opened.layers, {"format": "test", "weights_sha256": "0" * 64}), tmp_path / "bad")
    assert main(["dictionary", "evaluate", str(tmp_path / "bad"), str(texts), "-m", str(model), "-n", "3"]) == 0
    out = capsys.readouterr().out
    assert (
        "no better than the mean write in layer 0, 1" in out
        and "other weights" in out
        and "does not say what it was trained on" in out
    )


def test_ctrl_c_exits_with_130_and_the_same_command_goes_on(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from symbolic_residue.dictionaries import _train

    model, texts, made = files
    words = ["dictionary", "train", str(texts), "-o", str(tmp_path / "d"), "-m", str(model), *OPTIONS]
    real = _train._Fit.step

    def step(self: Any, x: Any, y: Any) -> None:
        if len(self.records) == 9:
            raise KeyboardInterrupt
        real(self, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(_train._Fit, "step", step)
        assert main(words) == 130
    assert (tmp_path / "d" / "state.safetensors").exists()
    assert main(words) == 0 and open_dictionary(tmp_path / "d").sha256 == open_dictionary(made).sha256
    capsys.readouterr()
    assert main([*words, "--kind", "clt"]) == 5
    assert "other settings (kind)" in capsys.readouterr().err
    assert main([*words, "--kind", "clt", "--anew"]) == 0 and open_dictionary(tmp_path / "d").kind == "clt"


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["train", "TEXTS", "-o", "new", "--steps", "5"], 2, "needs its k"),
        (["train", "TEXTS", "-o", "new", "-k", "9", "--features", "8"], 2, "keep 9 of 8"),
        (["train", "TEXTS", "-o", "new", "-k", "2", "--hold-out", "1"], 2, "cannot be held out"),
        (["train", "TEXTS", "-o", "new", "-k", "2", "--hold-out", "0.0001"], 2, "None of the 12 documents"),
        (["train", "nowhere", "-o", "new", "-k", "2"], 2, "no texts at nowhere"),
        (["train", "TEXTS", "-o", "new", "-k", "2", "--layers", "7", "-m", "MODEL"], 2, "no MLP in layer 7"),
        (["train", "TEXTS", "-o", "new", "-k", "2", "--batch", "9999", "-m", "MODEL"], 2, "a batch is 9999"),
        (["evaluate", "nowhere", "TEXTS"], 3, "no dictionary at nowhere"),
        (["show", "."], 3, "no known format"),
    ],
)
def test_refusals(
    words: list[str],
    code: int,
    said: str,
    files: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"TEXTS": str(files[1]), "MODEL": str(files[0])}
    assert main(["dictionary", *(named.get(word, word) for word in words)]) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new" / "dictionary.json").exists()


def test_documents_that_were_all_trained_on_are_refused(files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training, _ = hold_out(documents(), 0.4)
    (tmp_path / "seen").mkdir()
    for i, text in enumerate(training):
        (tmp_path / "seen" / f"{i}.txt").write_text(text + "\n")  # white space about it makes no other document
    assert main(["dictionary", "evaluate", str(files[2]), str(tmp_path / "seen"), "-m", str(files[0])]) == 2
    assert "were trained on" in capsys.readouterr().err


def test_documents_come_from_folders_files_and_python(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "2.txt").write_text("two")
    (tmp_path / "a" / "1.txt").write_text("one")
    assert read_documents(tmp_path / "a") == ["one", "two"] and read_documents(tmp_path / "a" / "1.txt") == ["one"]
    assert len(read_documents("python-docs")) > 50
    lines = tmp_path / "x.jsonl"
    for content, said in (
        ('{"text": "a"}\n{"text": " "}\n', "line 2: no text"),
        ("[1]", "line 1: no text"),
        ("{", "line 1: no JSON"),
        ("\n", "is empty"),
    ):
        lines.write_text(content)
        with pytest.raises(CorpusError, match=said):
            read_documents(lines)
    (tmp_path / "a" / "3.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.csv").write_text("a")
    for path, said in (
        (tmp_path / "a", "not UTF-8"),
        (tmp_path / "empty", "no .txt files"),
        (tmp_path / "x.csv", "neither"),
        (tmp_path / "no", "no texts at"),
    ):
        with pytest.raises(CorpusError, match=said):
            read_documents(path)
    with pytest.raises(ConfigError):
        hold_out(["a"], 1.0)


def test_what_is_held_out_depends_on_the_text_alone() -> None:
    texts = [f"document {i}" for i in range(400)]
    training, kept = hold_out(texts, 0.25)
    assert 60 < len(kept) < 140 and sorted(training + kept) == sorted(texts)
    assert set(hold_out(texts[::-3], 0.25)[1]) == set(kept) & set(texts[::-3]) and set(kept) < set(hold_out(texts, 0.4)[1])


@pytest.mark.parametrize("words", [[], ["train"], ["evaluate"], ["show"]])
def test_help_is_quick_and_loads_no_torch(words: list[str]) -> None:
    code = f"import sys; from symbolic_residue.cli import main; assert main(['dictionary', *{words!r}, '--help']) == 0; assert 'torch' not in sys.modules"
    took = []
    for _ in range(2):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        took.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(took) < 1.5  # half a second where nothing else runs
