"""Watching: which row a score is of, equal whatever the batch, the neutral reference against a plain loop, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import (
    ConceptRun,
    ConceptText,
    Corpus,
    draw_labels,
    find_directions,
    make_design,
    Pooled,
    report_concepts,
    train_concepts,
)
from symbolic_residue.concepts._watch import choose_tracks, Track, watch, WatchedToken, Watcher
from symbolic_residue.concepts._watch_record import watch_record
from symbolic_residue.concepts._watch_reference import counted_positions, N_CONTROLS, watch_reference
from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import generate, Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt, Prompt

EVENTS = ("mill", "river", "gate", "table", "book", "harbour")
TOLD = {
    "baseline": "Anna put the {} there in the evening",
    "joy": "Ben asks for the {} with a smile",
    "fear": "They see the {} and turn home",
}
TEXTS = tuple(ConceptText(c, event, told.format(event)) for event in EVENTS for c, told in TOLD.items())
PROMPTS = ("The mill stands where the river turns", "Anna put", "Should the captain answer yes or no to the question")


def instrument_of(name: str = "llama", seed: int = 0, **changes: Any) -> Instrument:
    return Instrument(wrap(build(name, seed, **changes).double(), tiny_tokenizer(bos=name == "qwen3")))


def prompts_of(instrument: Instrument, texts: Sequence[str] = PROMPTS, chat: bool = False) -> list[Prompt]:
    return [build_prompt(instrument.loaded.tokenizer, text, chat=chat) for text in texts]


@pytest.fixture(scope="module")
def instrument() -> Instrument:
    return instrument_of()


@pytest.fixture(scope="module")
def run(instrument: Instrument, tmp_path_factory: pytest.TempPathFactory) -> ConceptRun:
    return train_concepts(instrument, Corpus(TEXTS), tmp_path_factory.mktemp("watch") / "run")


def watcher_of(run: ConceptRun, instrument: Instrument, layers: Sequence[int] = (0, 1)) -> Watcher:
    return Watcher(run, choose_tracks(run, layers=layers), watch_reference(run, instrument, layers))


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_streamed_scores_are_those_of_one_forward_over_the_whole_text(name: str, batch_size: int, tmp_path: Path) -> None:
    instrument = instrument_of(name)
    run = train_concepts(instrument, Corpus(TEXTS), tmp_path / "run")
    watcher, prompts = watcher_of(run, instrument), prompts_of(instrument)
    seen: list[tuple[int, WatchedToken]] = []
    texts = watch(
        instrument, watcher, prompts, max_new_tokens=7, draws=2, temperature=1.0, seed=3, stop_ids=(), batch_size=batch_size,
        on_token=lambda k, token: seen.append((k, token)),
    )  # fmt: skip
    assert [(t.prompt, t.draw, t.stop) for t in texts] == [(i, j, "length") for i in range(3) for j in range(2)]
    for number, text in enumerate(texts):
        prompt = prompts[text.prompt]
        ids = [token.id for token in text.tokens]
        assert ids[: len(prompt)] == prompt.ids and len(ids) == len(prompt) + 7
        assert [t.generated for t in text.tokens] == [False] * len(prompt) + [True] * 7
        assert [t for k, t in seen if k == number] == text.tokens and [t.position for t in text.tokens] == list(range(len(ids)))
        trace = instrument.run(torch.tensor([ids]), reads=("resid_post.*",))
        special = set(instrument.loaded.tokenizer.all_special_ids)
        controls = []
        for token in text.tokens:
            if token.position == 0 or token.id in special:
                assert token.z is None and token.reached is None
                continue
            assert token.z is not None and token.reached is not None
            for t, track in enumerate(watcher.tracks):
                reference, c = watcher.references[track.layer], run.directions.concepts.index(track.concept)
                h = trace[f"resid_post.{track.layer}"][0, token.position].numpy()
                v = run.directions.vectors[track.layer][c].astype(float)
                assert token.z[t] == pytest.approx((h @ v - reference.mean[c]) / reference.sd[c], abs=1e-5)
                own = (reference.control[c] @ h - reference.control_mean[c]) / reference.control_sd[c]
                assert token.reached[t] == pytest.approx(np.mean(own >= token.z[t] - 1e-5 * (1 + abs(token.z[t]))), abs=0.011)
                if token.generated and t == 0:
                    controls.append(own)
        assert text.control_mean is not None
        np.testing.assert_allclose(text.control_mean[0], np.mean(controls, axis=0), atol=1e-5)
    again = watch(instrument, watcher, prompts[1:2], max_new_tokens=7, draws=2, temperature=1.0, seed=5, stop_ids=(), batch_size=8)
    assert [t.id for t in again[0].tokens] == [t.id for t in texts[2].tokens]  # its own seed, whatever stands beside it


def test_a_score_is_of_the_row_that_reads_the_token(run: ConceptRun, instrument: Instrument, tmp_path: Path) -> None:
    """Planted: reading one token writes along one direction. The row that chooses that token knows nothing of it."""
    (prompt,) = prompts_of(instrument, PROMPTS[:1])
    ids = generate(instrument, torch.tensor([prompt.ids]), max_new_tokens=6, stop_ids=()).ids[0]
    at = next(i for i in range(1, 6) if ids[i] not in (*ids[:i], *prompt.ids) and ids[i] > 3)
    model = build("llama").double()
    u = np.zeros(64)
    u[7] = 1.0
    with torch.no_grad():
        model.model.embed_tokens.weight[ids[at], 7] += 60.0
    planted = Instrument(wrap(model, tiny_tokenizer()))
    there = train_concepts(planted, Corpus(TEXTS), tmp_path / "run")
    vectors = {i: np.stack([u, v[1]]).astype(np.float32) for i, v in there.directions.vectors.items()}
    watcher = watcher_of(replace(there, directions=replace(there.directions, vectors=vectors)), planted, [0])
    (text,) = watch(planted, watcher, [prompt], max_new_tokens=at + 2, stop_ids=())
    z = text.generated_z()[:, 0]
    assert text.tokens[len(prompt) + at].id == ids[at]
    assert z[at] > 8 and z[at - 1] < 5 and z[at] > 3 * np.abs(np.delete(z, at)).max()


@pytest.mark.parametrize(("estimator", "against"), [("difference", "baseline"), ("lda", "baseline"), ("difference", "others")])
def test_neutral_tokens_are_scored_by_directions_that_never_saw_their_scenario(
    estimator: Any, against: Any, instrument: Instrument, tmp_path: Path
) -> None:
    run = train_concepts(instrument, Corpus(TEXTS), tmp_path / "run", estimator=estimator, against=against, seed=4)
    found = watch_reference(run, instrument, [1], batch_size=4)[1]
    expected, units, controls = [], [], []
    for u, event in enumerate(EVENTS):
        rows = [i for i, s in enumerate(run.scenarios) if s != event]
        pooled = Pooled({1: run.pooled.resid[1][rows]}, {}, run.pooled.n_tokens[rows], "last", None, (), ())
        labels, scenarios = [run.labels[i] for i in rows], [run.scenarios[i] for i in rows]
        part = find_directions(pooled, labels, scenarios, run.directions.model, estimator=estimator, against=against)
        prompt = build_prompt(instrument.loaded.tokenizer, TOLD["baseline"].format(event))
        h = instrument.run(torch.tensor([prompt.ids]), reads=("resid_post.1",))["resid_post.1"][0, 1:].numpy()
        expected.append(h @ part.vectors[1].astype(float).T)
        units += [u] * len(h)
        design = make_design(run.labels, run.scenarios, "joy", against)
        drawn = draw_labels(design, N_CONTROLS, 4)[11]
        keep = np.array([run.scenarios[r] != event for r in design.rows])
        x = run.pooled.resid[1][design.rows].astype(float)
        v = design.weights(drawn)[keep] @ x[keep]
        controls.append(h @ v / np.linalg.norm(v))
    np.testing.assert_allclose(found.scores, np.concatenate(expected), atol=1e-4)
    assert found.unit.tolist() == units and found.n_units == 6
    np.testing.assert_allclose(found.mean, np.concatenate(expected).mean(0), atol=1e-4)
    np.testing.assert_allclose(found.control_mean[0, 11], np.concatenate(controls).mean(), atol=1e-6)
    np.testing.assert_allclose(found.control_sd[0, 11], np.concatenate(controls).std(ddof=1), atol=1e-6)
    design = make_design(run.labels, run.scenarios, "joy", against)
    v = design.weights(draw_labels(design, N_CONTROLS, 4)[11]) @ run.pooled.resid[1][design.rows].astype(float)
    np.testing.assert_allclose(found.control[0, 11], v / np.linalg.norm(v), atol=1e-9)
    z = found.neutral_z()
    own = np.array(units) == 2
    scores = np.concatenate(expected)
    np.testing.assert_allclose(z[2], (scores[own] - scores[~own].mean(0)) / scores[~own].std(0, ddof=1), atol=1e-3)


def test_the_reference_is_the_same_whatever_the_batch(instrument: Instrument, tmp_path: Path) -> None:
    found = []
    for batch_size in (1, 3, 16):
        run = train_concepts(instrument, Corpus(TEXTS), tmp_path / str(batch_size))
        found.append(watch_reference(run, instrument, [0, 1], batch_size=batch_size)[1])
    for other in found[1:]:
        np.testing.assert_allclose(other.scores, found[0].scores, atol=1e-5)
        np.testing.assert_allclose(other.control_sd, found[0].control_sd, atol=1e-5)


def test_texts_outside_scenarios_are_held_out_one_by_one(instrument: Instrument, tmp_path: Path) -> None:
    texts = tuple(replace(t, scenario=None) for t in TEXTS)
    run = train_concepts(instrument, Corpus(texts), tmp_path / "run")
    found = watch_reference(run, instrument, [0])[0]
    assert found.n_units == 6
    rows = [i for i, t in enumerate(texts) if t.text != TOLD["baseline"].format("gate")]
    pooled = Pooled({0: run.pooled.resid[0][rows]}, {}, run.pooled.n_tokens[rows], "last", None, (), ())
    part = find_directions(pooled, [run.labels[i] for i in rows], [None] * len(rows), run.directions.model)
    prompt = build_prompt(instrument.loaded.tokenizer, TOLD["baseline"].format("gate"))
    h = instrument.run(torch.tensor([prompt.ids]), reads=("resid_post.0",))["resid_post.0"][0, 1:].numpy()
    np.testing.assert_allclose(found.scores[found.unit == 2], h @ part.vectors[0].astype(float).T, atol=1e-4)


def test_neutral_tellings_lie_too_low_on_directions_that_knew_them(run: ConceptRun, instrument: Instrument) -> None:
    """The reason for the reference's leaving out: at the token that the direction was trained on, its own negatives lie lower."""
    found = watch_reference(run, instrument, [1])[1]
    last = np.array([np.flatnonzero(found.unit == u)[-1] for u in range(6)])
    rows = [i for i, label in enumerate(run.labels) if label == "baseline"]
    knew = run.pooled.resid[1][rows].astype(float) @ run.directions.vectors[1].T.astype(float)
    assert (knew.mean(0) < found.scores[last].mean(0)).all()


