"""What an edit selects, what its value may be, and what it leaves alone: on kinds of families, and by one-entry-at-a-time oracles."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build

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
from symbolic_residue.instrument._apply import apply_tensor_edits, model_positions
from symbolic_residue.instrument._check import check_edits
from symbolic_residue.instrument._norms import find_norm, norm_hooks
from symbolic_residue.models import bind
from symbolic_residue.types import HEAD_POINTS, Point, POINT_KINDS

LENGTH = 10
VOCAB = 384
KINDS = ("llama", "gemma3", "gpt2", "gpt_neox", "gemma2", "gpt_oss", "olmo2", "opt", "qwen2_moe", "cohere", "falcon", "qwen3_next")
"""One family of each make: norms before, after, shared, of both kinds; parallel blocks; experts; learned positions; softcap; sinks; a hybrid."""


@pytest.fixture(scope="module", params=KINDS)
def instrument(request: pytest.FixtureRequest) -> Instrument:
    model = build(request.param)
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llama() -> Instrument:
    model = build("llama")
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


def ids(batch: int = 2, n: int = LENGTH, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, VOCAB, (batch, n), generator=torch.Generator().manual_seed(seed))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def points(instrument: Instrument) -> list[str]:
    """Every point but the logits that the first and the last attention layer have."""
    layers = sorted({instrument.attention_layers[0], instrument.attention_layers[-1]})
    kinds = [kind for kind in POINT_KINDS if kind != "logits"]
    return [f"{k}.{i}" for i in layers for k in kinds if instrument.parts.layers[i].absent(k) is None]


def attn(instrument: Instrument, kind: str, at: int = 0) -> str:
    return f"{kind}.{instrument.attention_layers[at]}"


# Tensors at points


def test_patching_a_run_into_itself_is_a_no_op_bit_for_bit(instrument: Instrument) -> None:
    names = points(instrument)
    assert len(names) >= 14
    plain = instrument.run(ids(), reads=names)
    for name in names:
        for edit in (
            Replace(name, value=plain[name]),
            Replace(name, rows=(-1, 2), value=plain[name][:, [-1, 2]]),
            Replace(name, batch=(1,), value=plain[name][1:]),
            Scale(name, factor=1.0),
            Scale(name, rows=(), factor=0.0),
            ZeroAblate(name, batch=()),
        ):
            assert torch.equal(instrument.run(ids(), edits=[edit])["logits"], plain["logits"]), (name, edit)


def test_adding_and_taking_away_again_is_a_no_op(instrument: Instrument) -> None:
    for name in points(instrument):
        before = instrument.run(ids(), reads=[name])[name]
        value = noise(before.shape[-1])
        after = instrument.run(ids(), reads=[name], edits=[Add(name, value=value), Add(name, value=-value)])[name]
        assert float((after - before).abs().max()) <= 1e-6 * max(1.0, float(before.abs().max()))
        once = instrument.run(ids(), reads=[name], edits=[Add(name, value=value)])[name]
        assert float((once - before).abs().max()) > 0.1  # and alone it acts


def test_the_last_of_two_replacements_stands(instrument: Instrument) -> None:
    for name in points(instrument):
        shape = instrument.run(ids(), reads=[name])[name].shape
        first, last = noise(*shape, seed=1), noise(*shape, seed=2)
        both = instrument.run(ids(), reads=[name], edits=[Replace(name, value=first), Replace(name, value=last)])
        alone = instrument.run(ids(), edits=[Replace(name, value=last)])
        if name.startswith("resid_mid"):  # it is reached through what is added, which rounds
            torch.testing.assert_close(both[name], last, atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(both[name], last), name
        assert torch.equal(both["logits"], alone["logits"])


def test_scales_multiply_and_do_not_commute_with_sums(instrument: Instrument) -> None:
    name = attn(instrument, "attn_out")
    x = instrument.run(ids(), reads=[name])[name]

    def after(*edits: Any) -> torch.Tensor:
        return instrument.run(ids(), reads=[name], edits=edits)[name]

    torch.testing.assert_close(after(Scale(name, factor=2.0), Scale(name, factor=-1.5)), -3 * x)
    torch.testing.assert_close(after(Scale(name, factor=2.0), Add(name, value=1.0)), 2 * x + 1)
    torch.testing.assert_close(after(Add(name, value=1.0), Scale(name, factor=2.0)), 2 * x + 2)


def test_one_forward_carries_different_edits_for_each_sequence(instrument: Instrument) -> None:
    """Batched edits equal edits one at a time: heads knocked out, steered, patched."""
    one, early, late = ids(1), instrument.attention_layers[0], instrument.attention_layers[-1]
    vector = noise(instrument.parts.d_model, seed=3)
    singles = [
        [HeadScale(early, 1, 0.0)],
        [Steer("resid_post.0", vector, 3.0, rows=(-1,))],
        [HeadReplace(late, 2, noise(instrument.parts.d_head), rows=(4, -2))],
        [ZeroAblate("mlp_out.0")],
    ]
    batched = [
        HeadScale(early, 1, 0.0, batch=(0,)),
        Steer("resid_post.0", vector, 3.0, rows=(-1,), batch=(1,)),
        HeadReplace(late, 2, noise(instrument.parts.d_head), rows=(4, -2), batch=(-2,)),
        ZeroAblate("mlp_out.0", batch=(3,)),
    ]
    together = instrument.run(one.expand(4, -1), edits=batched)["logits"]
    plain = instrument.run(one)["logits"][0]
    for i, edits in enumerate(singles):
        alone = instrument.run(one, edits=edits)["logits"][0]
        torch.testing.assert_close(together[i], alone, atol=5e-4, rtol=5e-4)
        assert float((alone - plain).abs().max()) > 1e-3


def test_indices_choose_rows_heads_and_sequences() -> None:
    x = noise(3, 5, 4, 6)
    point = Point("z", 0)
    out = apply_tensor_edits(x, [Replace("z.0", rows=[-1, 0], heads=range(1, 3), batch=np.array([2]), value=7.0)], point)
    want = x.clone()
    want[2, 0, 1:3] = want[2, 4, 1:3] = 7.0
    assert torch.equal(out, want)
    # [batch, row, head, d_head] values land where the index says, in its order.
    value = noise(2, 2, 1, 6, seed=1)
    out = apply_tensor_edits(x, [Replace("z.0", rows=(-1, 1), heads=(3,), batch=(2, 0), value=value)], point)
    want = x.clone()
    for i, b in enumerate((2, 0)):
        for j, r in enumerate((4, 1)):
            want[b, r, 3] = value[i, j, 0]
    assert torch.equal(out, want)
    # Named twice counts once.
    assert torch.equal(
        apply_tensor_edits(x, [Add("z.0", rows=(1, -4), value=1.0)], point),
        apply_tensor_edits(x, [Add("z.0", rows=(1,), value=1.0)], point),
    )


def test_the_input_is_left_alone_and_dtype_and_device_stay() -> None:
    x = noise(2, 3, 4).to(torch.bfloat16)
    kept = x.clone()
    value = torch.arange(4)  # integers, another dtype than the activation's
    for edit in (Add("resid_pre.0", value=value), Replace("resid_pre.0", value=value.double()), Scale("resid_pre.0", factor=2.0)):
        out = apply_tensor_edits(x, [edit], Point("resid_pre", 0))
        assert out.dtype == torch.bfloat16
        assert torch.equal(x, kept)
        assert not torch.equal(out, x)


def test_steering_by_length_and_by_factor() -> None:
    x = noise(1, 3, 8)
    direction = noise(8, seed=1) * 5
    point = Point("resid_pre", 0)
    unit = apply_tensor_edits(x, [Steer("resid_pre.0", direction, 2.5)], point) - x
    torch.testing.assert_close(unit.norm(dim=-1), torch.full((1, 3), 2.5))
    torch.testing.assert_close(unit[0, 0] / 2.5, direction / direction.norm())
    raw = apply_tensor_edits(x, [Steer("resid_pre.0", direction, 2.5, normalise=False)], point) - x
    torch.testing.assert_close(raw[0, 1], 2.5 * direction)
    with pytest.raises(EditError, match="length zero"):
        Steer("resid_pre.0", torch.zeros(8), 1.0)
    with pytest.raises(EditError, match="strength"):
        Steer("resid_pre.0", direction, float("inf"))


def test_resampling_draws_the_donors_that_it_says(instrument: Instrument) -> None:
    z, mlp = attn(instrument, "z"), attn(instrument, "mlp_out", -1)
    donors = instrument.run(ids(5, seed=9), reads=[z, mlp])
    edit = ResampleAblate(z, donors[z][:, -2:, 1:2], 11, rows=(-2, -1), heads=(1,))
    after = instrument.run(ids(3), reads=[z], edits=[edit])[z]
    draws = edit.draws(3)
    assert torch.equal(after[:, -2:, 1], donors[z][list(draws), -2:, 1])
    assert draws == ResampleAblate(z, donors[z], 11).draws(3) and set(draws) <= set(range(5))
    assert len({ResampleAblate(z, donors[z], seed).draws(3) for seed in range(20)}) > 5
    # The same seed takes a sequence's values at other points from the same donor.
    assert ResampleAblate(mlp, donors[mlp], 11).draws(3) == draws
    # A single donor is a patch; only the selected sequences are drawn for.
    only = ResampleAblate(mlp, donors[mlp][2:3], 0, batch=(1,))
    patch = Replace(mlp, value=donors[mlp][2], batch=(1,))
    assert torch.equal(instrument.run(ids(), edits=[only])["logits"], instrument.run(ids(), edits=[patch])["logits"])


def test_resampling_leaves_the_global_generator_alone() -> None:
    edit = ResampleAblate("resid_pre.0", noise(4, 1, 8), 0)
    state = torch.random.get_rng_state()
    edit.draws(100)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert min(np.bincount(edit.draws(4000))) > 800  # every donor in its turn


def test_mean_ablation_puts_the_mean_there(instrument: Instrument) -> None:
    z = attn(instrument, "z", -1)
    batches = [ids(2, seed=1), ids(3, seed=2)]
    runs = [instrument.run(x, reads=[z, "mlp_out.0"]) for x in batches]
    stacked = torch.cat([r[z] for r in runs]).double()
    mean = mean_activation(iter(runs), z, rows=(-1,))
    assert (mean.n_sequences, mean.n_tokens) == (5, 5)
    torch.testing.assert_close(mean.value.double(), stacked[:, -1:].mean(0))
    head = mean.value[:, 2:3]
    after = instrument.run(ids(), reads=[z], edits=[MeanAblate(z, head, rows=(-1,), heads=(2,))])[z]
    torch.testing.assert_close(after[:, -1, 2], head[0].expand(2, -1))
    pooled = mean_activation(runs, "mlp_out.0", over_rows=True)
    assert (pooled.n_sequences, pooled.n_tokens) == (5, 5 * LENGTH)
    torch.testing.assert_close(pooled.value.double(), torch.cat([r["mlp_out.0"] for r in runs]).double().mean((0, 1)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_means_leave_padding_out(llama: Instrument, side: Any) -> None:
    sequences = [ids(1, n, seed=n)[0].tolist() for n in (8, 5, 3)]
    batch = collate(sequences, pad_id=3, side=side)
    trace = llama.run(batch, reads=["resid_post.0"])
    alone = [llama.run(torch.tensor([s]), reads=["resid_post.0"]) for s in sequences]
    want = mean_activation(alone, "resid_post.0", over_rows=True)
    got = mean_activation([trace], "resid_post.0", over_rows=True, masks=[batch.mask])
    assert got.n_tokens == want.n_tokens == 16
    torch.testing.assert_close(got.value, want.value, atol=1e-4, rtol=1e-4)
    if side == "left":  # the trace itself knows padding that comes before
        torch.testing.assert_close(mean_activation([trace], "resid_post.0", over_rows=True).value, got.value)
    with pytest.raises(ReadError, match="is padding"):
        mean_activation([trace], "resid_post.0", masks=[batch.mask])
    with pytest.raises(ReadError, match="in another"):
        mean_activation(alone, "resid_post.0")
    with pytest.raises(ReadError, match="no activation"):
        mean_activation([], "resid_post.0")
    with pytest.raises(ReadError, match="was not read"):
        mean_activation(alone, "z.0")


# Refusals


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    tensor = torch.tensor([1.0, bad])
    ones = torch.ones(1, 1, 1, 2) / 2
    for make in (
        lambda: Add("z.0", value=bad),
        lambda: Add("z.0", value=tensor),
        lambda: Replace("z.0", value=tensor),
        lambda: Scale("z.0", factor=bad),
        lambda: ResampleAblate("z.0", tensor.expand(2, 2, 2), 0),
        lambda: PatternScale(bad, keys=(0,)),
        lambda: PatternReplace(ones * tensor, rows=None, layers=(0,)),
        lambda: FreezeNorm("final_norm", tensor),
        lambda: Positions(tensor[None]),
        lambda: Steer("z.0", tensor, 1.0),
    ):
        with pytest.raises(EditError, match="NaN or infinity"):
            make()
    if bad != -float("inf"):
        with pytest.raises(EditError, match="not defined"):
            AttentionBias(bad, keys=(0,))


def test_a_value_too_large_for_the_models_dtype_is_refused() -> None:
    x = torch.zeros(1, 2, 4, dtype=torch.float16)
    with pytest.raises(EditError, match=r"too large for torch\.float16"):
        apply_tensor_edits(x, [Replace("resid_pre.0", value=1e6)], Point("resid_pre", 0))


def test_what_does_not_fit_is_refused_by_name() -> None:
    x, z = noise(2, 5, 8), noise(2, 5, 4, 3)
    pre, head = Point("resid_pre", 0), Point("z", 0)
    with pytest.raises(EditError, match=r"\(5,\) does not fit resid_pre.0, where \(2, 5, 8\)"):
        apply_tensor_edits(x, [Replace("resid_pre.0", value=torch.zeros(5))], pre)
    with pytest.raises(EditError, match=r"\(2, 5, 8\) does not fit resid_pre.0, where \(2, 1, 8\)"):
        apply_tensor_edits(x, [Add("resid_pre.0", rows=(-1,), value=x)], pre)
    with pytest.raises(EditError, match="Donors of shape"):
        apply_tensor_edits(z, [ResampleAblate("z.0", torch.zeros(2, 5, 3), 0)], head)
    with pytest.raises(EditError, match="does not fit"):
        apply_tensor_edits(z, [ResampleAblate("z.0", torch.zeros(2, 2, 4, 3), 0)], head)
    for edit, what in (
        (Scale("z.0", rows=(5,)), "row 5"),
        (Scale("z.0", rows=(-6,)), "row -6"),
        (Scale("z.0", heads=(4,)), "head 4"),
        (Scale("z.0", batch=(2,)), "sequence 2"),
    ):
        with pytest.raises(EditError, match=what):
            apply_tensor_edits(z, [edit], head)
    with pytest.raises(EditError, match="no heads"):
        apply_tensor_edits(x, [Scale("resid_pre.0", heads=(0,))], pre)
    with pytest.raises(EditError, match="names a row twice"):
        apply_tensor_edits(x, [Replace("resid_pre.0", rows=(1, -4), value=noise(2, 8))], pre)
    with pytest.raises(EditError, match=r"Donors for z.0"):
        ResampleAblate("z.0", torch.zeros(0, 2, 4, 3), 0)


@pytest.mark.parametrize("index", [3, "12", (1.0,), (True, False), torch.tensor([True, False]), np.array([True])])
def test_indices_that_are_none_are_refused(index: Any) -> None:
    for make in (
        lambda: Scale("z.0", rows=index),
        lambda: AttentionMask(index),
        lambda: PatternScale(0.0, keys=(0,), heads=index),
        lambda: FreezeNorm("final_norm", torch.ones(1, 1), batch=index),
    ):
        with pytest.raises(EditError, match=r"sequence of integers|booleans"):
            make()


def test_edits_that_could_not_act_are_refused_before_the_forward() -> None:
    parts = bind(build("qwen3_next"))  # layers 1 and 3 have softmax attention
    fine = [
        AttentionMask((0,)),
        PatternScale(0.5, keys=(0,), layers=(-1, 1)),
        Scale("z.1"),
        Positions(torch.arange(3)),
        HeadScale(3, 0, 0.0),
    ]
    check_edits(fine, parts, own_call=True)
    for edit, message in (
        (AttentionMask((0,), layers=(1, 2)), "layer 2, which has no softmax attention. Layers that have it: 1, 3"),
        (PatternScale(0.5, keys=(0,), layers=(-4,)), "layer 0, which has no"),
        (PatternReplace(torch.ones(1, 1, 1, 1), rows=(0,), layers=(0,)), "PatternReplace names layer 0"),
        (AttentionMask((0,), layers=(4,)), "layer 4, but there are only 4"),
        ("z.1", "no edit"),
        (Scale, "no edit"),
    ):
        with pytest.raises(EditError, match=message):
            check_edits([*fine, edit], parts, own_call=True)
    with pytest.raises(EditError, match="forward of your own"):
        check_edits(fine, parts, own_call=False)


def test_an_edit_keeps_its_meaning_when_the_callers_list_changes() -> None:
    rows = [1]
    edit = Scale("z.0", rows=rows)
    rows.append(2)
    assert edit.rows == (1,)
    assert PatternScale(0.0, keys=np.arange(2)).keys == (0, 1)
    assert AttentionMask(torch.tensor([1, 2])) == AttentionBias(float("-inf"), keys=(1, 2))


# Biases and masks


def test_a_mask_is_the_bias_minus_infinity_and_ln_c_multiplies_the_odds(instrument: Instrument) -> None:
    x, layer = ids(1), instrument.attention_layers[0]
    read = AttentionRead(stats=("max",), rows=(-1,), weights=True)

    def weights(*edits: Any) -> tuple[torch.Tensor, torch.Tensor]:
        trace = instrument.run(x, attention=read, edits=edits)
        assert trace.attention is not None
        return trace.attention["weights"][0, 0, :, 0].double(), trace["logits"]

    p, _ = weights()
    masked, with_mask = weights(AttentionMask(keys=(-2, -3), rows=(-1,)))
    biased, with_bias = weights(AttentionBias(float("-inf"), keys=(-2, -3), rows=(-1,)))
    assert torch.equal(with_mask, with_bias) and torch.equal(masked, biased)
    assert float(masked[:, [-2, -3]].abs().max()) == 0
    odds, _ = weights(AttentionBias(math.log(5.0), keys=(-2,), rows=(-1,), layers=(layer,)))
    torch.testing.assert_close(odds[:, -2] / (1 - odds[:, -2]), 5 * p[:, -2] / (1 - p[:, -2]), rtol=1e-3, atol=1e-6)
    # Biases add up, in any order.
    one, _ = weights(AttentionBias(1.5, keys=(-2,), layers=(layer,)), AttentionBias(-0.5, keys=(-2, -3), layers=(layer,)))
    two, _ = weights(AttentionBias(-0.5, keys=(-3,), layers=(layer,)), AttentionBias(1.0, keys=(-2,), layers=(layer,)))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_patterns_are_replaced_before_they_are_scaled_whatever_the_order_of_the_list(instrument: Instrument) -> None:
    """And a bias, which acts before both, is forgotten by the rows that a pattern replaces."""
    x, layer = ids(), instrument.attention_layers[-1]
    read = AttentionRead(stats=("max",), rows=(3, -1), weights=True, layers=(layer,))

    def weights(*edits: Any) -> torch.Tensor:
        table = instrument.run(x, attention=read, edits=edits).attention
        assert table is not None
        return table["weights"][0]

    own = weights()
    given = torch.softmax(noise(1, 1, 1, LENGTH, seed=5), -1) * 0.5
    replace = PatternReplace(given, rows=(-1,), layers=(layer,), heads=(1,), batch=(0,))
    scale = PatternScale(0.25, keys=(0, -1), rows=(-1,), layers=(layer,))
    bias = AttentionBias(2.0, keys=(1,), rows=(-1,), layers=(layer,), heads=(1,), batch=(0,))
    want = own.clone()
    want[0, 1, 1] = given[0, 0, 0]
    want[:, :, 1, [0, -1]] *= 0.25
    for edits in ((replace, scale), (scale, replace), (bias, scale, replace), (replace, scale, bias)):
        torch.testing.assert_close(weights(*edits), want, atol=2e-6, rtol=2e-5)
    if instrument.parts.family != "qwen3_next":  # whose z is gated after attention
        z, v = (f"{kind}.{layer}" for kind in "zv")
        trace = instrument.run(x, reads=(z, v), edits=[scale, replace])
        values = trace[v].repeat_interleave(trace[z].shape[2] // trace[v].shape[2], 2)
        # The layer's output is made with exactly these weights.
        torch.testing.assert_close(trace[z][:, [3, -1]], torch.einsum("bhrk,bkhd->brhd", want, values), atol=1e-4, rtol=1e-4)


# Norms


def norms(instrument: Instrument) -> dict[str, str]:
    """Norms of the attention layers and the last one, each with the point that its scale is known from."""
    last = instrument.parts.n_layers - 1
    found = {"final_norm": f"resid_post.{last}"}
    for i in instrument.attention_layers:
        layer = instrument.parts.layers[i]
        before_mlp = "resid_pre" if layer.parallel else "resid_mid"
        kinds = {"pre_attn_norm": "resid_pre", "pre_mlp_norm": before_mlp, "post_attn_norm": "z", "post_mlp_norm": "mlp_act"}
        found |= {f"{norm}.{i}": f"{kind}.{i}" for norm, kind in kinds.items() if getattr(layer, norm) is not None}
    return found


def own_scales(instrument: Instrument) -> tuple[Any, dict[str, torch.Tensor]]:
    plain = instrument.run(ids(), reads=list(norms(instrument).values()))
    return plain, {name: norm_scales(plain, name, instrument.parts) for name in norms(instrument)}


def test_a_norm_frozen_at_its_own_scale_is_a_no_op(instrument: Instrument) -> None:
    plain, scales = own_scales(instrument)
    size = float(plain["logits"].abs().max())
    edits = [FreezeNorm(name, scale) for name, scale in scales.items()]
    assert len(edits) >= 3
    for edit in edits:
        again = instrument.run(ids(), edits=[edit])["logits"]
        assert float((again - plain["logits"]).abs().max()) <= 1e-5 * size, edit.norm
    assert float((instrument.run(ids(), edits=edits)["logits"] - plain["logits"]).abs().max()) <= 2e-5 * size


def test_scales_are_those_that_the_modules_use(instrument: Instrument) -> None:
    """Caught at the module's own input, without the points."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        find_norm(instrument.parts, name).module.register_forward_pre_hook(
            lambda m, args, name=name: seen.__setitem__(name, args[0].double().view(2, LENGTH, -1))
        )
        for name in norms(instrument)
    ]
    _, scales = own_scales(instrument)
    for handle in handles:
        handle.remove()
    for name, scale in scales.items():
        norm = find_norm(instrument.parts, name)
        x = seen[name]
        x = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
        want = 1 / (x.square().mean(-1) + norm.eps).sqrt()
        torch.testing.assert_close(scale.double(), want, rtol=1e-5, atol=0)
        torch.testing.assert_close(norm_scales(seen[name], name, instrument.parts), want)


