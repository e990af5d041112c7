"""Cosines between concepts' directions beside those of permuted labels: shared neutral tellings make them alike without any concept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from symbolic_residue.concepts import find_directions, make_design, Pooled, ReadoutModel
from symbolic_residue.concepts._similarity import cosine_blocks, permuted_weights
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


def test_a_shared_move_is_found_and_shared_neutral_tellings_are_not_taken_for_one() -> None:
    """Planted: joy and hope move together by 12 sd of one of 400 dimensions. Null: nothing does, 40 times, each family of 6 pairs."""
    pooled, labels, scenarios, directions = made(0, 12.0)
    block = cosine_blocks(pooled, directions, permuted_weights(labels, scenarios, directions, 199, 0))["2"]
    cosines, p = np.array(block["cosines"]), np.array(block["p_layer"])
    v = directions.vectors[2].astype(float)
    np.testing.assert_allclose(cosines, v @ v.T, atol=1e-12)
    assert p[0, 1] == p[1, 0] <= 0.01 and cosines[0, 1] > block["null_high"]
    false = 0
    for seed in range(40):
        pooled, labels, scenarios, directions = made(seed, 0.0)
        block = cosine_blocks(pooled, directions, permuted_weights(labels, scenarios, directions, 99, seed))["2"]
        assert block["null_mean"] == pytest.approx(0.5, abs=0.05)  # (a − n) · (b − n) of noise: the neutral telling's share
        assert block["null_low"] < block["null_mean"] < block["null_high"]
        false += np.array(block["p_layer"]).min() <= 0.05
    assert wilson(false, 40).low <= 0.05


def test_without_draws_or_partners_there_is_no_null() -> None:
    pooled, _, _, directions = made(0, 0.0)
    block = cosine_blocks(pooled, directions, None)["2"]
    assert block["null_mean"] is None and block["p_layer"] is None and block["cosines"][0][0] == pytest.approx(1)
