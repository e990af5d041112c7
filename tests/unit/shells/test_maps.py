"""Trace map and alignment matrix: planted units are found, nothing is found in noise, and numbers are those of plain forwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt
from symbolic_residue.shells import alignment_matrix, shell_prompts, trace_map
from symbolic_residue.shells.signatures._alignment import _correlation, _effects, _pairs

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


def test_planted_units_are_found_and_the_others_are_not() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 500))
    values[:20, 7] += 4
    values[:20, 9] -= 4
    effect, p, _ = _effects(values, 20, rng, 400)
    assert effect[7] > 0.9 and effect[9] < -0.9
    assert set(np.flatnonzero(p <= 0.05)) == {7, 9}
    a, b = values[:20, 7], values[20:, 7]
    assert effect[7] == pytest.approx((np.sign(a[:, None] - b[None])).mean())


def test_family_wise_error_over_units_and_pairs_in_noise() -> None:
    rng = np.random.default_rng(1)
    false = pairs = 0
    for _ in range(200):
        found = [_effects(rng.normal(size=(24, 1)) * 0.7 + rng.normal(size=(24, 60)), 12, rng, 99) for _ in range(2)]
        false += bool((found[0][1] <= 0.05).any())
        pairs += _pairs(("a", "b"), [f[0] for f in found], [f[2] for f in found])["p_adjusted"][0] <= 0.05
    assert false <= 19 and pairs <= 19  # 5 % of 200 is 10; more than 19 has a chance under 0.004


def test_shells_that_share_their_units_are_aligned() -> None:
    rng = np.random.default_rng(2)
    direction = rng.normal(size=80)
    found = []
    for sign in (1, -1):
        values = rng.normal(size=(30, 80))
        values[:15] += sign * direction
        found.append(_effects(values, 15, rng, 200))
    row = _pairs(("a", "b"), [f[0] for f in found], [f[2] for f in found]).row(0, named=True)
    assert row["correlation"] < -0.6 and row["p_adjusted"] <= 0.05 and row["null_low"] < 0 < row["null_high"]
    one, two = rng.normal(size=20), rng.normal(size=20)
    assert _correlation(one[None], two)[0] == pytest.approx(np.corrcoef(one, two)[0, 1])


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
    from symbolic_residue.shells.signatures._alignment import _activations

    layer, unit, values = _activations(instrument, marked, ("mlp_act.*",), None)
    np.testing.assert_allclose(values[0, layer == 1], seen[0].double().numpy(), atol=1e-4)
    assert unit[layer == 1].tolist() == list(range(96))
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


def test_the_prompts_of_a_shell() -> None:
    planted, null = shell_prompts("value-collapse", most=6)
    assert len(planted) == len(null) == 6 and not set(planted) & set(null)
