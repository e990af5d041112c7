"""OV and QK circuits against the model's own attention on every family; singular values, copying and composition against dense matrices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ALL, build

from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import AttentionRead, Instrument
from symbolic_residue.models import bind
from symbolic_residue.readout import (
    composition_scores,
    copying_scores,
    head_writes,
    ov_circuit,
    ov_top_tokens,
    qk_circuit,
)
from symbolic_residue.readout._circuits import _copying, _singular
from symbolic_residue.readout._composition import _Pair, composed

NORMED = {
    "qwen3",
    "gemma3",
    "qwen3_moe",
    "olmo2",
    "olmo3",
    "exaone4",
    "cohere_qk_norm",
    "stablelm_parallel",
    "qwen3_next",
    "lfm2",
}
CLIPPED = {"olmo"}
GATED = {"qwen3_next"}
WITHOUT_ROTATION = {"gpt2": (0, 1), "opt": (0, 1), "falcon_alibi": (0, 1), "jamba": (1, 3), "smollm3": (1,), "cohere2": (1,)}
"""Layers that rotate nothing, by their architecture's description."""


def instrument_of(name: str, **changes: Any) -> Instrument:
    model = build(name, **changes)
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=list(ALL))
def named(request: pytest.FixtureRequest) -> tuple[str, Instrument]:
    return request.param, instrument_of(request.param)


def ids(batch: int = 1, n: int = 12) -> torch.Tensor:
    return torch.randint(4, 384, (batch, n), generator=torch.Generator().manual_seed(3))


def test_a_heads_write_is_attention_times_its_ov_circuit(named: tuple[str, Instrument]) -> None:
    name, instrument = named
    parts = instrument.parts
    if name in GATED | CLIPPED:
        with pytest.raises(ReadError, match=r"gated|clip"):
            ov_circuit(parts, parts.attention_layers[0], 0)
        return
    rows = tuple(range(12))
    trace = instrument.run(
        ids(), reads=("resid_pre.*", "z.*"), attention=AttentionRead(stats=("entropy",), rows=rows, weights=True)
    )
    assert trace.attention is not None
    for at, layer in enumerate(parts.attention_layers):
        for head in (0, parts.n_heads - 1):
            moved = ov_circuit(parts, layer, head).apply(trace[f"resid_pre.{layer}"][0])
            want = head_writes(trace, parts, [layer], [head], rows=None)[0, 0, :, 0]
            torch.testing.assert_close(trace.attention["weights"][at, 0, head] @ moved, want, atol=2e-3, rtol=2e-3)


def test_scores_are_the_models_at_every_distance(named: tuple[str, Instrument]) -> None:
    name, instrument = named
    parts = instrument.parts
    trace = instrument.run(ids(), reads=("resid_pre.*", "q.*", "k.*"))
    for layer in parts.attention_layers:
        if name in NORMED | CLIPPED:
            with pytest.raises(ReadError, match=r"norm|clip"):
                qk_circuit(instrument, layer, 0, distance=1)
            continue
        q, k = trace[f"q.{layer}"][0], trace[f"k.{layer}"][0]
        group = parts.n_heads // k.shape[1]
        resid = trace[f"resid_pre.{layer}"][0]
        free = layer in WITHOUT_ROTATION.get(name, ())
        with pytest.raises(ConfigError, match="distance"):
            qk_circuit(instrument, layer, 0, distance=1 if free else None)
        for head in (0, parts.n_heads - 1):
            model = parts.layers[layer].score_scale * q[:, head] @ k[:, head // group].T
            for distance in (None,) if free else (0, 1, 7):
                got = qk_circuit(instrument, layer, head, distance=distance).scores(resid, resid)
                if distance is not None:  # only the pairs that are at this distance
                    got, want = got.diagonal(-distance), model.diagonal(-distance)
                else:
                    want = model
                torch.testing.assert_close(got, want, atol=2e-3 * float(model.abs().max()), rtol=1e-3)


def test_the_rotation_matters() -> None:
    instrument = instrument_of("llama")
    near, far = (qk_circuit(instrument, 0, 0, distance=d) for d in (0, 7))
    assert float((near.query - far.query).abs().max()) > 0.1
    torch.testing.assert_close(near.key, far.key)
    torch.testing.assert_close(near.singular()[1], _singular(near.query, near.key.mT)[1])


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 9), d=st.integers(1, 9), m=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_small_singular_values_are_the_dense_ones(n: int, d: int, m: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((n, d), (d, m)))
    u, s, vh = _singular(left, right)
    dense = torch.linalg.svdvals(left @ right)
    torch.testing.assert_close(s, dense[: len(s)])
    assert float(dense[len(s) :].sum()) < 1e-9
    torch.testing.assert_close(u * s @ vh, left @ right)


