"""Logit lens: KL, ranks and entropy by their definitions in float64, the depths between attention and MLP, and the frames."""

from __future__ import annotations

from types import SimpleNamespace

import polars as pl
import pytest
import torch
from tiny_models import ALL, build

from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import bind
from symbolic_residue.readout import _lens, lens_frames, lens_reads, logit_lens


@pytest.fixture(scope="module", params=list(ALL))
def instrument(request: pytest.FixtureRequest) -> Instrument:
    return instrument_of(request.param)


def instrument_of(name: str) -> Instrument:
    model = build(name)
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


def ids(batch: int = 2, n: int = 10) -> torch.Tensor:
    return torch.randint(4, 384, (batch, n), generator=torch.Generator().manual_seed(3))


def dense(instrument: Instrument, resid: torch.Tensor) -> torch.Tensor:
    """Log-probabilities by the formula, in float64."""
    parts = instrument.parts
    logits = parts.final_norm.formula(resid) @ parts.w_u.double().T
    logits = parts.logit_scale * (logits if parts.b_u is None else logits + parts.b_u.double())
    cap = parts.logit_softcap
    return torch.log_softmax(logits if cap is None else cap * torch.tanh(logits / cap), -1)


def test_every_number_is_its_definition(instrument: Instrument) -> None:
    trace = instrument.run(ids(), reads=lens_reads())
    lens = logit_lens(trace, instrument.parts, tokens=(5, 9))
    final = dense(instrument, trace[lens.points[-1]])
    for depth, point in enumerate(lens.points):
        log_p = dense(instrument, trace[point])
        torch.testing.assert_close(lens.kl[depth].double(), (final.exp() * (final - log_p)).sum(-1), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(lens.entropy[depth].double(), -(log_p.exp() * log_p).sum(-1), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(lens.log_probability[depth].double(), log_p[..., [5, 9]], atol=2e-4, rtol=1e-3)
        order = log_p.argsort(-1, descending=True)
        rank = torch.stack([(order == token).long().argmax(-1) for token in (5, 9)], -1)
        assert int((rank - lens.rank[depth]).abs().max()) <= 1, "a near tie may swap two neighbours"
        assert float((rank == lens.rank[depth]).double().mean()) > 0.9
    assert float(lens.kl[-1].max()) < 1e-5
    assert float(lens.kl[0].min()) > 1e-2
    torch.testing.assert_close(
        lens.log_probability[-1], torch.log_softmax(trace["logits"].float(), -1)[..., [5, 9]], atol=2e-4, rtol=1e-3
    )
    assert torch.equal(lens.rank == 0, lens.top[..., None] == torch.tensor([5, 9]))


def test_depths_between_attention_and_mlp(instrument: Instrument) -> None:
    parts = instrument.parts
    having = [layer.index for layer in parts.layers if layer.absent("resid_mid") is None]
    if not having:
        with pytest.raises(ReadError, match="between"):
            lens_reads(parts, mid=True)
        return
    trace = instrument.run(ids(), reads=lens_reads(parts, mid=True))
    lens = logit_lens(trace, parts, tokens=(5,), mid=True)
    assert [p for p in lens.points if "mid" in p] == [f"resid_mid.{i}" for i in having]
    plain = logit_lens(trace, parts, tokens=(5,))
    keep = [i for i, p in enumerate(lens.points) if "mid" not in p]
    torch.testing.assert_close(lens.kl[keep], plain.kl)
    at = lens.points.index(f"resid_mid.{having[0]}")
    torch.testing.assert_close(
        lens.log_probability[at].double(), dense(instrument, trace[lens.points[at]])[..., [5]], atol=2e-4, rtol=1e-3
    )


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    instrument = instrument_of("llama")
    trace = instrument.run(ids(), reads=lens_reads())
    whole = logit_lens(trace, instrument.parts, tokens=(5,), rows=(0, 3, -1, -2, 4))
    monkeypatch.setattr(_lens, "_BLOCK", 2 * 384 * 2)
    pieces = logit_lens(trace, instrument.parts, tokens=(5,), rows=(0, 3, -1, -2, 4))
    for name in ("top", "entropy", "kl", "log_probability", "rank"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), atol=1e-5, rtol=1e-5)


def test_frames_say_what_the_tensors_say() -> None:
    instrument = instrument_of("llama")
    trace = instrument.run(ids(), reads=lens_reads())
    lens = logit_lens(trace, instrument.parts, tokens=(5, 9), rows=(-1, -3))
    depths, tokens = lens_frames(lens, 1)
    assert depths.columns == ["depth", "point", "row", "top_token", "top_probability", "entropy", "kl"]
    assert depths.height == 3 * 2 and tokens.height == 3 * 2 * 2
    one = depths.row(by_predicate=(pl.col("depth") == 1) & (pl.col("row") == 1), named=True)
    assert one["point"] == "resid_post.0" and one["top_token"] == int(lens.top[1, 1, 1])
    assert one["kl"] == pytest.approx(float(lens.kl[1, 1, 1]))
    other = tokens.row(by_predicate=(pl.col("depth") == 2) & (pl.col("row") == 0) & (pl.col("token") == 9), named=True)
    assert other["rank"] == int(lens.rank[2, 1, 0, 1]) and other["log_probability"] == pytest.approx(
        float(lens.log_probability[2, 1, 0, 1])
    )
    assert lens_frames(logit_lens(trace, instrument.parts), 0)[1].is_empty()


def test_refusals() -> None:
    instrument = instrument_of("llama")
    trace = instrument.run(ids(), reads=lens_reads())
    for tokens in ((384,), (-1,)):
        with pytest.raises(ConfigError, match="vocabulary"):
            logit_lens(trace, instrument.parts, tokens=tokens)
    with pytest.raises(ReadError, match="no row"):
        logit_lens(trace, instrument.parts, rows=(10,))
    with pytest.raises(ReadError, match="resid_mid"):
        logit_lens(trace, instrument.parts, mid=True)
    with pytest.raises(ConfigError, match="depend on the model"):
        lens_reads(mid=True)
    with pytest.raises(ReadError, match="no sequence"):
        lens_frames(logit_lens(trace, instrument.parts), 2)
