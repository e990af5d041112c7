"""Cross-run comparison: planted differences, false discoveries, clusters. QK/OV view: keys sum to the head's attribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt
from symbolic_residue.readout import direct_logit_attribution, dla_reads
from symbolic_residue.shells import attention_view, cross_run, run_features
from symbolic_residue.store._schema import conform

NAMES = [(i // 10, f"f{i % 10}") for i in range(40)]
TEXT = "the old gate stands near the river and the mill"


def test_a_planted_feature_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    success = rng.normal(0, 1, (14, 40))
    failure = success + rng.normal(0, 0.5, (14, 40))
    failure[:, 17] += 3.0
    found = cross_run(success, failure, NAMES)
    assert found.found() == [(1, "f7")]
    row = found.frame.row(0, named=True)
    assert row["low"] > 2
    assert row["n"] == 14
    conform("cross_run", found.frame, "x")
    false = [
        bool(cross_run(a, a + rng.normal(0, 1, a.shape), NAMES, seed=i).found())
        for i in range(40)
        for a in [rng.normal(0, 1, (10, 40))]
    ]
    assert np.mean(false) <= 0.15  # 5 % and its spread at 40


def test_copies_of_a_pair_are_one_unit() -> None:
    rng = np.random.default_rng(1)
    success = np.repeat(rng.normal(0, 1, (2, 40)), 10, 0)
    failure = success + 1.0
    loose, tight = cross_run(success, failure, NAMES), cross_run(success, failure, NAMES, clusters=[0] * 10 + [1] * 10)
    assert len(loose.found()) == 40
    assert (tight.n, tight.found()) == (2, [])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_swapping_the_sides_turns_every_sign(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1, (7, 5)), rng.normal(0, 1, (7, 5))
    one, two = (cross_run(x, y, NAMES[:5], seed=0).frame.sort("feature") for x, y in ((a, b), (b, a)))
    assert np.allclose(one["difference"], -two["difference"])
    assert np.allclose(one["p"], two["p"])


@torch.no_grad()
def test_features_are_what_heads_and_mlps_write() -> None:
    model = build("llama")
    instrument = Instrument(wrap(model, tiny_tokenizer()))
    prompts = [build_prompt(instrument.loaded.tokenizer, text) for text in (TEXT, "Anna put the")]
    names, values = run_features(instrument, prompts)
    assert len(names) == 2 * 4 + 2
    seen = {}
    layer = model.model.layers[1]
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a: seen.__setitem__("z", a[0][0, -1])),
        layer.mlp.register_forward_hook(lambda m, a, out: seen.__setitem__("mlp", out[0, -1])),
    ]
    model(input_ids=torch.tensor([prompts[1].ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    write = layer.self_attn.o_proj.weight[:, 16:32] @ seen["z"][16:32]
    assert values[1, names.index((1, "head 1"))] == pytest.approx(float(write.norm()), rel=1e-3)
    assert values[1, names.index((1, "mlp"))] == pytest.approx(float(seen["mlp"].norm()), rel=1e-3)
    with pytest.raises(ConfigError):
        run_features(instrument, [])


def test_what_does_not_fit_is_refused() -> None:
    a = np.zeros((4, 40))
    for bad in (
        (a, a[:3], NAMES, None),
        (a, a, NAMES[:3], None),
        (a * np.nan, a, NAMES, None),
        (a, a, NAMES, [1]),
        (a, a, NAMES, [1] * 4),
    ):
        with pytest.raises(ConfigError):
            cross_run(bad[0], bad[1], bad[2], clusters=bad[3])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gemma2", "granite", "gpt_neox", "olmo2"])
def test_keys_sum_to_the_heads_attribution(family: str) -> None:
    instrument = Instrument(wrap(build(family), tiny_tokenizer()))
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    heads = [(0, 1), (1, 3)]
    view = attention_view(instrument, prompt, heads, [(40, 77), (300, None)], last=5)
    trace = instrument.run(collate([prompt]), reads=dla_reads(instrument.parts), keep_logits=1)
    want = direct_logit_attribution(trace, instrument.parts, [(40, 77), (300, None)]).heads[:, 0, 0]
    targets = list(dict.fromkeys(view.ov_keys["target"]))
    for layer, head in heads:
        for t, target in enumerate(targets):
            keys = view.ov_keys.filter(layer=layer, head=head, target=target)["strength"]
            # Value biases are inside v; output biases belong to no head.
            assert float(keys.sum()) == pytest.approx(float(want[t, layer, head]), rel=2e-3, abs=2e-3)
            total = view.ov_heads.filter(layer=layer, head=head, target=target).row(0, named=True)
            assert total["strength"] == pytest.approx(float(keys.sum()))
            assert total["norm"] > 0
        weights = view.attention.filter(layer=layer, head=head).group_by("query").agg(weight=pl_sum())
        assert np.allclose(weights["weight"], 1.0, atol=1e-4)
        assert len(weights) == 5
    for name, frame in view.tables().items():
        conform(name, frame, "x")


def pl_sum() -> object:
    import polars as pl

    return pl.col("weight").sum()


def test_the_view_is_drawn_and_refusals_name_the_head() -> None:
    from symbolic_residue.figures import to_svg

    instrument = Instrument(wrap(build("llama"), tiny_tokenizer()))
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    view = attention_view(instrument, prompt, [(1, 3)], [(40, 77)])
    assert "attention of head 1.3" in to_svg(view.figure(1, 3), label="view")
    with pytest.raises(ConfigError, match=r"head 0\.0"):
        view.figure(0, 0)
    with pytest.raises(ReadError, match=r"9\.0"):
        attention_view(instrument, prompt, [(9, 0)], [(40, 77)])
    with pytest.raises(ConfigError, match="vocabulary"):
        attention_view(instrument, prompt, [(1, 0)], [(40, 10**6)])
    with pytest.raises(ConfigError, match="at least"):
        attention_view(instrument, prompt, [], [(40, 77)])
    gated = Instrument(wrap(build("qwen3_next"), tiny_tokenizer()))
    with pytest.raises(ReadError, match="gated"):
        attention_view(gated, prompt, [(gated.attention_layers[0], 0)], [(40, 77)])