def test_a_frozen_norm_is_linear(instrument: Instrument) -> None:
    """f(a + b) = f(a) + f(b) − f(0) through the frozen final norm and the unembedding; f(0) = 0 for RMS norms. Its own scale would break this."""
    parts = instrument.parts
    d, last, cap = parts.d_model, f"resid_post.{parts.n_layers - 1}", parts.logit_softcap
    a, b = noise(2, LENGTH, d, seed=1), noise(2, LENGTH, d, seed=2)
    s = noise(2, LENGTH, seed=3).abs() + 0.1
    edit = FreezeNorm("final_norm", s * 0.1 if cap else s)  # the cap is undone below: logits must stay well under it

    def f(x: torch.Tensor, *edits: Any) -> torch.Tensor:
        out = instrument.run(ids(), edits=[Replace(last, value=x), *edits])["logits"].double()
        return cap * torch.atanh(out / cap) if cap else out

    zero = f(torch.zeros(1), edit)
    if parts.final_norm.kind == "rms" and parts.b_u is None:
        assert float(zero.abs().max()) == 0
    torch.testing.assert_close(f(a + b, edit), f(a, edit) + f(b, edit) - zero, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(f(3 * a, edit) - zero, 3 * (f(a, edit) - zero), atol=2e-4, rtol=1e-4)
    if not cap:
        assert float((f(3 * a) - 3 * f(a)).abs().max()) > 0.1


def test_a_norm_is_frozen_for_the_selected_rows_and_sequences_only(instrument: Instrument) -> None:
    late = instrument.attention_layers[-1]
    for name in (f"pre_attn_norm.{late}", f"pre_mlp_norm.{late}", "final_norm"):
        if name not in norms(instrument):
            continue
        plain = instrument.run(ids())["logits"]
        edit = FreezeNorm(name, torch.tensor([[0.3, 0.7]]), rows=(-1, 6), batch=(1,))
        change = (instrument.run(ids(), edits=[edit])["logits"] - plain).abs().amax(-1)
        assert float(change[0].max()) == 0
        assert float(change[1, :6].max()) == 0
        assert float(change[1, 6]) > 1e-3 and float(change[1, -1]) > 1e-3
        before_attention = instrument.parts.layers[late].pre_attn_norm
        shared = before_attention is not None and before_attention.module is find_norm(instrument.parts, name).module  # cohere
        if late == instrument.parts.n_layers - 1 and not shared:  # no attention comes after it
            assert float(change[1, 7:-1].max()) == 0


def test_reads_and_edits_of_a_post_norms_output_see_the_frozen_one() -> None:
    model = build("gemma3")
    instrument = Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]
    plain = instrument.run(ids(), reads=["z.0", "attn_out.0"])
    s = norm_scales(plain, "post_attn_norm.0", instrument.parts)
    doubled = instrument.run(ids(), edits=[FreezeNorm("post_attn_norm.0", 2 * s)], reads=["attn_out.0"])
    torch.testing.assert_close(doubled["attn_out.0"], 2 * plain["attn_out.0"], atol=1e-4, rtol=1e-4)
    undone = instrument.run(
        ids(), reads=["attn_out.0"], edits=[FreezeNorm("post_attn_norm.0", 2 * s), Scale("attn_out.0", factor=0.5)]
    )
    torch.testing.assert_close(undone["attn_out.0"], plain["attn_out.0"], atol=1e-4, rtol=1e-4)


