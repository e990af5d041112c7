"""Directions: what is compared with what, three estimators against their definitions, planted and null, and the files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from scipy.optimize import minimize
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import (
    collect,
    draw_labels,
    find_directions,
    fit,
    load_directions,
    make_design,
    Pooled,
    ReadoutModel,
    save_directions,
    scenario_differences,
)
from symbolic_residue.errors import ConfigError, DamagedFileError, ModelError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap

MODEL = ReadoutModel("a model", "0" * 64, None, "float32", 20, 3)


def pairs(n: int, concepts: tuple[str, ...] = ("joy",)) -> tuple[list[str], list[str | None]]:
    """Labels and scenarios: a baseline and each concept once in every scenario."""
    labels = [label for _ in range(n) for label in ("baseline", *concepts)]
    return labels, [f"s{i}" for i in range(n) for _ in range(1 + len(concepts))]


def pooled_of(resid: dict[int, np.ndarray]) -> Pooled:
    n = len(next(iter(resid.values())))
    return Pooled({i: x.astype(np.float32) for i, x in resid.items()}, {}, np.full(n, 9), "last", None, (), ())


@given(st.integers(2, 7), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_the_paired_difference_is_the_mean_of_the_scenarios_differences(n: int, p: int, q: int, seed: int) -> None:
    labels = [label for _ in range(n) for label in ["joy"] * p + ["baseline"] * q]
    scenarios = [f"s{i}" for i in range(n) for _ in range(p + q)]
    x = np.random.default_rng(seed).normal(size=(len(labels), 5))
    design = make_design(labels, scenarios, "joy")
    assert design.paired and design.n_strata == n and design.left_out == 0
    blocks = x.reshape(n, p + q, 5)
    expected = blocks[:, :p].mean(1) - blocks[:, p:].mean(1)
    by_name = np.argsort([f"=s{i}" for i in range(n)])
    np.testing.assert_allclose(scenario_differences(x[design.rows], design), expected[by_name], atol=1e-12)
    np.testing.assert_allclose(fit(x[design.rows], design), expected.mean(0), atol=1e-12)
    drawn = draw_labels(design, 20, seed)
    for s in range(n):
        assert (drawn[:, design.stratum == s].sum(1) == p).all()
    weights = design.weights(drawn)
    np.testing.assert_allclose(np.where(weights > 0, weights, 0).sum(1), 1)
    np.testing.assert_allclose(weights.sum(1), 0, atol=1e-12)


def test_without_shared_scenarios_it_is_the_plain_difference_of_means() -> None:
    labels, scenarios = ["joy"] * 4 + ["baseline"] * 6, [None] * 10
    x = np.random.default_rng(0).normal(size=(10, 3))
    design = make_design(labels, scenarios, "joy")
    assert not design.paired and design.n_strata == 1 and design.n_folds == 4
    np.testing.assert_allclose(fit(x, design), x[:4].mean(0) - x[4:].mean(0))
    for fold in range(4):
        assert design.positive[design.fold == fold].any() and not design.positive[design.fold == fold].all()


def test_texts_without_a_partner_are_left_out_and_counted() -> None:
    labels, scenarios = pairs(3)
    labels, scenarios = [*labels, "joy", "baseline", "joy", "fear"], [*scenarios, None, "lonely", "other", "s0"]
    design = make_design(labels, scenarios, "joy")
    assert design.left_out == 3 and design.rows.tolist() == list(range(6))
    others = make_design(labels, scenarios, "joy", "others")
    assert others.paired and others.n_strata == 1 and set(others.rows) == {1, 9}
    assert set(make_design(labels, scenarios, "joy", "all").rows) == {0, 1, 2, 3, 4, 5, 9}


def test_draws_are_uniform_over_the_labelings_and_few_scenarios_say_what_p_they_can_reach() -> None:
    design = make_design(*pairs(3), "joy")
    assert design.smallest_p == pytest.approx(1 / 8)
    drawn = draw_labels(design, 8000, 1)
    codes = drawn[:, design.positive] @ np.array([1, 2, 4])
    counts = np.bincount(codes, minlength=8)
    assert (np.abs(counts - 1000) < 5 * np.sqrt(1000 * 7 / 8)).all()
    unpaired = make_design(["joy"] * 2 + ["baseline"] * 3, [None] * 5, "joy")
    assert unpaired.smallest_p == pytest.approx(1 / 10)
    seen = {tuple(np.flatnonzero(row)) for row in draw_labels(unpaired, 500, 2)}
    assert seen == set(itertools.combinations(range(5), 2))
    np.testing.assert_array_equal(draw_labels(design, 5, 3), draw_labels(design, 5, 3))
    held = design.without(0)
    assert held.n_strata == 2 and held.n_pos == 2 and not set(held.rows) & set(design.rows[design.fold == 0])


def test_lda_is_the_shrunk_covariance_solved_densely() -> None:
    rng = np.random.default_rng(3)
    labels = ["joy"] * 9 + ["baseline"] * 12
    design = make_design(labels, [None] * 21, "joy")
    for d in (4, 40):
        x = rng.normal(size=(21, d)) @ rng.normal(size=(d, d))
        residuals = np.where(design.positive[:, None], x - x[:9].mean(0), x - x[9:].mean(0))
        cov = residuals.T @ residuals / 21
        mu = np.trace(cov) / d
        spread = ((cov - mu * np.eye(d)) ** 2).sum()
        noise = sum(((np.outer(r, r) - cov) ** 2).sum() for r in residuals) / 21**2
        gamma = min(1.0, noise / spread)
        dense = np.linalg.solve((1 - gamma) * cov + gamma * mu * np.eye(d), x[:9].mean(0) - x[9:].mean(0))
        np.testing.assert_allclose(fit(x, design, "lda"), dense, rtol=1e-7)


def test_the_logistic_direction_minimises_its_loss() -> None:
    rng = np.random.default_rng(4)
    design = make_design(*pairs(8), "joy")
    x = rng.normal(size=(16, 30)) + design.positive[:, None] * np.eye(30)[0]
    middles = (x[0::2] + x[1::2]) / 2
    centred = x - np.repeat(middles, 2, axis=0)
    scale = np.sqrt((centred**2).sum(1).mean())
    sign = np.where(design.positive, 1, -1)

    def loss(v: np.ndarray) -> float:
        return float(np.logaddexp(0, -sign * (centred / scale @ v)).mean() + 0.005 * v @ v)

    ours = fit(x, design, "logistic")
    dense = minimize(loss, np.zeros(30), options={"gtol": 1e-8}).x
    np.testing.assert_allclose(ours * scale, dense, atol=2e-4)


@pytest.mark.parametrize("estimator", ["difference", "logistic", "lda"])
def test_a_planted_direction_is_found_and_a_topic_direction_is_not_taken_for_it(estimator: Any) -> None:
    """Planted: coordinate 0 carries the concept; coordinate 1 the scenario, thirty times as large. Null: no concept."""
    rng = np.random.default_rng(5)
    labels, scenarios = pairs(24)
    design = make_design(labels, scenarios, "joy")
    noise = rng.normal(size=(48, 40))
    topic = np.repeat(rng.normal(size=24) * 30, 2)[:, None] * np.eye(40)[1]
    planted = noise + topic + 4 * design.positive[:, None] * np.eye(40)[0]
    v = fit(planted, design, estimator)
    v /= np.linalg.norm(v)
    assert v[0] > 0.85 and abs(v[1]) < 0.2
    u = fit(noise + topic, design, estimator)
    assert abs(u[0]) / np.linalg.norm(u) < 0.5
    np.testing.assert_allclose(
        fit(7 * planted, design, estimator) / np.linalg.norm(fit(7 * planted, design, estimator)), v, atol=1e-5
    )
    rotation = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    turned = fit(planted @ rotation, design, estimator)
    np.testing.assert_allclose(turned / np.linalg.norm(turned), v @ rotation, atol=1e-5)


def test_directions_have_length_one_keep_their_norm_and_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    labels, scenarios = pairs(8, ("joy", "fear"))
    resid = {i: rng.normal(size=(24, 20)) for i in (0, 2)}
    found = find_directions(pooled_of(resid), labels, scenarios, MODEL)
    assert found.concepts == ("joy", "fear") and found.layers == (0, 2)
    for layer in found.layers:
        x = resid[layer].astype(np.float32).astype(float)
        is_fear, neutral = np.array(labels) == "fear", np.array(labels) == "baseline"
        delta = x[is_fear].mean(0) - x[neutral].mean(0)
        np.testing.assert_allclose(np.linalg.norm(found.vectors[layer], axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(found.norms[layer][1], np.linalg.norm(delta), rtol=1e-5)
        np.testing.assert_allclose(found.vector("fear", layer), delta / np.linalg.norm(delta), atol=1e-5)
        z = found.scores(x, layer, z=True)[neutral, 1]
        assert z.mean() == pytest.approx(0, abs=1e-5) and z.std(ddof=1) == pytest.approx(1, abs=1e-5)
        gap = found.positive_mean[layer] - found.negative_mean[layer]
        np.testing.assert_allclose(gap, found.norms[layer], rtol=1e-4)  # of the difference of means
    back = load_directions(save_directions(found, tmp_path / "out"), None)
    assert back.concepts == found.concepts and back.model == MODEL and back.estimator == "difference"
    for layer in found.layers:
        for kind in ("vectors", "norms", "positive_mean", "negative_mean", "negative_sd"):
            np.testing.assert_array_equal(getattr(back, kind)[layer], getattr(found, kind)[layer])
    from safetensors.numpy import load_file

    assert load_file(tmp_path / "out" / "readout.safetensors")["layer_2.vectors"].shape == (2, 20)


def test_files_of_another_model_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    loaded = wrap(build("llama"), tiny_tokenizer())
    texts = ["The mill stands.", "Anna put the red book down.", "Ben came home.", "The captain answers yes."]
    pooled = collect(Instrument(loaded), texts, heads=False)
    labels, scenarios = ["baseline", "joy"] * 2, ["a", "a", "b", "b"]
    folder = save_directions(find_directions(pooled, labels, scenarios, ReadoutModel.of(loaded)), tmp_path / "r")
    assert load_directions(folder, loaded).layers == (0, 1)
    with pytest.raises(ModelError, match="another model"):
        load_directions(folder, wrap(build("llama", seed=1), tiny_tokenizer()))
    record = json.loads((folder / "readout.json").read_text())
    assert {"concepts", "layers", "hidden_size", "dtype", "estimator", "pooling", "model", "weights_sha256"} <= set(record)
    (folder / "readout.json").write_text(json.dumps(record | {"format": 9}))
    with pytest.raises(DamagedFileError, match="format 9"):
        load_directions(folder, loaded)
    (folder / "readout.json").write_text(json.dumps(record | {"concepts": ["joy", "fear"]}))
    with pytest.raises(DamagedFileError, match=r"no layer_0\.vectors of shape \(2, 64\)"):
        load_directions(folder, loaded)
    (folder / "readout.json").write_text(json.dumps({k: v for k, v in record.items() if k != "weights_sha256"}))
    with pytest.raises(DamagedFileError, match="weights_sha256"):
        load_directions(folder, loaded)
    (folder / "readout.json").write_text(json.dumps(record))
    data = bytearray((folder / "readout.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "readout.safetensors").write_bytes(bytes(data))
    with pytest.raises(DamagedFileError, match="sha256 differs"):
        load_directions(folder, loaded)
    with pytest.raises(DamagedFileError, match="no readable"):
        load_directions(tmp_path / "nothing", loaded)


def test_refusals() -> None:
    labels, scenarios = pairs(3)
    with pytest.raises(ConfigError, match="no texts of a concept 'fear'"):
        make_design(labels, scenarios, "fear")
    with pytest.raises(ConfigError, match="no texts of a concept 'baseline'"):
        make_design(labels, scenarios, "baseline")
    with pytest.raises(ConfigError, match="no negatives"):
        make_design(["joy", "joy"], [None, None], "joy")
    with pytest.raises(ConfigError, match="labels and"):
        make_design(labels, scenarios[:-1], "joy")
    with pytest.raises(ConfigError, match="no choice"):
        make_design(labels, scenarios, "joy", "nothing")  # type: ignore[arg-type]
    design = make_design(labels, scenarios, "joy")
    with pytest.raises(ConfigError, match="same mean"):
        fit(np.ones((6, 4)), design)
    with pytest.raises(ConfigError, match="no estimator"):
        fit(np.ones((6, 4)), design, "median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="5 activations"):
        fit(np.ones((5, 4)), design)
    with pytest.raises(ConfigError, match="draws"):
        draw_labels(design, 0, 0)
    with pytest.raises(ConfigError, match="left"):
        make_design(*pairs(1), "joy").without(0)
    pooled = pooled_of({0: np.random.default_rng(0).normal(size=(6, 20))})
    with pytest.raises(ConfigError, match="5 labels"):
        find_directions(pooled, labels[:5], scenarios[:5], MODEL)
    with pytest.raises(ConfigError, match="twice"):
        find_directions(pooled, labels, scenarios, MODEL, concepts=["joy", "joy"])
    found = find_directions(pooled, labels, scenarios, MODEL)
    with pytest.raises(ConfigError, match="layer 1"):
        found.vector("joy", 1)
    with pytest.raises(ConfigError, match="layer 1"):
        found.scores(np.ones((2, 20)), 1)
    with pytest.raises(ConfigError, match="width"):
        found.scores(np.ones((2, 21)), 0)
