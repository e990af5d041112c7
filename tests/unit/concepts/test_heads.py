"""Per-head decomposition: identities, symmetries, planted heads found with a stated power, shuffled labels at the stated null."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import (
    collect,
    decompose_heads,
    decompose_layer,
    Design,
    draw_labels,
    find_directions,
    LayerHeads,
    make_design,
    per_head_block,
    ReadoutModel,
)
from symbolic_residue.concepts._null import squared_norms
from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import bind
from symbolic_residue.prompts import build_prompt
from symbolic_residue.stats import wilson

MODEL = ReadoutModel("a model", "0" * 64, None, "float32", 64, 2)
WORDS = ("mill", "river", "gate", "table", "book", "answer", "captain", "harbour")
TEXTS = [f"{who} {what} the {word} in the evening" for word in WORDS for who, what in (("Anna", "put"), ("Ben", "questions"))]
LABELS = ["baseline", "joy"] * len(WORDS)
SCENARIOS = [word for word in WORDS for _ in range(2)]


def pairs(n: int) -> Design:
    return make_design(["baseline", "joy"] * n, [f"{i:03}" for i in range(n) for _ in range(2)], "joy")


def layer_of(
    x: np.ndarray, design: Design, *, w: Any = None, v: Any = None, n: int = 200, seed: int = 0, **options: Any
) -> LayerHeads:
    w = np.tile(np.eye(x.shape[2]), (x.shape[1], 1, 1)) if w is None else w
    v = np.eye(w.shape[2])[0] if v is None else v
    return decompose_layer(x, w, v, design, draw_labels(design, n, seed), **options)


def test_every_formula_by_hand() -> None:
    rng = np.random.default_rng(0)
    design = pairs(6)
    x, w, v = rng.normal(size=(12, 12, 3)), rng.normal(size=(12, 3, 5)), np.ones(5) / np.sqrt(5)
    found = layer_of(x, design, w=w, v=v)
    negative, positive = x[0::2], x[1::2]
    for h in range(12):
        delta = (positive[:, h] - negative[:, h]).mean(0)
        np.testing.assert_allclose(found.delta[h], delta)
        assert found.raw_norm[h] == pytest.approx(np.linalg.norm(delta))
        assert found.neg_std[h] == pytest.approx(np.sqrt(np.trace(np.cov(negative[:, h].T, ddof=1))))
        assert found.selectivity[h] == pytest.approx(found.raw_norm[h] / found.neg_std[h])
        assert found.write_norm[h] == pytest.approx(np.linalg.norm(delta @ w[h]))
        assert found.direct[h] == pytest.approx(delta @ w[h] @ v)
    top = np.sort(found.raw_norm)[-10:].sum() / found.raw_norm.sum()
    m = found.raw_norm**2
    assert found.k == 10 and found.uniform == pytest.approx(10 / 12) and found.head_concentration == pytest.approx(top)
    assert found.participation_ratio == pytest.approx(m.sum() ** 2 / (m**2).sum())
    assert found.selectivity_expected == pytest.approx(np.sqrt(1 / 6 + 1 / 6))
    assert found.total_norm == pytest.approx(found.raw_norm.sum())
    np.testing.assert_allclose(found.share, np.abs(found.direct) / np.abs(found.direct).sum())


@given(st.integers(0, 99), st.floats(0.01, 100))
def test_rotating_scaling_and_permuting_heads(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    design = pairs(5)
    x, w, v = rng.normal(size=(10, 4, 3)), rng.normal(size=(4, 3, 6)), rng.normal(size=6)
    plain = layer_of(x, design, w=w, v=v, k=2, n=100)
    turns = np.stack([np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(4)])
    turned = layer_of(np.einsum("nhd,hde->nhe", x, turns), design, w=np.einsum("hde,hdm->hem", turns, w), v=v, k=2, n=100)
    order = rng.permutation(4)
    shuffled = layer_of(x[:, order], design, w=w[order], v=v, k=2, n=100)
    scaled = layer_of(factor * x, design, w=w, v=v, k=2, n=100)
    one = x.copy()
    one[:, 2] *= factor  # one head alone: its own selectivity stays, and so do the others' numbers
    single = layer_of(one, design, w=w, v=v, k=2, n=100)
    for field in ("raw_norm", "neg_std", "selectivity", "selectivity_null", "p_layer", "write_norm", "direct", "share"):
        expected = getattr(plain, field)
        np.testing.assert_allclose(getattr(turned, field), expected, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(getattr(shuffled, field), expected[order], rtol=1e-7, atol=1e-9)
        unit = factor if field in ("raw_norm", "neg_std", "write_norm", "direct") else 1.0
        np.testing.assert_allclose(getattr(scaled, field), unit * expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(single.selectivity, plain.selectivity, rtol=1e-7)
    np.testing.assert_allclose(single.p_layer, plain.p_layer, atol=1e-9)
    for other in (turned, shuffled, scaled):
        assert other.head_concentration == pytest.approx(plain.head_concentration)
        assert other.participation_ratio == pytest.approx(plain.participation_ratio)
        assert other.concentration_null.p == pytest.approx(plain.concentration_null.p)
    assert 1 <= plain.participation_ratio <= 4 and 0.5 <= plain.head_concentration <= 1
    assert layer_of(x, design, w=w, v=v, k=4, n=100).head_concentration == pytest.approx(1)
    assert layer_of(x, design, w=w, v=v, k=10, n=100).uniform == 1


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 99))
def test_the_gram_way_and_the_direct_way_give_the_sum_itself(n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(n, 3, d)), rng.normal(size=(7, n))
    np.testing.assert_allclose(squared_norms(x, w), (np.einsum("rn,nhd->rhd", w, x) ** 2).sum(-1), atol=1e-9)


def test_the_permuted_statistics_are_those_of_the_permuted_labels() -> None:
    rng = np.random.default_rng(1)
    design = pairs(6)
    x, resid, w = rng.normal(size=(12, 3, 4)), rng.normal(size=(12, 8)), rng.normal(size=(3, 4, 8))
    drawn = draw_labels(design, 100, 0)
    found = layer_of(x, design, w=w, v=np.eye(8)[0], n=100, resid=resid, k=1)
    by_hand, concentration, direct = [], [], []
    for labels in drawn:
        delta = x[labels].mean(0) - x[~labels].mean(0)
        raw = np.linalg.norm(delta, axis=1)
        std = np.sqrt([np.trace(np.cov(x[~labels][:, h].T)) for h in range(3)])
        by_hand.append(raw / std)
        concentration.append(raw.max() / raw.sum())
        v = resid[labels].mean(0) - resid[~labels].mean(0)
        direct.append(np.einsum("hd,hdm,m->h", delta, w, v / np.linalg.norm(v)))
    np.testing.assert_allclose(found.selectivity_null, np.mean(by_hand, axis=0), rtol=1e-9)
    assert found.concentration_null.mean == pytest.approx(np.mean(concentration))
    assert found.concentration_null.sd == pytest.approx(np.std(concentration, ddof=1))
    assert found.concentration_null.p == pytest.approx(
        (1 + sum(c >= found.head_concentration - 1e-12 for c in concentration)) / 101
    )
    assert found.direct_null is not None
    np.testing.assert_allclose(found.direct_null, np.mean(direct, axis=0), rtol=1e-7, atol=1e-9)


def test_independent_texts_without_a_concept_have_the_selectivity_of_the_formula() -> None:
    rng = np.random.default_rng(2)
    labels: list[str] = ["joy"] * 30 + ["baseline"] * 50
    design = make_design(labels, [None] * 80, "joy")
    found = layer_of(rng.normal(size=(80, 400, 64)) * rng.uniform(0.1, 10, size=(1, 400, 1)), design)
    assert found.selectivity_expected == pytest.approx(np.sqrt(1 / 30 + 1 / 50))
    assert found.selectivity.mean() == pytest.approx(found.selectivity_expected, rel=0.02)
    assert found.selectivity_null.mean() == pytest.approx(found.selectivity_expected, rel=0.02)


def test_pairs_that_share_their_scenario_have_a_lower_null_than_the_formula() -> None:
    rng = np.random.default_rng(3)
    scenario = np.repeat(rng.normal(size=(24, 9, 16)) * 3, 2, axis=0)
    found = layer_of(scenario + rng.normal(size=(48, 9, 16)), pairs(24))
    assert (found.selectivity_null < 0.5 * found.selectivity_expected).all()
    assert (found.p_layer > 0.05).all()


def noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """Heads of unequal size, a scenario part in each, and heavier tails in some."""
    size = np.array([0.2, 0.5, 1, 1, 1, 2, 3, 5, 8])[None, :, None]
    tails = np.where(np.arange(9)[None, :, None] % 3 == 0, rng.standard_t(4, size=(2 * n, 9, 1)), 1.0)
    return size * (np.repeat(rng.normal(size=(n, 9, 16)), 2, axis=0) + tails * rng.normal(size=(2 * n, 9, 16)))


def test_a_planted_rank_one_signal_is_found_and_labels_without_one_give_the_stated_null() -> None:
    """Planted: head 3 alone moves along one direction by 3, twice the sd of its noise there (heavy-tailed). Null: the same without it.
    24 pairs, family-wise .05 over 9 heads: power 0.8 or more (0.88 when this was written)."""
    design, repeats = pairs(24), 200
    hits = others = false = concentrated = 0
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        x = noise(rng, 24)
        null = layer_of(x, design, n=199, seed=seed, k=2)
        false += bool((null.p_layer <= 0.05).any())
        concentrated += null.concentration_null.p <= 0.05
        x[1::2, 3, 0] += 3
        found = layer_of(x, design, n=199, seed=seed, k=2)
        hits += bool(found.p_layer[3] <= 0.05)
        others += bool((np.delete(found.p_layer, 3) <= 0.05).any())
    assert hits / repeats >= 0.8
    for count in (false, others, concentrated):  # at most 5 %: refuted only where the whole interval lies above
        assert wilson(count, repeats).low <= 0.05


def test_four_scenarios_say_that_they_cannot_reach_the_level() -> None:
    design = pairs(4)
    x = np.random.default_rng(0).normal(size=(8, 4, 8))
    x[1::2, 1] += 50
    assert design.smallest_p == pytest.approx(1 / 16)
    assert layer_of(x, design, n=1000).p_layer.min() > 0.05


def instrument_of(name: str) -> Instrument:
    model = build(name)
    return Instrument(SimpleNamespace(model=model, parts=bind(model), tokenizer=tiny_tokenizer()))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "gpt2", "granite", "gemma2", "qwen3_next", "falcon_h1"])
def test_the_heads_writes_sum_to_the_difference_of_the_attention_output(name: str) -> None:
    instrument = instrument_of(name)
    parts = instrument.parts
    pooled = collect(instrument, TEXTS)
    directions = find_directions(pooled, LABELS, SCENARIOS, MODEL)
    found = decompose_heads(pooled, LABELS, SCENARIOS, "joy", parts, directions)
    outputs: dict[int, list[np.ndarray]] = {i: [] for i in parts.attention_layers}
    for text in TEXTS:
        trace = instrument.run(torch.tensor([build_prompt(instrument.loaded.tokenizer, text).ids]), reads=("z.*", "attn_out.*"))
        for i in outputs:
            layer = parts.layers[i]
            z = trace[f"z.{i}"][0, -1].double()
            written = sum(z[h] @ layer.w_o(h).double() for h in range(parts.n_heads)) * layer.attn_scale
            if layer.post_attn_norm is None:
                bias = 0 if layer.b_o is None else layer.b_o * layer.attn_scale
                torch.testing.assert_close((written + bias).float(), trace[f"attn_out.{i}"][0, -1], atol=1e-4, rtol=1e-4)
                outputs[i].append(trace[f"attn_out.{i}"][0, -1].double().numpy())
            else:
                outputs[i].append(written.numpy())
    assert set(found.layers) == set(outputs)
    for i, layer in found.layers.items():
        out = np.array(outputs[i])
        difference = out[1::2].mean(0) - out[0::2].mean(0)
        w_o = np.stack([parts.layers[i].w_o(h).double().numpy() for h in range(parts.n_heads)]) * parts.layers[i].attn_scale
        np.testing.assert_allclose(np.einsum("hd,hdm->m", layer.delta, w_o), difference, atol=2e-4)
        v = directions.vector("joy", i).astype(float)
        assert layer.direct.sum() == pytest.approx(float(v @ difference), abs=1e-3)
    assert any("norm" in note for note in found.notes) == (name == "gemma2")
    assert any("gate" in note for note in found.notes) == (name == "qwen3_next")


def test_the_block_has_every_field_of_a_hybrid_model_and_is_plain_data() -> None:
    instrument = instrument_of("qwen3_next")
    pooled = collect(instrument, TEXTS)
    directions = find_directions(pooled, LABELS, SCENARIOS, MODEL)
    found = decompose_heads(pooled, LABELS, SCENARIOS, "joy", instrument.parts, directions)
    block = json.loads(json.dumps(per_head_block(found)))
    assert (block["n_pos"], block["n_neg"], block["paired"], block["n_draws"]) == (8, 8, True, 1000)
    assert [one["layer"] for one in block["skipped_layers"]] == [0, 2] and set(block["layers"]) == {"1", "3"}
    assert all("no softmax attention" in one["reason"] for one in block["skipped_layers"])
    one, layer = block["layers"]["3"], found.layers[3]
    assert (one["n_heads"], one["head_dim"], one["uniform"], one["head_concentration"]) == (4, 16, 1.0, pytest.approx(1))
    assert one["top_heads"][0][:2] == [int(layer.raw_norm.argmax()), layer.raw_norm.max()]
    assert one["by_selectivity"][0]["head"] == layer.selectivity.argmax()
    assert all(set(entry) == {"head", "selectivity", "null_mean", "p_layer", "p_model"} for entry in one["by_selectivity"])
    head, norm, direct, share = one["write"][0]
    assert (norm, direct, share) == (layer.write_norm[head], layer.direct[head], layer.share[head])
    assert {"mean", "sd", "p"} == set(one["concentration_null"]) and one["selectivity_null"] == pytest.approx(0.5)
    again = decompose_heads(pooled, LABELS, SCENARIOS, "joy", instrument.parts, directions)
    assert per_head_block(again) == per_head_block(found)
    for i in found.layers:
        assert (found.layers[i].p_model >= found.layers[i].p_layer - 1e-12).all()


def test_refusals() -> None:
    instrument = instrument_of("llama")
    pooled = collect(instrument, TEXTS, heads=False)
    directions = find_directions(pooled, LABELS, SCENARIOS, MODEL)
    with pytest.raises(ReadError, match="No heads were collected"):
        decompose_heads(pooled, LABELS, SCENARIOS, "joy", instrument.parts, directions)
    pooled = collect(instrument, TEXTS)
    with pytest.raises(ConfigError, match="1000 or more"):
        decompose_heads(pooled, LABELS, SCENARIOS, "joy", instrument.parts, directions, n_draws=999)
    with pytest.raises(ConfigError, match="top 0"):
        decompose_heads(pooled, LABELS, SCENARIOS, "joy", instrument.parts, directions, k=0)
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    design = make_design(["joy"] * 3 + ["baseline"], [None] * 4, "joy")
    with pytest.raises(ConfigError, match="1 negative"):
        layer_of(x, design)
    two = pairs(2)
    x[0::2] = 1.0
    with pytest.raises(ConfigError, match="all the same"):
        layer_of(x, two)
    with pytest.raises(ConfigError, match="do not fit"):
        layer_of(x[:3], two)