def test_later_freezes_win_and_hooks_leave_no_trace(llama: Instrument) -> None:
    plain = llama.run(ids(), reads=["resid_pre.*"])
    own = FreezeNorm("pre_attn_norm.1", norm_scales(plain, "pre_attn_norm.1", llama.parts))
    other = FreezeNorm("pre_attn_norm.1", torch.full((1, LENGTH), 0.5))
    first = llama.run(ids(), edits=[own, other])["logits"]
    assert torch.equal(first, llama.run(ids(), edits=[other])["logits"])
    assert float((first - plain["logits"]).abs().max()) > 1e-3
    assert torch.equal(llama.run(ids())["logits"], plain["logits"])
    module = llama.parts.layers[1].pre_attn_norm.module  # type: ignore[union-attr]
    before = len(module._forward_hooks)
    with pytest.raises(EditError):
        norm_hooks(llama.parts, [own, FreezeNorm("post_attn_norm.1", torch.ones(1, 1))])
    assert len(module._forward_hooks) == before


def test_norms_that_are_not_there_are_refused(llama: Instrument) -> None:
    for name in ("pre_attn_norm", "norm.0", "pre_attn_norm.-1", "final_norm.0", ""):
        with pytest.raises(EditError, match="is no norm"):
            FreezeNorm(name, torch.ones(1, 1))
    with pytest.raises(EditError, match=r"no post_attn_norm\.0"):
        find_norm(llama.parts, "post_attn_norm.0")
    with pytest.raises(EditError, match="layers 0 to 1"):
        find_norm(llama.parts, "pre_mlp_norm.2")
    with pytest.raises(EditError, match="zero or negative"):
        FreezeNorm("final_norm", torch.zeros(1, 3))
    with pytest.raises(EditError, match="has shape"):
        FreezeNorm("final_norm", torch.ones(1, 1, 3))
    with pytest.raises(EditError, match=r"\(1, 3\) does not fit final_norm"):
        llama.run(ids(), edits=[FreezeNorm("final_norm", torch.ones(1, 3))])
    with pytest.raises(EditError, match="twice"):
        llama.run(ids(), edits=[FreezeNorm("final_norm", torch.ones(1, 2), rows=(-1, LENGTH - 1))])
    with pytest.raises(ReadError, match=r"resid_mid\.0 was not read"):
        norm_scales(llama.run(ids()), "pre_mlp_norm.0", llama.parts)