def test_the_reference_is_kept_and_made_again_where_it_cannot_be_read(
    run: ConceptRun, instrument: Instrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watch_reference(run, instrument, [0, 1])
    path = run.folder / "watch" / "reference" / "layer_1.safetensors"
    ran = []
    real = instrument.run
    monkeypatch.setattr(instrument, "run", lambda *a, **k: (ran.append(1), real(*a, **k))[1])
    kept = watch_reference(run, instrument, [1, 0])
    assert not ran
    for i in (0, 1):
        for name in ("scores", "unit", "control", "control_mean", "control_sd"):
            np.testing.assert_array_equal(getattr(kept[i], name), getattr(made[i], name))
    path.write_bytes(path.read_bytes()[:-40])
    again = watch_reference(run, instrument, [0, 1])
    assert len(ran) == 1
    np.testing.assert_array_equal(again[1].scores, made[1].scores)
    other = watch_reference(replace(run, seed=9), instrument, [1])
    assert len(ran) == 2 and not np.array_equal(other[1].control, made[1].control)
    watch_reference(run, instrument, [1])


def test_template_tokens_and_the_first_are_in_no_mean(tmp_path: Path) -> None:
    instrument = instrument_of(max_position_embeddings=256)
    run = train_concepts(instrument, Corpus(TEXTS), tmp_path / "run", chat=True)
    prompt = build_prompt(instrument.loaded.tokenizer, TOLD["baseline"].format("mill"), chat=True)
    counted = counted_positions(prompt)
    assert 0 not in counted and "".join(prompt.tokens[i] for i in counted) == TOLD["baseline"].format("mill")
    found = watch_reference(run, instrument, [0])[0]
    assert (found.unit == 0).sum() == len(counted)
    watcher = Watcher(run, [Track("joy", 0)], {0: found})
    (text,) = watch(instrument, watcher, prompts_of(instrument, PROMPTS[:1], chat=True), max_new_tokens=4, stop_ids=())
    scored = [t.position for t in text.tokens if t.z is not None and not t.generated]
    assert scored == counted_positions(prompts_of(instrument, PROMPTS[:1], chat=True)[0])


def test_ends_of_texts(run: ConceptRun, instrument: Instrument) -> None:
    watcher, prompts = watcher_of(run, instrument, [1]), prompts_of(instrument)
    free = watch(instrument, watcher, prompts, max_new_tokens=6, stop_ids=())
    first = [t.id for t in free[0].tokens if t.generated]
    ended = watch(instrument, watcher, prompts, max_new_tokens=6, stop_ids=(first[3],))
    assert ended[0].stop == "eos"
    cut = first.index(first[3])
    assert [t.id for t in ended[0].tokens if t.generated] == first[:cut]  # the end token is no part of the text
    np.testing.assert_allclose(ended[0].generated_z(), free[0].generated_z()[:cut], atol=1e-9)


def test_a_full_context_leaves_the_last_token_without_a_score(tmp_path: Path) -> None:
    instrument = instrument_of(max_position_embeddings=24)
    run = train_concepts(instrument, Corpus(TEXTS), tmp_path / "run")
    watcher = watcher_of(run, instrument, [0])
    (prompt,) = prompts_of(instrument, ["Anna put the red book"])
    (text,) = watch(instrument, watcher, [prompt], max_new_tokens=40, stop_ids=())
    assert text.stop == "context full" and len(text.tokens) == 24
    assert text.tokens[-1].z is None and text.tokens[-2].z is not None
    assert len(text.generated_z()) == 24 - len(prompt) - 1
    long = build_prompt(
        instrument.loaded.tokenizer, "Anna put the red book under the table before Ben came home in the evening and then some more"
    )
    with pytest.raises(PromptError, match="leaves no room"):
        watch(instrument, watcher, [prompt, long])


def test_what_was_seen_before_ctrl_c_is_kept(run: ConceptRun, instrument: Instrument) -> None:
    watcher, prompts = watcher_of(run, instrument, [1]), prompts_of(instrument)
    seen = []

    def stop(number: int, token: WatchedToken) -> None:
        seen.append(token)
        if sum(t.generated for t in seen) == 6:
            raise KeyboardInterrupt

    texts = watch(instrument, watcher, prompts, max_new_tokens=4, stop_ids=(), batch_size=1, on_token=stop)
    assert [t.stop for t in texts] == ["length", "interrupted"] and sum(t.generated for t in texts[1].tokens) == 2
    record = watch_record(watcher, prompts, texts, {"seed": 0}, {})
    json.dumps(record, allow_nan=False)
    generate(instrument, torch.tensor([prompts[0].ids]), max_new_tokens=1)  # the model is free again


def test_tracks_are_the_named_layers_or_those_of_the_report(run: ConceptRun, instrument: Instrument) -> None:
    assert choose_tracks(run, ["fear"], [1, 0]) == (Track("fear", 1), Track("fear", 0))
    with pytest.raises(ConfigError, match="No layer was named"):
        choose_tracks(run)
    for options, said in (
        ({"concepts": ["hope"]}, "no concept 'hope'"),
        ({"layers": [5]}, "no directions of layer 5"),
    ):
        with pytest.raises(ConfigError, match=said):
            choose_tracks(run, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no directions of layer 7"):
        watch_reference(run, instrument, [7])
    report = report_concepts(run, instrument.parts)
    chosen = tuple(Track(c, report["concepts"][c]["chosen"]["layer"]) for c in ("joy", "fear"))
    assert choose_tracks(run) == chosen and choose_tracks(run, ["fear"]) == chosen[1:]


def test_what_cannot_be_watched_is_refused(run: ConceptRun, instrument: Instrument, tmp_path: Path) -> None:
    watcher, prompts = watcher_of(run, instrument, [1]), prompts_of(instrument)
    for options, said in (
        ({"draws": 2}, "without a temperature"),
        ({"max_new_tokens": 0}, "from 1 up"),
        ({"batch_size": 0}, "from 1 up"),
        ({"temperature": -1.0}, "temperature"),
    ):
        with pytest.raises(ConfigError, match=said):
            watch(instrument, watcher, prompts, **options)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="no prompt"):
        watch(instrument, watcher, [])
    few = tuple(t for t in TEXTS if t.concept != "fear" or t.scenario == "mill")
    one = train_concepts(instrument, Corpus(few), tmp_path / "few")
    reference = watch_reference(one, instrument, [1])
    with pytest.raises(ConfigError, match="'fear' cannot be watched"):
        Watcher(one, choose_tracks(one, layers=[1]), reference)
    assert Watcher(one, [Track("joy", 1)], reference).neutral()[0].shape[1] == 1
    two = train_concepts(instrument, Corpus(TEXTS[:6]), tmp_path / "two")
    with pytest.raises(ConfigError, match="tellings of 2 scenarios"):
        watch_reference(two, instrument, [1])


def test_the_record_is_plain_data(run: ConceptRun, instrument: Instrument) -> None:
    watcher, prompts = watcher_of(run, instrument), prompts_of(instrument)
    texts = watch(instrument, watcher, prompts, max_new_tokens=8, stop_ids=())
    record = json.loads(json.dumps(watch_record(watcher, prompts, texts, {"seed": 0}, {"model": "m"}), allow_nan=False))
    assert record["n"] == 3 and record["reference"]["scenarios"] == 6 and record["reference"]["controls"] == N_CONTROLS
    assert [(t["concept"], t["layer"]) for t in record["tracks"]] == [tuple(t) for t in watcher.tracks]
    for text, own in zip(record["texts"], texts, strict=True):
        assert len(text["tokens"]) == len(text["z"]) == len(text["reached"]) == len(own.tokens)
        assert text["z"][0] is None and len(text["z"][1]) == 4
    assert [v["n"] for v in record["verdicts"]] == [3] * 4
    assert all(v["outcome"] in ("above", "not above", "undecided") and v["n_counts"] == "prompts" for v in record["verdicts"])
