"""A folder of directions: what is kept, what is gone on with, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import _study as study
from symbolic_residue.concepts import (
    collect,
    ConceptText,
    Corpus,
    find_directions,
    Meaning,
    open_concept_run,
    prepare_training,
    read_record,
    ReadoutModel,
    require_valid,
    train_concepts,
    write_corpus,
    write_record,
)
from symbolic_residue.errors import (
    ConfigError,
    CorpusError,
    DamagedFileError,
    ModelError,
    PromptError,
    ReadError,
    ResidueError,
    RunDamagedError,
    RunExistsError,
    StoreError,
    WriteError,
)
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import bind, wrap

EVENTS = ("mill", "river", "gate", "table", "book", "harbour")
TOLD = {
    "baseline": "Anna put the {} there in the evening",
    "joy": "Ben asks for the {} with a smile",
    "fear": "They see the {} and turn home",
}


def corpus_of(n: int = 6, concepts: tuple[str, ...] = ("joy", "fear")) -> Corpus:
    return Corpus(tuple(ConceptText(c, event, TOLD[c].format(event)) for event in EVENTS[:n] for c in ("baseline", *concepts)))


def instrument_of(seed: int = 0, name: str = "llama") -> Instrument:
    return Instrument(wrap(build(name, seed), tiny_tokenizer()))


@pytest.fixture(scope="module")
def instrument() -> Instrument:
    return instrument_of()


def test_the_folder_holds_what_was_collected_and_found(instrument: Instrument, tmp_path: Path) -> None:
    corpus, told = corpus_of(), []
    run = train_concepts(instrument, corpus, tmp_path / "run", seed=3, progress=lambda what, share: told.append((what, share)))
    labels, scenarios = [t.concept for t in corpus.texts], [t.scenario for t in corpus.texts]
    pooled = collect(instrument, [t.text for t in corpus.texts])
    found = find_directions(pooled, labels, scenarios, ReadoutModel.of(instrument.loaded), corpus_sha256=corpus.sha256)
    for again in (run, open_concept_run(tmp_path / "run"), open_concept_run(tmp_path / "run", instrument.loaded)):
        assert again.corpus.texts == corpus.texts and again.seed == 3
        assert list(again.labels) == labels and list(again.scenarios) == scenarios
        assert again.directions.concepts == ("joy", "fear") and again.directions.model == found.model
        for i in pooled.layers:
            np.testing.assert_array_equal(again.pooled.resid[i], pooled.resid[i])
            np.testing.assert_array_equal(again.pooled.heads[i], pooled.heads[i])
            np.testing.assert_array_equal(again.directions.vectors[i], found.vectors[i])
            assert isinstance(again.pooled.resid[i], np.memmap)
        np.testing.assert_array_equal(again.pooled.n_tokens, pooled.n_tokens)
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1


@pytest.mark.parametrize("name", ["bamba", "qwen3_next"])
def test_layers_without_heads_come_back_with_their_reason(name: str, tmp_path: Path) -> None:
    model = build(name)
    instrument = Instrument(wrap(model, tiny_tokenizer()))
    run = train_concepts(instrument, corpus_of(), tmp_path / "run")
    pooled = collect(instrument, [t.text for t in run.corpus.texts])
    assert run.pooled.skipped == pooled.skipped != () and set(run.pooled.heads) == set(bind(model).attention_layers)


def test_a_stopped_training_goes_on_and_does_nothing_twice(
    instrument: Instrument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, calls = tmp_path / "run", []
    real_collect, real_find = study.collect, study.find_directions

    def counted(*args: Any, progress: Any, **kwargs: Any) -> Any:
        def tell(done: int, of: int) -> None:
            calls.append(done)
            progress(done, of)

        return real_collect(*args, progress=tell, **kwargs)

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    def half(what: str, share: float) -> None:
        if 0.3 < share < 0.8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_concepts(instrument, corpus_of(), folder, batch_size=6, progress=half)
    with pytest.raises(StoreError, match="not finished"):
        open_concept_run(folder)
    monkeypatch.setattr(study, "collect", counted)
    monkeypatch.setattr(study, "find_directions", stop)
    with pytest.raises(KeyboardInterrupt):
        train_concepts(instrument, corpus_of(), folder, batch_size=4, side="left")
    assert calls == [6, 10, 14, 18]  # the first batch of six was there
    (folder / "corpus.jsonl").write_text((folder / "corpus.jsonl").read_text()[:100])  # cut short
    monkeypatch.setattr(study, "find_directions", real_find)
    run = train_concepts(instrument, corpus_of(), folder)
    assert calls[4:] == [18] and run.corpus.texts == corpus_of().texts
    monkeypatch.setattr(study, "find_directions", stop)
    train_concepts(instrument, corpus_of(), folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pooling": "last_content"}, "pooling is 'last_content' and was 'last'"),
        ({"layers": [1]}, r"layers is \[1\] and was \[0, 1\]"),
        ({"estimator": "lda"}, "estimator is 'lda'"),
        ({"against": "others"}, "against is 'others'"),
        ({"seed": 1}, "seed is 1 and was 0"),
        ({"chat": True}, "chat is True"),
        ({"corpus": corpus_of(5)}, "texts_sha256"),
        ({"instrument": instrument_of(1)}, "model weights_sha256"),
    ],
)
def test_a_folder_of_another_training_is_refused_with_what_differs(
    instrument: Instrument, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = tmp_path / "run"
    train_concepts(instrument, corpus_of(), folder)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    options: dict[str, Any] = {"instrument": instrument, "corpus": corpus_of(), "folder": folder} | changes
    with pytest.raises(RunExistsError, match=said):
        train_concepts(**options)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def broken(texts: tuple[ConceptText, ...], at: int, **changes: Any) -> Corpus:
    return Corpus((*texts[:at], replace(texts[at], **changes), *texts[at + 1 :]))


@pytest.mark.parametrize(
    ("corpus", "options", "error", "said"),
    [
        (broken(corpus_of().texts, 3, concept="fear"), {}, CorpusError, "no baseline"),
        (broken(corpus_of().texts, 4, text=corpus_of().texts[1].text), {}, CorpusError, "duplicate"),
        (broken(corpus_of().texts, 4, text=" \n"), {}, CorpusError, "empty"),
        (broken(corpus_of().texts, 4, text="the mill " * 300), {}, CorpusError, "too long"),
        (Corpus(corpus_of().texts[::3]), {}, CorpusError, "no text under a concept"),
        (Corpus(tuple(ConceptText("joy", None, f"the {e} is here") for e in EVENTS)), {}, ConfigError, "no negatives"),
        (corpus_of(), {"pooling": "mean_last_m", "m": 60}, PromptError, "60 are to be averaged"),
        (corpus_of(), {"pooling": "first"}, ConfigError, "no pooling"),
        (corpus_of(), {"layers": [2]}, ConfigError, "no layer 2"),
        (corpus_of(), {"layers": []}, ConfigError, "No layer"),
        (corpus_of(), {"estimator": "magic"}, ConfigError, "no estimator"),
        (corpus_of(), {"against": "all of them"}, ConfigError, "no choice of negatives"),
        (corpus_of(), {"concepts": ["hope"]}, ConfigError, "no concept 'hope'"),
        (corpus_of(), {"batch_size": 0}, ConfigError, "batch of 0"),
        (corpus_of(), {"seed": -1}, ConfigError, "no seed"),
        (corpus_of(), {"side": "middle"}, ConfigError, "no side"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    instrument: Instrument, tmp_path: Path, corpus: Corpus, options: dict[str, Any], error: type[ResidueError], said: str
) -> None:
    with pytest.raises(error, match=said):
        train_concepts(instrument, corpus, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_utf8_is_refused_by_its_place(instrument: Instrument, tmp_path: Path) -> None:
    write_corpus(corpus_of(), tmp_path / "texts")
    (tmp_path / "texts" / "paired" / "mill" / "joy.txt").write_bytes(b"caf\xe9 in the evening")
    with pytest.raises(CorpusError, match=r"joy\.txt:1: not UTF-8"):
        train_concepts(instrument, tmp_path / "texts", tmp_path / "run")
    with pytest.raises(CorpusError, match="There is no corpus"):
        train_concepts(instrument, tmp_path / "nowhere", tmp_path / "run")


def test_a_concept_of_few_texts_runs_and_is_warned_of(instrument: Instrument, tmp_path: Path) -> None:
    few = Corpus((*corpus_of(6, ("joy",)).texts, ConceptText("fear", "mill", "They see the mill and turn home")))
    with pytest.raises(CorpusError, match="too few texts"):
        require_valid(few)
    plan = prepare_training(instrument, few)
    assert [(v.kind, v.concept) for v in plan.warnings if v.severity == "refused"] == [("too few texts", "fear")]
    assert plan.into(tmp_path / "run").directions.concepts == ("joy", "fear")
    only = train_concepts(instrument, few, tmp_path / "only", concepts=["joy"])
    assert only.directions.concepts == ("joy",) and set(only.labels) == {"baseline", "joy"}


def test_texts_are_those_that_a_file_keeps(instrument: Instrument, tmp_path: Path) -> None:
    corpus = corpus_of()
    spaced = Corpus(tuple(replace(t, text=f" {t.text}\n") for t in corpus.texts))
    run = train_concepts(instrument, spaced, tmp_path / "a")
    write_corpus(corpus, tmp_path / "c.jsonl")
    same = train_concepts(instrument, tmp_path / "c.jsonl", tmp_path / "b")
    assert run.corpus.texts == same.corpus.texts == corpus.texts
    np.testing.assert_array_equal(run.directions.vectors[1], same.directions.vectors[1])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def nan_row(path: Path) -> None:
    array = np.load(path)
    array[2] = np.nan
    np.save(path, array)


def nan_weights(path: Path) -> None:
    from hashlib import sha256

    from safetensors.numpy import load, save

    tensors = {k: v.copy() for k, v in load(path.read_bytes()).items()}
    tensors["layer_1.vectors"][0, 3] = np.nan
    path.write_bytes(save(tensors))
    record = json.loads((path.parent / "readout.json").read_text())
    record["tensors_sha256"] = sha256(path.read_bytes()).hexdigest()
    (path.parent / "readout.json").write_text(json.dumps(record))


def other_text(path: Path) -> None:
    path.write_text(path.read_text().replace("smile", "smile again"))


@pytest.mark.parametrize(
    ("name", "damage", "error", "said"),
    [
        ("readout.safetensors", cut, DamagedFileError, "sha256"),
        ("readout.safetensors", nan_weights, DamagedFileError, "not finite"),
        ("readout.json", cut, DamagedFileError, "no readable directions"),
        ("activations/resid_1.npy", cut, RunDamagedError, "cannot be read"),
        ("activations/heads_0.npy", Path.unlink, RunDamagedError, "cannot be read"),
        ("activations/heads_0.npy", nan_row, RunDamagedError, "2 of 18 texts are whole"),
        ("training.json", cut, RunDamagedError, "training.json cannot be read"),
        ("corpus.jsonl", cut, RunDamagedError, "texts"),
        ("corpus.jsonl", other_text, RunDamagedError, "not the corpus"),
    ],
)
def test_damage_is_refused_by_the_file(
    instrument: Instrument, tmp_path: Path, name: str, damage: Any, error: type[ResidueError], said: str
) -> None:
    train_concepts(instrument, corpus_of(), tmp_path / "run")
    damage(tmp_path / "run" / name)
    with pytest.raises(error, match=said):
        open_concept_run(tmp_path / "run")


@pytest.mark.parametrize(
    "name",
    ["readout.safetensors", "readout.json", "activations/resid_1.npy", "activations/done.jsonl", "corpus.jsonl", "corpus.json"],
)
def test_the_same_training_again_mends_what_was_cut_short(instrument: Instrument, tmp_path: Path, name: str) -> None:
    corpus = replace(corpus_of(), meanings={"joy": Meaning("basic"), "fear": Meaning("basic", "dread")})
    before = train_concepts(instrument, corpus, tmp_path / "run")
    vectors = before.directions.vectors[1].copy()
    cut(tmp_path / "run" / name)
    after = train_concepts(instrument, corpus, tmp_path / "run")
    np.testing.assert_allclose(after.directions.vectors[1], vectors, atol=1e-6)
    np.testing.assert_allclose(after.pooled.resid[1], collect(instrument, [t.text for t in corpus.texts]).resid[1], atol=1e-5)
    assert after.corpus == corpus


def test_another_model_and_no_folder_are_refused(instrument: Instrument, tmp_path: Path) -> None:
    train_concepts(instrument, corpus_of(), tmp_path / "run")
    with pytest.raises(ModelError, match="another model"):
        open_concept_run(tmp_path / "run", instrument_of(1).loaded)
    with pytest.raises(StoreError, match="no folder"):
        open_concept_run(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="no directions"):
        open_concept_run(tmp_path / "empty")


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(instrument: Instrument, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(WriteError, match="cannot be written"):
            train_concepts(instrument, corpus_of(), place)
    run = train_concepts(instrument, corpus_of(), tmp_path / "run")
    (tmp_path / "run" / "corpus.jsonl").unlink()
    (tmp_path / "run" / "corpus.jsonl").mkdir()
    with pytest.raises(WriteError, match="cannot be written"):
        train_concepts(instrument, corpus_of(), run.folder)
    (run.folder / "watch").write_text("a file")
    with pytest.raises(WriteError, match="cannot be written"):
        write_record(run.folder, "watch/001.json", {})


def test_weights_that_are_not_finite_are_refused_and_nothing_is_called_done(tmp_path: Path) -> None:
    model = build("llama")
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    instrument = Instrument(
        SimpleNamespace(model=model, parts=bind(model), tokenizer=tiny_tokenizer(), provenance=instrument_of().loaded.provenance)  # type: ignore[arg-type]
    )
    with pytest.raises(ReadError, match="not finite"):
        train_concepts(instrument, corpus_of(), tmp_path / "run")
    with pytest.raises(StoreError, match="not finished"):
        open_concept_run(tmp_path / "run")


def test_results_say_whose_they_are(instrument: Instrument, tmp_path: Path) -> None:
    a = train_concepts(instrument, corpus_of(), tmp_path / "a").folder
    b = train_concepts(instrument, corpus_of(5), tmp_path / "b").folder
    assert read_record(a, "quality.json") is None
    write_record(a, "quality.json", {"n": 6})
    found = read_record(a, "quality.json")
    assert found is not None and found["n"] == 6 and found["format"] == 1
    assert found["of"]["weights_sha256"] == instrument.loaded.provenance.weights_sha256
    (b / "quality.json").write_bytes((a / "quality.json").read_bytes())
    with pytest.raises(RunDamagedError, match="other directions"):
        read_record(b, "quality.json")
    (a / "quality.json").write_bytes((a / "quality.json").read_bytes()[:-9])
    with pytest.raises(RunDamagedError, match="cannot be read"):
        read_record(a, "quality.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(a, "bad.json", {"n": float("nan")})
    assert sorted(p.name for p in a.iterdir() if "part" in p.name or "bad" in p.name) == []
