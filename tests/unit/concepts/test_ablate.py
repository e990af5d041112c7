"""Ablating a concept's heads: planted heads are found and others are not, no effect under shuffled labels, exact sums, padding, refusals."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import ablate_heads, collect, Directions, find_directions, make_design, Pooled, ReadoutModel
from symbolic_residue.concepts._ablate_run import run_swaps, Swap
from symbolic_residue.concepts._choose import by_layer, choose_heads, HeadScores, matched_sets, score_heads, set_disturbance
from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import collate, Instrument, Replace
from symbolic_residue.models import bind
from symbolic_residue.prompts import build_prompt

MODEL = ReadoutModel("a model", "0" * 64, None, "float32", 64, 2)
PLACES = ("mill", "river", "gate", "table", "book", "answer", "captain", "harbour", "house", "garden", "letter", "bridge")
TEXTS = [f"Anna {word} the {place} in the evening" for place in PLACES for word in ("put", "questions")]
LABELS = ["baseline", "joy"] * len(PLACES)
SCENARIOS = [place for place in PLACES for _ in range(2)]
WIDE = {"num_attention_heads": 16, "num_key_value_heads": 4}
PLANTED = ((0, 5), (0, 11))


def instrument_of(name: str, **changes: Any) -> Instrument:
    model = build(name, **changes)
    return Instrument(SimpleNamespace(model=model, parts=bind(model), tokenizer=tiny_tokenizer()))  # type: ignore[arg-type]


def found_in(instrument: Instrument, labels: list[str] = LABELS, **options: Any) -> tuple[Pooled, Directions]:
    pooled = collect(instrument, TEXTS, **options)
    return pooled, find_directions(pooled, labels, SCENARIOS, replace(MODEL, hidden_size=instrument.parts.d_model))


def planted() -> Instrument:
    """Of layer 0's sixteen heads all but two are kept from writing the concept: their output weights lose the direction of their difference of means."""
    instrument = instrument_of("llama", **WIDE)
    pooled, _ = found_in(instrument)
    x = pooled.heads[0].astype(np.float64)
    delta = (x[1::2] - x[0::2]).mean(0)
    weight: Any = instrument.parts.layers[0].o_proj.weight  # type: ignore[union-attr]
    with torch.no_grad():
        for h in range(16):
            if (0, h) not in PLANTED:
                unit = torch.tensor(delta[h] / np.linalg.norm(delta[h]), dtype=weight.dtype)
                own = weight[:, 16 * h : 16 * h + 16]
                own -= (own @ unit)[:, None] * unit
    return instrument


@pytest.fixture(scope="module")
def plant() -> tuple[Instrument, Pooled, Directions]:
    instrument = planted()
    return (instrument, *found_in(instrument))


def test_planted_heads_are_found_and_carry(plant: Any) -> None:
    instrument, pooled, directions = plant
    found = ablate_heads(instrument, TEXTS, LABELS, SCENARIOS, pooled, directions, "joy", layer=0, k=2, by="direct")
    assert all(set(half) == set(PLANTED) for half in found.halves)
    loss = found.layers[0]
    assert found.verdict == "carry", found.why
    assert loss.lost.value > 0.5 and loss.excess.low > 0.1 and loss.p == pytest.approx(1 / 40)
    assert loss.lost.n == found.scenarios == 12 and len(loss.controls) == 39
    assert max(loss.controls) < loss.lost.value and abs(np.mean(loss.controls)) < 0.2
    assert found.predicted.value > 5 * max(map(abs, found.predicted_controls))
    assert found.self_drift < 1e-4 and abs(found.own_mean.value) < 0.15
    assert found.kl.value > 0 and len(found.kl_controls) == 39


def test_other_heads_of_the_planted_model_do_not_carry(plant: Any) -> None:
    instrument, pooled, directions = plant
    found = ablate_heads(
        instrument, TEXTS, LABELS, SCENARIOS, pooled, directions, "joy", layer=0, heads=[(0, 1), (0, 2), (0, 8)], n_controls=60
    )
    assert found.named and found.by == "named" and found.verdict != "carry"
    assert abs(found.predicted.value) < 0.05


