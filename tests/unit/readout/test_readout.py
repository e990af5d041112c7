"""Logit lens and direct logit attribution on every family: identities and a brute-force oracle."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import build, FAMILIES

from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import bind
from symbolic_residue.readout import direct_logit_attribution, dla_reads, fold, frozen_scale, lens_reads, logit_lens


@pytest.fixture(scope="module", params=list(FAMILIES))
def instrument(request: pytest.FixtureRequest) -> Instrument:
    model = build(request.param)
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


def ids(batch: int = 2, n: int = 10) -> torch.Tensor:
    return torch.randint(4, 384, (batch, n), generator=torch.Generator().manual_seed(3))


TARGETS = [(5, 9), (20, None), (9, 5)]


def test_the_parts_sum_to_the_logit_difference(instrument: Instrument) -> None:
    trace = instrument.run(ids(), reads=dla_reads(instrument.parts))
    dla = direct_logit_attribution(trace, instrument.parts, TARGETS, rows=(-1, -4))
    assert dla.heads.shape == (3, 2, 2, 2, instrument.parts.n_heads)
    size = float(dla.heads.abs().sum() / 12 + dla.mlps.abs().sum() / 12 + 1)
    assert float(dla.error.abs().max()) < 2e-5 * size
    logits = trace["logits"]
    cap = instrument.parts.logit_softcap
    assert dla.uncapped is (cap is not None)
    if cap is not None:  # what goes into the cap is attributed
        logits = cap * torch.atanh(logits / cap)
    torch.testing.assert_close(dla.total[0, :, 0], logits[:, -1, 5] - logits[:, -1, 9], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(dla.total[1, :, 1], logits[:, -4, 20], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(dla.heads[0], -dla.heads[2], atol=1e-5, rtol=1e-4)
    assert float(dla.heads.abs().max()) > 1e-2, "nothing to attribute"


def test_each_head_equals_the_write_it_makes(instrument: Instrument) -> None:
    """Oracle: form a head's write vector, project it with the frozen norms, in float64."""
    parts = instrument.parts
    trace = instrument.run(ids(), reads=dla_reads(parts))
    dla = direct_logit_attribution(trace, parts, [(5, 9)])
    last = trace["resid_post.1"][:, -1].double()
    centred = last - last.mean(-1, keepdim=True) if parts.final_norm.kind == "layer" else last
    s = torch.rsqrt(centred.pow(2).mean(-1) + parts.final_norm.eps)
    direction = (parts.w_u[5] - parts.w_u[9]).double() * parts.final_norm.gain().double()
    for i, layer in enumerate(parts.layers):
        z = trace[f"z.{i}"][:, -1].double()
        raw = sum(z[:, h] @ layer.w_o(h).double() for h in range(parts.n_heads))
        raw = raw if layer.b_o is None else raw + layer.b_o.double()
        for h in range(parts.n_heads):
            write = z[:, h] @ layer.w_o(h).double()
            if layer.post_attn_norm is not None:
                norm = layer.post_attn_norm
                write = write * norm.gain().double() * torch.rsqrt(raw.pow(2).mean(-1, keepdim=True) + norm.eps)
            if parts.final_norm.kind == "layer":
                write = write - write.mean(-1, keepdim=True)
            want = (write @ direction) * s * parts.logit_scale * layer.attn_scale
            torch.testing.assert_close(dla.heads[0, :, 0, i, h].double(), want, atol=1e-4, rtol=1e-4)


def test_folded_norm_is_the_norm(instrument: Instrument) -> None:
    norm = instrument.parts.final_norm
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)) * 3 + 1
    u = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
    bias = norm.bias()
    got = frozen_scale(norm, x)[:, None] * (x @ fold(norm, u).T) + (0 if bias is None else u @ bias)
    torch.testing.assert_close(got, norm.module(x) @ u.T, atol=1e-4, rtol=1e-4)


def test_the_last_depth_of_the_lens_is_the_output(instrument: Instrument) -> None:
    trace = instrument.run(ids(), reads=lens_reads())
    lens = logit_lens(trace, instrument.parts, tokens=(5, 9))
    log_p = torch.log_softmax(trace["logits"].float(), -1)
    assert lens.top.shape == (3, 2, 10)
    torch.testing.assert_close(lens.log_probability[-1], log_p[..., [5, 9]], atol=1e-4, rtol=1e-4)
    assert torch.equal(lens.top[-1], log_p.argmax(-1))
    torch.testing.assert_close(lens.entropy[-1], -(log_p.exp() * log_p).sum(-1), atol=1e-4, rtol=1e-4)
    some = logit_lens(trace, instrument.parts, tokens=(9,), rows=(-1,))
    torch.testing.assert_close(some.log_probability[:, :, 0, 0], lens.log_probability[:, :, -1, 1])
    assert float((lens.log_probability[0] - lens.log_probability[-1]).abs().max()) > 1e-2


def test_refusals(instrument: Instrument) -> None:
    trace = instrument.run(ids(), reads=dla_reads(instrument.parts))
    for targets in ([], [(5, 99999)], [(-1, None)]):
        with pytest.raises(ConfigError):
            direct_logit_attribution(trace, instrument.parts, targets)
    with pytest.raises(ConfigError, match="from the end"):
        direct_logit_attribution(trace, instrument.parts, [(5, 9)], rows=(0,))
    with pytest.raises(ReadError):
        direct_logit_attribution(instrument.run(ids()), instrument.parts, [(5, 9)])
