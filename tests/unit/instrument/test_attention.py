"""Attention readouts against the dense float64 oracle, through the real door, on every family."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build, FAMILIES

from symbolic_residue.errors import AttentionError, ConfigError, EditError, InstrumentError, ReadError
from symbolic_residue.instrument import AttentionBias, AttentionMask, AttentionRead, collate, Instrument
from symbolic_residue.instrument._cached import cache_name
from symbolic_residue.instrument.attention import (
    block_stats,
    dense_stats,
    dense_weights,
    flash_stats,
    max_stats,
    STATS,
    visible_keys,
)
from symbolic_residue.models import bind
from symbolic_residue.prompts import Regions

LENGTH = 24
NAMES = ("sink", "one", "two", "three")
TOLERANCE = {"mass": 1e-5, "entropy": 1e-4, "distance": 1e-3, "max": 1e-5, "self": 1e-5, "weights": 1e-5}


def regions(n: int) -> Regions:
    """Non-contiguous regions: a sink, then the three others in turn."""
    return Regions(NAMES, np.array([0, *(1 + np.arange(n - 1) % 3)]))


@pytest.fixture(scope="module", params=list(FAMILIES))
def instrument(request: pytest.FixtureRequest) -> Instrument:
    model = build(request.param)
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


def ids(batch: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, 384, (batch, n), generator=torch.Generator().manual_seed(seed))


def oracle(instrument: Instrument, trace, layer: int, padding: torch.Tensor | None = None, bias=None) -> dict[str, torch.Tensor]:
    """Every statistic of a layer from the q and k that the model used."""
    q, k = trace[f"q.{layer}"].transpose(1, 2), trace[f"k.{layer}"].transpose(1, 2)
    attn = instrument.parts.layers[layer].attn
    scale = getattr(attn, "scaling", None) or q.shape[-1] ** -0.5
    seen = visible_keys(q.shape[2], k.shape[2], window=instrument.parts.attention_window(layer), padding=padding, batch=q.shape[0])
    weights = dense_weights(q, k, scale, seen, bias)
    n = q.shape[2]
    indicator = torch.zeros(q.shape[0], n, len(NAMES))
    for b in range(q.shape[0]):
        lead = 0 if padding is None else int(padding[b].argmax())
        length = n if padding is None else int(padding[b].sum())
        indicator[b, lead : lead + length] = torch.tensor(regions(length).indicator()).float()
    return dense_stats(weights, indicator)


def check(table, layer: int, want: dict[str, torch.Tensor], rows=slice(None)) -> None:
    at = table.layers.index(layer)
    for name, tolerance in TOLERANCE.items():
        if name not in table.values:
            continue
        got = table[name][at].double()
        expected = want[name][:, :, rows]
        ok = table.valid[:, None, :].expand(got.shape[:3])
        assert torch.isfinite(got[ok]).all()
        torch.testing.assert_close(got[ok], expected[ok], atol=tolerance, rtol=0)
        assert torch.isnan(got[~ok]).all()
    if "argmax" in table.values:
        ok = table.valid[:, None, :].expand(table["argmax"][at].shape)
        # Ties aside, the key must be the oracle's: compare the oracle's weight at our key with its maximum.
        at_ours = want["weights"][:, :, rows].gather(-1, table["argmax"][at].clamp_min(0)[..., None])[..., 0]
        torch.testing.assert_close(at_ours[ok], want["max"][:, :, rows][ok], atol=1e-5, rtol=0)


ALL = tuple(s for s in STATS if s != "lse")


def test_every_row_of_a_plain_batch(instrument: Instrument) -> None:
    trace = instrument.run(ids(2, LENGTH), reads=("q.*", "k.*"), attention=AttentionRead(regions=regions(LENGTH), stats=ALL))
    assert trace.attention is not None
    for layer in range(instrument.parts.n_layers):
        check(trace.attention, layer, oracle(instrument, trace, layer))


def test_attention_here_is_far_from_uniform(instrument: Instrument) -> None:
    """Otherwise the tests above would pass with wrong scores."""
    trace = instrument.run(ids(1, LENGTH), attention=AttentionRead(regions=regions(LENGTH), stats=("entropy",)))
    assert trace.attention is not None
    uniform = torch.log(torch.arange(1, LENGTH + 1).float())
    window = min((w for w in map(instrument.parts.attention_window, range(2)) if w), default=LENGTH)
    full = uniform if window >= LENGTH else torch.log(torch.arange(1, LENGTH + 1).clamp_max(window).float())
    assert float((full[-1] - trace.attention["entropy"][..., -1]).mean()) > 0.3


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(instrument: Instrument, side) -> None:
    sequences = [ids(1, n, seed=n)[0].tolist() for n in (LENGTH, 13, 5)]
    batch = collate(sequences, pad_id=3, side=side)
    read = AttentionRead(regions=[regions(n) for n in (LENGTH, 13, 5)], stats=ALL)
    trace = instrument.run(batch, reads=("q.*", "k.*"), attention=read)
    assert trace.attention is not None
    assert trace.attention.valid.tolist() == batch.mask.bool().tolist()
    for layer in range(instrument.parts.n_layers):
        check(trace.attention, layer, oracle(instrument, trace, layer, padding=batch.mask))
    # And each sequence reads as it does alone.
    for i, one in enumerate(sequences):
        alone = instrument.run(torch.tensor([one]), attention=AttentionRead(regions=regions(len(one)), stats=("mass", "distance")))
        at = slice(batch.lead[i], batch.lead[i] + len(one))
        for name in ("mass", "distance"):
            torch.testing.assert_close(trace.attention[name][:, i, :, at], alone.attention[name][:, 0], atol=2e-4, rtol=0)


def test_chosen_rows_with_weights(instrument: Instrument) -> None:
    rows = (-1, 3)
    read = AttentionRead(regions=regions(LENGTH), stats=ALL, rows=rows, weights=True)
    trace = instrument.run(ids(2, LENGTH), reads=("q.*", "k.*"), attention=read)
    assert trace.attention is not None
    assert trace.attention.rows.tolist() == [LENGTH - 1, 3]
    assert trace.attention["weights"].shape == (2, 2, instrument.parts.n_heads, 2, LENGTH)
    for layer in range(instrument.parts.n_layers):
        check(trace.attention, layer, oracle(instrument, trace, layer), rows=[LENGTH - 1, 3])


def test_reading_leaves_the_logits_bit_identical(instrument: Instrument) -> None:
    x = ids(2, LENGTH)
    with torch.no_grad():
        plain = instrument.model(input_ids=x).logits
    for read in (AttentionRead(regions=regions(LENGTH), stats=ALL), AttentionRead(stats=("entropy",), rows=(-1,))):
        assert torch.equal(instrument.run(x, attention=read)["logits"], plain)
    with torch.no_grad():
        assert torch.equal(instrument.model(input_ids=x).logits, plain)


def test_split_self_is_a_partition(instrument: Instrument) -> None:
    read = AttentionRead(regions=regions(LENGTH), stats=("mass", "self"), split_self=True)
    trace = instrument.run(ids(1, LENGTH), reads=("q.*", "k.*"), attention=read)
    table = trace.attention
    assert table is not None
    assert table.regions == (*NAMES, "self")
    torch.testing.assert_close(table["mass"].sum(-1), torch.ones_like(table["self"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(table.mass("self"), table["self"])
    want = oracle(instrument, trace, 1)
    own = want["self"]
    home = torch.tensor(regions(LENGTH).indicator()).double()
    torch.testing.assert_close(table["mass"][1][..., :-1].double(), want["mass"] - own[..., None] * home, atol=1e-5, rtol=0)


def test_bias_multiplies_the_odds_and_is_read(instrument: Instrument) -> None:
    x, rows, keys = ids(1, 8), (5, 7), (1, 4)
    bias = AttentionBias(value=1.3, keys=keys, rows=rows, layers=(0,), heads=(1, 2))
    read = AttentionRead(regions=regions(8), stats=ALL)
    trace = instrument.run(x, reads=("q.*", "k.*"), attention=read, edits=[bias])
    added = torch.zeros(1, instrument.parts.n_heads, 8, 8)
    for h in (1, 2):
        for r in rows:
            added[0, h, r, list(keys)] = 1.3
    assert trace.attention is not None
    check(trace.attention, 0, oracle(instrument, trace, 0, bias=added))
    check(trace.attention, 1, oracle(instrument, trace, 1))


def test_mask_equals_a_bias_of_minus_infinity_and_zeroes_the_key(instrument: Instrument) -> None:
    x = ids(2, 8)
    mask = AttentionMask(keys=(2,), rows=(6,), batch=(1,))
    read = AttentionRead(regions=regions(8), stats=("mass",), rows=(6,), weights=True)
    a = instrument.run(x, attention=read, edits=[mask])
    b = instrument.run(x, attention=read, edits=[AttentionBias(float("-inf"), keys=(2,), rows=(6,), batch=(1,))])
    assert torch.equal(a["logits"], b["logits"])
    weights = a.attention["weights"]
    assert float(weights[:, 1, :, 0, 2].abs().max()) == 0.0
    assert float(weights[:, 0, :, 0, 2].abs().max()) > 0.0
    plain = instrument.run(x)["logits"]
    torch.testing.assert_close(a["logits"][0], plain[0], atol=1e-4, rtol=1e-4)
    assert float((a["logits"][1] - plain[1]).abs().max()) > 1e-3


def test_a_bias_of_zero_is_a_no_op(instrument: Instrument) -> None:
    x = ids(2, LENGTH)
    plain = instrument.run(x)["logits"]
    biased = instrument.run(x, edits=[AttentionBias(0.0, keys=(0, 1))])["logits"]
    torch.testing.assert_close(biased, plain, atol=1e-4, rtol=1e-4)


def test_hiding_every_key_is_refused_and_nothing_stays_attached(instrument: Instrument) -> None:
    x = ids(1, 8)
    before = instrument.run(x)["logits"]
    with pytest.raises(EditError, match="hides every key"):
        instrument.run(x, edits=[AttentionMask(keys=range(8), rows=(3,))])
    assert instrument.model.config._attn_implementation == "sdpa"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in instrument.model.modules())
    assert torch.equal(instrument.run(x)["logits"], before)


def test_a_cache_is_refused(instrument: Instrument) -> None:
    x = ids(1, 8)
    with torch.no_grad():
        name = cache_name(instrument.model)
        cache = instrument.model(input_ids=x, use_cache=True)[name]
        with pytest.raises(AttentionError, match="cache"), instrument.attached(attention=AttentionRead(stats=("entropy",))):
            instrument.model(input_ids=x[:, :1], **{name: cache})


def test_regions_come_from_the_batch_or_must_be_given(instrument: Instrument) -> None:
    with pytest.raises(ConfigError, match="without regions"):
        instrument.run(ids(1, 8), attention=AttentionRead())
    prompt = SimpleNamespace(ids=ids(1, 8)[0].tolist(), regions=regions(8))
    table = instrument.run(collate([prompt]), attention=AttentionRead()).attention  # type: ignore[list-item]
    assert table is not None
    assert table.regions == NAMES


def test_requests_that_cannot_be_answered() -> None:
    with pytest.raises(ConfigError, match="T×T"):
        AttentionRead(stats=("entropy",), weights=True)
    with pytest.raises(ConfigError, match="Unknown"):
        AttentionRead(stats=("entropie",))  # type: ignore[arg-type]


def test_wrong_sizes_are_refused(instrument: Instrument) -> None:
    with pytest.raises(ReadError, match="cover"):
        instrument.run(ids(1, 8), attention=AttentionRead(regions=regions(9)))
    with pytest.raises(ReadError, match="batch of 2"):
        instrument.run(ids(2, 8), attention=AttentionRead(regions=[regions(8)]))
    with pytest.raises(EditError, match="row 99"):
        instrument.run(ids(1, 8), attention=AttentionRead(stats=("entropy",), rows=(99,)))
    with pytest.raises(InstrumentError, match="context"):
        instrument.run(ids(1, 300))


def test_two_instruments_on_one_model_do_not_mix(instrument: Instrument) -> None:
    with instrument.attached(), pytest.raises(AttentionError, match="already attached"), instrument.attached():
        pass
    assert instrument.model.config._attn_implementation == "sdpa"


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 70),
    heads=st.sampled_from([(4, 2), (6, 2), (3, 3), (4, 1)]),
    d_head=st.sampled_from([4, 16, 20]),
    spread=st.floats(0.1, 8.0),
    seed=st.integers(0, 10_000),
)
def test_flash_and_blocks_equal_the_oracle(n: int, heads: tuple[int, int], d_head: int, spread: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(2, heads[0], n, d_head, generator=g) * spread
    k = torch.randn(2, heads[1], n, d_head, generator=g)
    scale = d_head**-0.5
    indicator = torch.tensor(regions(n).indicator()).float()[None]
    want = dense_stats(dense_weights(q, k, scale, visible_keys(n, n, batch=2)), indicator.expand(2, -1, -1))
    flash = flash_stats(q, k, indicator, scale, {"mass", "entropy", "lse", "distance"})
    flash |= max_stats(q, k, flash["lse"], scale)
    blocks = block_stats(q, k, None, torch.arange(n), indicator, scale, set(STATS)).stats
    for got in (flash, blocks):
        for name, tolerance in TOLERANCE.items():
            if name in got:
                torch.testing.assert_close(
                    got[name].double(), want[name], atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
                )
        torch.testing.assert_close(got["mass"].sum(-1), torch.ones(2, heads[0], n), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_exactly_from_its_own_q_and_k(dtype: torch.dtype) -> None:
    model = build("llama").to(dtype)
    instrument = Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]
    trace = instrument.run(ids(1, LENGTH), reads=("q.*", "k.*"), attention=AttentionRead(regions=regions(LENGTH), stats=ALL))
    for layer in range(2):
        check(trace.attention, layer, oracle(instrument, trace, layer))


def test_the_interface_is_as_the_door_expects() -> None:
    """Fails when transformers changes what it hands to attention functions."""
    import inspect

    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    assert list(inspect.signature(sdpa_attention_forward).parameters)[:7] == [
        "module", "query", "key", "value", "attention_mask", "dropout", "scaling",
    ]  # fmt: skip
    assert "mask_function" in inspect.signature(sdpa_mask).parameters
