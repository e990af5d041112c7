"""Cosines between concepts' directions beside those of permuted labels: shared neutral tellings make them alike without any concept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbolic_residue.concepts import find_directions, make_design, Pooled, ReadoutModel
from symbolic_residue.concepts._similarity import permuted_weights, ridge_shares, similarity_blocks
from symbolic_residue.stats import wilson

CONCEPTS = ("joy", "hope", "fear", "calm")
WIDTH = 400


def made(seed: int, shift: float, n: int = 20) -> tuple[Pooled, list[str], list[str], Any]:
    """Texts with topic; joy and hope move the same way by ``shift``."""
    rng = np.random.default_rng(seed)
    labels = ["baseline", *CONCEPTS] * n
    scenarios = [f"{i:03}" for i in range(n) for _ in range(5)]
    x = rng.normal(size=(5 * n, WIDTH)) + 3 * np.repeat(rng.normal(size=(n, WIDTH)), 5, axis=0)
    x[[label in ("joy", "hope") for label in labels], 0] += shift
    pooled = Pooled({2: x.astype(np.float32)}, {}, np.full(5 * n, 30), "last", None, (), ())
    return pooled, labels, scenarios, find_directions(pooled, labels, scenarios, ReadoutModel("m", "0" * 64, None, "f", WIDTH, 3))


def judged(pooled: Pooled, labels: list[str], scenarios: list[str], directions: Any, n_draws: int, seed: int) -> Any:
    return similarity_blocks(pooled, directions, permuted_weights(labels, scenarios, directions, n_draws, seed))


def test_the_observed_weights_give_the_directions_and_permuted_ones_keep_every_scenario() -> None:
    pooled, labels, scenarios, directions = made(0, 0.0)
    blocks = permuted_weights(labels, scenarios, directions, 5, 0)
    weights = blocks(slice(None)).reshape(6, 4, 100)  # [draw, concept, text]
    np.testing.assert_array_equal(blocks(slice(7, 30)), blocks(slice(None))[:, 7:30])
    found = weights[0] @ pooled.resid[2].astype(float)
    np.testing.assert_allclose(found / np.linalg.norm(found, axis=1, keepdims=True), directions.vectors[2], atol=1e-6)
    design = make_design(labels, scenarios, "joy")
    np.testing.assert_array_equal(np.sort(weights[0, 0, design.rows]), np.sort(design.weights()))
    for draw in weights[1:]:
        for s in range(20):
            here = draw[:, 5 * s : 5 * s + 5]
            assert sorted(here[0].round(9)) == pytest.approx([-0.05, 0, 0, 0, 0.05])
            assert len({int(row.argmin()) for row in here}) == 1 and len({int(row.argmax()) for row in here}) == 4
    assert (weights[1] != weights[0]).any() and (
        permuted_weights(labels, scenarios, directions, 5, 0)(slice(None)).reshape(6, 4, 100) == weights
    ).all()


def test_the_null_is_of_directions_found_anew_under_the_permuted_labels() -> None:
    pooled, labels, scenarios, directions = made(0, 0.0)
    block = judged(pooled, labels, scenarios, directions, 3, 7)["2"]
    values = []
    for draw in permuted_weights(labels, scenarios, directions, 3, 7)(slice(None)).reshape(4, 4, 100)[1:]:
        found = draw @ pooled.resid[2].astype(float)
        unit = found / np.linalg.norm(found, axis=1, keepdims=True)
        values += [unit[a] @ unit[b] for a in range(4) for b in range(a)]
    assert block["null_mean"] == pytest.approx(np.mean(values)) and block["n_draws"] == 3
    assert (block["null_low"], block["null_high"]) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))


def test_a_shared_move_is_found_and_shared_neutral_tellings_are_not_taken_for_one() -> None:
    """Planted: joy and hope move together by 12 sd of one of 400 dimensions. Null: nothing does, 40 times, each family of 6 pairs."""
    pooled, labels, scenarios, directions = made(0, 12.0)
    block = judged(pooled, labels, scenarios, directions, 199, 0)["2"]
    cosines, p = np.array(block["cosines"]), np.array(block["p_layer"])
    v = directions.vectors[2].astype(float)
    np.testing.assert_allclose(cosines, v @ v.T, atol=1e-12)
    assert p[0, 1] == p[1, 0] <= 0.01 and cosines[0, 1] > block["null_high"]
    assert block["ridge_r2"][0]["p"] <= 0.01 < 0.05 < block["ridge_r2"][2]["p"]  # joy says hope, and nothing says fear
    false, redundant = 0, 0
    for seed in range(40):
        pooled, labels, scenarios, directions = made(seed, 0.0)
        block = judged(pooled, labels, scenarios, directions, 99, seed)["2"]
        assert block["null_mean"] == pytest.approx(0.5, abs=0.05)  # (a − n) · (b − n) of noise: the neutral telling's share
        assert block["null_low"] < block["null_mean"] < block["null_high"]
        # 1 / (2 (1 + 1/3)): what the mean of three others says of a direction with which they share the neutral tellings
        assert block["ridge_r2"][0]["null_mean"] == pytest.approx(0.375, abs=0.04)
        false += np.array(block["p_layer"]).min() <= 0.05
        redundant += block["ridge_r2"][0]["p"] <= 0.05
    assert wilson(false, 40).low <= 0.05 and wilson(redundant, 40).low <= 0.05


@given(st.integers(2, 6), st.integers(0, 2**16))
def test_ridge_shares_are_those_of_the_plain_regression(n: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, 9))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = ridge_shares((vectors @ vectors.T)[None])[0]
    for at in range(n):
        others = np.delete(vectors, at, axis=0)
        stacked = np.concatenate([others.T, 0.1 * np.eye(n - 1)])  # ridge, λ = 0.01, as rows of data
        beta = np.linalg.lstsq(stacked, np.concatenate([vectors[at], np.zeros(n - 1)]), rcond=None)[0]
        assert found[at] == pytest.approx(1 - ((vectors[at] - beta @ others) ** 2).sum(), abs=1e-9)


def test_ridge_tells_a_mixture_of_other_concepts_from_a_direction_of_its_own() -> None:
    basis = np.linalg.qr(np.random.default_rng(4).normal(size=(50, 8)))[0].T
    mixed = np.concatenate([[(basis[0] + basis[1]) / np.sqrt(2)], basis[:5]])
    assert ridge_shares((mixed @ mixed.T)[None])[0, 0] == pytest.approx(1 - (0.01 / 1.01) ** 2)
    assert ridge_shares((basis @ basis.T)[None])[0] == pytest.approx(0, abs=1e-12)


def test_without_a_null_or_a_partner_the_numbers_say_so() -> None:
    pooled, labels, scenarios, _ = made(0, 0.0)
    identity = ReadoutModel("m", "0" * 64, None, "f", WIDTH, 3)
    other = find_directions(pooled, labels, scenarios, identity, estimator="lda")
    block = similarity_blocks(pooled, other, None)["2"]
    assert block["null_mean"] is None and block["p_layer"] is None and block["cosines"][0][0] == pytest.approx(1)
    assert block["ridge_r2"][0]["null"] is None and 0 <= block["ridge_r2"][0]["value"] <= 1
    alone = find_directions(pooled, labels, scenarios, identity, concepts=["joy"])
    assert judged(pooled, labels, scenarios, alone, 99, 0)["2"]["ridge_r2"][0]["value"] is None
