"""Heads' writes, their norms and value-weighted attention, on every family and by algebra."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ALL, build

from symbolic_residue.errors import ReadError
from symbolic_residue.instrument import AttentionRead, collate, Instrument
from symbolic_residue.models import bind
from symbolic_residue.prompts import Regions
from symbolic_residue.readout import head_writes, value_weighted_attention, write_norms
from symbolic_residue.readout._heads import _norms, output_factor


def instrument_of(name: str) -> Instrument:
    model = build(name)
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=list(ALL))
def instrument(request: pytest.FixtureRequest) -> Instrument:
    return instrument_of(request.param)


def ids(batch: int = 2, n: int = 12) -> torch.Tensor:
    return torch.randint(4, 384, (batch, n), generator=torch.Generator().manual_seed(3))


def test_writes_and_bias_are_what_attention_adds_and_norms_are_their_norms(instrument: Instrument) -> None:
    parts = instrument.parts
    trace = instrument.run(ids(), reads=("z.*", "attn_out.*"))
    layers = parts.attention_layers
    writes = head_writes(trace, parts, layers, range(parts.n_heads), rows=None)
    assert writes.shape == (len(layers), 2, 12, parts.n_heads, 64)
    norms = write_norms(trace, parts)
    assert norms.shape == (parts.n_layers, 2, 12, parts.n_heads)
    for at, i in enumerate(layers):
        layer = parts.layers[i]
        added = writes[at].sum(2) + (0 if layer.b_o is None else layer.b_o * layer.attn_scale)
        if layer.post_attn_norm is not None:
            added = layer.post_attn_norm.formula(added / layer.attn_scale) * layer.attn_scale
        torch.testing.assert_close(added.float(), trace[f"attn_out.{i}"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(norms[i], writes[at].norm(dim=-1), atol=1e-5, rtol=1e-4)
    absent = [i for i in range(parts.n_layers) if i not in layers]
    assert bool(norms[absent].isnan().all())
    assert bool(norms[list(layers)].isfinite().all())
    some = head_writes(trace, parts, [layers[-1]], [-1, 0], rows=(-2,))
    torch.testing.assert_close(some[0, :, 0], writes[-1][:, -2][:, [parts.n_heads - 1, 0]])


def test_value_weighted_attention_is_the_norm_of_each_keys_contribution(instrument: Instrument) -> None:
    parts = instrument.parts
    batch = collate([ids()[0].tolist(), ids()[1, :9].tolist()])
    read = AttentionRead(stats=("entropy",), rows=(-1, -4), weights=True)
    trace = instrument.run(batch, reads=("v.*", "z.*"), attention=read)
    if parts.layers[parts.attention_layers[0]].qkv_layout == "gated":
        with pytest.raises(ReadError, match="gated"):
            value_weighted_attention(trace, parts)
        return
    found = value_weighted_attention(trace, parts)
    assert trace.attention is not None
    weights = trace.attention["weights"].double()
    assert found.layers == parts.attention_layers and found.norms.shape == (len(found.layers), 2, parts.n_heads, 2, 12)
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 1, 0])
    regions = [Regions(("a", "b", "c"), np.concatenate([labels, [0, 1, 2]])), Regions(("a", "b", "c"), labels)]
    names, of_norms, of_sums = found.regions(regions)
    assert names == ("a", "b", "c")
    padded = torch.full((2, 12), -1)
    padded[0], padded[1, 3:] = torch.tensor(regions[0].labels), torch.tensor(labels)
    for at, i in enumerate(found.layers):
        layer = parts.layers[i]
        v = trace[f"v.{i}"].double()
        group = parts.n_heads // v.shape[2]
        for h in range(parts.n_heads):
            w_o = layer.w_o(h).double() * layer.attn_scale
            each = weights[at, :, h, :, :, None] * (v[:, :, h // group] @ w_o)[:, None]  # [batch, row, key, d_model]
            torch.testing.assert_close(found.norms[at, :, h].double(), each.norm(dim=-1), atol=1e-5, rtol=1e-4)
            write = head_writes(trace, parts, [i], [h], rows=(-1, -4))[0, :, :, 0]
            torch.testing.assert_close(each.sum(2).float(), write, atol=1e-4, rtol=1e-3)
            for g in range(3):
                keep = (padded == g).double()[:, None, :, None]
                torch.testing.assert_close(
                    of_norms[at, :, h, :, g].double(), (each * keep).norm(dim=-1).sum(-1), atol=1e-5, rtol=1e-4
                )
                torch.testing.assert_close(
                    of_sums[at, :, h, :, g].double(), (each * keep).sum(2).norm(dim=-1), atol=1e-4, rtol=1e-3
                )
    assert bool((of_sums <= of_norms + 1e-5).all())
    torch.testing.assert_close(found.share.sum(-1), torch.ones(found.share.shape[:-1]))


def test_padding_rows_are_not_numbers() -> None:
    instrument = instrument_of("llama")
    batch = collate([ids()[0].tolist(), ids()[1, :3].tolist()])
    trace = instrument.run(batch, reads=("v.*",), attention=AttentionRead(stats=("entropy",), rows=(2, -1), weights=True))
    found = value_weighted_attention(trace, instrument.parts)
    assert bool(found.norms[:, 1, :, 0].isnan().all()) and bool(found.norms[:, 0].isfinite().all())


@settings(max_examples=60, deadline=None)
@given(d_head=st.integers(1, 12), d_model=st.integers(1, 12), seed=st.integers(0, 2**16), rank_one=st.booleans())
def test_the_factor_gives_the_norm_of_any_write(d_head: int, d_model: int, seed: int, rank_one: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(d_head, d_model, generator=g)
    if rank_one:
        w = w[:, :1] * w[:1]
    layer = SimpleNamespace(n_heads=1, attn_scale=0.5, w_o=lambda h: w)
    z = torch.randn(1, 3, 1, d_head, generator=g)
    got = _norms(z, output_factor(layer))  # type: ignore[arg-type]
    torch.testing.assert_close(got[0, :, 0].double(), 0.5 * (z[0, :, 0].double() @ w.double()).norm(dim=-1), atol=1e-3, rtol=1e-3)


def test_refusals() -> None:
    instrument = instrument_of("llama")
    trace = instrument.run(ids(), reads=("z.0",))
    for layers, heads, rows in (([0], [4], None), ([2], [0], None), ([0], [0], (12,)), ([], [0], None), ([0], [], None)):
        with pytest.raises(ReadError):
            head_writes(trace, instrument.parts, layers, heads, rows)
    with pytest.raises(ReadError, match=r"z\.1"):
        write_norms(trace, instrument.parts)
    with pytest.raises(ReadError, match="no attention weights"):
        value_weighted_attention(trace, instrument.parts)
    hybrid = instrument_of("jamba")
    with pytest.raises(ReadError, match=r"no softmax attention|was not read"):
        head_writes(hybrid.run(ids(), reads=("z.*",)), hybrid.parts, [0], [0])
