"""Edits by their algebra: on every family through the instrument, and as pure functions on random softmax rows."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build, FAMILIES

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
from symbolic_residue.instrument._apply import apply_tensor_edits, model_positions, resolve
from symbolic_residue.instrument._norms import find_norm, norm_hooks
from symbolic_residue.instrument.attention._pattern import edit_weights, edits_of_layer, score_bias, touched_rows
from symbolic_residue.models import bind
from symbolic_residue.types import HEAD_POINTS, Point

LENGTH = 10
VOCAB = 384
POINTS = ("resid_pre", "resid_post", "attn_out", "z", "mlp_in", "mlp_act", "mlp_out", "q", "k", "v")


@pytest.fixture(scope="module", params=list(FAMILIES))
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
    found = [f"{kind}.{layer}" for kind in POINTS for layer in range(instrument.parts.n_layers)]
    names = []
    for name in found:
        try:
            instrument.run(ids(1, 2), reads=[name])
        except ReadError:  # an architecture that lacks the point says so; what it has is tested
            continue
        names.append(name)
    return names


def frozen(instrument: Instrument, edits: list[Any], inputs: Any, **options: Any) -> Any:
    """A run with norms frozen, hooked around the instrument."""
    handles = norm_hooks(instrument.parts, edits)
    try:
        return instrument.run(inputs, edits=[e for e in edits if not isinstance(e, FreezeNorm)], **options)
    finally:
        for handle in handles:
            handle.remove()


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
        assert torch.equal(both[name], last)
        assert torch.equal(both["logits"], alone["logits"])


def test_scales_multiply_and_do_not_commute_with_sums(instrument: Instrument) -> None:
    name = "attn_out.0"
    x = instrument.run(ids(), reads=[name])[name]

    def after(*edits: Any) -> torch.Tensor:
        return instrument.run(ids(), reads=[name], edits=edits)[name]

    torch.testing.assert_close(after(Scale(name, factor=2.0), Scale(name, factor=-1.5)), -3 * x)
    torch.testing.assert_close(after(Scale(name, factor=2.0), Add(name, value=1.0)), 2 * x + 1)
    torch.testing.assert_close(after(Add(name, value=1.0), Scale(name, factor=2.0)), 2 * x + 2)


def test_one_forward_carries_different_edits_for_each_sequence(instrument: Instrument) -> None:
    """Batched edits equal edits one at a time: heads knocked out, steered, patched."""
    one = ids(1)
    vector = noise(instrument.parts.d_model, seed=3)
    singles = [
        [HeadScale(0, 1, 0.0)],
        [Steer("resid_post.0", vector, 3.0, rows=(-1,))],
        [HeadReplace(1, 2, noise(instrument.parts.d_head), rows=(4, -2))],
        [ZeroAblate("mlp_out.0")],
    ]
    batched = [
        HeadScale(0, 1, 0.0, batch=(0,)),
        Steer("resid_post.0", vector, 3.0, rows=(-1,), batch=(1,)),
        HeadReplace(1, 2, noise(instrument.parts.d_head), rows=(4, -2), batch=(-2,)),
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
    donors = instrument.run(ids(5, seed=9), reads=["z.0", "mlp_out.1"])
    edit = ResampleAblate("z.0", donors["z.0"][:, -2:, 1:2], 11, rows=(-2, -1), heads=(1,))
    after = instrument.run(ids(3), reads=["z.0"], edits=[edit])["z.0"]
    draws = edit.draws(3)
    assert torch.equal(after[:, -2:, 1], donors["z.0"][list(draws), -2:, 1])
    assert draws == ResampleAblate("z.0", donors["z.0"], 11).draws(3) and set(draws) <= set(range(5))
    assert len({ResampleAblate("z.0", donors["z.0"], seed).draws(3) for seed in range(20)}) > 5
    # The same seed takes a sequence's values at other points from the same donor.
    assert ResampleAblate("mlp_out.1", donors["mlp_out.1"], 11).draws(3) == draws
    # A single donor is a patch; only the selected sequences are drawn for.
    only = ResampleAblate("mlp_out.1", donors["mlp_out.1"][2:3], 0, batch=(1,))
    patch = Replace("mlp_out.1", value=donors["mlp_out.1"][2], batch=(1,))
    assert torch.equal(instrument.run(ids(), edits=[only])["logits"], instrument.run(ids(), edits=[patch])["logits"])


def test_resampling_leaves_the_global_generator_alone() -> None:
    edit = ResampleAblate("resid_pre.0", noise(4, 1, 8), 0)
    state = torch.random.get_rng_state()
    edit.draws(100)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert min(np.bincount(edit.draws(4000))) > 800  # every donor in its turn


def test_mean_ablation_puts_the_mean_there(instrument: Instrument) -> None:
    batches = [ids(2, seed=1), ids(3, seed=2)]
    runs = [instrument.run(x, reads=["z.1", "mlp_out.0"]) for x in batches]
    stacked = torch.cat([r["z.1"] for r in runs]).double()
    mean = mean_activation(iter(runs), "z.1", rows=(-1,))
    assert (mean.n_sequences, mean.n_tokens) == (5, 5)
    torch.testing.assert_close(mean.value.double(), stacked[:, -1:].mean(0))
    head = mean.value[:, 2:3]
    after = instrument.run(ids(), reads=["z.1"], edits=[MeanAblate("z.1", head, rows=(-1,), heads=(2,))])["z.1"]
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


def test_an_edit_keeps_its_meaning_when_the_callers_list_changes() -> None:
    rows = [1]
    edit = Scale("z.0", rows=rows)
    rows.append(2)
    assert edit.rows == (1,)
    assert PatternScale(0.0, keys=np.arange(2)).keys == (0, 1)
    assert AttentionMask(torch.tensor([1, 2])) == AttentionBias(float("-inf"), keys=(1, 2))


# Biases and masks


def test_a_mask_is_the_bias_minus_infinity_and_ln_c_multiplies_the_odds(instrument: Instrument) -> None:
    x = ids(1)
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
    odds, _ = weights(AttentionBias(math.log(5.0), keys=(-2,), rows=(-1,), layers=(0,)))
    torch.testing.assert_close(odds[:, -2] / (1 - odds[:, -2]), 5 * p[:, -2] / (1 - p[:, -2]), rtol=1e-3, atol=1e-6)
    # Biases add up, in any order.
    one, _ = weights(AttentionBias(1.5, keys=(-2,), layers=(0,)), AttentionBias(-0.5, keys=(-2, -3), layers=(0,)))
    two, _ = weights(AttentionBias(-0.5, keys=(-3,), layers=(0,)), AttentionBias(1.0, keys=(-2,), layers=(0,)))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


# Patterns, as pure functions


def softmax_rows(scores: torch.Tensor) -> torch.Tensor:
    """Causal softmax in float64 of ``[batch, head, row, key]``, one row a key."""
    n = scores.shape[-1]
    return torch.softmax(scores.double().masked_fill(torch.ones(n, n).triu(1).bool(), float("-inf")), -1)


seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 9))


def some(n: int, least: int = 0) -> st.SearchStrategy[list[int]]:
    """Indices of one axis of length n, some from its end."""
    return st.lists(st.integers(-n, n - 1), min_size=least, max_size=n)


@st.composite
def many_cases(draw: st.DrawFn, n_edits: int = 3) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Scores ``[batch, head, row, key]`` and places of some edits of them."""
    batch, heads, n = draw(sizes)
    scores = noise(batch, heads, n, n, seed=draw(seeds)) * draw(st.sampled_from([0.1, 1.0, 5.0]))
    where = [
        {
            "rows": draw(st.none() | some(n)),
            "heads": draw(st.none() | some(heads)),
            "batch": draw(st.none() | some(batch)),
            "keys": draw(some(n)),
        }
        for _ in range(draw(st.integers(1, n_edits)))
    ]
    return scores, where