def test_heads_drawn_by_lot_rank_as_their_controls_do() -> None:
    """60 sets of four heads by lot: p ≤ .05 in at most 8 (binomial with .05: more has probability < .003), carry in at most 3."""
    instrument = instrument_of("llama", **WIDE)
    pooled, directions = found_in(instrument)
    rng = np.random.default_rng(0)
    found = [
        ablate_heads(
            instrument, TEXTS, LABELS, SCENARIOS, pooled, directions, "joy", layer=1, n_controls=19, seed=seed,
            heads=[(int(c) // 16, int(c) % 16) for c in rng.choice(32, 4, replace=False)],
        )
        for seed in range(60)
    ]  # fmt: skip
    assert sum(one.layers[0].p <= 0.05 for one in found) <= 8
    assert sum(one.layers[0].p > 0.96 for one in found) <= 8
    assert sum(one.verdict == "carry" for one in found) <= 3


@pytest.mark.parametrize("by", ["selectivity", "direct"])
def test_shuffled_labels_give_no_verdict(by: Any) -> None:
    """Labels shuffled within scenarios, 60 times: carry in at most 3. (The rank alone would not do: heads that tell the words apart move more, either way.)"""
    instrument = instrument_of("llama", **WIDE)
    pooled = collect(instrument, TEXTS)
    rng = np.random.default_rng(0)
    carried = 0
    for seed in range(60):
        labels = [LABELS[2 * i + (j ^ int(flip))] for i, flip in enumerate(rng.integers(0, 2, len(PLACES))) for j in range(2)]
        directions = find_directions(pooled, labels, SCENARIOS, MODEL)
        found = ablate_heads(
            instrument, TEXTS, labels, SCENARIOS, pooled, directions, "joy", layer=1, k=4, n_controls=19, seed=seed, by=by
        )
        carried += found.verdict == "carry"
    assert carried <= 3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3", "falcon_h1"])
def test_a_swap_is_the_edit_of_one_forward_and_padding_does_not_matter(name: str) -> None:
    """Against one forward a text, unpadded, with the edit written out; whatever the pooled rows and the way they are run."""
    instrument = instrument_of(name)
    texts = [TEXTS[0], TEXTS[3], "The mill stands where the river turns and the captain waits."]
    prompts = [build_prompt(instrument.loaded.tokenizer, text) for text in texts]
    rng = np.random.default_rng(0)
    d_head, v = instrument.parts.d_head, rng.normal(size=instrument.parts.d_model)
    values = {0: rng.normal(size=(1, 4, d_head)), 1: rng.normal(size=(3, 4, d_head))}
    swaps = [Swap({}), Swap.of([(0, 1), (1, 0), (1, 2)], values), Swap.of([(0, 0)], values)]
    ways = {
        "last": [range(len(p) - 1, len(p)) for p in prompts],
        "before": [range(len(p) - 3, len(p) - 1) for p in prompts],
    }
    for way, positions in ways.items():
        for rows in (8, 128):
            found = run_swaps(instrument, prompts, positions, swaps, {1: v}, rows=rows)
            for i, (prompt, own) in enumerate(zip(prompts, positions, strict=True)):
                plain = None
                for s, heads in enumerate(([], [(0, 1), (1, 0), (1, 2)], [(0, 0)])):
                    edits = [
                        Replace(
                            f"z.{at}",
                            rows=list(own),
                            heads=[h],
                            value=torch.tensor(values[at][i if at else 0, h], dtype=torch.float32),
                        )
                        for at, h in heads
                    ]
                    trace = instrument.run(torch.tensor([prompt.ids]), reads=("resid_post.1",), edits=edits)
                    expected = trace["resid_post.1"][0, list(own)].double().mean(0).numpy() @ v
                    assert found.projections[1][s, i] == pytest.approx(expected, abs=2e-3, rel=1e-3), way
                    log_p = torch.log_softmax(trace.logits[0, own[-1]].double(), -1)  # type: ignore[index]
                    plain = log_p if plain is None else plain
                    assert found.kl[s, i] == pytest.approx(float((plain.exp() * (plain - log_p)).sum()), abs=2e-3, rel=1e-2)


def test_every_token_but_the_first_may_be_ablated() -> None:
    instrument = instrument_of("llama", **WIDE)
    pooled, directions = found_in(instrument)
    found = ablate_heads(instrument, TEXTS, LABELS, SCENARIOS, pooled, directions, "joy", layer=1, k=4, n_controls=3, tokens="all")
    assert found.nll is not None and found.nll.n == 12 and len(found.nll_controls) == 3
    assert found.verdict == "undecided" and not found.own_mean.has_interval
    prompts = [build_prompt(instrument.loaded.tokenizer, text) for text in TEXTS[:3]]
    value = {0: np.full((1, 16, 16), 0.3)}
    swaps = [Swap({}), Swap.of([(0, 2)], value)]
    got = run_swaps(instrument, prompts, [range(len(p) - 1, len(p)) for p in prompts], swaps, {1: np.ones(64)}, tokens="all")
    for i, prompt in enumerate(prompts):
        for s in range(2):
            edits = [Replace("z.0", rows=range(1, len(prompt)), heads=[2], value=0.3)] if s else []
            logits = instrument.run(torch.tensor([prompt.ids]), edits=edits).logits
            assert logits is not None
            log_p = torch.log_softmax(logits[0].double(), -1)
            nll = -np.mean([float(log_p[j - 1, prompt.ids[j]]) for j in range(2, len(prompt))])
            assert got.nll is not None and got.nll[s, i] == pytest.approx(nll, abs=1e-3)


def test_scores_by_their_formulas() -> None:
    instrument = instrument_of("llama")
    pooled, directions = found_in(instrument)
    design = make_design(LABELS, SCENARIOS, "joy")
    v = directions.vector("joy", 1)
    for layer, one in score_heads(pooled, design, instrument.parts, (0, 1), v).items():
        x = pooled.heads[layer].astype(np.float64)
        for h in range(4):
            w = instrument.parts.layers[layer].w_o(h).double().numpy()
            negative, delta = x[0::2, h], (x[1::2, h] - x[0::2, h]).mean(0)
            np.testing.assert_allclose(one.delta[h], delta, atol=1e-9)
            assert one.raw_norm[h] == pytest.approx(np.linalg.norm(delta))
            assert one.selectivity[h] == pytest.approx(np.linalg.norm(delta) / np.sqrt(np.trace(np.cov(negative.T, ddof=1))))
            assert one.write[h] == pytest.approx(np.linalg.norm(delta @ w))
            assert one.direct[h] == pytest.approx(delta @ w @ v)
            moved = (((x[:, h] - negative.mean(0)) @ w) ** 2).sum(1).mean()
            assert one.disturbance[h] == pytest.approx(np.sqrt(moved))


def scores_of(sizes: list[list[float]]) -> dict[int, HeadScores]:
    return {
        layer: HeadScores(*[np.zeros((len(some), 2))] * 3, *[np.array(some)] * 5)  # type: ignore[arg-type]
        for layer, some in enumerate(sizes)
    }


@given(
    st.lists(st.lists(st.floats(0.5, 2.0), min_size=4, max_size=8), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 50)
)
def test_controls_are_other_heads_as_many_a_layer_and_as_large_where_there_are_some(
    sizes: list[list[float]], k: int, seed: int
) -> None:
    scores = scores_of(sizes)
    chosen = choose_heads(scores, min(k, sum(map(len, sizes)) - 1), "direct")
    sets = matched_sets(scores, chosen, 10, seed)
    assert sets == matched_sets(scores, chosen, 10, seed)
    assert len({one.heads for one in sets}) == len(sets) <= 10
    wanted = {layer: len(some) for layer, some in by_layer(chosen).items()}
    enough = all(2 * n <= len(sizes[layer]) for layer, n in wanted.items())
    for one in sets:
        assert not set(one.heads) & set(chosen) and len(set(one.heads)) == len(chosen)
        assert one.ratio == pytest.approx(set_disturbance(scores, one.heads) / set_disturbance(scores, chosen))
        if enough:
            assert {layer: len(some) for layer, some in by_layer(one.heads).items()} == wanted
    near = [abs(np.log(one.ratio)) <= np.log(1.25) + 1e-9 for one in sets]
    assert near == sorted(near, reverse=True)


def test_too_few_heads_to_compare_with_are_said() -> None:
    scores = scores_of([[1.0, 2.0, 3.0, 4.0]])
    assert matched_sets(scores, choose_heads(scores, 3, "direct"), 5, 0) == []
    borrowed = matched_sets(scores_of([[9.0, 9.0, 9.0, 1.0], [1.0, 1.0, 1.0, 1.0]]), ((0, 0), (0, 1), (0, 2)), 50, 0)
    assert len(borrowed) == 6 and all(by_layer(one.heads)[0] == (3,) and len(by_layer(one.heads)[1]) == 2 for one in borrowed)
    with pytest.raises(ConfigError, match="cannot be chosen"):
        choose_heads(scores, 4, "direct")
    with pytest.raises(ConfigError, match="no score"):
        choose_heads(scores, 1, "size")  # type: ignore[arg-type]


def test_heads_of_skipped_layers_and_nonsense_are_refused() -> None:
    instrument = instrument_of("qwen3_next")
    pooled, directions = found_in(instrument)
    go = lambda **options: ablate_heads(instrument, TEXTS, LABELS, SCENARIOS, pooled, directions, "joy", **options)  # noqa: E731
    with pytest.raises(ReadError, match="Layer 0 has no heads"):
        go(heads=[(0, 1)])
    with pytest.raises(ConfigError, match="has no head 4"):
        go(heads=[(1, 4)])
    with pytest.raises(ConfigError, match="no layer 9"):
        go(heads=[(9, 0)])
    with pytest.raises(ConfigError, match="cannot be tried"):
        go(layer=2, heads=[(3, 0)])
    with pytest.raises(ConfigError, match="twice"):
        go(heads=[(1, 0), (1, 0)])
    with pytest.raises(ConfigError, match="No layer up to 0 has heads"):
        go(layer=0)
    with pytest.raises(ConfigError, match="was not collected"):
        go(layer=7)
    with pytest.raises(ConfigError, match="tokens"):
        go(tokens="some")
    with pytest.raises(ConfigError, match="none"):
        go(k=0)
    with pytest.raises(ConfigError, match="no direction"):
        ablate_heads(instrument, TEXTS, LABELS, SCENARIOS, pooled, directions, "envy")
    with pytest.raises(ConfigError, match="four or more"):
        three = [i for i, s in enumerate(SCENARIOS) if s in PLACES[:3]]
        ablate_heads(
            instrument, [TEXTS[i] for i in three], [LABELS[i] for i in three], [SCENARIOS[i] for i in three],
            collect(instrument, [TEXTS[i] for i in three]), directions, "joy",
        )  # fmt: skip
    with pytest.raises(ReadError, match="otherwise than what was collected"):
        ablate_heads(instrument_of("qwen3_next", seed=3), TEXTS, LABELS, SCENARIOS, pooled, directions, "joy", layer=3)
    found = go(layer=3, k=2, n_controls=5)
    assert found.verdict == "undecided" and all(layer in (1, 3) for half in found.halves for layer, _ in half)


def test_collate_is_what_the_rows_count_in() -> None:
    """The rows of a swap count in the padded batch: another text beside it, longer, must change nothing."""
    instrument = instrument_of("llama")
    short, long = (build_prompt(instrument.loaded.tokenizer, text) for text in (TEXTS[0], TEXTS[1] + " and " + TEXTS[2]))
    assert collate([short, long]).lead[0] > 0
    value = {0: np.full((1, 4, 16), 2.0)}
    alone, beside = (
        run_swaps(instrument, some, [range(len(p) - 2, len(p) - 1) for p in some], [Swap.of([(0, 1)], value)], {0: np.ones(64)})
        for some in ([short], [short, long])
    )
    assert alone.projections[0][0, 0] == pytest.approx(beside.projections[0][0, 0], abs=1e-3)
    assert alone.kl[0, 0] == pytest.approx(beside.kl[0, 0], abs=1e-4)
