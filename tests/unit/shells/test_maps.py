"""Trace map and alignment matrix: planted units are found, nothing is found in noise, and numbers are those of plain forwards."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sps
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt
from symbolic_residue.shells import alignment_matrix, trace_map
from symbolic_residue.shells.signatures._alignment import _activations, _groups
from symbolic_residue.shells.signatures._permuted import Labels, pair_frame, Running

TEXT = "The mill stands where the river turns, and the miller keeps the key"
REFERENCE = [
    f"The {w} was seen near the {v} on a quiet day"
    for w, v in zip(["boat", "fox", "bell", "cart", "owl", "mule"], ["pier", "mill", "gate", "barn", "hill", "road"], strict=True)
]


@pytest.fixture(scope="module")
def instrument() -> Instrument:
    return Instrument(wrap(build("llama"), tiny_tokenizer()))


def test_a_trace_map_is_what_plain_forwards_say(instrument: Instrument) -> None:
    found = trace_map(instrument, TEXT, reference=REFERENCE, last=5)
    model = instrument.loaded.model

    @torch.no_grad()
    def states(text: str) -> tuple[Any, Any]:
        ids = torch.tensor([build_prompt(instrument.loaded.tokenizer, text).ids])
        out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
        # The first layer's step needs no final norm; hidden_states[-1] is after it.
        return out.hidden_states, out.logits

    def step(text: str) -> np.ndarray:
        h, _ = states(text)
        return torch.log((h[1] - h[0])[0].norm(dim=-1) / h[0][0].norm(dim=-1)).double().numpy()[1:]

    ordinary = np.concatenate([step(t) for t in REFERENCE])
    want = (step(TEXT) - ordinary.mean()) / ordinary.std(ddof=1)
    got = found.frames["maps"].filter((pl.col("map") == "write") & (pl.col("layer") == 0)).sort("position")
    np.testing.assert_allclose(got["value"].to_numpy(), want, atol=1e-3)
    assert got["position"].to_list() == list(range(1, len(found.prompt)))
    h, logits = states(TEXT)
    with torch.no_grad():
        lens = torch.softmax(model.lm_head(model.model.norm(h[1]))[0, -5:].double(), -1)
    final = logits[0, -5:].argmax(-1)
    best = lens.max(-1)
    want = torch.where(best.indices == final, 0.0, best.values).numpy()
    got = found.frames["maps"].filter((pl.col("map") == "overruled") & (pl.col("layer") == 0)).sort("position")
    np.testing.assert_allclose(got["value"].to_numpy(), want, atol=1e-5)
    top = found.frames["maps"].filter((pl.col("map") == "overruled") & (pl.col("layer") == 1))
    assert (top["value"] == 0).all()  # the last depth is the output itself
    curves = found.frames["curves"]
    assert set(curves["series"]) == {"prompt", "control: reference prompts"}
    assert curves.filter(pl.col("series") == "prompt")["low"].null_count() == 2
    assert set(curves.filter(pl.col("series") != "prompt")["n"]) == {6}
    assert found.chart("write") is not None


def test_an_ordinary_prompt_is_ordinary(instrument: Instrument) -> None:
    found = trace_map(instrument, REFERENCE[0], reference=REFERENCE)
    values = found.frames["maps"].filter(pl.col("map") == "write")["value"]
    assert abs(values.mean()) < 1.5
    with pytest.raises(ConfigError, match="reference"):
        trace_map(instrument, TEXT, reference=REFERENCE[:3])
    with pytest.raises(ConfigError, match="last"):
        trace_map(instrument, TEXT, reference=REFERENCE, last=0)
    with pytest.raises(PromptError, match="one token"):
        trace_map(instrument, "a", reference=REFERENCE)


def align(
    values: list[np.ndarray], n_planted: int, rng: np.random.Generator, draws: int, frames: Any = None
) -> tuple[Running, np.ndarray, np.ndarray, np.ndarray]:
    """The inner computation on matrices ``[item, unit]``, given in two parts as layers are."""
    running = Running([Labels.draw(n_planted, len(v) - n_planted, rng, draws, frames) for v in values])
    cut = values[0].shape[1] // 3
    running.add([v[:, :cut] for v in values])
    running.add([v[:, cut:] for v in values])
    return running, *running.finish()


def test_planted_units_are_found_and_the_others_are_not() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 500))
    values[:20, 7] += 4
    values[:20, 9] -= 4
    _, effect, p, q = align([values], 20, rng, 400)
    assert effect[0, 7] > 0.9 and effect[0, 9] < -0.9
    assert set(np.flatnonzero(p[0] <= 0.05)) == {7, 9} <= set(np.flatnonzero(q[0] <= 0.05))
    a, b = values[:20, 7], values[20:, 7]
    assert effect[0, 7] == pytest.approx((np.sign(a[:, None] - b[None])).mean())


def test_family_wise_error_over_the_matrix_and_pairs_in_noise() -> None:
    rng = np.random.default_rng(1)
    false = pairs = discoveries = 0
    n = 300
    for _ in range(n):
        noise = [rng.normal(size=(24, 1)) * 0.7 + rng.normal(size=(24, 60)) for _ in range(2)]
        running, _, p, q = align(noise, 12, rng, 99)
        false += bool((p <= 0.05).any())
        discoveries += bool((q[0] <= 0.05).any())
        pairs += pair_frame(("a", "b"), running)["p_adjusted"][0] <= 0.05
    # 5 % of 300 is 15; more than 26 has a chance under 0.003, fewer than 5 one under 0.002.
    assert 5 <= false <= 26 and pairs <= 26 and discoveries <= 26


def test_the_false_discovery_rate_is_held_and_finds_more() -> None:
    rng = np.random.default_rng(3)
    shares, found, strict = [], 0, 0
    for _ in range(60):
        values = rng.normal(size=(32, 400))
        values[:16, :40] += 1.3
        _, _, p, q = align([values], 16, rng, 99)
        called = q[0] <= 0.2
        shares.append(called[40:].sum() / max(called.sum(), 1))
        found, strict = found + called[:40].sum(), strict + (p[0, :40] <= 0.05).sum()
        assert q.min() > 0 and q.max() <= 1
    assert np.mean(shares) <= 0.2 + 3 * np.std(shares) / np.sqrt(len(shares)) and found > 1.5 * strict


def test_labels_are_exchanged_within_frames_that_have_both_sides() -> None:
    """Frames that are far apart: within them the planted unit is seen; and a frame's share of planted items is no effect."""
    rng = np.random.default_rng(4)
    frames = ([*"aaaabbbbccdd", "only"], [*"aabbccccdddd", "other"])
    where = np.array([ord(f[0]) for side in frames for f in side], dtype=float)
    values = 5 * np.sin(where)[:, None] * rng.normal(size=50) + 0.5 * rng.normal(size=(26, 50))
    values[:13, 3] += 2.5
    labels = Labels.draw(13, 13, rng, 199, frames)
    assert len(set(labels.strata)) == 5 and labels.strata[12] == labels.strata[25]
    for s in set(labels.strata):
        here = labels.strata == s
        assert np.allclose(np.sort(labels.permuted[:, here], 1), np.sort(labels.centred[here]), atol=1e-6)
    _, _, p, _ = align([values], 13, rng, 199, frames)
    assert p[0, 3] <= 0.05 and (np.delete(p[0], 3) > 0.05).all()
    _, _, blind, _ = align([values], 13, rng, 199)
    assert blind[0, 3] > p[0, 3]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_the_spread_under_permuted_labels_is_the_formulas(seed: int, framed: bool) -> None:
    """Oracle: the variance over every permutation within strata, enumerated."""
    rng = np.random.default_rng(seed)
    frames = ([*"abb"], [*"aabc"]) if framed else None
    labels = Labels.draw(3, 4, rng, 19, frames)
    ranks = sps.rankdata(rng.integers(0, 4, size=(7, 2)), axis=0) - 4
    groups = [np.flatnonzero(labels.strata == s) for s in range(labels.strata.max() + 1)]
    every = []
    for orders in itertools.product(*(itertools.permutations(g) for g in groups)):
        weights = np.zeros(7)
        for group, order in zip(groups, orders, strict=True):
            weights[group] = labels.centred[list(order)]
        every.append(weights @ ranks)
    np.testing.assert_allclose(labels.spread(ranks), np.std(every, axis=0), atol=1e-12)
    np.testing.assert_allclose(np.mean(every, axis=0), 0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_effects_depend_on_ranks_alone_and_change_sign_with_the_sides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(14, 9)).round(1)
    order = rng.permutation(9)
    _, effect, p, q = align([values], 7, np.random.default_rng(0), 39)
    _, turned, p2, q2 = align([np.exp(3 * values)[:, order]], 7, np.random.default_rng(0), 39)
    np.testing.assert_allclose(turned[0], effect[0, order], atol=1e-12)
    np.testing.assert_allclose(p2[0], p[0, order])
    np.testing.assert_allclose(q2[0], q[0, order])
    _, swapped, _, _ = align([np.roll(values, 7, axis=0)], 7, np.random.default_rng(0), 39)
    np.testing.assert_allclose(swapped, -effect, atol=1e-12)