def cases() -> st.SearchStrategy[tuple[torch.Tensor, dict[str, Any]]]:
    return many_cases(1).map(lambda case: (case[0], case[1][0]))


def bias_of(edits: list[AttentionBias], scores: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    batch, heads, n, _ = scores.shape
    rows = torch.arange(n) if rows is None else rows
    made = score_bias(edits, batch, heads, n, n, torch.device("cpu"))(rows)
    return torch.zeros(batch, heads, len(rows), n) if made is None else made


def dense(where: dict[str, Any], shape: tuple[int, int, int]) -> torch.Tensor:
    """Which entries ``[batch, head, row, key]`` an edit selects, one at a time: the oracle of the index rules."""
    batch, heads, n = shape
    out = torch.zeros(batch, heads, n, n, dtype=torch.bool)
    for b in resolve(where["batch"], batch, "sequence"):
        for h in resolve(where["heads"], heads, "head"):
            for r in resolve(where["rows"], n, "row"):
                for k in resolve(where["keys"], n, "key"):
                    out[b, h, r, k] = True
    return out


@settings(max_examples=200, deadline=None)
@given(many_cases(), st.sampled_from([1.25, -2.0, float("-inf"), 0.0]), seeds)
def test_score_bias_equals_one_entry_at_a_time(case: Any, value: float, seed: int) -> None:
    scores, places = case
    n = scores.shape[-1]
    edits, want = [], torch.zeros(scores.shape)
    for i, where in enumerate(places):
        each = value * (i + 1) if value else 0.0
        edits.append(AttentionBias(each, **where))
        want = torch.where(dense(where, scores.shape[:3]), want + each, want)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: max(1, n - 1)]
    assert torch.equal(bias_of(edits, scores, order), want[:, :, order])
    touched = touched_rows(edits, n)
    assert touched.tolist() == sorted(set(touched.tolist()))
    assert set(want.ne(0).any(-1).any(0).any(0).nonzero()[:, 0].tolist()) <= set(touched.tolist())
    untouched = torch.tensor([r for r in range(n) if r not in touched.tolist()], dtype=torch.long)
    if len(untouched):
        assert score_bias(edits, *scores.shape, torch.device("cpu"))(untouched) is None


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([0.25, 1.0, 3.0]))
def test_scaling_and_renormalising_is_the_bias_ln_factor(case: Any, factor: float) -> None:
    """Softmax identity: factor · e^s = e^(s + ln factor)."""
    scores, where = case
    p = softmax_rows(scores)
    rows = torch.arange(p.shape[2])
    got = edit_weights(p, rows, [PatternScale(factor, **where, renormalise=True)], 0)
    want = softmax_rows(scores.double() + bias_of([AttentionBias(math.log(factor), **where)], scores))
    torch.testing.assert_close(got, want, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(got.sum(-1), torch.ones(p.shape[:3]).double())
    plain = edit_weights(p, rows, [PatternScale(factor, **where)], 0)
    assert torch.equal(plain, torch.where(dense(where, p.shape[:3]), p * factor, p))
    if factor == 1.0:
        assert torch.equal(got, p)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_scaling_by_zero_and_renormalising_is_the_mask(case: Any) -> None:
    scores, where = case
    p = softmax_rows(scores)
    rows = torch.arange(p.shape[2])
    edit = PatternScale(0.0, **where, renormalise=True)
    hidden = scores.double() + bias_of([AttentionMask(**where)], scores)
    want = softmax_rows(hidden)
    if bool(want.isnan().any()):  # every visible key of some row is hidden
        with pytest.raises(EditError, match="no weight to renormalise"):
            edit_weights(p, rows, [edit], 0)
    else:
        got = edit_weights(p, rows, [edit], 0)
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-9)
        assert float(got[dense(where, p.shape[:3])].abs().sum()) == 0


