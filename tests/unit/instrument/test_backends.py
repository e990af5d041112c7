"""Every backend on every variant of attention, against the dense float64 oracle.

A variant is written twice: as the model would hand it over (a mask of some form, softcap, sinks, a bias), and as the oracle wants it (who sees whom).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, Tensor

from symbolic_residue.errors import AttentionError, ConfigError
from symbolic_residue.instrument.attention import (
    AttentionRead,
    Call,
    compute,
    dense_stats,
    dense_weights,
    MaskCache,
    RegionMap,
    STATS,
    understand,
    visible_keys,
    why_not,
)
from symbolic_residue.instrument.attention._backends import check_backend
from symbolic_residue.prompts import Regions

NAMES = ("sink", "one", "two", "three")
TOLERANCE = {
    "mass": 1e-5,
    "entropy": 1e-4,
    "distance": 2e-3,
    "max": 1e-5,
    "self": 1e-5,
    "sink": 1e-5,
    "weights": 1e-5,
    "received": 1e-4,
}
EVERY = set(STATS) - {"lse"}
BACKENDS = ("native", "torch", "blocks", "dense")


@dataclass
class Case:
    """One attention as the door gets it, and as the oracle sees it."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    visible: Tensor
    bias: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    position_bias: Tensor | None = None
    total: int | None = None

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5

    def call(self) -> Call:
        options = {"softcap": self.softcap, "s_aux": self.sinks, "position_bias": self.position_bias}
        module = nn.Module()
        return understand(
            module,
            self.q,
            self.k,
            self.v,
            self.mask,
            scaling=None,
            dropout=0.0,
            total=self.total,
            masks=MaskCache(),
            options=options,
        )

    def want(self, regions: RegionMap) -> tuple[Tensor, dict[str, Tensor]]:
        n = self.visible.shape[-1]
        w = dense_weights(self.q, self.k[:, :, :n], self.scale, self.visible, self.bias, softcap=self.softcap, sinks=self.sinks)
        groups = self.q.shape[1] // self.k.shape[1]
        out = torch.matmul(w.nan_to_num(0.0), self.v[:, :, :n].double().repeat_interleave(groups, 1))
        return out.transpose(1, 2), dense_stats(w, regions.indicator(torch.float64))


def tensors(g: torch.Generator, n: int, *, batch=2, heads=(4, 2), queries=None, d=16, dv=None, spread=2.0):
    queries = n if queries is None else queries
    q = torch.randn(batch, queries, heads[0], d, generator=g).transpose(1, 2) * spread  # strided, as transformers hands it over
    k = torch.randn(batch, n, heads[1], d, generator=g).transpose(1, 2)
    return q, k, torch.randn(batch, n, heads[1], dv or d, generator=g).transpose(1, 2)