def test_shells_that_share_their_units_are_aligned() -> None:
    rng = np.random.default_rng(2)
    direction = rng.normal(size=80)
    values = []
    for sign in (1, -1):
        values.append(rng.normal(size=(30, 80)))
        values[-1][:15] += sign * direction
    running, effect, _, _ = align(values, 15, rng, 200)
    row = pair_frame(("a", "b"), running).row(0, named=True)
    assert row["correlation"] < -0.6 and row["p_adjusted"] <= 0.05 and row["null_low"] < 0 < row["null_high"] and row["units"] == 80
    assert row["correlation"] == pytest.approx(np.corrcoef(effect)[0, 1])
    # The null, draw by draw, from whole matrices.
    one = running.labels[0]
    ranks = sps.rankdata(values[0], axis=0) - 15.5
    want = [np.corrcoef(w @ ranks, effect[1])[0, 1] for w in one.permuted[:20].astype(float)]
    np.testing.assert_allclose(running._null(0, 1, np.concatenate(running._centred[1]))[:20], want, atol=1e-4)


def test_a_neuron_that_fires_only_in_one_shells_stressed_runs() -> None:
    """Planted by solving for a gate row that opens on exactly these prompts: the only unit of the matrix that is aligned, and with that shell alone."""
    model = build("llama")
    instrument = Instrument(wrap(model, tiny_tokenizer()))
    rng = np.random.default_rng(6)
    words = [
        "boat",
        "fox",
        "bell",
        "cart",
        "owl",
        "mule",
        "pier",
        "mill",
        "gate",
        "barn",
        "hill",
        "road",
        "key",
        "lamp",
        "rope",
        "salt",
    ]
    texts = [" ".join(rng.choice(words, 7)) for _ in range(48)]
    shells = {"stressed": (texts[:12], texts[12:24]), "other": (texts[24:36], texts[36:])}
    mlp = model.model.layers[1].mlp
    seen: list[Any] = []
    hook = mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0][0, -1].double()))
    with torch.no_grad():
        for text in texts:
            model(input_ids=torch.tensor([build_prompt(instrument.loaded.tokenizer, text).ids]))
        hook.remove()
        rows = torch.stack(seen)
        opens = torch.full((48,), -6.0, dtype=torch.float64)
        opens[:12] = 6.0
        mlp.gate_proj.weight[17] = (torch.linalg.pinv(rows) @ opens).float()
        mlp.up_proj.weight[17] = (torch.linalg.pinv(rows) @ torch.ones(48, dtype=torch.float64)).float()
    found = alignment_matrix(instrument, shells, n_permutations=199)
    at = np.flatnonzero((found.layer == 1) & (found.unit == 17))
    assert np.argwhere(found.aligned).tolist() == [[0, *at]] and found.effect[0, at] == 1
    assert abs(found.effect[1, at[0]]) < 0.6
    assert found.counts().filter(pl.col("aligned") > 0).rows() == [(1, "stressed", 1, 96)]
    assert found.frame(1).select("layer", "unit", "aligned").rows() == [(1, 17, True), (1, 17, False)]
    # Read layer by layer: the same numbers.
    small = alignment_matrix(instrument, shells, n_permutations=199, memory=1)
    np.testing.assert_allclose(small.effect, found.effect)
    np.testing.assert_allclose(small.p, found.p)
    np.testing.assert_allclose(small.q, found.q)
    assert small.pairs.equals(found.pairs) or np.allclose(small.pairs["p"], found.pairs["p"])
    rate = alignment_matrix(instrument, shells, n_permutations=199, fdr=0.1)
    assert rate.aligned[0, at] and rate.fdr == 0.1 and np.array_equal(rate.aligned, rate.q <= 0.1)