def test_rows_are_scaled_back_to_the_sum_that_they_had() -> None:
    """With a sink logit a row sums to less than 1; what went to the sink stays there."""
    p = softmax_rows(noise(1, 2, 5, 5)) * torch.tensor([0.9, 0.3])[None, :, None, None]
    got = edit_weights(p, torch.arange(5), [PatternScale(0.0, keys=(0,), rows=(2, 3, 4), renormalise=True)], 0)
    torch.testing.assert_close(got.sum(-1), p.sum(-1))
    assert float(got[:, :, 2:, 0].abs().max()) == 0
    torch.testing.assert_close(got[..., 2:, 1] / got[..., 2:, 2], p[..., 2:, 1] / p[..., 2:, 2])  # the others keep their odds
    # A padding row, which sees nothing, stays empty.
    p[0, 0, 3] = 0
    assert (
        float(edit_weights(p, torch.arange(5), [PatternScale(0.0, keys=(0,), rows=(3,), renormalise=True)], 0)[0, 0, 3].sum()) == 0
    )


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(1, 4), st.booleans(), st.booleans())
def test_patterns_are_put_row_by_row_and_scaled_after(case: Any, block: int, one_batch: bool, one_head: bool) -> None:
    scores, where = case
    batch, heads, n, _ = scores.shape
    for name, size in (("rows", n), ("heads", heads), ("batch", batch)):
        if where[name] is not None:  # a pattern's entries are named once
            where[name] = list(dict.fromkeys(i % size for i in where[name]))
    p, other = softmax_rows(scores), softmax_rows(noise(*scores.shape, seed=7))
    in_batch, in_heads, in_rows = (resolve(where[k], s, k) for k, s in (("batch", batch), ("heads", heads), ("rows", n)))
    weights = other[in_batch][:, in_heads][:, :, in_rows]
    if in_batch and one_batch:
        weights = weights[:1]
    if in_heads and one_head:
        weights = weights[:, :1]
    where_pattern = {k: where[k] for k in ("rows", "heads", "batch")}
    scale = PatternScale(0.5, keys=where["keys"], rows=where["rows"])
    replace = PatternReplace(weights, layers=(4,), **where_pattern)
    want = p.clone()
    for i, b in enumerate(in_batch):
        for j, h in enumerate(in_heads):
            for k, r in enumerate(in_rows):
                want[b, h, r] = weights[min(i, len(weights) - 1), min(j, weights.shape[1] - 1), k]
    want = torch.where(dense(where | {"heads": None, "batch": None}, (batch, heads, n)), want * 0.5, want)
    # A block of rows at a time, in the order of the list or not: replacements come before scalings.
    for edits in ([replace, scale], [scale, replace]):
        got = torch.cat([edit_weights(p[:, :, r], r, edits, 4) for r in torch.arange(n).split(block)], 2)
        assert torch.equal(got, want)
    assert torch.equal(p, softmax_rows(scores))  # the input is left alone