def dense_ov(instrument: Instrument, layer: int, head: int) -> torch.Tensor:
    """``W_E A B W_U`` of every pair of tokens, from the family's weights and the norms' formulas without their scales."""
    parts = instrument.parts
    part = parts.layers[layer]

    def gained(norm: Any, x: torch.Tensor) -> torch.Tensor:
        if norm is None:
            return x
        return (x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x) * norm.gain().double()

    weight, _ = part.projection("v", head)
    x = gained(part.pre_attn_norm, parts.embed.weight.detach().double()) @ weight.double() @ part.w_o(head).double()
    return gained(parts.final_norm, gained(part.post_attn_norm, x)) @ parts.w_u.double().T


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "olmo2", "falcon", "granite", "opt", "jamba"])
def test_copying_scores_are_those_of_the_whole_matrix(name: str) -> None:
    instrument = instrument_of(name)
    found = copying_scores(instrument.parts)
    for layer in range(instrument.parts.n_layers):
        for head in range(instrument.parts.n_heads):
            if layer not in instrument.parts.attention_layers:
                assert found.scores[layer, head].isnan()
                continue
            values = torch.linalg.eigvals(dense_ov(instrument, layer, head))
            want = values.real.sum() / values.abs().sum()
            assert float(found.scores[layer, head]) == pytest.approx(float(want), abs=1e-3)
    assert found.control.n == 100 and found.control.low < found.control.value < found.control.high


