"""Steering: exactly what is added and nowhere else, dose 0, common random numbers, reading again, words, and verdicts on made arms."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import (
    Arm,
    BASELINE,
    check_steering,
    collect,
    concept_words,
    ConceptText,
    Corpus,
    direction_push,
    Directions,
    find_directions,
    make_design,
    packaged_corpus,
    Push,
    random_push,
    ReadoutModel,
    reread,
    Sampling,
    steer,
    steering_openings,
    WordScorer,
)
from symbolic_residue.concepts._choose import score_heads
from symbolic_residue.concepts._steer import head_push, write_size
from symbolic_residue.concepts._steer_verdict import blocked_by, compare, judged_dose, rise, slope
from symbolic_residue.concepts._word_scorer import words_scale
from symbolic_residue.errors import ConfigError, PromptError, ReadError
from symbolic_residue.instrument import collate, generate, Instrument, LastRow
from symbolic_residue.models import bind
from symbolic_residue.prompts import build_prompt
from symbolic_residue.stats import Estimate

MODEL = ReadoutModel("a model", "0" * 64, None, "float32", 64, 2)
PLACES = ("mill", "river", "gate", "table", "book", "answer", "captain", "harbour", "house", "garden", "letter", "bridge")
ROWS = [(BASELINE, "put"), ("joy", "questions"), ("fear", "turns")]
CORPUS = Corpus(tuple(ConceptText(c, p, f"Anna {w} the {p} in the evening") for p in PLACES for c, w in ROWS))
LABELS = [one.concept for one in CORPUS.texts]
SCENARIOS = [one.scenario for one in CORPUS.texts]
OPENINGS = ("The captain and the river", "One word", "The answer is in the red book that Ben")


def instrument_of(name: str, **changes: Any) -> Instrument:
    model = build(name, **changes)
    return Instrument(SimpleNamespace(model=model, parts=bind(model), tokenizer=tiny_tokenizer()))  # type: ignore[arg-type]


def setting(name: str = "llama", **changes: Any) -> tuple[Instrument, Any, Directions]:
    instrument = instrument_of(name, **changes)
    pooled = collect(instrument, [one.text for one in CORPUS.texts])
    own = replace(MODEL, hidden_size=instrument.parts.d_model, n_layers=instrument.parts.n_layers)
    return instrument, pooled, find_directions(pooled, LABELS, SCENARIOS, own)


def prompts_of(instrument: Instrument) -> list[Any]:
    return [build_prompt(instrument.loaded.tokenizer, text) for text in OPENINGS]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3_next", "falcon_h1"])
def test_a_direction_moves_its_layer_by_exactly_that_and_nothing_before(name: str) -> None:
    instrument, _, directions = setting(name)
    layer = 1
    push = direction_push(directions, "joy", layer, 2.5)
    expected = 2.5 * directions.norms[layer][0] * directions.vectors[layer][0]
    batch = collate(prompts_of(instrument))
    reads = ("resid_pre.1", "attn_out.1" if instrument.parts.layers[1].attn is not None else "mlp_out.1", "resid_post.*")
    plain, pushed = (instrument.run(batch, reads=reads, edits=edits) for edits in ((), push.edits()))
    for point in plain.tensors:
        change = (pushed.tensors[point] - plain.tensors[point]).double()
        if str(point) == f"resid_post.{layer}":
            np.testing.assert_allclose(change[:, -1].numpy(), np.tile(expected, (3, 1)), atol=2e-5 * np.abs(expected).max() + 2e-5)
            assert not change[:, :-1].any()
        elif point.layer is not None and point.layer <= layer:
            assert not change.any()
        else:
            assert not change[:, :-1].any() and change[:, -1].any()


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite", "qwen3", "falcon_h1"])
def test_heads_move_the_attention_output_by_the_sum_of_what_they_write(name: str) -> None:
    """Σ α W_h Δ_h, with grouped queries (llama, qwen3), a factor on the block's writes (granite) and a mixer beside attention (falcon_h1)."""
    instrument, pooled, directions = setting(name)
    scores = score_heads(pooled, make_design(LABELS, SCENARIOS, "joy"), instrument.parts, (0, 1), directions.vector("joy", 1))
    heads = [(0, 3), (0, 1), (1, 2)]
    push = head_push(scores, heads, -1.5)
    batch = collate(prompts_of(instrument))
    plain, pushed = (instrument.run(batch, reads=("attn_out.0", "resid_pre.0"), edits=edits) for edits in ((), push.edits()))
    change = (pushed["attn_out.0"] - plain["attn_out.0"]).double().numpy()
    delta = (collected := pooled.heads[0].astype(np.float64))[1::3].mean(0) - collected[0::3].mean(0)
    layer = instrument.parts.layers[0]
    expected = -1.5 * layer.attn_scale * sum(delta[h] @ layer.w_o(h).double().numpy() for h in (3, 1))
    np.testing.assert_allclose(change[:, -1], np.tile(expected, (3, 1)), atol=1e-4 * max(1.0, np.abs(expected).max()))
    assert not change[:, :-1].any()
    scaled = head_push(scores, heads, 1.0, size=7.0)
    written = [
        value[j]
        @ (instrument.parts.layers[int(point[2:])].w_o(h).double().numpy() * instrument.parts.layers[int(point[2:])].attn_scale)
        for point, (some, value) in scaled.adds.items()
        for j, h in enumerate(some or ())
    ]
    assert np.sqrt(sum((w**2).sum() for w in written)) == pytest.approx(7.0)
    assert write_size(scores, heads) == pytest.approx(
        np.sqrt(
            sum(
                np.linalg.norm(
                    scores[i].delta[h]
                    @ (instrument.parts.layers[i].w_o(h).double().numpy() * instrument.parts.layers[i].attn_scale)
                )
                ** 2
                for i, h in heads
            )
        )
    )