def test_the_own_pattern_is_a_no_op_and_the_last_replacement_stands() -> None:
    p, other = softmax_rows(noise(2, 3, 6, 6)), softmax_rows(noise(2, 3, 6, 6, seed=1))
    rows = torch.arange(6)
    assert torch.equal(edit_weights(p, rows, [PatternReplace(p, rows=None, layers=(0,))], 0), p)
    first, last = (PatternReplace(w, rows=None, layers=(0,)) for w in (p, other))
    assert torch.equal(edit_weights(p, rows, [first, last], 0), other)
    assert edit_weights(p, rows, [], 0) is p


def test_layers_of_a_pattern_are_told_apart() -> None:
    p = softmax_rows(noise(1, 1, 3, 3))
    stacked = torch.stack([softmax_rows(noise(1, 1, 3, 3, seed=s)) for s in (1, 2)])
    edit = PatternReplace(stacked, rows=None, layers=(-1, 0))
    assert torch.equal(edit_weights(p, torch.arange(3), [edit], 0, n_layers=4), stacked[1])
    assert torch.equal(edit_weights(p, torch.arange(3), [edit], 3, n_layers=4), stacked[0])
    assert edits_of_layer([edit, PatternScale(0.0, keys=(0,), layers=(1,))], 3, 4) == [edit]
    assert len(edits_of_layer([PatternScale(0.0, keys=(0,)), PatternScale(0.0, keys=(0,), layers=())], 2, 4)) == 1
    with pytest.raises(EditError, match="layer 4"):
        edits_of_layer([PatternScale(0.0, keys=(0,), layers=(4,))], 0, 4)
    with pytest.raises(EditError, match="not known"):
        edit_weights(p, torch.arange(3), [edit], 0)
    with pytest.raises(EditError, match="reached layer 2"):
        edit_weights(p, torch.arange(3), [edit], 2, n_layers=4)