def additive(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def plain(g, n):
    return Case(*tensors(g, n), None, visible_keys(n, n, batch=2))


def multi_query(g, n):
    return Case(*tensors(g, n, heads=(3, 1)), None, visible_keys(n, n, batch=2))


def wide_values(g, n):
    return Case(*tensors(g, n, heads=(4, 4), d=12, dv=20), None, visible_keys(n, n, batch=2))


def window(g, n):
    seen = visible_keys(n, n, window=7, batch=2)
    return Case(*tensors(g, n), seen[:, None], seen)


def padded_left(g, n):
    real = torch.ones(2, n)
    real[1, : n // 3] = 0
    seen = visible_keys(n, n, padding=real, batch=2)
    return Case(*tensors(g, n), seen[:, None], seen)


def padded_right(g, n):
    real = torch.ones(2, n)
    real[0, n - n // 3 :] = 0
    seen = visible_keys(n, n, padding=real, batch=2)
    return Case(*tensors(g, n), additive(seen[:, None]), seen)


def packed(g, n):
    piece = torch.arange(n) // 5
    seen = visible_keys(n, n, batch=2) & (piece[:, None] == piece[None])[None]
    return Case(*tensors(g, n), seen[:, None], seen)


def holes(g, n):
    seen = visible_keys(n, n, batch=2) & (torch.rand(2, n, n, generator=g) > 0.4)
    return Case(*tensors(g, n), seen[:, None], seen)


def holes_by_head(g, n):
    seen = visible_keys(n, n, batch=2)[:, None] & (torch.rand(2, 4, n, n, generator=g) > 0.4)
    return Case(*tensors(g, n), seen, seen)


def alibi(g, n):
    slopes = 2.0 ** -torch.arange(1, 5)
    bias = (slopes[:, None, None] * torch.arange(n)[None, None]).expand(4, 1, n)[None]
    seen = visible_keys(n, n, batch=2)
    return Case(*tensors(g, n), None, seen, bias=bias, position_bias=bias)


def bias_in_the_mask(g, n):
    bias = torch.randn(1, 4, n, n, generator=g)
    seen = visible_keys(n, n, batch=1)[:, None]
    mask = bias.masked_fill(~seen, torch.finfo(torch.float32).min)
    return Case(*tensors(g, n), mask, seen.expand(2, 4, -1, -1), bias=bias)


def softcapped(g, n):
    return Case(*tensors(g, n, spread=6.0), None, visible_keys(n, n, batch=2), softcap=5.0)


def softcapped_window(g, n):
    seen = visible_keys(n, n, window=7, batch=2)
    return Case(*tensors(g, n, spread=6.0), seen[:, None], seen, softcap=5.0)


def sink_logits(g, n):
    return Case(*tensors(g, n), None, visible_keys(n, n, batch=2), sinks=torch.randn(4, generator=g) * 2)


def sink_logits_padded_window(g, n):
    real = torch.ones(2, n)
    real[1, : n // 3] = 0
    seen = visible_keys(n, n, window=7, padding=real, batch=2)
    return Case(*tensors(g, n), additive(seen[:, None]), seen, sinks=torch.randn(4, generator=g) * 2)


def decode(g, n):
    return Case(*tensors(g, n, queries=1), None, visible_keys(1, n, batch=2), total=n)


def decode_padded(g, n):
    real = torch.ones(2, n)
    real[1, : n // 3] = 0
    seen = visible_keys(1, n, padding=real, batch=2)
    return Case(*tensors(g, n, queries=1), seen[:, None], seen, total=n)


def continued(g, n):
    m = max(n // 2, 1)
    seen = visible_keys(m, n, batch=2)
    return Case(*tensors(g, n, queries=m), seen[:, None], seen, total=n)


def static_prefill(g, n):
    q, k, v = tensors(g, n + 6, queries=n)
    return Case(q, k, v, None, visible_keys(n, n, batch=2), total=n)


def static_decode(g, n):
    q, k, v = tensors(g, n + 6, queries=1)
    seen = visible_keys(1, n, batch=2)
    return Case(q, k, v, torch.cat([seen, torch.zeros(2, 1, 6, dtype=torch.bool)], -1)[:, None], seen, total=n)


VARIANTS: tuple[Callable[[torch.Generator, int], Case], ...] = (
    plain,
    multi_query,
    wide_values,
    window,
    padded_left,
    padded_right,
    packed,
    holes,
    holes_by_head,
    alibi,
    bias_in_the_mask,
    softcapped,
    softcapped_window,
    sink_logits,
    sink_logits_padded_window,
    decode,
    decode_padded,
    continued,
    static_prefill,
    static_decode,
)


def region_map(n: int, seed: int = 0) -> RegionMap:
    """Interleaved regions: a sink, then the three others in turn."""
    return RegionMap.build(Regions(NAMES, np.array([0, *(1 + np.arange(n - 1) % 3)])), 2, n, (0, 0), torch.device("cpu"))


def compare(got: dict[str, Tensor], want: dict[str, Tensor], seen: Tensor) -> None:
    """Rows that see a key must agree; rows that see nothing must be zero, not NaN."""
    for name, tolerance in TOLERANCE.items():
        if name not in got:
            continue
        if name == "received":
            torch.testing.assert_close(got[name].double(), want[name], atol=tolerance, rtol=0)
            continue
        here = seen.expand(got[name].shape[:3])
        assert bool(torch.isfinite(got[name]).all()), name
        torch.testing.assert_close(
            got[name][here].double(), want[name][here], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
        if name in ("mass", "entropy", "max", "self"):
            assert bool((got[name][~here] == 0).all()), name
    if "argmax" in got:
        here = seen.expand(got["argmax"].shape)
        at = want["weights"].nan_to_num(0.0).gather(-1, got["argmax"].clamp_min(0)[..., None])[..., 0]
        torch.testing.assert_close(at[here], want["max"][here], atol=1e-5, rtol=0)
        assert bool((got["argmax"][~here] == -1).all())


def check(backend: str, case: Case, stats: set[str]) -> bool:
    """Whether the backend served it; then it equalled the oracle."""
    call = case.call()
    regions = region_map(call.n_keys)
    if why_not(backend, call, stats) is not None:  # type: ignore[arg-type]
        with pytest.raises(AttentionError, match="does not serve"):
            compute(backend, call, regions, stats, output=True, masks=MaskCache())  # type: ignore[arg-type]
        return False
    used, output, got = compute(backend, call, regions, stats, output=True, masks=MaskCache())  # type: ignore[arg-type]
    assert used == backend
    out, want = case.want(regions)
    seen = case.visible.any(-1)
    compare(got, want, seen[:, None] if seen.dim() == 2 else seen)
    assert output is not None
    assert output.dtype == case.v.dtype
    torch.testing.assert_close(output.double(), out, atol=2e-5, rtol=1e-5)
    _, none, alone = compute(backend, call, regions, stats, output=False, masks=MaskCache())  # type: ignore[arg-type]
    assert none is None
    for name, values in got.items():
        torch.testing.assert_close(alone[name], values, atol=1e-6, rtol=1e-5)
    return True


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.__name__)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_equals_the_oracle(backend: str, variant: Callable[[torch.Generator, int], Case]) -> None:
    served = []
    for n in (1, 5, 24, 150):
        case = variant(torch.Generator().manual_seed(n), n)
        served.append(check(backend, case, EVERY) if backend in ("blocks", "dense") else False)
        # With fewer statistics more backends serve: the fused call has no maxima under a mask and no entropy under a bias.
        for stats in ({"mass", "entropy", "distance", "self", "sink"}, {"mass", "distance"}, EVERY - {"received"}):
            served.append(check(backend, case, stats))
    if backend in ("blocks", "dense"):
        assert all(served)


def test_what_each_backend_serves() -> None:
    """The capability table, so that a change of it is seen."""
    g = torch.Generator().manual_seed(0)
    calls = {v.__name__: v(g, 12).call() for v in VARIANTS}
    unserved = {name for name, call in calls.items() if why_not("torch", call, {"mass", "entropy", "distance"}) is not None}
    assert unserved == {"softcapped", "softcapped_window", "alibi", "bias_in_the_mask"}
    for call in calls.values():
        assert why_not("blocks", call, set(STATS)) is None
        assert why_not("dense", call, set(STATS)) is None


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.__name__)
def test_masks_become_intervals(variant: Callable[[torch.Generator, int], Case]) -> None:
    """No T×T mask is left but where the mask has holes; and the interval says exactly who sees whom."""
    case = variant(torch.Generator().manual_seed(0), 30)
    call = case.call()
    assert (call.keep is not None) == variant.__name__.startswith("holes")
    seen = call.visible(torch.arange(call.n_queries), 0, call.n_keys)
    got = torch.ones(1, dtype=torch.bool) if seen is None else seen
    want = case.visible if case.visible.dim() == 4 else case.visible[:, None]
    assert torch.equal(got.expand(want.shape), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_exact_for_its_own_q_and_k(backend: str, dtype: torch.dtype) -> None:
    case = plain(torch.Generator().manual_seed(0), 60)
    case.q, case.k, case.v = case.q.to(dtype), case.k.to(dtype), case.v.to(dtype)
    call, regions = case.call(), region_map(60)
    stats = EVERY - {"received"}
    if why_not(backend, call, stats) is not None:  # type: ignore[arg-type]
        pytest.skip(f"{backend}: {why_not(backend, call, stats)}")  # type: ignore[arg-type]
    _, output, got = compute(backend, call, regions, stats, output=True, masks=MaskCache())  # type: ignore[arg-type]
    compare(got, case.want(regions)[1], torch.ones(1, 1, 1, dtype=torch.bool))
    assert output is not None
    assert output.dtype == dtype


def test_float64_models_are_read_in_float64() -> None:
    case = plain(torch.Generator().manual_seed(0), 40)
    case.q, case.k, case.v = case.q.double(), case.k.double(), case.v.double()
    regions = region_map(40)
    for backend in ("torch", "blocks"):
        _, _, got = compute(backend, case.call(), regions, EVERY - {"received"}, output=False, masks=MaskCache())  # type: ignore[arg-type]
        want = case.want(regions)[1]
        for name in ("mass", "entropy", "max"):
            assert got[name].dtype == torch.float64
            torch.testing.assert_close(got[name], want[name], atol=1e-11, rtol=0)


def test_names_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="no attention backend 'flash'"):
        check_backend("flash", "auto")
    with pytest.raises(ConfigError, match="no readout mode"):
        check_backend("auto", "both")
    with pytest.raises(ConfigError, match="Unknown attention statistic"):
        AttentionRead(stats=("entropie",))  # type: ignore[arg-type]


def test_what_cannot_be_understood_is_refused() -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = tensors(g, 8, queries=4)
    module = nn.Module()
    base = {"scaling": None, "dropout": 0.0, "total": 8, "masks": MaskCache(), "options": {}}
    with pytest.raises(AttentionError, match="without a mask"):
        understand(module, q, k, v, None, **base)
    with pytest.raises(AttentionError, match="mask of shape"):
        understand(module, q, k, v, torch.ones(1, 1, 4, 9, dtype=torch.bool), **base)
    with pytest.raises(AttentionError, match="training mode"):
        understand(module, q, k, v, None, **(base | {"dropout": 0.1}))
    q, k, v = tensors(g, 8)
    with pytest.raises(AttentionError, match="not causal"):
        understand(module, q, k, v, None, **(base | {"options": {"is_causal": False}}))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_mask_padding_and_window(data: st.DataObject) -> None:
    """Random masks, paddings, windows and sizes: every backend that serves them equals the oracle."""
    random_case(
        lambda low, high: data.draw(st.integers(low, high)),
        lambda options: data.draw(st.sampled_from(options)),
        BACKENDS,
    )


def random_case(integer: Callable[[int, int], int], choice: Callable[[list], Any], backends: tuple[str, ...]) -> None:
    """One random attention on all backends. Also run 10,000 times by ``benchmarks/fuzz_attention.py``."""
    seed = integer(0, 2**31)
    g = torch.Generator().manual_seed(seed)
    n = integer(1, 90)
    heads = choice([(4, 2), (6, 2), (3, 3), (4, 1)])
    queries = choice([n, n, n, 1, max(n // 2, 1)])
    d = choice([4, 16, 20])
    seen = visible_keys(queries, n, batch=2, window=choice([None, None, 1, 3, 8, 200]))
    real = torch.ones(2, n, dtype=torch.bool)
    lead, tail = integer(0, n), integer(0, n)
    real[0, :lead] = False
    real[1, n - tail :] = False
    if choice([False, True]):
        seen = seen & real[:, None]
    if choice([False, True]):
        piece = torch.arange(n) // integer(1, n)
        seen = seen & (piece[None, n - queries :, None] == piece[None, None])
    if choice([False, False, True]):
        seen = seen & (torch.rand(seen.shape, generator=g) > 0.3)
    q, k, v = tensors(g, n, heads=heads, queries=queries, d=d, spread=choice([0.1, 2.0, 8.0]))
    mask = seen[:, None]
    bias = None
    form = choice(["bool", "additive", "bias"])
    if form == "additive":
        mask = additive(mask)
    elif form == "bias":
        bias = torch.randn(2, heads[0], queries, n, generator=g)
        mask = additive(mask) + bias
    case = Case(
        q,
        k,
        v,
        mask,
        seen if bias is None else seen[:, None].expand(-1, heads[0], -1, -1),
        bias=bias,
        softcap=choice([None, None, 3.0]),
        sinks=choice([None, None, torch.linspace(-2, 2, heads[0])]),
        total=n,
    )
    for backend in backends:
        for stats in (EVERY, EVERY - {"received"}, {"mass", "entropy", "distance", "self", "sink"}, {"mass", "distance"}):
            if why_not(backend, case.call(), stats) is None:  # type: ignore[arg-type]
                assert check(backend, case, stats)