def test_layers_are_read_in_groups_that_fit() -> None:
    widths: Any = {"mlp_act.0": 10, "mlp_act.1": 10, "mlp_act.2": 10, "mlp_act.3": 30}
    assert [len(g) for g in _groups(widths, 4, 80)] == [2, 1, 1]
    assert [len(g) for g in _groups(widths, 4, 10_000)] == [4]


def test_the_matrix_of_a_model(instrument: Instrument) -> None:
    marked = [f"{t} zzz" for t in REFERENCE]
    found = alignment_matrix(instrument, {"marked": (marked, REFERENCE), "same": (REFERENCE[:4], REFERENCE[2:])}, n_permutations=99)
    assert found.effect.shape == (2, 2 * 96) and set(found.layer) == {0, 1}
    assert np.abs(found.effect[0]).max() == 1  # another last token: some neuron tells them apart wholly
    ids = torch.tensor([build_prompt(instrument.loaded.tokenizer, marked[0]).ids])
    seen: list[Any] = []
    hook = instrument.loaded.model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda m, x: seen.append(x[0][0, -1]))
    with torch.no_grad():
        instrument.loaded.model(input_ids=ids)
    hook.remove()
    built = [build_prompt(instrument.loaded.tokenizer, t) for t in marked]
    by_layer = {point.layer: values for point, values in _activations(instrument, built, ("mlp_act.*",), None)}
    np.testing.assert_allclose(by_layer[1][0], seen[0].numpy(), atol=1e-4)
    assert found.unit[found.layer == 1].tolist() == list(range(96))
    tables = found.tables()
    assert len(tables["alignments"]) == 80 and set(tables) == {"alignments", "alignment_pairs"}
    assert found.chart(5) is not None
    coded = alignment_matrix(
        instrument,
        {"marked": (marked, REFERENCE)},
        reads=("resid_post.1",),
        encode=lambda point, x: torch.relu(x[:, :10]),
        n_permutations=19,
    )
    assert coded.effect.shape == (1, 10) and set(coded.layer) == {1} and set(coded.tables()) == {"alignments"}
    with pytest.raises(ConfigError, match="4 or more"):
        alignment_matrix(instrument, {"x": (marked[:2], REFERENCE)})
    with pytest.raises(ConfigError, match="permutations"):
        alignment_matrix(instrument, {"x": (marked, REFERENCE)}, n_permutations=3)
    with pytest.raises(ConfigError, match="discovery"):
        alignment_matrix(instrument, {"x": (marked, REFERENCE)}, fdr=5)
    with pytest.raises(ConfigError, match="no shell"):
        alignment_matrix(instrument, {})