def test_negative_rows_count_from_the_end_of_the_forward_and_not_of_the_block() -> None:
    p = softmax_rows(noise(1, 2, 8, 8))
    # One query with eight keys: a cached forward whose only row is both 0 and −1.
    row = edit_weights(p[:, :, -1:], torch.tensor([0]), [PatternScale(0.0, keys=(-1,), rows=(-1,))], 0, n_queries=1)
    assert float(row[..., -1].abs().max()) == 0 and torch.equal(row[..., :-1], p[:, :, -1:, :-1])
    # A block from the middle of the forward, without its last row.
    assert torch.equal(edit_weights(p[:, :, 2:5], torch.arange(2, 5), [PatternScale(0.0, keys=(0,), rows=(-1,))], 0), p[:, :, 2:5])
    bias = score_bias([AttentionBias(1.0, keys=(-1,), rows=(-1,))], 1, 2, 1, 8, torch.device("cpu"))(torch.tensor([0]))
    assert bias is not None and bias[0, 0, 0].tolist() == [0.0] * 7 + [1.0]


def test_touched_rows_leave_identities_out() -> None:
    pattern = PatternReplace(torch.full((1, 1, 2, 6), 1 / 6), rows=(5, 1), layers=(0,))
    edits = [
        AttentionBias(1.0, keys=(0,), rows=(-2, 4)),
        pattern,
        PatternScale(0.0, keys=(0,), rows=(2,)),
        PatternScale(1.0, keys=(0,), rows=(3,)),
        AttentionBias(0.0, keys=(0,)),
        AttentionMask(keys=()),
        AttentionMask(keys=(0,), heads=()),
    ]
    assert touched_rows(edits, 6).tolist() == [1, 2, 4, 5]
    assert touched_rows([], 6).tolist() == []
    assert touched_rows([AttentionMask(keys=(0,))], 3).tolist() == [0, 1, 2]
    with pytest.raises(EditError, match="row 6"):
        touched_rows([AttentionBias(0.0, keys=(0,), rows=(6,))], 6)


def test_patterns_that_are_none_are_refused() -> None:
    third = torch.full((1, 1, 3, 3), 1 / 3)
    with pytest.raises(EditError, match="negative"):
        PatternReplace(-third, rows=None, layers=(0,))
    with pytest.raises(EditError, match="sums to 2"):
        PatternReplace(third * 2, rows=None, layers=(0,))
    assert torch.allclose(
        PatternReplace(third * 0.5, rows=None, layers=(0,)).sums(), torch.tensor(0.5).double()
    )  # a sink took the rest
    PatternReplace(third * 1.0005, rows=None, layers=(0,))  # rounding
    with pytest.raises(EditError, match="do not fit 2 layers"):
        PatternReplace(third, rows=None, layers=(0, 1))
    with pytest.raises(EditError, match="needs the layers"):
        PatternReplace(third, rows=None, layers=None)  # type: ignore[arg-type]
    with pytest.raises(EditError, match="cannot be scaled by -1"):
        PatternScale(-1.0, keys=(0,))
    for make in (lambda: PatternScale(0.0, keys=None), lambda: AttentionMask(None)):  # type: ignore[arg-type]
        with pytest.raises(EditError, match="needs"):
            make()
    p = softmax_rows(noise(2, 2, 4, 4))
    rows = torch.arange(4)
    with pytest.raises(EditError, match=r"\(1, 1, 3, 3\) does not fit \(2, 2, 4, 4\)"):
        edit_weights(p, rows, [PatternReplace(third, rows=None, layers=(0,))], 0)
    with pytest.raises(EditError, match="names a row twice"):
        edit_weights(p, rows, [PatternReplace(p[:, :, :2], rows=(1, -3), layers=(0,))], 0)
    for scale, what in (
        (PatternScale(0.0, keys=(4,)), "key 4"),
        (PatternScale(0.0, keys=(0,), heads=(2,)), "head 2"),
        (PatternScale(0.0, keys=(0,), rows=(-5,)), "row -5"),
        (PatternScale(0.0, keys=(0,), batch=(2,)), "sequence 2"),
    ):
        with pytest.raises(EditError, match=what):
            edit_weights(p, rows, [scale], 0)
    with pytest.raises(EditError, match="key 4"):
        score_bias([AttentionMask(keys=(4,))], 1, 1, 4, 4, torch.device("cpu"))