@pytest.mark.parametrize("name", ["llama", "qwen3_next"])
def test_dose_0_is_no_steering_and_a_dose_is_some(name: str) -> None:
    instrument, _, directions = setting(name)
    prompts, sampling = prompts_of(instrument), Sampling(max_new_tokens=6, samples=2, seed=3, batch_size=64)
    nothing, zero, some = steer(
        instrument,
        prompts,
        [Push("nothing", 0.0), direction_push(directions, "joy", 1, 0.0), direction_push(directions, "joy", 1, 40.0)],
        sampling,
    )
    assert nothing.ids == zero.ids and nothing.texts == zero.texts
    assert some.ids != nothing.ids
    assert all(len(per) == 2 and per[0] != per[1] for per in nothing.ids[:1])
    again = steer(instrument, prompts[1:2], [direction_push(directions, "joy", 1, 40.0)], replace(sampling, seed=1003))
    assert again[0].ids[0] == some.ids[1]  # a text depends on its own seed, not on what stands beside it
    hidden = instrument.run(collate(prompts), reads=("resid_post.1", "logits"))
    with_zero = instrument.run(
        collate(prompts), reads=("resid_post.1", "logits"), edits=direction_push(directions, "joy", 1, 0.0).edits()
    )
    assert all(torch.equal(hidden.tensors[p], with_zero.tensors[p]) for p in hidden.tensors)


@pytest.mark.parametrize(("name", "where"), [("llama", "answer"), ("llama", "all"), ("gpt2", "answer"), ("falcon_h1", "answer")])
def test_steered_tokens_are_those_of_whole_forwards_with_the_edit(name: str, where: Any) -> None:
    """Greedy tokens against one forward a step over the whole text, unpadded, the push at the rows it should be at."""
    instrument, _, directions = setting(name)
    push, prompts = direction_push(directions, "fear", 0, 3.0), prompts_of(instrument)
    (written,) = steer(instrument, prompts, [push], Sampling(max_new_tokens=5, temperature=0.0, samples=4), where=where)
    value = torch.tensor(push.adds["resid_post.0"][1], dtype=torch.float32)
    for prompt, (ids,) in zip(prompts, written.ids, strict=True):
        so_far = list(prompt.ids)
        for token in ids:
            from symbolic_residue.instrument import Add

            rows = range(len(prompt) - 1 if where == "answer" else 0, len(so_far))
            logits = instrument.run(torch.tensor([so_far]), edits=[Add("resid_post.0", rows=rows, value=value)]).logits
            assert logits is not None
            top = logits[0, -1].topk(2)
            assert token == int(top.indices[0]) or float(top.values[0] - top.values[1]) < 1e-3
            so_far.append(token)


