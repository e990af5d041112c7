"""``residue concepts heads``: the verdicts of a run's concepts, gone on with where it was stopped, shown, and refused without a traceback."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_folder import write_model

from symbolic_residue.cli import main
from symbolic_residue.concepts import ConceptText, Corpus, judge_run_heads, Meaning, open_concept_run, read_record, write_corpus
from symbolic_residue.store import RunFolder, validate

EVENTS = ("mill", "river", "gate", "table", "book", "harbour", "answer", "captain")
TOLD = {
    "baseline": "Anna put the {} there in the evening",
    "joy": "Ben asks for the {} with a smile",
    "fear": "They see the {} and turn home",
    "trust": "Anna gives the {} to Ben in the evening",
    "shame": "Ben looks at the {} and then away",
}
MEANINGS = {c: Meaning("basic" if c in ("joy", "fear") else "relational", f"{c} itself", (c,)) for c in TOLD if c != "baseline"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("heads")
    texts = [ConceptText(c, e, told.format(e)) for e in EVENTS for c, told in TOLD.items() if c != "shame" or e in EVENTS[:5]]
    corpus = write_corpus(Corpus(tuple(texts), MEANINGS), base / "corpus")
    assert (
        main(["concepts", "train", str(corpus), "-m", str(write_model(base / "model")), "-o", str(base / "run"), "--seed", "3"])
        == 0
    )
    return base / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def heads_of(path: Path) -> dict[str, Any]:
    found = read_record(path, "heads.json")
    assert found is not None
    return found


def test_verdicts_are_kept_and_shown_beside_their_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["concepts", "heads", str(run), "--draws", "100"]) == 0
    shown = capsys.readouterr().out
    found = heads_of(run)
    assert set(found["concepts"]) == {"joy", "fear", "trust"} and list(found["not_judged"]) == ["shame"]
    assert "shame is not judged: 5 scenarios" in shown and "3 concepts asked" in shown
    assert (
        found["seed"] == 3
        and found["k"] == 1
        and found["layer"] == 1
        and found["n_heads"] == 8
        and not (run / "heads.parts").exists()
    )
    for concept, both in found["concepts"].items():
        one = both["model"]
        rows = [line for line in shown.splitlines() if line.startswith(concept)]
        assert one["verdict"] in rows[0] and f"{one['readouts']['few']['auc']:.2f} [" in rows[1] and both["layer"]["layer"] == 1
        assert one["reason"][:20] in shown and one["n_draws_readout"] == 20
        first = one["top_heads"][0]
        assert f"L{first['layer']}.H{first['head']}" in shown
        assert found["words_alone"][concept]["n"] == 8
    assert found["families"]["answer"] is None and "Families: " in shown  # one relational concept is left
    assert len(found["overlap"]["pairs"]) == 3 and "Jaccard" in shown
    assert "heads" in RunFolder.open(run).done_items() and validate(run) == []
    assert main(["concepts", "report", str(run)]) == 0  # the page reads it
    assert found["concepts"]["joy"]["model"]["verdict"] in (run / "report.html").read_text()
    capsys.readouterr()
    before = (run / "heads.json").stat().st_mtime_ns
    assert main(["concepts", "heads", str(run), "--draws", "100", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (run / "heads.json").stat().st_mtime_ns == before and said["concepts"] == found["concepts"]


def test_it_goes_on_where_it_was_stopped(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from symbolic_residue.concepts import _study_heads as study

    real, made = study.write_record, []
    words = ["concepts", "heads", str(run), "--draws", "100", "--concepts", "joy,trust"]

    def once(folder: Path, name: str, content: Any) -> Path:
        if made:
            raise KeyboardInterrupt
        made.append(name)
        return real(folder, name, content)

    with monkeypatch.context() as patched:
        patched.setattr(study, "write_record", once)
        assert main(words) == 130
    assert len(made) == 1 and made[0].startswith("heads.parts/00") and not (run / "heads.json").exists()
    part = run / made[0]
    block = json.loads(part.read_text())
    block["block"]["model"]["reason"] = "taken over"
    part.write_text(json.dumps(block))
    assert main(words) == 0
    found = heads_of(run)["concepts"]
    assert set(found) == {"joy", "trust"} and found["joy"]["model"]["reason"] == "taken over" != found["trust"]["model"]["reason"]
    assert main([*words, "--seed", "4"]) == 0 and heads_of(run)["concepts"]["joy"]["model"]["reason"] != "taken over"
    capsys.readouterr()


def test_a_head_made_to_carry_it_is_named(run: Path) -> None:
    opened = open_concept_run(run)
    rng, joy = np.random.default_rng(0), np.array(opened.labels) == "joy"
    heads, resid = ({i: rng.normal(size=x.shape) for i, x in of.items()} for of in (opened.pooled.heads, opened.pooled.resid))
    heads[1][joy, 2, 0] += 12
    for x in resid.values():
        x[joy, 0] += 9
    made = replace(opened, pooled=replace(opened.pooled, heads=heads, resid=resid))
    found = judge_run_heads(made, concepts=["joy"], against="others", layer=0, n_draws=200, n_draws_readout=39)
    one = found["concepts"]["joy"]
    first = one["model"]["top_heads"][0]
    # Eight scenarios show that it is this head, and not that no other set is as good.
    assert one["model"]["verdict"] in ("few heads", "undecided") and one["model"]["readouts"]["few"]["auc"] > 0.9
    assert one["model"]["conditions"][1]["holds"] and (first["layer"], first["head"], first["chosen_share"]) == (1, 2, 1.0)
    assert (
        one["layer"]["layer"] == 0
        and one["layer"]["verdict"] != "few heads"
        and found["against"] == "others"
        and found["overlap"] is None
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--concepts", "pride"], "There is no concept 'pride'"),
        (["--layer", "7"], "no heads of layer 7"),
        (["--against", "nobody"], "'nobody' is no choice"),
        (["--by", "size"], "cannot be chosen by 'size'"),
        (["--k", "5"], "5 of 8 heads"),
        (["--concepts", ","], "No concept"),
    ],
)
def test_refusals(run: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["concepts", "heads", str(run), "--draws", "100", *words]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ") and not (run / "heads.json").exists()
    assert main(["concepts", "heads", str(run / "none")]) == 5