# Norms


def norms(instrument: Instrument) -> list[str]:
    names = ["final_norm"]
    for i, layer in enumerate(instrument.parts.layers):
        kinds = ("pre_attn_norm", "pre_mlp_norm", "post_attn_norm", "post_mlp_norm")
        names += [f"{kind}.{i}" for kind in kinds if getattr(layer, kind) is not None]
    return names


def scale_points(instrument: Instrument) -> list[str]:
    mid = [f"resid_mid.{i}" for i, layer in enumerate(instrument.parts.layers) if not layer.parallel]
    return ["resid_pre.*", "resid_post.*", "z.*", "mlp_act.*", *mid]


def test_a_norm_frozen_at_its_own_scale_is_a_no_op(instrument: Instrument) -> None:
    plain = instrument.run(ids(), reads=scale_points(instrument))
    size = float(plain["logits"].abs().max())
    edits = [FreezeNorm(name, norm_scales(plain, name, instrument.parts)) for name in norms(instrument)]
    assert len(edits) >= 5
    for edit in edits:
        again = frozen(instrument, [edit], ids())["logits"]
        assert float((again - plain["logits"]).abs().max()) <= 1e-5 * size, edit.norm
    assert float((frozen(instrument, edits, ids())["logits"] - plain["logits"]).abs().max()) <= 2e-5 * size