def test_prompts_that_have_run_take_edits_of_their_last_row() -> None:
    instrument, _, directions = setting()
    edits, batch = direction_push(directions, "joy", 1, 30.0).edits(), collate(prompts_of(instrument))
    whole = generate(instrument, batch, max_new_tokens=5, edits=edits)
    begun = generate(instrument, LastRow(instrument, batch), max_new_tokens=5, edits=edits)
    assert whole.ids == begun.ids
    torch.testing.assert_close(whole.log_probs, begun.log_probs, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="last row"):
        generate(
            instrument,
            LastRow(instrument, batch),
            max_new_tokens=5,
            edits=direction_push(directions, "joy", 1, 1.0).edits(where="all"),
        )


@pytest.mark.parametrize("name", ["llama", "falcon_h1"])
def test_reading_again_is_the_plain_forward_over_the_text(name: str) -> None:
    instrument, _, directions = setting(name)
    prompts = prompts_of(instrument)
    (written,) = steer(instrument, prompts, [direction_push(directions, "joy", 0, 5.0)], Sampling(max_new_tokens=4, samples=2))
    written.ids[1][0] = []  # a text that ended at once
    vectors = np.random.default_rng(0).normal(size=(2, instrument.parts.d_model))
    found = reread(instrument, prompts, written, 1, vectors, batch_size=3)
    flat = [(prompt.ids, new) for prompt, some in zip(prompts, written.ids, strict=True) for new in some]
    for t, (before, new) in enumerate(flat):
        if not new:
            assert math.isnan(found.nll[t]) and np.isnan(found.projections[t]).all()
            continue
        trace = instrument.run(torch.tensor([[*before, *new]]), reads=("resid_post.1",))
        assert trace.logits is not None
        log_p = torch.log_softmax(trace.logits[0].double(), -1)
        nll = -np.mean([float(log_p[len(before) + j - 1, token]) for j, token in enumerate(new)])
        assert found.nll[t] == pytest.approx(nll, abs=1e-3)
        expected = trace["resid_post.1"][0, len(before) :].double().mean(0).numpy() @ vectors.T
        np.testing.assert_allclose(found.projections[t], expected, atol=2e-3, rtol=1e-3)


def test_a_random_direction_is_as_long_and_points_elsewhere() -> None:
    _, _, directions = setting()
    own, one, two = (direction_push(directions, "joy", 1, 4.0), *(random_push(directions, "joy", 1, 4.0, s) for s in (0, 1)))
    a, b, c = (push.adds["resid_post.1"][1] for push in (own, one, two))
    assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b)) == pytest.approx(np.linalg.norm(c))
    assert abs(b @ c) < 0.6 * (b @ b) and not np.allclose(a, b)


# words


def test_words_score_by_counts_and_lists() -> None:
    texts = [("joy", "a b"), ("joy", "a c"), ("fear", "b d"), ("fear", "d d"), (BASELINE, "b c")]
    scorer = WordScorer.fit(Corpus(tuple(ConceptText(c, None, t) for c, t in texts)))

    def odds(n: int, of: int) -> float:
        p = (n + 0.5) / (of + 1)
        return math.log(p / (1 - p))

    got = scorer.scores(["A, a? zebra", "b d", ""], "joy", "others")
    assert got[0] == pytest.approx(odds(2, 2) - odds(0, 2))
    assert got[1] == pytest.approx(odds(1, 2) - odds(1, 2) + odds(0, 2) - odds(2, 2)) and got[2] == 0
    assert scorer.scores(["a"], "joy", "baseline")[0] == pytest.approx(odds(2, 2) - odds(0, 1))
    assert scorer.known(["A, a? zebra", "b d"]).tolist() == [1, 2]
    assert scorer.listed(["She felt JOYOUS today", "fear", "a"], "joy").tolist() == [True, False, False]
    with pytest.raises(ConfigError, match="cannot tell"):
        scorer.scores(["a"], "envy")
    with pytest.raises(ConfigError, match="no list"):
        scorer.listed(["a"], "envy")


def test_words_of_a_concept_score_higher_on_texts_left_out_of_the_packaged_corpus() -> None:
    corpus = packaged_corpus()
    known, new = corpus.scenarios[:16], corpus.scenarios[16:]
    scorer, rest = WordScorer.fit(corpus.select(scenarios=known)), corpus.select(scenarios=new)
    mine, others = (
        [t.text for t in rest.texts if (t.concept == "anger") is own and t.concept != BASELINE] for own in (True, False)
    )
    assert scorer.scores(mine, "anger").mean() > scorer.scores(others, "anger").mean() + 1


