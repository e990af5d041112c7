"""The quality report: held-out scores against a plain loop, planted and null, and each number against its definition."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import (
    collect,
    ConceptText,
    Corpus,
    Design,
    draw_labels,
    find_directions,
    held_out_scores,
    make_design,
    Meaning,
    Pooled,
    quality_report,
    ReadoutModel,
)
from symbolic_residue.concepts._held_out import auc_of_draws, fold_auc, permuted_scores, variance_ratio
from symbolic_residue.concepts._quality_parts import (
    alignment,
    length_cosine,
    length_leak,
    mlp_columns,
    mlp_cosine,
    mlp_null,
    pc_share,
    scenario_leak,
)
from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import bind
from symbolic_residue.stats import auc, wilson

WORDS = ("mill", "river", "gate", "table", "book", "answer", "captain", "harbour")
TEXTS = [
    f"{who} {what} the {word} in the evening" for word in WORDS for who, what in (("Anna", "put"), ("Ben", "asks"), ("They", "see"))
]
LABELS = ["baseline", "joy", "fear"] * len(WORDS)
SCENARIOS = [word for word in WORDS for _ in range(3)]
MODEL = ReadoutModel("a model", "0" * 64, None, "float32", 64, 2)


def pairs(n: int) -> tuple[Design, list[str]]:
    names = [f"{i:03}" for i in range(n) for _ in range(2)]
    return make_design(["baseline", "joy"] * n, names, "joy"), names


def test_held_out_scores_are_those_of_a_direction_that_never_saw_the_scenario() -> None:
    rng = np.random.default_rng(0)
    design, _ = pairs(6)
    x = rng.normal(size=(12, 20))
    for estimator in ("difference", "lda", "logistic"):
        scores = held_out_scores(x, design, estimator)
        changed = x.copy()
        changed[5] = 7 * x[5]  # the direction of its scenario never saw it: its score grows with it
        np.testing.assert_allclose(held_out_scores(changed, design, estimator)[5], 7 * scores[5])
    for s in range(6):
        keep = np.arange(12) // 2 != s
        delta = x[1::2][np.arange(6) != s].mean(0) - x[0::2][np.arange(6) != s].mean(0)
        np.testing.assert_allclose(held_out_scores(x, design)[~keep], x[~keep] @ delta / np.linalg.norm(delta))


@pytest.mark.parametrize("unpaired", [False, True])
def test_all_draws_at_once_are_the_plain_loop_under_the_permuted_labels(unpaired: bool) -> None:
    rng = np.random.default_rng(1)
    design = make_design(["joy"] * 6 + ["baseline"] * 8, [None] * 14, "joy") if unpaired else pairs(7)[0]
    x = rng.normal(size=(14, 9)) + 5
    drawn = draw_labels(design, 15, 0)
    found = permuted_scores(x, design, drawn)
    for labels, scores in zip(drawn, found, strict=True):
        for fold in range(design.n_folds):
            out = design.fold == fold
            if unpaired:
                delta = x[labels & ~out].mean(0) - x[~labels & ~out].mean(0)
            else:
                delta = np.mean([x[2 * s + labels[2 * s + 1]] - x[2 * s + labels[2 * s]] for s in range(7) if s != fold], axis=0)
            np.testing.assert_allclose(scores[out], x[out] @ delta / np.linalg.norm(delta), atol=1e-9)
    values = auc_of_draws(found, drawn)
    for labels, scores, value in zip(drawn, found, values, strict=True):
        assert value == pytest.approx(auc(scores[labels], scores[~labels]).value)
    one, labels = found[0], drawn[0]
    gap = one[labels].mean() - one[~labels].mean()
    within = (((one[labels] - one[labels].mean()) ** 2).sum() + ((one[~labels] - one[~labels].mean()) ** 2).sum()) / 12
    assert variance_ratio(found, drawn)[0] == pytest.approx(gap**2 / within)


def test_a_planted_concept_is_read_out_and_without_one_the_auc_centres_on_a_half() -> None:
    """Planted: a shift of 3 sd along one of 60 dimensions, topic five times the noise. Null: none. 24 pairs, 60 repeats."""
    design, _ = pairs(24)
    planted, null, covered, small = [], [], 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(48, 60)) + np.repeat(rng.normal(size=(24, 1)) * 5, 2, axis=0) * np.eye(60)[1]
        scores = permuted_scores(x, design, np.concatenate([design.positive[None], draw_labels(design, 99, seed)]))
        found = fold_auc(scores[0], design)
        null.append(found.value)
        covered += found.low <= 0.5 <= found.high
        values = auc_of_draws(scores, np.concatenate([design.positive[None], draw_labels(design, 99, seed)]))
        small += (values >= values[0]).mean() <= 0.05
        x[1::2, 0] += 3
        found = fold_auc(held_out_scores(x, design), design)
        planted.append(found.low)
        assert 0 <= found.low <= found.value <= found.high <= 1 and found.n == 24
    assert min(planted) > 0.5 and np.mean(planted) > 0.7
    assert abs(np.mean(null) - 0.5) < 0.05
    assert wilson(covered, 60).high >= 0.95 and wilson(small, 60).low <= 0.05


def test_wholly_apart_scores_still_have_an_interval() -> None:
    design, _ = pairs(8)
    found = fold_auc(np.where(design.positive, 1.0, 0.0) + np.arange(16) / 100, design)
    assert found.value == 1 and 0.5 < found.low < 1 and found.high == 1 and found.n == 8


def test_the_share_of_the_first_component_is_of_differences_and_has_its_null() -> None:
    """Planted: joy moves along one direction by 8, seven times the sd of a difference there. Null: it does not,
    while dimensions have unequal spread, which makes any share large."""
    labels = ["baseline", "joy", "fear", "hope"] * 20
    scenarios = [f"{i:03}" for i in range(20) for _ in range(4)]
    wide = make_design(labels, scenarios, "joy")
    positive = np.array(labels) == "joy"
    false = hits = 0
    for seed in range(100):
        spread = np.arange(1, 101.0) ** -0.5 * 2
        noise = np.random.default_rng(seed).normal(size=(80, 100)) * spread
        false += pc_share(noise, wide, scenarios, 99, seed)["p"] <= 0.05
        hits += pc_share(noise + 8 * positive[:, None] * np.eye(100)[5], wide, scenarios, 99, seed)["p"] <= 0.05
    assert wilson(false, 100).low <= 0.05 and hits >= 90
    rng = np.random.default_rng(2)
    design, names = pairs(20)
    shifted = rng.normal(size=(40, 30)) + 4 * design.positive[:, None] * np.eye(30)[0]
    found = pc_share(shifted, design, names, 200, 0)
    values = np.linalg.svd(shifted[1::2] - shifted[0::2], compute_uv=False) ** 2
    assert found["value"] == pytest.approx(values[0] / values.sum()) and found["n"] == 20
    assert found["null"] is None and "third kind" in found["reason"]
    unpaired = make_design(["joy", "joy", "baseline", "baseline"], [None] * 4, "joy")
    assert pc_share(shifted[:4], unpaired, [None] * 4, 200, 0)["value"] is None
    shifted[21] -= 30 * np.eye(30)[0]  # scenario 10 tells the opposite
    lined = alignment(shifted, design, names)
    differences = shifted[1::2] - shifted[0::2]
    rest = np.delete(differences, 10, axis=0).mean(0)
    assert lined["outliers"] == ["010"] and lined["mean"] < lined["median"]
    assert lined["by_scenario"]["010"] == pytest.approx(
        differences[10] @ rest / np.linalg.norm(differences[10]) / np.linalg.norm(rest)
    )


def test_a_direction_that_one_neuron_writes_is_told_from_a_random_one() -> None:
    parts = bind(build("llama"))
    columns = mlp_columns(parts.layers[1])
    assert not isinstance(columns, str) and columns.shape == (96, 64)
    down: Any = parts.layers[1].mlp_down
    weight = down.weight.detach().double()
    np.testing.assert_allclose(columns[7], (weight[:, 7] / weight[:, 7].norm()).numpy(), atol=1e-9)
    rng = np.random.default_rng(3)
    random = rng.normal(size=(200, 64))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    found = mlp_cosine(-columns[7], columns, mlp_null(columns, random))
    assert (found["neuron"], found["sign"], found["value"]) == (7, -1.0, pytest.approx(1)) and found["p"] < 0.01
    null = mlp_null(columns, random[:100])
    np.testing.assert_allclose(null, np.abs(random[:100] @ columns.T).max(1))
    assert 0.01 < np.mean([mlp_cosine(one, columns, null)["p"] <= 0.1 for one in random[100:]]) < 0.25
    experts = mlp_columns(bind(build("qwen3_next")).layers[1])
    assert isinstance(experts, str) and "experts" in experts
    torch.testing.assert_close(
        torch.tensor(np.asarray(mlp_columns(bind(build("gpt2")).layers[0]))).norm(dim=1), torch.ones(96).double()
    )


def test_length_and_scenario_leaks_are_seen_where_planted_and_not_elsewhere() -> None:
    rng = np.random.default_rng(5)
    design, _ = pairs(30)
    lengths = rng.integers(40, 80, size=60).astype(float)
    clean = rng.normal(size=60) + design.positive
    leaky = clean + 0.2 * lengths
    assert length_leak(leaky, lengths, design)["low"] > 0.5
    found = length_leak(clean, lengths, design)
    assert found["low"] < 0 < found["high"] and found["n"] == 30
    expected = np.corrcoef(clean[1::2] - clean[0::2], lengths[1::2] - lengths[0::2])[0, 1]
    assert found["r"] == pytest.approx(expected)
    assert length_leak(clean, np.where(design.positive, 60.0, 50.0), design)["length_alone_auc"] == 1
    assert length_leak(clean, np.full(60, 50.0), design)["r"] is None
    topic = clean + np.repeat(rng.normal(size=30) * 4, 2)
    assert scenario_leak(topic, design.stratum, design.positive, 200, 0)["p"] < 0.01
    quiet = scenario_leak(clean, design.stratum, design.positive, 200, 0)
    assert quiet["p"] > 0.05 and quiet["null_mean"] == pytest.approx(29 / 58, abs=0.03)


@pytest.mark.parametrize("estimator", ["difference", "lda"])
def test_the_report_is_plain_data_with_every_field(estimator: Any) -> None:
    model = build("llama")
    loaded: Any = SimpleNamespace(model=model, parts=bind(model), tokenizer=tiny_tokenizer())
    pooled = collect(Instrument(loaded), TEXTS)
    labels = LABELS
    directions = find_directions(pooled, labels, SCENARIOS, MODEL, estimator=estimator)
    corpus = Corpus(tuple(map(ConceptText, labels, SCENARIOS, TEXTS)), {"joy": Meaning("basic")})
    found = quality_report(pooled, labels, SCENARIOS, directions, loaded.parts, corpus=corpus)
    report = json.loads(json.dumps(found, allow_nan=False))
    assert report["families"] == {"basic": ["joy"]} and report["words_alone"]["fear"]["baseline"]["n"] == 8
    assert (report["similarity"]["1"]["p_layer"] is None) == (estimator == "lda")
    assert set(report["concepts"]) == {"joy", "fear"} and set(report["ranking_by_auc"]) == {"0", "1"}
    joy = report["concepts"]["joy"]
    assert (joy["n_pos"], joy["n_neg"], joy["ranked"], joy["paired"]) == (8, 8, True, True)
    layer = joy["layers"]["1"]
    fields = {
        "auc",
        "between_within",
        "pairs_in_order",
        "pc_share",
        "alignment",
        "nearest",
        "ridge_r2",
        "length",
        "length_direction",
        "scenario",
        "mlp",
    }
    assert fields == set(layer)
    assert layer["auc"]["n_counts"] == "scenarios" and layer["auc"]["n"] == 8
    v = directions.vectors[1].astype(float)
    assert layer["nearest"] == [["fear", pytest.approx(float(v[0] @ v[1]))]]
    assert (layer["auc"]["p"] is None) == (estimator == "lda")
    assert set(joy["per_head"]["layers"]) == {"0", "1"}
    scores = held_out_scores(
        pooled.resid[1][make_design(labels, SCENARIOS, "joy").rows], make_design(labels, SCENARIOS, "joy"), estimator
    )
    assert layer["auc"]["value"] == pytest.approx(fold_auc(scores, make_design(labels, SCENARIOS, "joy")).value)


def test_fewer_than_five_positives_are_not_ranked_and_refusals() -> None:
    rng = np.random.default_rng(6)
    labels = ["baseline", "joy"] * 8 + ["baseline", "fear"] * 4
    scenarios = [f"s{i:02}" for i in range(12) for _ in range(2)]
    pooled = Pooled({0: rng.normal(size=(24, 64)).astype(np.float32)}, {}, np.arange(24) + 20, "last", None, (), ())
    parts = bind(build("llama"))
    directions = find_directions(pooled, labels, scenarios, MODEL)
    report = quality_report(pooled, labels, scenarios, directions, parts)
    assert report["ranking_by_auc"] == {"0": ["joy"]} and "4 positives; 5 are needed" in report["not_ranked"]["fear"]
    assert "per_head" not in report["concepts"]["joy"] and report["concepts"]["fear"]["layers"]["0"]["auc"]["value"] >= 0
    assert quality_report(pooled, labels, scenarios, directions, parts) == report
    with pytest.raises(ConfigError, match="1000 or more"):
        quality_report(pooled, labels, scenarios, directions, parts, n_draws=10)
    with pytest.raises(ConfigError, match="23 labels"):
        quality_report(pooled, labels[1:], scenarios, directions, parts)
    with pytest.raises(ConfigError, match="one fold"):
        held_out_scores(np.ones((2, 3)), make_design(["joy", "baseline"], ["a", "a"], "joy"))


def test_a_concept_of_one_scenario_runs_and_has_no_held_out_value() -> None:
    rng = np.random.default_rng(7)
    labels = ["baseline", "joy"] * 8 + ["fear", "hope", "hope"]
    scenarios = [f"s{i:02}" for i in range(8) for _ in range(2)] + ["s00", "s01", "s02"]
    model = build("llama")
    pooled = Pooled(
        {i: rng.normal(size=(19, 64)).astype(np.float32) for i in range(2)},
        {i: rng.normal(size=(19, 4, 16)).astype(np.float32) for i in range(2)}, np.arange(19) + 20, "last", None, (), (),
    )  # fmt: skip
    for estimator in ("difference", "lda", "logistic"):
        directions = find_directions(pooled, labels, scenarios, MODEL, estimator=estimator)  # type: ignore[arg-type]
        report = quality_report(pooled, labels, scenarios, directions, bind(model))
        json.dumps(report, allow_nan=False)
        fear = report["concepts"]["fear"]
        assert fear["layers"]["1"]["auc"]["value"] is None and fear["chosen"]["layer"] is None and not fear["ranked"]
        assert "held out" in fear["layers"]["1"]["auc"]["method"] and "spread" in fear["per_head"]["reason"]
        assert report["concepts"]["hope"]["layers"]["1"]["auc"]["n"] == 2 and set(report["not_ranked"]) == {"fear", "hope"}
        assert report["ranking_by_auc"]["0"] == ["joy"]


def test_a_report_that_was_stopped_goes_on_with_the_concepts_that_are_whole() -> None:
    pooled, labels, scenarios = made(3, 1.0, n=6, n_layers=2)
    directions = find_directions(pooled, labels, scenarios, MODEL)
    parts, kept = bind(build("llama")), {}
    whole = quality_report(pooled, labels, scenarios, directions, parts, keep=lambda c, block: kept.update({c: json.dumps(block)}))
    seen: list[str] = []
    again = quality_report(
        pooled, labels, scenarios, directions, parts, done={"joy": json.loads(kept["joy"])}, progress=seen.append
    )
    assert seen == ["fear"] and json.loads(json.dumps(again)) == json.loads(json.dumps(whole))


def test_texts_that_do_not_go_along_are_named_by_their_row() -> None:
    rng = np.random.default_rng(8)
    labels, scenarios = ["baseline", "joy", "joy"] * 10, [f"{i:02}" for i in range(10) for _ in range(3)]
    x = rng.normal(size=(30, 20)) * 0.3
    x[np.array(labels) == "joy", 0] += 4
    x[14, 0] -= 8  # one of the two tellings of scenario 04 says the opposite; their mean hides it
    design = make_design(labels, scenarios, "joy")
    found = alignment(x, design, scenarios)
    assert found["outlier_texts"] == [14] and len(found["by_text"]) == 20
    at = design.rows[design.positive].tolist().index(14)
    rest = np.delete(np.array([x[3 * s + 1 : 3 * s + 3].mean(0) - x[3 * s] for s in range(10)]), 4, axis=0).mean(0)
    own = x[14] - x[12]
    assert found["by_text"][at] == pytest.approx(own @ rest / np.linalg.norm(own) / np.linalg.norm(rest))


def test_a_direction_along_length_is_told_from_another() -> None:
    rng = np.random.default_rng(9)
    lengths, rows = rng.integers(30, 60, size=48), np.arange(0, 48, 2)
    slope = np.eye(30)[2]
    x = rng.normal(size=(48, 30)) + 0.5 * lengths[:, None] * slope
    permuted = rng.normal(size=(200, 30))
    permuted /= np.linalg.norm(permuted, axis=1, keepdims=True)
    along = length_cosine(-slope, x, lengths, rows, permuted)
    assert along["value"] < -0.95 and along["p"] < 0.01 and along["n"] == 24
    other = length_cosine(np.eye(30)[5], x, lengths, rows, permuted)
    assert abs(other["value"]) < 0.2 and other["p"] > 0.05 and other["null_mean"] == pytest.approx(0.8 / 30**0.5, rel=0.2)
    tokens = lengths[rows] - lengths[rows].mean()
    expected = tokens @ x[rows]
    assert along["value"] == pytest.approx(-expected[2] / np.linalg.norm(expected))
    assert length_cosine(slope, x, np.full(48, 40), rows, None)["value"] is None


def made(seed: int, shift: float, n: int = 16, width: int = 64, n_layers: int = 6) -> tuple[Pooled, list[str], list[str]]:
    """Arrays with topic, no model: joy moves by ``shift`` in layer 4 alone, fear nowhere."""
    rng = np.random.default_rng(seed)
    labels, scenarios = ["baseline", "joy", "fear"] * n, [f"{i:03}" for i in range(n) for _ in range(3)]
    resid = {}
    for layer in range(n_layers):
        x = rng.normal(size=(3 * n, width)) + np.repeat(rng.normal(size=(n, width)), 3, axis=0)
        if layer == 4:
            x[1::3, 0] += shift
        resid[layer] = x.astype(np.float32)
    return Pooled(resid, {}, np.arange(3 * n) % 7 + 20, "last", None, (), ()), labels, scenarios


def test_the_chosen_layer_pays_for_having_been_chosen() -> None:
    """Planted: joy in layer 4, by 3 sd. Null: six layers of noise, 8 times two concepts."""
    parts = SimpleNamespace(layers=bind(build("llama")).layers * 3)
    model = ReadoutModel("a model", "0" * 64, None, "float32", 64, 6)

    def report(seed: int, shift: float) -> Any:
        pooled, labels, scenarios = made(seed, shift)
        one = find_directions(pooled, labels, scenarios, model, concepts=["joy", "fear"])
        return quality_report(pooled, labels, scenarios, one, parts)  # type: ignore[arg-type]

    planted = report(0, 3.0)["concepts"]["joy"]
    assert planted["chosen"]["layer"] == 4 and planted["chosen"]["p_model"] <= 0.01
    assert planted["chosen"]["p_smallest"] == min(block["auc"]["p_model"] for block in planted["layers"].values())
    assert planted["chosen"]["p_concepts"] == pytest.approx(2 * planted["chosen"]["p_smallest"])
    for block in planted["layers"].values():
        assert block["auc"]["p_model"] >= block["auc"]["p"]
    assert planted["layers"]["4"]["auc"]["p_model"] == planted["chosen"]["p_model"]
    null = [report(seed, 0.0)["concepts"] for seed in range(1, 9)]
    p = [one["chosen"]["p_smallest"] for each in null for one in each.values()]
    smallest = [min(b["auc"]["p"] for b in one["layers"].values()) for each in null for one in each.values()]
    assert np.mean(np.array(smallest) <= 0.1) > np.mean(np.array(p) <= 0.1) and wilson(sum(x <= 0.1 for x in p), 16).low <= 0.1
