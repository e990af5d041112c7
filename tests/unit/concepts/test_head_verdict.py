"""The verdict on made activations: a few heads found where they are, never where they are not; spread and redundant told apart."""

from __future__ import annotations

import json
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from head_worlds import EVERY, HEADS, LAYERS, world
from hypothesis import given, settings

from symbolic_residue.concepts._head_verdict import CONDITIONS, few_heads, head_verdict, HeadVerdict, judge_heads, verdict_block
from symbolic_residue.stats import wilson


def judged(
    seed: int, *, scenarios: int = 24, n_random: int = 20, k: int | None = None, layer: int | None = None, **planted: object
) -> HeadVerdict:
    return head_verdict(
        *world(seed, scenarios=scenarios, **planted),
        "joy",
        k=k,
        layer=layer,
        n_draws=99,
        n_draws_readout=39,
        n_random=n_random,
        seed=seed,  # type: ignore[arg-type]
    )


def test_how_many_are_a_few() -> None:
    assert [few_heads(n) for n in (2, 9, 16, 24, 80, 270, 5000)] == [1, 1, 2, 3, 10, 10, 10]


def test_a_concept_in_one_head_is_found() -> None:
    found = [judged(seed, planted=[(1, 3)], size=5.0) for seed in range(14)]
    assert sum(one.word == "few heads" and one.readout.top[0] == (1, 3) for one in found) >= 12
    assert all(one.word in ("few heads", "undecided") for one in found)


def test_in_one_layer_too() -> None:
    found = [judged(seed, planted=[(1, 3)], size=5.0, layer=1) for seed in range(8)]
    assert sum(one.word == "few heads" and one.readout.top == ((1, 3),) for one in found) >= 7
    assert [c.name for c in found[0].conditions] == [name for name in CONDITIONS if name != "enough_residual"]
    assert all(judged(seed, planted=[(1, 3)], size=5.0, layer=0).word == "not read" for seed in range(3))


def test_without_a_concept_few_heads_are_never_claimed() -> None:
    """Also where something else lets the residual stream read it: then heads are asked, and must say no."""
    words = []
    for seed in range(200):
        found = judged(seed, scenarios=12)
        words.append(judge_heads(found.readout, replace(found.read, p=0.0), "baseline").word)
    false = sum(word == "few heads" for word in words)
    assert wilson(false, 200).low <= 0.05 and false <= 10
    assert sum(word in ("spread", "redundant") for word in words) <= 20
    stream = [judged(seed, scenarios=12, in_stream=6.0) for seed in range(30)]
    assert all(one.read_p <= 0.05 for one in stream) and sum(one.word == "few heads" for one in stream) <= 1


def test_a_concept_that_every_head_has_a_little_of_is_spread_and_not_in_a_few() -> None:
    words = [judged(seed, planted=EVERY, size=1.3).word for seed in range(16)]
    assert "few heads" not in words and words.count("spread") >= 11


def test_a_concept_that_every_head_has_wholly_is_redundant() -> None:
    found = [judged(seed, planted=EVERY, size=4.0) for seed in range(12)]
    assert sum(one.word == "redundant" for one in found) >= 11 and all(one.word != "few heads" for one in found)


def test_two_heads_of_which_one_is_asked_for_are_redundant_and_no_few() -> None:
    words = [judged(seed, planted=[(0, 2), (1, 3)], size=5.0, k=1).word for seed in range(12)]
    assert words.count("few heads") <= 1 and words.count("redundant") >= 9


@given(st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_the_verdict_does_not_see_how_heads_are_rotated_scaled_and_numbered(seed: int) -> None:
    """Scaling one head by itself moves raw norms, so only the control that is matched in raw norm may change then."""
    heads, resid, labels, scenarios = world(seed % 50, scenarios=10, planted=[(1, 3)], size=3.0)
    rng = np.random.default_rng(seed)
    order = {layer: rng.permutation(HEADS) for layer in range(LAYERS)}
    factor = float(10 ** rng.uniform(-3, 3))
    turned, scaled = {}, {}
    for layer, x in heads.items():
        rotation = [np.linalg.qr(rng.normal(size=(x.shape[2], x.shape[2])))[0] for _ in range(HEADS)]
        y = np.stack([x[:, h] @ rotation[h] for h in range(HEADS)], axis=1)
        turned[layer] = factor * y[:, order[layer]]
        scaled[layer] = x * 10 ** rng.uniform(-3, 3, size=(1, HEADS, 1))
    options = {"n_draws": 99, "n_draws_readout": 39, "n_random": 10, "k": 2}
    plain = verdict_block(head_verdict(heads, resid, labels, scenarios, "joy", **options))  # type: ignore[arg-type]
    moved = verdict_block(head_verdict(turned, resid, labels, scenarios, "joy", **options))  # type: ignore[arg-type]
    alone = verdict_block(head_verdict(scaled, resid, labels, scenarios, "joy", **options))  # type: ignore[arg-type]
    for name in ("few", "all", "rest", "next", "random", "random_norm", "residual"):
        assert moved["readouts"][name]["auc"] == pytest.approx(plain["readouts"][name]["auc"], abs=1e-9)
        if name != "random_norm":
            assert alone["readouts"][name]["auc"] == pytest.approx(plain["readouts"][name]["auc"], abs=1e-9)
    assert moved["verdict"] == plain["verdict"] and moved["verdict_strict"] == plain["verdict_strict"]
    assert moved["shares"]["value"] == pytest.approx(plain["shares"]["value"])
    for before, after in zip(plain["top_heads"], moved["top_heads"], strict=True):
        layer = before["layer"]
        assert layer == after["layer"] and order[layer][after["head"]] == before["head"]


def test_the_block_is_plain_data_and_says_what_would_be_needed() -> None:
    found = judged(4, scenarios=8, planted=[(1, 3)], size=2.2)
    found = judge_heads(found.readout, replace(found.read, p=0.01), "baseline")
    block = verdict_block(found)
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    assert [c["name"] for c in block["conditions"]] == list(CONDITIONS) and block["k"] == 2 and block["n_heads"] == 16
    assert found.word == "undecided" and block["reason"].startswith("Not shown: ")
    for condition in found.conditions:
        if condition.name in ("concentrated", "selective", "works"):
            assert condition.holds == (condition.bound <= 0.05)
        else:
            assert condition.holds == (condition.bound > condition.criterion)
        assert condition.holds or condition.name in block["reason"]
    assert len(block["top_heads"]) == 2 and block["few_minus"]["rest"]["n"] == 8


def test_against_the_other_concepts() -> None:
    heads, resid, labels, scenarios = world(0, scenarios=16, planted=[(1, 3)], size=6.0, others=3)
    found = head_verdict(heads, resid, labels, scenarios, "joy", against="others", n_draws=99, n_draws_readout=39, n_random=20)
    assert found.word == "few heads" and found.readout.top[0] == (1, 3) and found.readout.n_scenarios == 16
    assert head_verdict(heads, resid, labels, scenarios, "other 1", n_draws=99, n_draws_readout=39, n_random=5).word != "few heads"