def test_the_scale_of_words_is_that_of_scenarios_left_out() -> None:
    rng = np.random.default_rng(0)
    fill = [f"w{c}" for c in "abcdefghij"]
    texts = [
        ConceptText(c, f"s{i}", " ".join([*(["zinc"] if c == "told" else []), *rng.choice(fill, 4, replace=False)]))
        for i in range(10) for c in (BASELINE, "told", "plain")
    ]  # fmt: skip
    corpus = Corpus(tuple(replace(one, text=one.text.replace("wa", "x").replace("w", "v")) for one in texts))
    by_scorer = []
    for i in range(10):
        scorer = WordScorer.fit(corpus.select(scenarios=[s for s in corpus.scenarios if s != f"s{i}"]))
        (told,), (neutral,) = (
            [t.text for t in corpus.texts if t.scenario == f"s{i}" and t.concept == c] for c in ("told", BASELINE)
        )
        by_scorer.append(scorer.scores([told], "told")[0] - scorer.scores([neutral], "told")[0])
    found = words_scale(corpus, "told", "others", 99)
    assert found.n == 10 and found.value == pytest.approx(np.mean(by_scorer)) and found.low > 1
    assert words_scale(corpus, "told", "others", 1).value != pytest.approx(found.value)
    assert abs(words_scale(corpus, "plain", "baseline", 99).value) < 2
    assert words_scale(corpus.select(scenarios=["s1"]), "told", "others", 9).n == 0


def test_openings_are_neutral_and_of_no_scenario() -> None:
    openings, corpus = steering_openings(), packaged_corpus()
    assert len(openings) == len(set(openings)) == 24
    people = {name for some in corpus.people.values() for name in some}
    runs = {tuple(w[i : i + 4]) for one in corpus.texts for w in [one.text.lower().split()] for i in range(len(w) - 3)}
    scorer = WordScorer.fit(corpus)
    for text in openings:
        words = text.lower().split()
        assert not {tuple(words[i : i + 4]) for i in range(len(words) - 3)} & runs, text
        assert not any(name in text for name in people), text
        assert 8 <= len(words) <= 20 and text == text.strip() and not text.endswith(".")
    for concept in corpus.concepts:
        assert concept_words(corpus, concept) and not scorer.listed(openings, concept).any()


# verdicts


def arm(words: np.ndarray, kind: Any = "random", nll: float = 2.0) -> Arm:
    values: dict[str, Any] = dict.fromkeys(("words", "words_baseline", "listed", "later"), np.asarray(words, dtype=np.float64))
    flat = np.zeros(len(words))
    return Arm(kind, "an arm", 4.0, values, flat + nll, flat, flat, flat, [])


def test_an_effect_beyond_the_random_directions_steers_and_none_does_not() -> None:
    rng = np.random.default_rng(0)
    plain, controls = arm(rng.normal(size=24)), [arm(rng.normal(size=24)) for _ in range(5)]
    strong = compare("words", arm(rng.normal(3, 1, size=24)), plain, controls, "random directions")
    assert strong.verdict == "steers" and strong.p < 0.01 and strong.excess.n == 24
    small = arm(rng.normal(0, 1, size=24))
    still = compare("words", small, plain, controls, "random directions", scale=4.0)
    assert still.verdict == "not" and still.excess.high < 2.0
    for scale in (2 * still.excess.high * 0.99, math.nan):
        assert compare("words", small, plain, controls, "random directions", scale=scale).verdict == "undecided"
    wide = compare(
        "words",
        arm(rng.normal(3, 1, size=24)),
        plain,
        [arm(rng.normal(m, 1, size=24)) for m in (-9, 4, 0, 9, -4)],
        "random directions",
    )
    assert wide.verdict == "undecided" and wide.p > 0.05  # random directions that differ as much among themselves
    assert compare("words", arm(rng.normal(3, 1, size=24)), plain, controls, "r", blocked="no words").why == "no words"


