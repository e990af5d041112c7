"""Attention readouts against the dense float64 oracle, through the real door, on every family."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import ALL as FAMILIES
from tiny_models import build

from symbolic_residue.errors import AttentionError, ConfigError, EditError, InstrumentError, ReadError
from symbolic_residue.instrument import AttentionBias, AttentionMask, AttentionRead, collate, Instrument
from symbolic_residue.instrument.attention import dense_stats, dense_weights, STATS, visible_keys
from symbolic_residue.instrument.attention._request import LayerStack
from symbolic_residue.models import bind
from symbolic_residue.prompts import Regions

LENGTH = 24
NAMES = ("sink", "one", "two", "three")
TOLERANCE = {"mass": 1e-5, "entropy": 1e-4, "distance": 1e-3, "max": 1e-5, "self": 1e-5, "sink": 1e-5, "weights": 1e-5}


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
    scale = instrument.parts.layers[layer].score_scale
    seen = visible_keys(q.shape[2], k.shape[2], window=instrument.parts.attention_window(layer), padding=padding, batch=q.shape[0])
    if getattr(instrument.model.config, "alibi", False):
        bias = alibi(instrument, q.shape, padding) + (0 if bias is None else bias)
    softcap, sinks = getattr(attn, "attn_logit_softcapping", None), getattr(attn, "sinks", None)
    weights = dense_weights(q, k, scale, seen, bias, softcap=softcap, sinks=None if sinks is None else sinks.detach())
    n = q.shape[2]
    indicator = torch.zeros(q.shape[0], n, len(NAMES))
    for b in range(q.shape[0]):
        lead = 0 if padding is None else int(padding[b].argmax())
        length = n if padding is None else int(padding[b].sum())
        indicator[b, lead : lead + length] = torch.tensor(regions(length).indicator()).float()
    return dense_stats(weights, indicator)


def alibi(instrument: Instrument, shape: torch.Size, padding: torch.Tensor | None) -> torch.Tensor:
    """Falcon's ALiBi: a slope a head (2^(−8(h+1)/H), kept in bfloat16) times the key's position, over √d_head."""
    batch, n_heads, n, d_head = shape
    mask = torch.ones(batch, n) if padding is None else padding
    at = ((mask.cumsum(-1) - 1) * mask)[:, None, :]
    slopes = (2.0 ** (-8.0 * torch.arange(1, n_heads + 1) / n_heads)).bfloat16()
    return ((slopes[None, :, None] * at.bfloat16()).float() / d_head**0.5)[:, :, None]


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


ALL = tuple(s for s in STATS if s not in ("lse", "received"))


def test_every_row_of_a_plain_batch(instrument: Instrument) -> None:
    trace = instrument.run(ids(2, LENGTH), reads=("q.*", "k.*"), attention=AttentionRead(regions=regions(LENGTH), stats=ALL))
    assert trace.attention is not None
    for layer in instrument.attention_layers:
        check(trace.attention, layer, oracle(instrument, trace, layer))


def test_attention_here_is_far_from_uniform(instrument: Instrument) -> None:
    """Otherwise the tests above would pass with wrong scores."""
    trace = instrument.run(ids(1, LENGTH), attention=AttentionRead(regions=regions(LENGTH), stats=("entropy",)))
    assert trace.attention is not None
    uniform = torch.log(torch.arange(1, LENGTH + 1).float())
    window = min((w for w in map(instrument.parts.attention_window, range(2)) if w), default=LENGTH)
    full = uniform if window >= LENGTH else torch.log(torch.arange(1, LENGTH + 1).clamp_max(window).float())
    capped = any(getattr(layer.attn, "attn_logit_softcapping", None) for layer in instrument.parts.layers)
    assert float((full[-1] - trace.attention["entropy"][..., -1]).mean()) > (0.1 if capped else 0.3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(instrument: Instrument, side) -> None:
    sequences = [ids(1, n, seed=n)[0].tolist() for n in (LENGTH, 13, 5)]
    batch = collate(sequences, pad_id=3, side=side)
    read = AttentionRead(regions=[regions(n) for n in (LENGTH, 13, 5)], stats=ALL)
    trace = instrument.run(batch, reads=("q.*", "k.*"), attention=read)
    assert trace.attention is not None
    assert trace.attention.valid.tolist() == batch.mask.bool().tolist()
    for layer in instrument.attention_layers:
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
    for layer in instrument.attention_layers:
        check(trace.attention, layer, oracle(instrument, trace, layer), rows=[LENGTH - 1, 3])


def test_reading_leaves_the_logits_bit_identical(instrument: Instrument) -> None:
    x = ids(2, LENGTH)
    instrument = Instrument(instrument.loaded, mode="observe")
    with torch.no_grad():
        plain = instrument.model(input_ids=x).logits
    for read in (AttentionRead(regions=regions(LENGTH), stats=ALL), AttentionRead(stats=("entropy",), rows=(-1,))):
        assert torch.equal(instrument.run(x, attention=read)["logits"], plain)
    with torch.no_grad():
        assert torch.equal(instrument.model(input_ids=x).logits, plain)


def test_split_self_is_a_partition(instrument: Instrument) -> None:
    read = AttentionRead(regions=regions(LENGTH), stats=("mass", "self", "sink"), split_self=True)
    trace = instrument.run(ids(1, LENGTH), reads=("q.*", "k.*"), attention=read)
    table = trace.attention
    assert table is not None
    assert table.regions == (*NAMES, "self")
    torch.testing.assert_close(table["mass"].sum(-1) + table["sink"], torch.ones_like(table["self"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(table.mass("self"), table["self"])
    last = instrument.attention_layers[-1]
    want = oracle(instrument, trace, last)
    own = want["self"]
    home = torch.tensor(regions(LENGTH).indicator()).double()
    torch.testing.assert_close(table["mass"][-1][..., :-1].double(), want["mass"] - own[..., None] * home, atol=1e-5, rtol=0)


def test_bias_multiplies_the_odds_and_is_read(instrument: Instrument) -> None:
    x, rows, keys = ids(1, 8), (5, 7), (1, 4)
    bias = AttentionBias(value=1.3, keys=keys, rows=rows, layers=(instrument.attention_layers[0],), heads=(1, 2))
    read = AttentionRead(regions=regions(8), stats=ALL)
    trace = instrument.run(x, reads=("q.*", "k.*"), attention=read, edits=[bias])
    added = torch.zeros(1, instrument.parts.n_heads, 8, 8)
    for h in (1, 2):
        for r in rows:
            added[0, h, r, list(keys)] = 1.3
    assert trace.attention is not None
    first, last = instrument.attention_layers[0], instrument.attention_layers[-1]
    check(trace.attention, first, oracle(instrument, trace, first, bias=added))
    check(trace.attention, last, oracle(instrument, trace, last))


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
    if instrument.parts.family == "gpt_oss":  # its sink logit is always there to attend to
        edited = instrument.run(x, edits=[AttentionMask(keys=range(8), rows=(3,))], attention=AttentionRead(stats=("sink",)))
        assert edited.attention is not None
        torch.testing.assert_close(edited.attention["sink"][..., 3], torch.ones(2, 1, instrument.parts.n_heads))
        return
    before = instrument.model.config._attn_implementation
    plain = instrument.run(x)["logits"]
    with pytest.raises(EditError, match="hides every key"):
        instrument.run(x, edits=[AttentionMask(keys=range(8), rows=(3,))])
    assert instrument.model.config._attn_implementation == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in instrument.model.modules())
    assert torch.equal(instrument.run(x)["logits"], plain)


@pytest.mark.parametrize("kind", ["dynamic", "chunks", "static"])
def test_rows_behind_a_cache_read_as_in_the_whole_sequence(instrument: Instrument, kind: str) -> None:
    """The model's own caches (those of sliding layers keep only their window), token by token, in chunks, and of fixed size."""
    from transformers import StaticCache

    hybrid = bool(set(range(instrument.parts.n_layers)) - set(instrument.attention_layers)) or any(
        layer.mixer is not None for layer in instrument.parts.layers
    )
    if hybrid and kind != "dynamic":
        pytest.skip("recurrent layers take one token at a time after the prompt")
    if kind == "static" and getattr(instrument.model.config, "alibi", False):
        pytest.skip("falcon's ALiBi does not run with a static cache, with or without the instrument")
    if instrument.parts.family == "bamba":
        pytest.skip("bamba's own decoding differs from its whole forward on the CPU, with or without the instrument")
    n, x = 20, ids(1, 20)
    read = AttentionRead(regions=regions(n), stats=("mass", "entropy", "distance", "max", "self", "sink"))
    whole = instrument.run(x, attention=read).attention
    assert whole is not None
    steps = {"dynamic": [(0, 13), *((i, i + 1) for i in range(13, n))], "chunks": [(0, 9), (9, 15), (15, n)]}
    name = instrument.cache_name
    cache = StaticCache(config=instrument.model.config, max_cache_len=32) if kind == "static" else None
    for start, stop in steps["chunks" if kind == "chunks" else "dynamic"]:
        # Regions are those of the tokens so far.
        so_far = AttentionRead(regions=Regions(NAMES, regions(n).labels[:stop]), stats=read.stats)
        with torch.no_grad(), instrument.attached(attention=so_far) as trace:
            out = instrument.model(input_ids=x[:, start:stop], **{name: cache}, use_cache=True, attention_mask=torch.ones(1, stop))
        cache = out[name]
        table = trace.attention
        assert table is not None
        assert table.rows.tolist() == list(range(start, stop))
        for stat in read.stats:
            torch.testing.assert_close(
                table[stat], whole[stat][:, :, :, start:stop], atol=3e-4, rtol=0, msg=lambda m, s=stat: f"{s}: {m}"
            )


