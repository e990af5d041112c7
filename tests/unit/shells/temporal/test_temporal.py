"""TEMPORAL-INFERENCE: tails equal whole forwards, coherence is what its definition says, planted heads are named, steps are told from slopes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from induction import induction_model

from symbolic_residue.cli import main
from symbolic_residue.diagnose import shell_item
from symbolic_residue.errors import ConfigError, EditError, PromptError, RunDamagedError
from symbolic_residue.prompts import build_prompt, temporal_coherence, TemporalItem
from symbolic_residue.shells import (
    EventPair,
    make_shell,
    Result,
    SHELLS,
    TemporalInferenceConfig,
    TemporalInferenceResidue,
    TemporalInferenceShell,
)
from symbolic_residue.shells.temporal_inference import change_point, coherence_curve
from symbolic_residue.shells.temporal_inference._heads import head_tests
from symbolic_residue.shells.temporal_inference._pairs import pair_prompts
from symbolic_residue.shells.temporal_inference._runs import TextRuns
from symbolic_residue.shells.temporal_inference._shift import coherence, make_tail, places
from symbolic_residue.store import RunFolder, validate

TEXT = (
    "The mill stands where the river turns, and the miller keeps the key to the gate. " * 2
    + "Anna put the red book under the table before Ben came home."
)
PAIR = EventPair(first="Mara fed the cat", second="Mara locked the door")
SMALL = TemporalInferenceConfig.quick(
    distances=(1, 2, 3, 4, 5, 6, 8), horizon=8, places=4, context=3, sequences=6, half=8, top_heads=3, random_heads=3
)


def shell_of(family: str, **options: Any) -> TemporalInferenceShell:
    return TemporalInferenceShell(build(family), tiny_tokenizer(), SMALL.model_copy(update=options))


@pytest.fixture(scope="module")
def llama() -> TemporalInferenceShell:
    return shell_of("llama")


@pytest.fixture(scope="module")
def residue(llama: TemporalInferenceShell) -> TemporalInferenceResidue:
    return llama.run(TEXT, shift_distance=6, pair=PAIR)


# -- shifts ------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def oracle(model: Any, ids: list[int], positions: list[int] | None, n: int) -> np.ndarray:
    """Log-probabilities of the last ``n`` tokens from a plain forward of the whole sequence in float64."""
    given = torch.tensor([ids])
    call = {} if positions is None else {"position_ids": torch.tensor([positions])}
    logits = model.double()(input_ids=given, attention_mask=torch.ones_like(given), use_cache=False, **call).logits[0]
    model.float()
    log_p = torch.log_softmax(logits, -1)
    return np.array([float(log_p[k - 1, ids[k]]) for k in range(len(ids) - n, len(ids))])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3", "qwen2", "bamba"])
def test_shifted_texts_are_those_of_whole_forwards(family: str) -> None:
    shell = shell_of(family)
    ids = list(range(40, 80))
    runs, cut, d, n = TextRuns(shell.instrument, ids), 30, 7, 5
    model = shell.loaded.model
    base = oracle(model, ids[: cut + n], None, n)
    whole = {
        ("forward", "tokens"): (ids[: cut - d] + ids[cut : cut + n], None),
        ("backward", "tokens"): (ids[:cut] + ids[cut - d : cut] + ids[cut : cut + n], None),
    }
    if runs.may_jump() and family != "bamba":
        whole["forward", "positions"] = (ids[: cut + n], [*range(cut - 1), *range(cut - 1 + d, cut + d + n)])
        whole["backward", "positions"] = (ids[: cut + n], [*range(cut - 1), *range(cut - 1 - d, cut - d + n)])
    tails = [make_tail(ids, cut, d, direction, mode, n) for direction, mode in whole]  # type: ignore[arg-type]
    assert not runs.shared or family not in ("gemma3", "bamba")
    found = runs.score(tails)
    np.testing.assert_allclose(runs.log_p[cut : cut + n], base, atol=2e-4)
    for got, (read, positions) in zip(found, whole.values(), strict=True):
        np.testing.assert_allclose(got, oracle(model, read, positions, n), atol=2e-4)


def test_coherence_is_shifted_minus_unshifted_without_the_first_token(llama: TemporalInferenceShell) -> None:
    ids = build_prompt(llama.tokenizer, TEXT).ids
    runs, cut, d, n = TextRuns(llama.instrument, ids), 30, 9, 4
    got = coherence(runs, [cut], [d], "forward", "tokens", [n])[0][0]
    shifted = oracle(llama.loaded.model, ids[: cut - d] + ids[cut : cut + 1 + n], None, n)
    plain = oracle(llama.loaded.model, ids[: cut + 1 + n], None, n)
    np.testing.assert_allclose(got, shifted - plain, atol=2e-4)
    for direction in ("forward", "backward"):
        for mode in ("tokens", "positions"):
            np.testing.assert_allclose(coherence(runs, [cut], [0], direction, mode, [n])[0], 0.0, atol=1e-4)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_coherence_curve_is_that_of_plain_forwards(llama: TemporalInferenceShell, direction: Any) -> None:
    ids = build_prompt(llama.tokenizer, TEXT).ids
    found = coherence_curve(llama.instrument, ids, [2, 5], direction=direction, config=SMALL)

    def log_p(tokens: list[int]) -> np.ndarray:
        with torch.no_grad():
            logits = llama.instrument.model(torch.tensor([tokens])).logits[0].double()
        return torch.log_softmax(logits, -1).gather(-1, torch.tensor([*tokens[1:], 0])[:, None])[:, 0].numpy()

    cuts = places(len(ids), 5, SMALL)
    assert found.shape == (2, len(cuts))
    for row, d in zip(found, (2, 5), strict=True):
        for value, cut in zip(row, cuts, strict=True):
            start = ids[: cut - d] if direction == "forward" else ids[:cut] + ids[cut - d : cut]
            n = SMALL.window
            after = ids[cut : cut + n + 1]
            shifted, plain = log_p([*start, *after]), log_p(ids)
            # Row i predicts token i + 1; the first token after the cut is left out.
            expected = shifted[len(start) : len(start) + n] - plain[cut : cut + n]
            assert value == pytest.approx(expected.mean(), abs=1e-5)
    with pytest.raises(ConfigError, match="without distances"):
        coherence_curve(llama.instrument, ids, [])
    with pytest.raises(PromptError, match="needs"):
        coherence_curve(llama.instrument, ids[:20], [15])


def test_a_jump_is_what_hidden_tokens_make(llama: TemporalInferenceShell) -> None:
    """Positions d further on, read without text between, are those behind d padding tokens that nobody sees."""
    ids, cut, d, n = list(range(40, 70)), 20, 6, 4
    got = TextRuns(llama.instrument, ids).score([make_tail(ids, cut, d, "forward", "positions", n)])[0]
    padded = ids[: cut - 1] + [3] * d + ids[cut - 1 : cut + n]
    mask = torch.tensor([[1] * (cut - 1) + [0] * d + [1] * (n + 1)])
    with torch.no_grad():
        logits = llama.loaded.model(
            input_ids=torch.tensor([padded]), attention_mask=mask, position_ids=torch.arange(len(padded))[None]
        ).logits
    log_p = torch.log_softmax(logits[0].double(), -1)
    np.testing.assert_allclose(got, [float(log_p[k - 1, padded[k]]) for k in range(len(padded) - n, len(padded))], atol=1e-5)


def test_greedy_continuation_is_the_whole_forwards(llama: TemporalInferenceShell) -> None:
    shifted = llama.shift_operation(5, "forward", "positions", context=TEXT[:60])
    ids, positions, want = list(shifted.ids), list(shifted.positions), []
    for _ in range(3):
        given = torch.tensor([ids])
        with torch.no_grad():
            logits = llama.loaded.model(
                input_ids=given, attention_mask=torch.ones_like(given), position_ids=torch.tensor([positions])
            ).logits
        want.append(int(logits[0, -1].argmax()))
        ids.append(want[-1])
        positions.append(positions[-1] + 1)
    shell = TemporalInferenceShell(loaded=llama.loaded, config=TemporalInferenceConfig.quick(steps=3))
    found = shell.predict_operation([" gate"], shifted)
    assert found.continuation == llama.tokenizer.decode(want)
    assert 0 < found.targets[" gate"] < 1
    assert found.top == sorted(found.top, key=lambda t: -t[1])


def test_operations_drop_repeat_and_remember(llama: TemporalInferenceShell) -> None:
    ids = build_prompt(llama.tokenizer, TEXT).ids
    assert list(llama.shift_operation(5, context=TEXT).ids) == ids[:-5]
    assert list(llama.shift_operation(5, "backward", context=TEXT).ids) == ids + ids[-5:]
    moved = llama.shift_operation(5, "backward", "positions", context=TEXT)
    assert list(moved.ids) == ids and moved.positions[-1] == len(ids) - 1 - 5
    states = llama.remember_operation([3, -1], TEXT)
    with torch.no_grad():
        want = llama.loaded.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(states.states[1], want[1][0, [3, len(ids) - 1]])
    assert states.positions == (3, len(ids) - 1)


@given(n=st.integers(60, 200), d=st.integers(1, 20))
def test_places_leave_room_on_both_sides(n: int, d: int) -> None:
    config = TemporalInferenceConfig()
    try:
        cuts = places(n, d, config)
    except PromptError:
        assert n < config.context + d + config.horizon + 1 + config.stride * (config.places - 1)
        return
    assert len(cuts) == config.places and cuts == sorted(set(cuts))
    assert cuts[0] - d >= config.context and cuts[-1] + config.horizon + 1 == n


# -- change point ------------------------------------------------------------------------------------------------------------

GRID = np.array(TemporalInferenceConfig().distances, float)


@settings(max_examples=60)
@given(at=st.integers(2, 8), size=st.floats(-5, -1), level=st.floats(-1, 1), scale=st.floats(0.0, 0.1), seed=st.integers(0, 9))
def test_a_step_is_found_where_it_is(at: int, size: float, level: float, scale: float, seed: int) -> None:
    y = np.where(np.arange(10) < at, level, level + size) + np.random.default_rng(seed).normal(0, scale, 10)
    change = change_point(GRID, y)
    assert change.split == at
    assert abs(change.size - size) < 0.6
    assert change.share > 0.5


SMOOTH = {
    "power law": lambda d: -3 * (1 - (1 + d / 6) ** -1.2),
    "root": lambda d: -0.5 * np.sqrt(d),
    "logarithm": lambda d: -0.8 * np.log1p(d),
    "hyperbola": lambda d: -3 * d / (d + 10),
    "wide logistic": lambda d: -3 / (1 + np.exp(-(d - 18) / 7)),
    "two exponentials": lambda d: -1.5 * (1 - np.exp(-d / 3)) - 1.5 * (1 - np.exp(-d / 40)),
    "parabola": lambda d: -3 * (d / 38) ** 2,
}
"""Shapes that the comparison (line, one exponential) was not designed on."""


def test_smooth_curves_of_other_shapes_are_rarely_steps() -> None:
    """With the packaged criteria: at most 5 % of 280 simulated smooth curves fire (mean of six noisy places, interval as in the verdict)."""
    from symbolic_residue.stats import bootstrap_mean

    criteria, rng, fired = TemporalInferenceConfig().criteria, np.random.default_rng(0), []
    for name, shape in SMOOTH.items():
        for _ in range(40):
            matrix = shape(GRID) + rng.normal(0, 0.5, (6, 10)) + rng.normal(0, 0.2, (6, 1))
            change = change_point(GRID, matrix.mean(0))
            value = bootstrap_mean(matrix[:, change.split] - matrix[:, change.split - 1], seed=0)
            fired.append((name, value.below(criteria.fall) and change.gain >= max(criteria.margin, 1e-9) and change.share >= 0.5))
    assert np.mean([f for _, f in fired]) <= 0.05


def test_change_point_refuses_short_curves() -> None:
    with pytest.raises(ConfigError, match="ascending"):
        change_point([1, 2, 3], [0, 0, 1])
    with pytest.raises(ConfigError, match="ascending"):
        change_point([*range(6), 5], [0] * 7)


# -- pairs -------------------------------------------------------------------------------------------------------------------


def test_right_words_follow_the_story() -> None:
    tokenizer = tiny_tokenizer()
    for relation, (ahead, behind) in {"order": (" before", " after"), "cause": (" so", " because")}.items():
        for echo in ("none", "right", "wrong"):
            pair = EventPair(first="aa rang", second="bb fell", relation=relation, echo=echo)
            for p in pair_prompts(tokenizer, pair, 8):
                right, wrong = (ahead, behind) if p.a_first else (behind, ahead)
                assert p.right == tokenizer.encode(right)[0] and p.wrong == tokenizer.encode(wrong)[0]
                low = p.text.lower()
                assert (low.index("aa rang") < low.index("bb fell")) == p.a_first
                assert low.endswith("aa rang")
                assert (f"aa rang{right} bb" in low) == (echo == "right")
                assert (f"aa rang{wrong} bb" in low) == (echo == "wrong")


def test_preferences_are_log_odds_and_a_liking_for_a_word_cancels(
    llama: TemporalInferenceShell, residue: TemporalInferenceResidue
) -> None:
    frame = residue.frames["preferences"].filter(pl.col("side") == "pair")
    asked = residue.asked.prompts
    assert len(frame) == len(asked) == 2 * SMALL.wordings
    for p, row in zip(asked[:3], frame.iter_rows(named=True), strict=False):
        with torch.no_grad():
            logits = llama.loaded.model(torch.tensor([llama.tokenizer.encode(p.text)])).logits[0, -1]
        assert row["log_odds"] == pytest.approx(float(logits[p.right] - logits[p.wrong]), abs=1e-4)
    liking = {True: 0.7, False: -0.7}
    moved = residue.frames["preferences"].with_columns(log_odds=pl.col("log_odds") + pl.col("a_first").replace_strict(liking))
    again = TemporalInferenceResidue(residue.asked, residue.config, residue.provenance, {**residue.frames, "preferences": moved})
    before, after = (llama.verdicts(r)[2].value.value for r in (residue, again))
    assert before == pytest.approx(after)


def fake(residue: TemporalInferenceResidue, pair: float, neutral: float, spread: float = 0.2) -> TemporalInferenceResidue:
    rng = np.random.default_rng(0)
    mean = pl.col("side").replace_strict({"pair": pair, "neutral": neutral})
    frame = residue.frames["preferences"]
    frame = frame.with_columns(log_odds=mean + pl.Series(rng.normal(0, spread, len(frame))))
    return TemporalInferenceResidue(residue.asked, residue.config, residue.provenance, {**residue.frames, "preferences": frame})


def test_a_reversal_fires_unless_the_control_shows_it_too(llama: TemporalInferenceShell, residue: TemporalInferenceResidue) -> None:
    assert [v.outcome for v in llama.verdicts(fake(residue, -3.0, 0.0))][2] == "fires"
    assert [v.outcome for v in llama.verdicts(fake(residue, 3.0, 0.0))][2] == "absent"
    taken_back = llama.verdicts(fake(residue, -3.0, -3.0))[2]
    assert taken_back.outcome == "undecided" and "control" in taken_back.note
    assert llama.verdicts(fake(residue, -0.5, 0.0, 2.0))[2].outcome == "undecided"


# -- the text's verdicts -----------------------------------------------------------------------------------------------------


def with_coherence(residue: TemporalInferenceResidue, text: Any, reference: Any = lambda d, t: 0 * d) -> TemporalInferenceResidue:
    """The residue with coherence made up from distance and token, on the text and on the reference."""
    frame, rng = residue.frames["shifts"], np.random.default_rng(0)
    d, t = frame["distance"].to_numpy().astype(float), frame["token"].to_numpy().astype(float)
    value = np.where((frame["side"] == "text").to_numpy(), text(d, t), reference(d, t)) + rng.normal(0, 0.05, len(frame))
    frames = {**residue.frames, "shifts": frame.with_columns(coherence=pl.Series(value))}
    return TemporalInferenceResidue(residue.asked, residue.config, residue.provenance, frames)


def test_drift_and_break_follow_the_curves(llama: TemporalInferenceShell, residue: TemporalInferenceResidue) -> None:
    def outcomes(text: Any, reference: Any = lambda d, t: 0 * d) -> tuple[str, str]:
        found = llama.verdicts(with_coherence(residue, text, reference))
        return found[0].outcome, found[1].outcome

    falls = lambda d, t: np.where(t >= 4, -4.0, 0.0)  # noqa: E731
    step = lambda d, t: np.where(d >= 5, -4.0, 0.0)  # noqa: E731
    assert outcomes(falls) == ("fires", "absent")
    assert outcomes(falls, falls)[0] == "undecided"
    assert outcomes(step) == ("absent", "fires")
    assert outcomes(step, step)[1] == "undecided"
    assert outcomes(lambda d, t: -0.5 * d)[1] == "absent"
    assert outcomes(lambda d, t: -4 * (1 - np.exp(-d / 2)))[1] == "absent"
    assert outcomes(lambda d, t: 0 * d) == ("absent", "absent")


def test_what_was_not_asked_is_undecided_without_a_value(llama: TemporalInferenceShell) -> None:
    only_pair = llama.verdicts(llama.run(pair=PAIR))
    assert [v.value.n for v in only_pair] == [0, 0, SMALL.wordings, 0]
    assert all(v.outcome == "undecided" and "Not asked" in v.note and math.isnan(v.value.value) for v in only_pair if not v.value.n)
    only_text = llama.verdicts(llama.run(TEXT, shift_distance=6))
    assert [v.value.n for v in only_text] == [SMALL.places, SMALL.places, 0, 0]


# -- heads -------------------------------------------------------------------------------------------------------------------


def planted(knocked_out: bool = False) -> TemporalInferenceShell:
    config = TemporalInferenceConfig.quick(sequences=8, half=12, top_heads=3, random_heads=3)
    return TemporalInferenceShell(induction_model(knocked_out=knocked_out), tiny_tokenizer(), config)


def test_the_planted_heads_are_named() -> None:
    shell = planted()
    findings = shell.analyze_residue(shell.run(pair=PAIR))
    assert (1, 0) in findings.confirmed("repeated sequences: induction")
    assert (0, 0) in findings.confirmed("repeated sequences: previous token")
    scores = findings.tables()["head_scores"]
    best = scores.filter(pl.col("score") == "induction before").sort("value").row(-1, named=True)
    assert (best["layer"], best["head"]) == (1, 0) and best["value"] > 0.8 and best["control"] < 0.2
    first = scores.filter((pl.col("score") == "previous token before") & (pl.col("layer") == 0) & (pl.col("head") == 0)).row(
        0, named=True
    )
    assert first["value"] > 0.9
    # Its key is a fixed step in learned positions, so it misses the token before a jump.
    after = scores.filter(
        (pl.col("score") == "previous token after the shift") & (pl.col("layer") == 0) & (pl.col("head") == 0)
    ).row(0, named=True)
    assert after["value"] < 0.5


def test_a_head_without_output_is_not_named() -> None:
    shell = planted(knocked_out=True)
    findings = shell.analyze_residue(shell.run(pair=PAIR))
    assert findings.confirmed("repeated sequences") == []


def test_ablations_are_those_of_a_plain_forward() -> None:
    shell = planted()
    findings = shell.analyze_residue(shell.run(pair=PAIR))
    row = findings.tables()["head_tests"].filter((pl.col("layer") == 1) & (pl.col("head") == 0)).row(0, named=True)
    # Without the copy the repeated tokens are guesses among the vocabulary.
    assert row["effect"] < -1
    assert abs(row["effect"]) > 5 * row["control"]


def test_too_few_units_confirm_nothing() -> None:
    effects = np.full((1, 5), -3.0)
    assert head_tests([(0, 0)], ["x"], effects, np.zeros((2, 5)), "nats", 0)["confirmed"].to_list() == [None]
    assert head_tests([(0, 0)], ["x"], np.full((1, 6), -3.0), np.zeros((2, 6)), "nats", 0)["confirmed"].to_list() == [True]
    assert head_tests([(0, 0)], ["x"], np.full((1, 6), 3.0), np.zeros((2, 6)), "nats", 0)["confirmed"].to_list() == [False]


# -- the shell ---------------------------------------------------------------------------------------------------------------


def test_findings_are_whole_and_fit_the_store(
    llama: TemporalInferenceShell, residue: TemporalInferenceResidue, tmp_path: Path
) -> None:
    findings = llama.analyze_residue(residue)
    assert isinstance(findings, Result)
    assert [v.mode for v in findings.verdicts] == ["drift", "discontinuity break", "ordering reversal", "causal confusion"]
    tables = findings.tables()
    assert {"verdicts", "tokens", "curves", "maps", "candidates", "head_scores", "head_tests"} <= tables.keys()
    with RunFolder.create(tmp_path / "run", kind="temporal-inference", command="test", provenance={}, config={}) as run:
        result = shell_item(llama, "one", TEXT, lambda told: residue)
        run.write_item("one", result.tables)
    assert validate(tmp_path / "run") == []
    assert set(tables["curves"]["series"]) >= {"forward, tokens", "backward, tokens", "control: span shuffled"}
    pytest.importorskip("altair")
    drawn = str(llama.visualize_temporal_coherence(findings).to_dict())
    assert "forward, tokens" in drawn and "along the continuation" in drawn


def test_the_model_is_left_alone_and_runs_repeat(llama: TemporalInferenceShell, residue: TemporalInferenceResidue) -> None:
    ids = torch.tensor([llama.tokenizer.encode(TEXT)])
    with torch.no_grad():
        before = llama.loaded.model(ids).logits
    fresh = TemporalInferenceShell(loaded=llama.loaded, config=SMALL)
    again = fresh.run(TEXT, shift_distance=6, pair=PAIR)
    one, two = llama.analyze_residue(residue), fresh.analyze_residue(again)
    assert one.summary == two.summary
    assert all(one.tables()[name].equals(two.tables()[name]) for name in one.tables())
    with torch.no_grad():
        assert torch.equal(llama.loaded.model(ids).logits, before)


def test_a_saved_residue_gives_the_same_findings(
    llama: TemporalInferenceShell, residue: TemporalInferenceResidue, tmp_path: Path
) -> None:
    residue.save(tmp_path / "kept")
    loaded = TemporalInferenceResidue.load(tmp_path / "kept")
    assert llama.analyze_residue(loaded).summary == llama.analyze_residue(residue).summary
    (tmp_path / "kept" / "shifts.parquet").unlink()
    with pytest.raises(RunDamagedError):
        TemporalInferenceResidue.load(tmp_path / "kept")


def test_refusals(llama: TemporalInferenceShell, residue: TemporalInferenceResidue) -> None:
    with pytest.raises(ConfigError, match="nothing to probe"):
        llama.run()
    with pytest.raises(PromptError, match="needs"):
        llama.run("Too short to shift.")
    with pytest.raises(ConfigError, match="sideways"):
        llama.run(TEXT, direction="sideways")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Anchors"):
        llama.remember_operation([99999], TEXT)
    with pytest.raises(ConfigError, match="does not fit"):
        llama.shift_operation(500, context=TEXT)
    with pytest.raises(ValueError, match="full stop"):
        EventPair(first="A rang.", second="b fell")
    with pytest.raises(EditError, match="position ids"):
        shell_of("falcon_alibi").run(TEXT, shift_distance=6, mode="positions")
    with pytest.raises(ConfigError, match="another model"):
        TemporalInferenceShell(build("llama", seed=1), tiny_tokenizer(), SMALL).analyze_residue(residue)


@pytest.mark.parametrize("family", ["bamba", "gemma3", "falcon_alibi"])
def test_models_whose_tails_run_whole(family: str) -> None:
    shell = shell_of(family, places=2, distances=(1, 2))
    findings = shell.analyze_residue(shell.run(TEXT, shift_distance=4))
    assert findings.verdict("drift").value.n == 2
    assert findings.verdict("discontinuity break").outcome == "undecided"


# -- items and command line --------------------------------------------------------------------------------------------------


def test_items_are_balanced_and_apart() -> None:
    items = temporal_coherence()
    assert SHELLS["temporal-inference"].attribute == "TemporalInferenceShell"
    for split in ("calibration", "held-out"):
        mine = [i for i in items if i.split == split]
        for mode in ("drift", "discontinuity break", "ordering reversal", "causal confusion"):
            assert sum(mode in i.modes for i in mine) >= 20
        assert sum(i.kind == "null-text" for i in mine) >= 24
        for relation in ("order", "cause"):
            assert sum(i.null and i.frame == relation for i in mine) >= 24
    shown = [i.shown for i in items if i.text]
    assert len(set(shown)) == len(shown)
    events = [
        {(i.pair or {})["first"].split()[0] for i in items if i.pair and i.frame == "order" and i.split == s}
        for s in ("calibration", "held-out")
    ]
    assert not events[0] & events[1]


def test_the_generator_writes_the_packaged_file() -> None:
    import importlib.util

    path = Path(__file__).parents[4] / "benchmarks/items/temporal_coherence.py"
    spec = importlib.util.spec_from_file_location("make_temporal", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in module.items())
    assert module.TARGET.read_text("utf-8") == lines


def test_an_item_that_is_no_item_is_refused() -> None:
    with pytest.raises(ValueError, match="no kind"):
        TemporalItem(id="x", kind="odd", split="calibration", text="a", genre="list")
    with pytest.raises(ValueError, match="or a pair"):
        TemporalItem(id="x", kind="echo", split="calibration", text="a")


def test_the_command_runs_a_text_and_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = shell_of("llama").loaded
    monkeypatch.setattr("symbolic_residue.cli._shell_common.open_for_cli", lambda *a, **k: loaded)
    words = ["shell", "temporal-inference", "--quick", "--top-heads", "0", "--no-report"]
    assert (
        main([*words, TEXT * 3, "--first", "Mara fed the cat", "--second", "Mara locked the door", "-o", str(tmp_path / "a")]) == 0
    )
    assert validate(tmp_path / "a") == []
    item = next(i for i in temporal_coherence() if i.kind == "order" and i.split == "calibration")
    file = tmp_path / "items.jsonl"
    file.write_text(item.model_dump_json(exclude_none=True) + "\n{}\n", "utf-8")
    assert main([*words, "--file", str(file), "-o", str(tmp_path / "b")]) == 1
    assert RunFolder.open(tmp_path / "b").table("verdicts")["item"].unique().to_list() == [item.id]
    capsys.readouterr()
    assert main([*words, "--first", "a rang", "-o", str(tmp_path / "c")]) == 2
    assert "One event" in capsys.readouterr().err
    assert make_shell("temporal-inference", loaded).name == "temporal-inference"