def test_a_random_direction_in_the_concepts_place_seldom_steers() -> None:
    """400 sets of six exchangeable arms of 24 openings: steers in at most 5 % + 3 standard errors."""
    rng = np.random.default_rng(1)
    steers = 0
    for seed in range(400):
        opening = rng.normal(size=24)
        arms = [arm(opening + rng.normal(0, 0.7) + rng.normal(0, 0.7, size=24)) for _ in range(6)]
        steers += compare("words", arms[0], arm(opening), arms[1:], "random directions", seed).verdict == "steers"
    assert steers <= 400 * 0.05 + 3 * np.sqrt(400 * 0.05 * 0.95)


def test_p_is_the_t_test_of_one_value_against_five() -> None:
    from scipy import stats as sps

    rng = np.random.default_rng(2)
    base = np.zeros(24)
    controls = [arm(np.full(24, m)) for m in rng.normal(size=5)]
    means = np.array([one.values["words"][0] for one in controls])
    found = compare("words", arm(base + 2.0), arm(base), controls, "r")
    t = (2.0 - means.mean()) / (means.std(ddof=1) * np.sqrt(1.2))
    assert found.p == pytest.approx(sps.t.sf(t, 4))
    assert found.controls == pytest.approx(tuple(means)) and found.effect.value == pytest.approx(2.0)
    flat = compare("listed", arm(base + 0.25), arm(base), [arm(base)] * 5, "r")
    assert flat.p == pytest.approx(1 / 6) and -1 <= flat.effect.low <= flat.effect.high <= 1


def test_openings_without_a_token_are_left_out() -> None:
    values = np.arange(24.0)
    some = values.copy()
    some[3] = np.nan
    found = compare("later", arm(some), arm(values), [arm(values)] * 3, "r")
    assert found.effect.n == 23 and found.effect.value == pytest.approx(0)
    none = compare("later", arm(np.full(24, np.nan)), arm(values), [arm(values)] * 3, "r")
    assert none.verdict == "undecided" and not none.effect.has_interval


@given(st.dictionaries(st.floats(-8, 8).filter(lambda d: d != 0), st.floats(-2, 4), min_size=1, max_size=6))
def test_the_judged_dose_is_the_largest_that_leaves_the_text_whole(rises: dict[float, float]) -> None:
    if not any(dose > 0 for dose in rises):
        with pytest.raises(ConfigError, match="positive"):
            judged_dose(rises)
        return
    dose, whole, why = judged_dose(rises)
    fine = [d for d, r in rises.items() if d > 0 and r <= 1]
    assert dose == (max(fine) if fine else min(d for d in rises if d > 0)) and whole == bool(fine) and why


def test_small_parts_of_the_verdict() -> None:
    assert judged_dose({2.0: float("nan"), 4.0: 0.2})[:2] == (4.0, True)
    assert rise(arm(np.zeros(3), nll=2.5), arm(np.zeros(3), nll=2.0)) == pytest.approx(0.5)
    told, scale = Estimate(0.8, 0.7, 0.9, 24), Estimate(3.0, 1.0, 5.0, 24)
    assert blocked_by(told, scale, True) is None and "broken" in str(blocked_by(told, scale, False))
    assert "cannot be scored" in str(blocked_by(Estimate(0.6, 0.45, 0.7, 24), scale, True)) and blocked_by(None, scale, True)
    assert "could not be seen" in str(blocked_by(told, Estimate(1.0, -1.0, 3.0, 24), True))
    base = np.array([0.0, 1.0, 5.0])
    up = slope(arm(base), [replace(arm(base + 2 * d), dose=d) for d in (-4.0, 2.0, 4.0)])
    assert up.value == pytest.approx(2.0) and up.low == pytest.approx(2.0)


# the whole check