def test_every_forward_of_a_generation_is_recorded(instrument: Instrument) -> None:
    batch = collate([ids(1, 9)[0].tolist(), ids(1, 5, seed=1)[0].tolist()], pad_id=3)
    read = AttentionRead(regions=[regions(9), regions(5)], stats=("mass", "entropy", "sink"))
    with torch.no_grad(), instrument.recording(attention=read, prompt=9) as traces:
        out = instrument.model.generate(batch.ids, attention_mask=batch.mask, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert out.shape == (2, 13)
    assert [t.attention.rows.tolist() for t in traces] == [list(range(9)), [9], [10], [11]]
    grown = collate([out[0].tolist()], pad_id=3)
    labels = np.array([*regions(9).labels, 4, 4, 4])
    alone = instrument.run(
        grown.ids[:, :12], attention=AttentionRead(regions=Regions((*NAMES, "generated"), labels), stats=read.stats)
    ).attention
    assert alone is not None
    for step, trace in enumerate(traces[1:]):
        table = trace.attention
        assert table is not None
        assert table.regions == (*NAMES, "generated")
        torch.testing.assert_close(table["mass"][:, 0, :, 0], alone["mass"][:, 0, :, 9 + step], atol=3e-4, rtol=0)
        if table["mass"].shape[1] == 2:
            total = table["mass"].sum(-1) + table["sink"]
            torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


def test_observing_and_replacing_agree(instrument: Instrument) -> None:
    model, parts = instrument.model, instrument.parts
    read = AttentionRead(regions=regions(LENGTH), stats=ALL)
    x = ids(2, LENGTH)
    with torch.no_grad():
        plain = model(input_ids=x).logits
    seen = Instrument(instrument.loaded, mode="observe").run(x, attention=read)
    assert torch.equal(seen["logits"], plain)
    assert seen.attention is not None
    assert seen.attention.mode == "observe"
    for backend in ("blocks", "dense"):
        made = Instrument(SimpleNamespace(model=model, parts=parts), mode="replace", backend=backend).run(x, attention=read)  # type: ignore[arg-type]
        assert made.attention is not None
        assert (made.attention.mode, made.attention.backend) == ("replace", backend)
        torch.testing.assert_close(made["logits"], plain, atol=3e-4, rtol=1e-4)
        for name in ("mass", "entropy", "max"):
            torch.testing.assert_close(made.attention[name], seen.attention[name], atol=2e-4, rtol=0)


def test_packed_sequences_do_not_see_each_other(instrument: Instrument) -> None:
    x, positions = ids(1, 12), torch.cat([torch.arange(5), torch.arange(7)])[None]
    read = AttentionRead(regions=regions(12), stats=("mass", "entropy"), rows=(4, 5, 11), weights=True)
    if instrument.parts.family in ("gpt_oss", "opt") or any(layer.mixer is not None for layer in instrument.parts.layers):
        # These look at no position ids when they make their masks, or carry a state across.
        with pytest.raises(AttentionError, match="packed"):
            instrument.run(x, position_ids=positions)
        return
    table = instrument.run(x, position_ids=positions, attention=read).attention
    assert table is not None
    assert float(table["weights"][:, :, :, 1:, :5].abs().max()) == 0.0
    alone = instrument.run(x[:, 5:], attention=AttentionRead(stats=("entropy",), rows=(-1,))).attention
    assert alone is not None
    torch.testing.assert_close(table["entropy"][..., -1], alone["entropy"][..., -1], atol=2e-4, rtol=0)


def test_a_mask_of_the_callers_own(instrument: Instrument) -> None:
    """Four axes, with holes; given as bool and as numbers."""
    if any(layer.mixer is not None for layer in instrument.parts.layers) or instrument.parts.family in ("opt", "falcon"):
        pytest.skip("these make something else of the mask as well")
    x = ids(1, 10)
    seen = visible_keys(10, 10, window=6) & (torch.rand(1, 10, 10, generator=torch.Generator().manual_seed(1)) > 0.3)
    seen |= torch.eye(10, dtype=torch.bool)
    own = torch.zeros(1, 1, 10, 10).masked_fill(~seen[:, None], torch.finfo(torch.float32).min)
    read = AttentionRead(regions=regions(10), stats=ALL)
    trace = instrument.run(x, attention_mask=own, reads=("q.*", "k.*"), attention=read)
    assert trace.attention is not None
    for layer in instrument.attention_layers:
        part = instrument.parts.layers[layer]
        softcap, sinks = getattr(part.attn, "attn_logit_softcapping", None), getattr(part.attn, "sinks", None)
        weights = dense_weights(
            trace[f"q.{layer}"].transpose(1, 2),
            trace[f"k.{layer}"].transpose(1, 2),
            part.score_scale,
            seen,
            softcap=softcap,
            sinks=None if sinks is None else sinks.detach(),
        )
        check(trace.attention, layer, dense_stats(weights, torch.tensor(regions(10).indicator()).float()[None]))


def test_weight_received_by_each_key(instrument: Instrument) -> None:
    read = AttentionRead(stats=("received",), rows=tuple(range(4, 12)), weights=True)
    trace = instrument.run(ids(2, 12), attention=read)
    assert trace.attention is not None
    torch.testing.assert_close(trace.attention["received"], trace.attention["weights"].sum(3), atol=1e-5, rtol=0)


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
    before = instrument.model.config._attn_implementation
    with instrument.attached(), pytest.raises(AttentionError, match="already attached"), instrument.attached():
        pass
    assert instrument.model.config._attn_implementation == before


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


def test_layers_are_gathered_where_they_belong() -> None:
    """In whatever order they come, by their own numbers; what a layer leaves out is no number."""
    stack = LayerStack([1, 3, 5])
    for layer in (5, 1):
        stack.add(layer, {"entropy": torch.full((1, 2, 4), float(layer)), "argmax": torch.full((1, 2, 4), layer)})
    rows, valid = torch.arange(4), torch.tensor([[False, True, True, True]])
    table = stack.table(rows, (), valid, "torch", "observe")
    assert table.layers == (1, 5)
    assert table["entropy"][:, 0, 0, 1:].tolist() == [[1.0] * 3, [5.0] * 3]
    assert bool(table["entropy"][..., 0].isnan().all())
    assert table["argmax"][..., 0].unique().tolist() == [-1]
    with pytest.raises(AttentionError, match="reported entropy where others"):
        stack.add(3, {"entropy": torch.zeros(1, 2, 4)})
    with pytest.raises(ReadError, match="different size"):
        stack.add(3, {"entropy": torch.zeros(1, 2, 5), "argmax": torch.zeros(1, 2, 5)})
    with pytest.raises(AttentionError, match="No layer"):
        LayerStack([0]).table(rows, (), valid, "torch", "observe")
