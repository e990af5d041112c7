"""Every edit by an algebraic law, on every family, through the real forward."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ALL, build

from symbolic_residue.errors import EditError, ReadError
from symbolic_residue.instrument import (
    Add,
    AttentionBias,
    AttentionMask,
    AttentionRead,
    collate,
    FreezeNorm,
    HeadReplace,
    HeadScale,
    Instrument,
    mean_activation,
    MeanAblate,
    norm_scales,
    PatternReplace,
    PatternScale,
    Positions,
    Replace,
    ResampleAblate,
    Scale,
    Steer,
    ZeroAblate,
)
from symbolic_residue.instrument.attention._pattern import edit_weights, score_bias, touched_rows
from symbolic_residue.models import bind

N = 9


@pytest.fixture(scope="module", params=list(ALL))
def instrument(request: pytest.FixtureRequest) -> Instrument:
    model = build(request.param)
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llama() -> Instrument:
    model = build("llama")
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


def ids(batch: int = 2, n: int = N, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, 384, (batch, n), generator=torch.Generator().manual_seed(seed))


def places(instrument: Instrument) -> list[str]:
    """One point of every kind that the model has."""
    out = []
    for kind in (
        "resid_pre",
        "resid_mid",
        "resid_post",
        "attn_out",
        "mixer_out",
        "z",
        "q",
        "k",
        "v",
        "mlp_in",
        "mlp_act",
        "mlp_out",
    ):
        having = [layer.index for layer in instrument.parts.layers if layer.absent(kind) is None]  # type: ignore[arg-type]
        out += [f"{kind}.{having[-1]}"] if having else []
    return out


def logits(instrument: Instrument, *edits, x: torch.Tensor | None = None) -> torch.Tensor:
    return instrument.run(ids() if x is None else x, edits=edits)["logits"]


def first(instrument: Instrument) -> int:
    return instrument.attention_layers[0]


def test_patching_a_point_with_itself_changes_nothing(instrument: Instrument) -> None:
    trace = instrument.run(ids(), reads=places(instrument))
    for point in places(instrument):
        torch.testing.assert_close(logits(instrument, Replace(point, value=trace[point])), trace["logits"], atol=2e-4, rtol=1e-4)


def test_identities(instrument: Instrument) -> None:
    plain = logits(instrument)
    for point in places(instrument):
        torch.testing.assert_close(logits(instrument, Scale(point, factor=1.0)), plain, atol=2e-4, rtol=1e-4)
        there_and_back = (Add(point, value=0.25), Add(point, value=-0.25))
        torch.testing.assert_close(logits(instrument, *there_and_back), plain, atol=1e-3, rtol=1e-3)
        # An empty index chooses nothing; a contribution that is scaled as it is added is divided again, which may round.
        torch.testing.assert_close(logits(instrument, Scale(point, rows=(), factor=0.0)), plain, atol=1e-4, rtol=1e-5)
        assert float((logits(instrument, ZeroAblate(point)) - plain).abs().max()) > 1e-4, point


def test_the_last_replacement_wins_and_order_counts(instrument: Instrument) -> None:
    for point in places(instrument):
        twice = logits(instrument, Replace(point, value=0.5), Replace(point, value=-0.25))
        assert torch.equal(twice, logits(instrument, Replace(point, value=-0.25)))
        assert torch.equal(
            logits(instrument, Replace(point, value=0.5), Scale(point, factor=2.0)), logits(instrument, Replace(point, value=1.0))
        )


def test_rows_heads_and_sequences_are_chosen(instrument: Instrument) -> None:
    plain = logits(instrument)
    h = first(instrument)
    edited = logits(instrument, HeadScale(h, 1, 0.0, rows=(-2,), batch=(1,)))
    torch.testing.assert_close(edited[0], plain[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(edited[1, : N - 2], plain[1, : N - 2], atol=2e-4, rtol=1e-4)
    assert float((edited[1, N - 2] - plain[1, N - 2]).abs().max()) > 1e-5
    trace = instrument.run(ids(), reads=(f"z.{h}",))
    own = trace[f"z.{h}"][:, -1:, 1:2]
    torch.testing.assert_close(logits(instrument, HeadReplace(h, 1, own, rows=(-1,))), plain, atol=2e-4, rtol=1e-4)


def test_steering_adds_its_strength_along_the_direction(instrument: Instrument) -> None:
    direction = torch.randn(64, generator=torch.Generator().manual_seed(1)) * 7
    before = instrument.run(ids(), reads=("resid_post.0",))["resid_post.0"]
    after = instrument.run(ids(), reads=("resid_post.0",), edits=[Steer("resid_post.0", direction, 3.0, rows=(-1,))])[
        "resid_post.0"
    ]
    torch.testing.assert_close((after - before)[:, -1].norm(dim=-1), torch.full((2,), 3.0), atol=1e-3, rtol=1e-3)
    assert torch.equal(after[:, :-1], before[:, :-1])


def test_mean_and_resample_ablation(instrument: Instrument) -> None:
    point = f"z.{first(instrument)}"
    traces = [instrument.run(ids(seed=s), reads=(point,)) for s in (1, 2, 3)]
    mean = mean_activation(traces, point, rows=(-1,))
    assert (mean.n_sequences, mean.n_tokens) == (6, 6)
    want = torch.cat([t[point][:, -1] for t in traces]).mean(0)
    torch.testing.assert_close(mean.value[0], want, atol=1e-6, rtol=1e-5)
    edited = instrument.run(ids(), reads=(point,), edits=[MeanAblate(point, mean.value, rows=(-1,))])
    torch.testing.assert_close(edited[point][:, -1], want.expand(2, -1, -1), atol=1e-6, rtol=1e-5)
    donors = torch.cat([t[point][:, -1:] for t in traces])
    edit = ResampleAblate(point, donors, seed=5, rows=(-1,))
    drawn = instrument.run(ids(), reads=(point,), edits=[edit])[point][:, -1]
    assert torch.equal(drawn, donors[list(edit.draws(2)), 0])
    assert edit.draws(2) == ResampleAblate(point, donors, seed=5, rows=(-1,)).draws(2)


def test_attention_bias_mask_and_scale_agree(instrument: Instrument) -> None:
    """Softmax identity: scaling the weight of a key by f and renormalising is the bias ln f; f = 0 is the mask."""
    layer, keys, rows = first(instrument), (1, 3), (4, 6)
    chosen = {"keys": keys, "rows": rows, "layers": (layer,), "heads": (0, 2)}
    if instrument.parts.family != "gpt_oss":  # with a sink logit the weights sum to less than one, and renormalising keeps that sum
        scaled = logits(instrument, PatternScale(0.3, renormalise=True, **chosen))
        torch.testing.assert_close(scaled, logits(instrument, AttentionBias(math.log(0.3), **chosen)), atol=3e-4, rtol=1e-4)
        gone = logits(instrument, PatternScale(0.0, renormalise=True, **chosen))
        torch.testing.assert_close(gone, logits(instrument, AttentionMask(**chosen)), atol=3e-4, rtol=1e-4)
    plain = logits(instrument)
    assert torch.equal(logits(instrument, PatternScale(1.0, **chosen)), plain)
    assert torch.equal(logits(instrument, AttentionBias(0.0, **chosen)), plain)
    assert float((logits(instrument, AttentionMask(**chosen)) - plain).abs().max()) > 1e-5


def test_edited_weights_are_the_ones_that_are_read(instrument: Instrument) -> None:
    layer = first(instrument)
    read = AttentionRead(stats=("entropy", "sink"), rows=(5,), weights=True, layers=(layer,))
    before = instrument.run(ids(), attention=read).attention
    after = instrument.run(
        ids(), attention=read, edits=[PatternScale(0.5, keys=(2,), rows=(5,), layers=(layer,), heads=(1,))]
    ).attention
    assert before is not None and after is not None
    want = before["weights"].clone()
    want[0, :, 1, 0, 2] *= 0.5
    torch.testing.assert_close(after["weights"], want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after["sink"], 1 - want.sum(-1), atol=1e-5, rtol=0)


def test_a_pattern_frozen_at_its_own_weights_changes_nothing(instrument: Instrument) -> None:
    layers = instrument.attention_layers
    rows = tuple(range(N))
    table = instrument.run(ids(), attention=AttentionRead(stats=("entropy",), rows=rows, weights=True)).attention
    assert table is not None
    weights = table["weights"] if len(layers) > 1 else table["weights"][0]
    plain = logits(instrument)
    frozen = PatternReplace(weights, rows, layers)
    torch.testing.assert_close(logits(instrument, frozen), plain, atol=5e-4, rtol=1e-3)
    # With the pattern frozen, keys no longer matter.
    keys = ZeroAblate(f"k.{layers[-1]}")
    torch.testing.assert_close(logits(instrument, keys, frozen), plain, atol=5e-4, rtol=1e-3)
    assert float((logits(instrument, keys) - plain).abs().max()) > 1e-4


def norms(instrument: Instrument) -> list[tuple[str, tuple[str, ...]]]:
    """Norms of the first attention layer and the last, with the points that tell their scales."""
    i, parts = first(instrument), instrument.parts
    layer = parts.layers[i]
    out = [("final_norm", (f"resid_post.{parts.n_layers - 1}",))]
    if layer.pre_attn_norm is not None:
        out.append((f"pre_attn_norm.{i}", (f"resid_pre.{i}",)))
    if layer.pre_mlp_norm is not None and layer.absent("resid_mid") is None:
        out.append((f"pre_mlp_norm.{i}", (f"resid_mid.{i}",)))
    return out


def test_a_norm_frozen_at_its_own_scale_changes_nothing(instrument: Instrument) -> None:
    plain = logits(instrument)
    for name, points in norms(instrument):
        scale = norm_scales(instrument.run(ids(), reads=points), name, instrument.parts)
        torch.testing.assert_close(logits(instrument, FreezeNorm(name, scale)), plain, atol=1e-3, rtol=1e-3)
        qk_normed = hasattr(instrument.parts.layers[first(instrument)].attn, "q_norm")
        normed_again = instrument.parts.layers[first(instrument)].post_attn_norm is not None and qk_normed
        if not (name.startswith("pre_attn") and normed_again):  # there every use of it is normed once more (gemma3)
            assert float((logits(instrument, FreezeNorm(name, scale * 2)) - plain).abs().max()) > 1e-3, name


def test_with_the_final_norm_frozen_logits_are_linear_in_the_residual(instrument: Instrument) -> None:
    if instrument.parts.logit_softcap is not None:
        pytest.skip("capped logits are no linear function")
    last = f"resid_post.{instrument.parts.n_layers - 1}"
    scale = norm_scales(instrument.run(ids(), reads=(last,)), "final_norm", instrument.parts)
    a, b = (torch.randn(64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    at = {
        name: logits(instrument, Replace(last, value=v), FreezeNorm("final_norm", scale))
        for name, v in {"a": a, "b": b, "sum": a + b, "0": a * 0}.items()
    }
    torch.testing.assert_close(at["sum"] + at["0"], at["a"] + at["b"], atol=2e-3, rtol=1e-3)


def test_positions(instrument: Instrument) -> None:
    parts, plain = instrument.parts, logits(instrument)
    own = torch.arange(N)[None]
    if not parts.position_ids:
        with pytest.raises(EditError, match="does not look at position ids"):
            logits(instrument, Positions(own + 5))
        return
    torch.testing.assert_close(logits(instrument, Positions(own.float())), plain, atol=1e-5, rtol=1e-5)
    if parts.position_embed is not None:
        with pytest.raises(EditError, match="learned positions"):
            logits(instrument, Positions(own + 0.5))
        return
    # Rotary attention knows differences only; half a position away from a whole one lies between them.
    torch.testing.assert_close(logits(instrument, Positions(own + 3)), plain, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(logits(instrument, Positions(own + 0.5)), plain, atol=5e-3, rtol=5e-3)
    stretched = logits(instrument, Positions(own * 1.5))
    assert float((stretched - plain).abs().max()) > 1e-4


def test_padding_does_not_move_edits_of_the_last_row(instrument: Instrument) -> None:
    one, two = ids(1)[0].tolist(), ids(1, 5, seed=2)[0].tolist()
    batch = collate([one, two], pad_id=3)
    edits = [HeadScale(first(instrument), 0, 0.0, rows=(-1,)), PatternScale(0.2, keys=(-2,), rows=(-1,))]
    together = instrument.run(batch, edits=edits)["logits"][1, -1]
    alone = instrument.run(torch.tensor([two]), edits=edits)["logits"][0, -1]
    torch.testing.assert_close(together, alone, atol=5e-4, rtol=1e-3)


def test_refusals(llama: Instrument) -> None:
    nan = torch.tensor(float("nan"))
    for make, message in (
        (lambda: Replace("z.0", value=nan), "NaN"),
        (lambda: logits(llama, Replace("z.0", value=torch.zeros(5))), "does not fit"),
        (lambda: logits(llama, Scale("z.0", rows=(N,), factor=0.0)), "only"),
        (lambda: logits(llama, Scale("resid_post.0", heads=(0,), factor=0.0)), "no heads"),
        (lambda: AttentionBias(float("nan"), keys=(1,)), "not defined"),
        (lambda: PatternReplace(torch.full((1, 1, 1, N), -0.1), (0,), (0,)), "negative"),
        (lambda: PatternReplace(torch.full((1, 1, 1, N), 0.5), (0,), (0,)), "more than 1"),
        (lambda: logits(llama, PatternReplace(torch.full((1, 1, 1, 4), 0.1), (0,), (0,))), "does not fit"),
        (lambda: FreezeNorm("final_norm", torch.zeros(2, N)), "zero or negative"),
        (lambda: logits(llama, FreezeNorm("post_attn_norm.0", torch.ones(2, N))), "norm"),
        (lambda: logits(llama, Positions(torch.arange(4)[None])), "do not fit"),
        (lambda: logits(llama, AttentionMask(keys=(99,))), "key 99"),
        (lambda: logits(llama, AttentionMask(keys=(1,), layers=(7,))), "layer 7"),
        (lambda: Steer("resid_post.0", torch.zeros(64), 1.0), "length zero"),
    ):
        with pytest.raises(EditError, match=message):
            make()
    with pytest.raises(ReadError):
        logits(llama, Scale("z.9", factor=0.0))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_edited_weights_follow_the_formula(data: st.DataObject) -> None:
    """The pure functions against loops over entries."""
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    n, batch, heads = data.draw(st.integers(1, 8)), 2, 3
    chosen = {
        "keys": data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3)),
        "rows": data.draw(st.one_of(st.none(), st.lists(st.integers(0, n - 1), max_size=3))),
        "heads": data.draw(st.one_of(st.none(), st.lists(st.integers(0, heads - 1), max_size=2))),
        "batch": data.draw(st.one_of(st.none(), st.lists(st.integers(0, batch - 1), max_size=2))),
    }
    factor, bias = data.draw(st.sampled_from([0.0, 0.4, 1.0, 3.0])), data.draw(st.sampled_from([-1.0, 0.0, 0.7]))
    p = torch.softmax(torch.randn(batch, heads, n, n, generator=g), -1)
    scaled, added = p.clone(), torch.zeros(batch, heads, n, n)
    for b in range(batch) if chosen["batch"] is None else set(chosen["batch"]):
        for h in range(heads) if chosen["heads"] is None else set(chosen["heads"]):
            for r in range(n) if chosen["rows"] is None else set(chosen["rows"]):
                for k in set(chosen["keys"]):
                    scaled[b, h, r, k] *= factor
                    added[b, h, r, k] += bias
    rows = torch.arange(n)
    torch.testing.assert_close(edit_weights(p, rows, [PatternScale(factor, **chosen)], 0), scaled)
    got = score_bias([AttentionBias(bias, **chosen)], batch, heads, n, n, "cpu")(rows)
    torch.testing.assert_close(torch.zeros_like(added) if got is None else got.expand_as(added), added)
    touched = set(touched_rows([PatternScale(factor, **chosen)], n).tolist())
    assert touched >= set((scaled != p).any((0, 1, 3)).nonzero()[:, 0].tolist())