def test_the_whole_check_on_a_tiny_model() -> None:
    instrument, pooled, directions = setting()
    told: list[str] = []
    found = check_steering(
        instrument, CORPUS, pooled, LABELS, SCENARIOS, directions, "joy", openings=OPENINGS, doses=(-2.0, 0.0, 2.0), k=2, n_random=3, n_others=9,
        n_other_heads=3, sampling=Sampling(max_new_tokens=4, samples=2, seed=5), progress=lambda what, share: told.append(what),
    )  # fmt: skip
    kinds = [one.kind for one in found.arms]
    assert kinds == ["unsteered", "direction", "direction", *["random"] * 3, "other concept", "heads", *["other heads"] * 3]
    assert [one.dose for one in found.arms] == [0, -2, *[2] * 9] and told and found.openings == 3 and len(found.heads) == 2
    assert found.verdict in ("steers", "not", "undecided") and found.specific is None  # one rival is too few to judge
    assert {(c.against, c.measure) for c in found.comparisons} == {
        (a, m) for a in ("random directions", "other heads") for m in ("words", "words_baseline", "listed", "later")
    }
    assert all(one.repetition.min() >= 0 and one.empty.max() <= 1 and len(one.nll) == 3 for one in found.arms)
    plain = steer(instrument, prompts_of(instrument), [Push("plain", 0.0)], found.sampling)[0]
    assert found.arms[0].texts == plain.texts
    scorer = WordScorer.fit(CORPUS)
    expected = [np.mean(scorer.scores(some, "joy", "others")) for some in plain.texts]
    np.testing.assert_allclose(found.arms[0].values["words"], expected)
    same = check_steering(
        instrument, CORPUS, pooled, LABELS, SCENARIOS, directions, "joy", openings=OPENINGS, doses=(-2.0, 0.0, 2.0), k=2, n_random=3, n_others=9,
        n_other_heads=3, sampling=Sampling(max_new_tokens=4, samples=2, seed=5),
    )  # fmt: skip
    assert [one.texts for one in same.arms] == [one.texts for one in found.arms]


@pytest.mark.parametrize(("token", "steers"), [(" came", True), (" write", False)])
def test_a_direction_that_writes_the_concepts_word_steers_and_one_that_writes_another_does_not(token: str, steers: bool) -> None:
    """Joy's texts hold "came" and the others do not. The direction at the last layer is the unembedding of that word's token, or of one that no text holds."""
    instrument, pooled, directions = setting()
    texts = [("came " if c == "joy" else "") + f"Anna put the {place} in the evening" for place in PLACES for c, _ in ROWS]
    corpus = Corpus(tuple(ConceptText(c, s, t) for c, s, t in zip(LABELS, SCENARIOS, texts, strict=True)))
    (token_id,) = instrument.loaded.tokenizer(token, add_special_tokens=False)["input_ids"]
    unembed = instrument.model.lm_head.weight.detach().double().numpy()  # type: ignore[union-attr, operator]
    vectors = {i: array.copy() for i, array in directions.vectors.items()}
    vectors[1][0] = unembed[token_id] / np.linalg.norm(unembed[token_id])
    found = check_steering(
        instrument, corpus, pooled, LABELS, SCENARIOS, replace(directions, vectors=vectors), "joy", layer=1, doses=(6.0,), k=0, n_random=5,
        openings=tuple(f"The {place} and the {other}" for place, other in zip(PLACES, reversed(PLACES), strict=True)),
        sampling=Sampling(max_new_tokens=16, samples=2),
    )  # fmt: skip
    words = next(c for c in found.comparisons if c.measure == "words" and c.against == "random directions")
    assert found.words_scale.above(0) and found.heads == () and found.heads_verdict is None
    assert (words.excess.low > 0 and words.p <= 0.05) == steers, found.why
    assert found.verdict == ("undecided" if not found.whole else "steers" if steers else "not")


def test_nonsense_is_refused() -> None:
    instrument, pooled, directions = setting("qwen3_next")
    go = lambda **options: check_steering(  # noqa: E731
        instrument, CORPUS, pooled, LABELS, SCENARIOS, directions, **({"concept": "joy", "openings": OPENINGS} | options)
    )
    for options, error, match in (
        ({"concept": "envy"}, ConfigError, "no direction"),
        ({"layer": 9}, ConfigError, "no direction"),
        ({"doses": (-1.0,)}, ConfigError, "positive dose"),
        ({"doses": (float("nan"), 2.0)}, ConfigError, "finite"),
        ({"n_random": 2}, ConfigError, "too few"),
        ({"openings": ("One word",)}, PromptError, "interval"),
        ({"heads": [(0, 1)]}, ReadError, "Layer 0 has no heads"),
        ({"layer": 2, "heads": [(3, 1)]}, ConfigError, "cannot be tried"),
        ({"k": -1}, ConfigError, "cannot be chosen"),
        ({"where": "here"}, ConfigError, "unknown"),
    ):
        with pytest.raises(error, match=match):
            go(**options)
    with pytest.raises(ConfigError, match="cannot be added"):
        direction_push(directions, "joy", 1, float("inf"))
    with pytest.raises(ConfigError, match="cannot be written"):
        Sampling(samples=0)