# Positions


def test_whole_positions_as_floats_are_the_same_positions(instrument: Instrument) -> None:
    plain = instrument.run(ids())["logits"]
    whole = model_positions(Positions(torch.arange(LENGTH).double()), instrument.parts, 2, LENGTH, instrument.device)
    assert whole.dtype == torch.long and whole.shape == (2, LENGTH)
    assert torch.equal(instrument.run(ids(), edits=[Positions(torch.arange(LENGTH).float()[None])])["logits"], plain)


def test_rotary_positions_are_relative_and_may_lie_between(instrument: Instrument) -> None:
    x = ids(1)
    base = torch.arange(LENGTH).float()
    plain = instrument.run(x)["logits"]

    def at(positions: torch.Tensor) -> torch.Tensor:
        return instrument.run(x, edits=[Positions(positions)])["logits"]

    if instrument.parts.position_embed is not None:
        with pytest.raises(EditError, match="learned positions"):
            at(base + 0.5)
        with pytest.raises(EditError, match="0 to 255"):
            at(base + 250)
        return
    for shift in (7, 0.5, -0.25):
        torch.testing.assert_close(at(base + shift), plain, atol=1e-3, rtol=1e-3)
    # Position interpolation moves the logits, and by little where the step is nearly one.
    far, near = (float((at(base * step) - plain).abs().max()) for step in (0.5, 1 - 1e-3))
    assert far > 1e-2
    assert 0 < near < far / 5


