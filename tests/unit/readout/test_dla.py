"""Direct logit attribution of all heads and rows, from a trace and during the forward, on every family."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import ALL as FAMILIES
from tiny_models import build

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import AttentionRead, collate, HeadScale, Instrument
from symbolic_residue.models import bind
from symbolic_residue.readout import direct_logit_attribution, DirectLogitAttribution, dla_during, dla_reads

TARGETS = [(5, 9), (20, None)]


def instrument_of(name: str, **changes: object) -> Instrument:
    model = build(name, **changes)
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=list(FAMILIES))
def instrument(request: pytest.FixtureRequest) -> Instrument:
    return instrument_of(request.param)


def ids(batch: int = 2, n: int = 10) -> torch.Tensor:
    return torch.randint(4, 384, (batch, n), generator=torch.Generator().manual_seed(3))


def size(dla: DirectLogitAttribution) -> float:
    """Scale of what is added up."""
    return float(1 + dla.heads.nan_to_num().abs().sum((-1, -2)).mean() + dla.mlps.nan_to_num().abs().sum(-1).mean())


def test_all_rows_are_complete_and_streaming_says_the_same(instrument: Instrument) -> None:
    trace = instrument.run(ids(), reads=dla_reads(instrument.parts))
    kept = direct_logit_attribution(trace, instrument.parts, TARGETS, rows=None)
    assert kept.heads.shape == (2, 2, 10, instrument.parts.n_layers, instrument.parts.n_heads)
    streamed, bare = dla_during(instrument, ids(), TARGETS)
    assert bare.tensors == {} and bare["logits"].shape[1] == 1
    for dla in (kept, streamed):
        assert float(dla.error.abs().max()) < 1e-4 * size(dla)
    for name in ("heads", "mlps", "mixers", "attention_bias", "embedding", "constant"):
        torch.testing.assert_close(getattr(streamed, name), getattr(kept, name), equal_nan=True, atol=1e-5, rtol=1e-4)
    if instrument.parts.logit_softcap is None:
        wanted = torch.stack([trace["logits"][..., 5] - trace["logits"][..., 9], trace["logits"][..., 20]])
        torch.testing.assert_close(streamed.total, wanted, atol=1e-4, rtol=1e-4)
    assert float(kept.heads.nan_to_num().abs().max()) > 1e-2, "nothing to attribute"


def test_absent_parts_are_nan_and_present_ones_are_not(instrument: Instrument) -> None:
    dla, _ = dla_during(instrument, ids(), TARGETS)
    for layer in instrument.parts.layers:
        for part, kind in ((dla.heads, "z"), (dla.mixers, "mixer_out"), (dla.mlps, "mlp_out")):
            there = layer.absent(kind) is None  # type: ignore[arg-type]
            assert bool(part[:, :, :, layer.index].isnan().all()) is not there
            assert bool(part[:, :, :, layer.index].isfinite().all()) is there


def test_a_nan_that_is_no_absent_part_is_not_summed_away(instrument: Instrument) -> None:
    dla, _ = dla_during(instrument, ids(), TARGETS)
    dla.mlps[0, 0, 3, 0] = float("nan")
    assert dla.sum[0, 0, 3].isnan()
    assert int(dla.sum.isnan().sum()) == 1


@pytest.mark.parametrize("cap", [2.0])
def test_a_softcapped_logit_is_attributed_before_the_cap(cap: float) -> None:
    instrument = instrument_of("gemma3", final_logit_softcapping=cap)
    trace = instrument.run(ids(), reads=dla_reads(instrument.parts))
    dla = direct_logit_attribution(trace, instrument.parts, [(20, None)], rows=None)
    assert dla.uncapped
    assert float(dla.error.abs().max()) < 1e-4 * size(dla)
    assert float(dla.total.abs().max()) > 2 * cap, "the cap must bite for this test to say anything"
    torch.testing.assert_close(cap * torch.tanh(dla.total[0] / cap), trace["logits"][..., 20], atol=1e-4, rtol=1e-4)
    assert not dla_during(instrument_of("llama"), ids(), TARGETS)[0].uncapped


def test_padding_edits_and_attention_go_through_the_streaming_forward() -> None:
    instrument = instrument_of("llama")
    batch = collate([ids(1, 6)[0].tolist(), ids(1, 9)[0].tolist()])
    edits = [HeadScale(1, 2, 0.0)]
    read = AttentionRead(stats=("entropy",))
    dla, trace = dla_during(instrument, batch, TARGETS, edits=edits, attention=read, keep_logits=2)
    assert trace.attention is not None and trace["logits"].shape[1] == 2
    assert float(dla.heads[..., 1, 2].abs().max()) == 0.0
    kept = instrument.run(batch, reads=dla_reads(instrument.parts), edits=edits)
    same = direct_logit_attribution(kept, instrument.parts, TARGETS, rows=(-1, -2))
    torch.testing.assert_close(dla.heads[:, :, [-1, -2]], same.heads, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(trace["logits"][:, -1], kept["logits"][:, -1])


def test_no_hook_is_left_and_refusals_leave_none() -> None:
    instrument = instrument_of("gemma3")

    def hooks() -> int:
        return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in instrument.model.modules())

    dla_during(instrument, ids(), TARGETS)
    assert hooks() == 0
    with pytest.raises(RuntimeError):
        dla_during(instrument, ids(), TARGETS, inputs_embeds=torch.zeros(2, 10, 3))
    assert hooks() == 0
    for targets in ([], [(5, 99999)], [(-1, None)]):
        with pytest.raises(ConfigError):
            dla_during(instrument, ids(), targets)
