"""``residue concepts check`` and ``steer``: the file, the tables, and what is refused without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from study_folder import write_model

from symbolic_residue.cli import main
from symbolic_residue.concepts import ConceptText, Corpus, read_record, write_corpus
from symbolic_residue.store import RunFolder, validate

EVENTS = ("mill", "river", "gate", "table", "book", "harbour")
TOLD = {
    "baseline": "Anna put the {} there in the evening",
    "joy": "Ben asks for the {} with a smile",
    "fear": "They see the {} and turn home",
}
SHORT = ["--heads", "2", "--controls", "3", "--doses=-1,2", "--length", "3", "--random", "3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    texts = tuple(ConceptText(c, event, told.format(event)) for event in EVENTS for c, told in TOLD.items())
    corpus = write_corpus(Corpus(texts), folder / "corpus")
    (folder / "openings.txt").write_text("The captain and the river\n\nOne word\n", "utf-8")
    assert main(["concepts", "train", str(corpus), "-m", str(write_model(folder / "model")), "-o", str(folder / "run")]) == 0
    return folder / "run"


def test_a_check_is_kept_and_shown(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["concepts", "check", str(trained), "-c", "joy", "--openings", str(trained.parent / "openings.txt"), *SHORT]
    assert main(command) == 0
    shown = capsys.readouterr().out
    kept = read_record(trained, "causal.json")
    assert kept is not None and list(kept["concepts"]) == ["joy"] and validate(trained) == []
    assert "causal" in RunFolder.open(trained).done_items() and RunFolder.open(trained).manifest.status == "complete"
    ablation, steering = kept["concepts"]["joy"]["ablation"], kept["concepts"]["joy"]["steering"]
    rows = [line for line in shown.splitlines() if line.startswith("joy ")]
    assert (
        rows[0].split()[:4] == ["joy", "selectivity", ablation["verdict"], "6"]
        and f"{ablation['layers'][0]['lost']['value']:.2f} [" in rows[0]
    )
    assert (
        rows[1].split()[:2] == ["joy", "direct"]
        and rows[4].split()[1] == steering["verdict"]
        and f"joy: {steering['why']}"[:60] in shown
    )
    assert all(rule in " ".join(shown.split()) for rule in kept["rules"].values())
    assert main([*command, "--json"]) == 0  # read, not made again
    assert json.loads(capsys.readouterr().out)["concepts"]["joy"] == kept["concepts"]["joy"]
    assert main(["concepts", "check", str(trained), "-c", "fear", "--no-steering", "--heads", "2", "--controls", "3"]) == 0
    assert set(read_record(trained, "causal.json")["concepts"]) == {"joy", "fear"}  # type: ignore[index]


def test_a_prompt_is_steered_beside_itself(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["concepts", "steer", str(trained), "-c", "joy", "-p", "The captain", "--length", "4", "--dose", "3"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "as it is" in shown and "joy +3" in shown and "random direction" in shown and shown.count("The captain") == 3
    assert main([*command, "--heads", "2", "--everywhere", "--temperature", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["heads"]) == 2 and found["where"] == "all" and len(found["texts"]) == 3


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["check", "RUN", "-c", "envy"], "no concept 'envy'"),
        (["check", "RUN", "--layer", "9"], "no directions of layer 9"),
        (["check", "RUN", "--no-ablation", "--no-steering"], "nothing to do"),
        (["check", "RUN", "--doses", "much"], "no doses"),
        (["check", "RUN", "--doses=-1"], "No positive dose"),
        (["check", "RUN", "--openings", "none.txt"], "cannot be read"),
        (["check", "RUN", "--by", "size"], "no score of heads"),
        (["check", "RUN", "--also", "size"], "no score of heads"),
        (["check", "nowhere"], "no folder"),
        (["steer", "RUN", "-c", "envy", "-p", "a"], "no direction of 'envy'"),
        (["steer", "RUN", "-c", "joy", "-p", " "], "empty"),
        (["steer", "RUN", "-c", "joy", "-p", "a b", "--dose", "nan"], "cannot be added"),
        (["steer", "RUN", "-c", "joy", "-p", "a b", "--layer", "9"], "no direction"),
        (["steer", "RUN", "-c", "joy", "-p", "a b", "--heads", "99"], "cannot be chosen"),
    ],
)
def test_nonsense_is_refused_without_a_traceback(
    trained: Path, command: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["concepts", *(str(trained) if part == "RUN" else part for part in command)]) != 0
    err = " ".join(capsys.readouterr().err.split())
    assert told in err and "Traceback" not in err
