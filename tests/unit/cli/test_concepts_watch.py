"""``residue concepts watch``: tokens as they come, the table with its controls, the file, and what is refused without a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from study_folder import write_model

from symbolic_residue.cli import main
from symbolic_residue.concepts import ConceptText as Text
from symbolic_residue.concepts import Corpus, open_concept_run, read_record, write_corpus
from symbolic_residue.store import RunFolder, validate

EVENTS = ("mill", "river", "gate", "table", "book", "harbour")
TOLD = {
    "baseline": "Anna put the {} there in the evening",
    "joy": "Ben asks for the {} with a smile",
    "fear": "They see the {} and turn home",
}
PROMPT = "The mill stands where the river turns"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watch")
    model = write_model(folder / "model")
    texts = tuple(Text(c, event, told.format(event)) for event in EVENTS for c, told in TOLD.items())
    corpus = write_corpus(Corpus(texts), folder / "corpus")
    assert main(["concepts", "train", str(corpus), "-m", str(model), "-o", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_one_text_is_shown_token_by_token_and_kept(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    words = ["concepts", "watch", str(run), "--prompt", PROMPT, "--layers", "0,1", "-n", "9"]
    capsys.readouterr()
    assert main(words) == 0
    shown = capsys.readouterr().out
    record: Any = read_record(run, "watch/001.json")
    assert record["of"]["weights_sha256"] == open_concept_run(run).directions.model.weights_sha256
    assert record["settings"]["max_new_tokens"] == 9 and record["seed"] == 0 and record["provenance"]["weights_sha256"]
    (text,) = record["texts"]
    lines = [line for line in shown.splitlines() if line[:2] in ("· ", "  ") and line[2:3].strip() + line[3:4].strip()]
    assert "\x1b" not in shown and "· prompt" in shown
    assert sum(line.startswith("·") for line in shown.splitlines()) == sum(not t["generated"] for t in text["tokens"])
    row = next(i for i, t in enumerate(text["tokens"]) if t["generated"])
    cells = [f"{z:+.1f}" for z in text["z"][row]]
    assert any(all(cell in line for cell in cells) for line in lines)
    for one in record["verdicts"]:
        found = next(line for line in shown.splitlines() if line.split()[:2] == [one["concept"], str(one["layer"])])
        assert f"{one['mean_z']:+.2f}" in found and one["outcome"] in found and one["n"] == 1
    flat = " ".join(shown.split())
    assert "said of this prompt alone" in flat and "from 6 tellings" in flat and "along permuted directions" in flat
    manifest = RunFolder.open(run)
    assert manifest.manifest.status == "complete" and validate(run) == [] and "watch: 001" in manifest.done_items()
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"][0]["tokens"] == text["tokens"]
    assert (run / "watch" / "002.json").exists() and not (run / "report.html").exists()  # the page needs the quality report


def test_several_prompts_are_the_sample(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": p}) + "\n" for p in (PROMPT, "Anna put the red book", "Should the captain answer"))
    )
    words = ["concepts", "watch", str(run), "-f", str(file), "--layers", "1", "--concepts", "fear", "-n", "8", "--name", "three"]
    assert main([*words, "--draws", "2", "--temperature", "1"]) == 0
    shown = capsys.readouterr().out
    record: Any = read_record(run, "watch/three.json")
    assert len(record["texts"]) == 6 and record["n"] == 3 and [v["n_counts"] for v in record["verdicts"]] == ["prompts"]
    assert "n = 3 prompts; the intervals are over prompts" in shown
    assert main(words) == 5 and "already there" in capsys.readouterr().err


def test_a_conversation_is_read_as_one(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "Where is the book?"}]}) + "\n")
    assert main(["concepts", "watch", str(run), "-f", str(file), "--layers", "1", "-n", "6", "--no-report"]) == 0
    (text,) = json.loads((run / "watch" / "001.json").read_text())["texts"]
    assert "<|start|>user" in text["prompt_text"] and text["z"][1] is None


def test_layers_come_from_the_report_where_none_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["concepts", "watch", str(run), "--prompt", PROMPT, "-n", "6"]
    assert main(words) == 2
    assert "residue concepts report" in capsys.readouterr().err
    assert main(["concepts", "report", str(run), "--no-report"]) == 0
    assert main(words) == 0 and (run / "report.html").exists()
    quality: Any = read_record(run, "quality.json")
    record: Any = read_record(run, "watch/001.json")
    assert {t["concept"]: t["layer"] for t in record["tracks"]} == {c: q["chosen"]["layer"] for c, q in quality["concepts"].items()}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "Give a prompt"),
        (["--prompt", " "], 2, "empty"),
        (["--prompt", PROMPT, "--layers", "7"], 2, "no directions of layer 7"),
        (["--prompt", PROMPT, "--layers", "x"], 2, "names no layers"),
        (["--prompt", PROMPT, "--layers", "1", "--concepts", "hope"], 2, "no concept 'hope'"),
        (["--prompt", PROMPT, "--layers", "1", "--draws", "3"], 2, "without a temperature"),
        (["--prompt", PROMPT, "--layers", "1", "--name", "../x"], 2, "no name for a file"),
        (["--prompt", PROMPT, "--layers", "1", "--top-p", "3", "--temperature", "1"], 2, "top_p"),
        (["--prompt", "the mill in the evening " * 300, "--layers", "1"], 2, "tokens"),
        (["--prompts", "nowhere.jsonl", "--layers", "1"], 2, "nowhere.jsonl"),
    ],
)
def test_bad_input_is_refused(run: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str) -> None:
    assert main(["concepts", "watch", str(run), *words]) == code
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and "bug" not in err
    assert not list((run / "watch").glob("*.json"))


def test_bad_lines_and_other_models_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Anna"}\n{"prompt": 3}\n')
    assert main(["concepts", "watch", str(run), "-f", str(file), "--layers", "1"]) == 2
    assert "line 2" in capsys.readouterr().err
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["config"]["model"] = str(write_model(tmp_path / "other", num_hidden_layers=3))
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert main(["concepts", "watch", str(run), "--prompt", PROMPT, "--layers", "1"]) == 3
    assert "belong to another model" in capsys.readouterr().err
    assert main(["concepts", "watch", str(tmp_path / "none"), "--prompt", PROMPT]) == 5


def test_ctrl_c_keeps_what_was_seen(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from symbolic_residue.cli import _concepts_watch as command

    seen = []
    real = command._Live.add

    def add(self: Any, token: Any) -> None:
        real(self, token)
        seen.append(token)
        if sum(t.generated for t in seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(command._Live, "add", add)
    assert main(["concepts", "watch", str(run), "--prompt", PROMPT, "--layers", "1", "-n", "30"]) == 130
    record: Any = read_record(run, "watch/001.json")
    assert record["texts"][0]["stop"] == "interrupted" and sum(t["generated"] for t in record["texts"][0]["tokens"]) == 3
    assert RunFolder.open(run).manifest.status == "interrupted"