@settings(max_examples=40, deadline=None)
@given(vocab=st.integers(8, 20), d_model=st.integers(3, 8), d_head=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_the_copying_score_of_any_factors(vocab: int, d_model: int, d_head: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    w_e, w_u, a, b = (
        torch.randn(s, generator=g, dtype=torch.float64)
        for s in ((vocab, d_model), (vocab, d_model), (d_model, d_head), (d_head, d_model))
    )
    values = torch.linalg.eigvals(w_e @ a @ b @ w_u.T)
    torch.testing.assert_close(_copying(a, b, w_u.T @ w_e), values.real.sum() / values.abs().sum(), atol=1e-4, rtol=1e-4)


def test_a_planted_copying_head_scores_one_and_its_opposite_minus_one() -> None:
    """Tied embeddings, ``B = ±Aᵀ``: ``W_E A Aᵀ W_Eᵀ`` is positive semidefinite."""
    model = build("llama_mha")
    with torch.no_grad():
        for norm in (model.model.norm, *(layer.input_layernorm for layer in model.model.layers)):
            norm.weight.fill_(1.0)
        for sign, layer in zip((1, -1), model.model.layers, strict=True):
            layer.self_attn.o_proj.weight.copy_(sign * layer.self_attn.v_proj.weight.T)
    found = copying_scores(bind(model))
    torch.testing.assert_close(found.scores, torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 4), atol=1e-5, rtol=0)
    assert found.control.high < 0.9 and found.control.low > -0.9


def test_tokens_moved_are_those_of_the_dense_circuit() -> None:
    for name in ("llama", "gpt2", "granite"):
        instrument = instrument_of(name)
        parts = instrument.parts
        part = parts.layers[1]
        tokens, values = ov_top_tokens(parts, 1, 2, [7, 40], k=5)
        x = parts.embed(torch.tensor([7, 40])).detach() * parts.embed_scale
        weight, bias = part.projection("v", 2)
        v = part.pre_attn_norm.formula(x) @ weight.double() + (0 if bias is None else bias.double())  # type: ignore[union-attr]
        moved = v @ part.w_o(2).double() * part.attn_scale
        moved = moved - moved.mean(-1, keepdim=True) if parts.final_norm.kind == "layer" else moved
        best = (moved * parts.final_norm.gain().double() @ parts.w_u.double().T).topk(5)
        assert torch.equal(tokens, best.indices)
        torch.testing.assert_close(values.double(), best.values, atol=1e-3, rtol=1e-3)


@settings(max_examples=40, deadline=None)
@given(d_model=st.integers(2, 9), d=st.integers(1, 5), e=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_composition_is_a_ratio_of_frobenius_norms(d_model: int, d: int, e: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b, c, f = (
        torch.randn(s, generator=g, dtype=torch.float64) for s in ((d_model, d), (d, d_model), (d_model, e), (e, d_model))
    )
    want = (a @ b @ c @ f).norm() / ((a @ b).norm() * (c @ f).norm())
    assert composed(_Pair(a, b), _Pair(c, f)) == pytest.approx(float(want), abs=1e-9)


def test_composition_scores_of_a_model() -> None:
    instrument = instrument_of("llama")
    heads = [(layer, head) for layer in range(2) for head in range(4)]
    found = composition_scores(instrument, heads, heads, distance=1, n_random=30)
    source = ov_circuit(instrument.parts, 0, 1)
    target, values = qk_circuit(instrument, 1, 2, distance=1), ov_circuit(instrument.parts, 1, 2)
    w = (source.into @ source.out_gained).double()
    second = {
        "q": (target.query @ target.key.T).double(),
        "k": (target.key @ target.query.T).double(),
        "v": (values.into @ values.out).double(),
    }
    for kind, matrix in second.items():
        want = float((w @ matrix).norm() / (w.norm() * matrix.norm()))
        assert float(found.scores[kind][1, 6]) == pytest.approx(want, rel=1e-4)
        assert bool(found.scores[kind][:4, 4:].isfinite().all())
        assert bool(found.scores[kind][4:].isnan().all()) and bool(found.scores[kind][:, :4].isnan().all())
        # Random weights are the null itself: most scores must lie where random matrices lie.
        assert found.control[kind].low < float(found.scores[kind][:4, 4:].median()) < 1.3 * found.control[kind].high
    only = composition_scores(instrument_of("qwen3"), [(0, 0)], [(1, 1)], kinds=("v",), n_random=20)
    assert set(only.scores) == {"v"} and bool(only.scores["v"].isfinite().all())


def test_a_planted_reader_composes_more_than_chance() -> None:
    """The second head's value matrix reads exactly what the first head writes."""
    model = build("llama_mha")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight.fill_(1.0)
        model.model.layers[1].self_attn.v_proj.weight[16:32] = model.model.layers[0].self_attn.o_proj.weight[:, :16].T
    instrument = Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]
    found = composition_scores(instrument, [(0, 0), (0, 1)], [(1, 1)], kinds=("v",))
    assert float(found.scores["v"][0, 0]) > 2 * found.control["v"].high
    assert float(found.scores["v"][1, 0]) < 1.3 * found.control["v"].high


def test_refusals() -> None:
    instrument = instrument_of("llama")
    parts = instrument.parts
    for layer, head in ((2, 0), (-1, 0), (0, 4)):
        with pytest.raises(ReadError, match="no head"):
            ov_circuit(parts, layer, head)
    for distance in (-1, 255):
        with pytest.raises(ConfigError, match="context"):
            qk_circuit(instrument, 0, 0, distance=distance)
    with pytest.raises(ReadError, match="no softmax attention"):
        ov_circuit(instrument_of("jamba").parts, 0, 0)
    with pytest.raises(ConfigError, match="kind"):
        composition_scores(instrument, [(0, 0)], [(1, 0)], kinds=("z",), distance=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        composition_scores(instrument, [], [(1, 0)], distance=1)
    for call in (
        lambda: copying_scores(parts, n_random=5),
        lambda: composition_scores(instrument, [(0, 0)], [(1, 0)], distance=1, n_random=5),
    ):
        with pytest.raises(ConfigError, match="too few"):
            call()
    for tokens, k in (([], 3), ([384], 3), ([3], 0), ([3], 385)):
        with pytest.raises(ConfigError, match="vocabulary"):
            ov_top_tokens(parts, 0, 0, tokens, k=k)


def test_weights_that_do_not_make_the_models_queries_are_refused() -> None:
    """A module that changes q behind the family table's back must not pass."""
    instrument = instrument_of("llama")
    instrument.model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda module, args, output: output * output.abs())
    with pytest.raises(ReadError, match="no rotated linear function"):
        qk_circuit(instrument, 0, 0, distance=1)
    assert not instrument.model.model.layers[0].self_attn._forward_pre_hooks