def test_scales_are_those_that_the_modules_use(instrument: Instrument) -> None:
    """Caught at the module's own input, without the points."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        find_norm(instrument.parts, name).module.register_forward_pre_hook(
            lambda m, args, name=name: seen.__setitem__(name, args[0].double())
        )
        for name in norms(instrument)
    ]
    plain = instrument.run(ids(), reads=scale_points(instrument))
    for handle in handles:
        handle.remove()
    for name in norms(instrument):
        norm = find_norm(instrument.parts, name)
        x = seen[name]
        x = x - x.mean(-1, keepdim=True) if norm.kind == "layer" else x
        want = 1 / (x.square().mean(-1) + norm.eps).sqrt()
        torch.testing.assert_close(norm_scales(plain, name, instrument.parts).double(), want, rtol=1e-5, atol=0)
        torch.testing.assert_close(norm_scales(seen[name], name, instrument.parts), want)


def test_a_frozen_norm_is_linear(instrument: Instrument) -> None:
    """f(a + b) = f(a) + f(b) − f(0) through the frozen final norm and the unembedding; f(0) = 0 for RMS norms. Its own scale would break this."""
    d, last = instrument.parts.d_model, f"resid_post.{instrument.parts.n_layers - 1}"
    a, b = noise(2, LENGTH, d, seed=1), noise(2, LENGTH, d, seed=2)
    edit = FreezeNorm("final_norm", noise(2, LENGTH, seed=3).abs() + 0.1)

    def f(x: torch.Tensor, *edits: Any) -> torch.Tensor:
        out = frozen(instrument, [Replace(last, value=x), *edits], ids())["logits"].double()
        return torch.atanh(out / instrument.parts.logit_softcap) if instrument.parts.logit_softcap else out

    zero = f(torch.zeros(1), edit)
    if instrument.parts.final_norm.kind == "rms" and instrument.parts.b_u is None:
        assert float(zero.abs().max()) == 0
    torch.testing.assert_close(f(a + b, edit), f(a, edit) + f(b, edit) - zero, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(f(3 * a, edit) - zero, 3 * (f(a, edit) - zero), atol=1e-4, rtol=1e-4)
    assert float((f(3 * a) - 3 * f(a)).abs().max()) > 0.1


def test_a_norm_is_frozen_for_the_selected_rows_and_sequences_only(instrument: Instrument) -> None:
    for name in ("pre_attn_norm.1", "final_norm"):
        if name not in norms(instrument):
            continue
        plain = instrument.run(ids())["logits"]
        edit = FreezeNorm(name, torch.tensor([[0.3, 0.7]]), rows=(-1, 6), batch=(1,))
        change = (frozen(instrument, [edit], ids())["logits"] - plain).abs().amax(-1)
        assert float(change[0].max()) == 0
        assert float(change[1, :6].max()) == 0
        assert float(change[1, 6]) > 1e-3 and float(change[1, -1]) > 1e-3
        if name == "final_norm":
            assert float(change[1, 7:-1].max()) == 0


def test_reads_and_edits_of_a_post_norms_output_see_the_frozen_one() -> None:
    model = build("gemma3")
    instrument = Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]
    plain = instrument.run(ids(), reads=["z.0", "attn_out.0"])
    s = norm_scales(plain, "post_attn_norm.0", instrument.parts)
    doubled = frozen(instrument, [FreezeNorm("post_attn_norm.0", 2 * s)], ids(), reads=["attn_out.0"])
    torch.testing.assert_close(doubled["attn_out.0"], 2 * plain["attn_out.0"], atol=1e-4, rtol=1e-4)
    undone = frozen(
        instrument, [FreezeNorm("post_attn_norm.0", 2 * s), Scale("attn_out.0", factor=0.5)], ids(), reads=["attn_out.0"]
    )
    torch.testing.assert_close(undone["attn_out.0"], plain["attn_out.0"], atol=1e-4, rtol=1e-4)


def test_later_freezes_win_and_hooks_leave_no_trace(llama: Instrument) -> None:
    plain = llama.run(ids(), reads=["resid_pre.*"])
    own = FreezeNorm("pre_attn_norm.1", norm_scales(plain, "pre_attn_norm.1", llama.parts))
    other = FreezeNorm("pre_attn_norm.1", torch.full((1, LENGTH), 0.5))
    first = frozen(llama, [own, other], ids())["logits"]
    assert torch.equal(first, frozen(llama, [other], ids())["logits"])
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
        frozen(llama, [FreezeNorm("final_norm", torch.ones(1, 3))], ids())
    with pytest.raises(EditError, match="twice"):
        frozen(llama, [FreezeNorm("final_norm", torch.ones(1, 2), rows=(-1, LENGTH - 1))], ids())
    with pytest.raises(ReadError, match=r"resid_mid\.0 was not read"):
        norm_scales(llama.run(ids()), "pre_mlp_norm.0", llama.parts)


# Positions


def test_whole_positions_as_floats_are_the_same_positions(instrument: Instrument) -> None:
    plain = instrument.run(ids())["logits"]
    whole = model_positions(Positions(torch.arange(LENGTH).double()), instrument.parts, 2, LENGTH, instrument.device)
    assert whole.dtype == torch.long and whole.shape == (2, LENGTH)
    assert torch.equal(instrument.run(ids(), edits=[Positions(whole)])["logits"], plain)
    if instrument.parts.position_embed is None:
        assert torch.equal(instrument.run(ids(), edits=[Positions(torch.arange(LENGTH).float()[None])])["logits"], plain)


def test_rotary_positions_are_relative_and_may_lie_between(instrument: Instrument) -> None:
    x = ids(1)
    base = torch.arange(LENGTH).float()
    plain = instrument.run(x)["logits"]
    if instrument.parts.position_embed is not None:
        with pytest.raises(EditError, match="learned positions"):
            model_positions(Positions(base + 0.5), instrument.parts, 1, LENGTH, instrument.device)
        with pytest.raises(EditError, match="0 to 255"):
            model_positions(Positions(base + 250), instrument.parts, 1, LENGTH, instrument.device)
        return
    for shift in (7, 0.5, -0.25):
        moved = model_positions(Positions(base + shift), instrument.parts, 1, LENGTH, instrument.device)
        torch.testing.assert_close(instrument.run(x, edits=[Positions(moved)])["logits"], plain, atol=1e-3, rtol=1e-3)

    def squeezed(step: float) -> torch.Tensor:
        ids_ = model_positions(Positions(base * step), instrument.parts, 1, LENGTH, instrument.device)
        return instrument.run(x, edits=[Positions(ids_)])["logits"]

    # Position interpolation moves the logits, and by little where the step is nearly one.
    far, near = (float((squeezed(step) - plain).abs().max()) for step in (0.5, 1 - 1e-3))
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