def test_positions_that_do_not_fit_are_refused(llama: Instrument) -> None:
    for shape in ((3,), (3, LENGTH), (1, 1, LENGTH)):
        with pytest.raises(EditError, match="do not fit"):
            model_positions(Positions(torch.zeros(shape)), llama.parts, 2, LENGTH, llama.device)
    for bad in (torch.ones(1, 3).bool(), [0, 1, 2]):
        with pytest.raises(EditError, match="Position ids are"):
            Positions(bad)  # type: ignore[arg-type]


def test_head_points_are_where_heads_may_be_named(instrument: Instrument) -> None:
    for name in points(instrument):
        edit = Scale(name, heads=(0,), factor=1.0)
        if name.split(".")[0] in HEAD_POINTS:
            instrument.run(ids(1, 3), edits=[edit])
        else:
            with pytest.raises(EditError, match="no heads"):
                instrument.run(ids(1, 3), edits=[edit])


def test_the_instrument_refuses_edits_that_could_not_act() -> None:
    model = build("qwen3_next")
    instrument = Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]
    for edit in (AttentionMask((0,), layers=(0,)), PatternScale(0.5, keys=(0,), layers=(2,)), "nonsense"):
        with pytest.raises(EditError, match=r"no softmax attention|no edit"):
            instrument.run(ids(), edits=[edit])
    with pytest.raises(EditError, match="forward of your own"), instrument.attached(edits=[Positions(torch.arange(LENGTH))]):
        pass
    assert model.config._attn_implementation == "sdpa"
