"""Edits of attention patterns as pure functions of random softmax rows, against loops over entries and softmax identities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from symbolic_residue.errors import EditError
from symbolic_residue.instrument import AttentionBias, AttentionMask, PatternReplace, PatternScale
from symbolic_residue.instrument._apply import resolve
from symbolic_residue.instrument.attention._pattern import edit_weights, edits_of_layer, score_bias, touched_rows


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 4))
def test_the_others_take_what_the_chosen_keys_lose(seed: int, factor: float, n_keys: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p = torch.softmax(3 * torch.randn(2, 3, 4, 7, generator=generator, dtype=torch.float64), -1)
    p = p * torch.rand(2, 3, 4, 1, generator=generator, dtype=torch.float64)  # rows with a sink sum to less than 1
    keys = torch.randperm(7, generator=generator)[:n_keys].tolist()
    others = [k for k in range(7) if k not in keys]
    got = edit_weights(p, torch.arange(4), [PatternScale(factor, keys, rows=(1, 2), renormalise="others")], 0)
    assert torch.equal(got[:, :, [0, 3]], p[:, :, [0, 3]])
    rows = [1, 2]
    assert torch.allclose(got[:, :, rows].sum(-1), p[:, :, rows].sum(-1))
    assert torch.allclose(got[:, :, rows][..., keys], factor * p[:, :, rows][..., keys])
    ratio = got[:, :, rows][..., others] / p[:, :, rows][..., others]
    assert torch.allclose(ratio, ratio[..., :1].expand_as(ratio))  # in proportion to what they have
    assert bool((ratio >= 1 - 1e-12).all())


def test_a_row_that_sees_the_chosen_keys_only_is_refused() -> None:
    p = torch.zeros(1, 1, 2, 3)
    p[..., 0] = 1.0
    with pytest.raises(EditError, match="no weight to renormalise"):
        edit_weights(p, torch.arange(2), [PatternScale(0.5, (0,), renormalise="others")], 0)
    # Keys that the row does not see lose nothing.
    assert torch.equal(edit_weights(p, torch.arange(2), [PatternScale(0.5, (1, 2), renormalise="others")], 0), p)
    with pytest.raises(EditError, match="unknown"):
        PatternScale(0.5, (0,), renormalise="all")  # pyright: ignore[reportArgumentType]
