"""Beginnings run once: every ending after every cut is the full forward, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import build, FAMILIES, HYBRIDS, tiny_tokenizer

from symbolic_residue.errors import EditError, InstrumentError
from symbolic_residue.instrument import AttentionBias, AttentionRead, collate, HeadScale, Instrument, Positions, Prefix
from symbolic_residue.models import wrap
from symbolic_residue.prompts import Regions

HEADS = [list(range(20, 33)), list(range(60, 70)), list(range(100, 113))]
TAIL = torch.tensor([[41, 42, 43, 44], [51, 52, 53, 54], [61, 62, 63, 64]])


@pytest.fixture(scope="module", params=[*FAMILIES, *HYBRIDS])
def instrument(request: pytest.FixtureRequest) -> Instrument:
    return Instrument(wrap(build(request.param), tiny_tokenizer()))


def whole(drop: int) -> list[list[int]]:
    """The sequences as they are read: the beginnings are right-aligned, so a cut takes the same number from each."""
    return [head[: len(head) - drop] + tail for head, tail in zip(HEADS, TAIL.tolist(), strict=True)]


@pytest.mark.parametrize("drop", [0, 3, 9])
def test_endings_equal_full_forwards(instrument: Instrument, drop: int) -> None:
    prefix = Prefix(instrument, collate(HEADS))
    layer = instrument.attention_layers[-1]
    edits = [HeadScale(layer, 1, 0.3, rows=(-2,)), AttentionBias(1.3, keys=[5], rows=(-1,), batch=(0,))]
    regions = [Regions.from_spans(len(s), (), rest="text") for s in whole(drop)]
    read = AttentionRead(regions=regions, stats=("mass", "entropy"), split_self=True)
    got = prefix.run(TAIL, drop=drop, edits=edits, reads=(f"z.{layer}",), attention=read)
    batch = collate(whole(drop))
    want = instrument.run(
        batch, edits=edits, reads=(f"z.{layer}",), attention=AttentionRead(**{**read.__dict__, "rows": (-4, -3, -2, -1)})
    )
    torch.testing.assert_close(got["logits"], want["logits"][:, -4:], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(got[f"z.{layer}"], want[f"z.{layer}"][:, -4:], atol=2e-4, rtol=1e-4)
    assert got.attention is not None
    assert want.attention is not None
    torch.testing.assert_close(got.attention["mass"], want.attention["mass"], atol=1e-4, rtol=1e-4)
    again = prefix.run(TAIL, drop=drop, keep_logits=1)["logits"]  # nothing that ran before is left in the beginnings
    plain = instrument.run(batch, keep_logits=1)["logits"]
    torch.testing.assert_close(again, plain, atol=2e-4, rtol=1e-4)
    row = prefix.last_row(TAIL, drop=drop)
    edit = HeadScale(layer, 0, 0.0, rows=(-1,), batch=(1, 3, 5))
    torch.testing.assert_close(row.run()["logits"], plain, atol=2e-4, rtol=1e-4)
    assert row.run([edit], copies=2)["logits"].shape[0] == 6


def test_a_kept_ending_is_not_run_again(instrument: Instrument) -> None:
    """The row before its end equals the whole forward's; another ending or cut is run for itself, and edited runs are not kept."""
    prefix, layer = Prefix(instrument, collate(HEADS)), instrument.attention_layers[-1]
    prefix.run(TAIL, drop=3, edits=[HeadScale(layer, 1, 0.3, rows=(-2,))], keep=True)
    prefix.run(TAIL, drop=3, keep=True)
    for tail, drop in ((TAIL[:, :3], 3), (TAIL, 3), (TAIL[:, 1:], 3), (TAIL, 2)):
        got = prefix.last_row(tail, drop=drop).run()["logits"]
        ids = [head[: len(head) - drop] + one for head, one in zip(HEADS, tail.tolist(), strict=True)]
        torch.testing.assert_close(got, instrument.run(collate(ids), keep_logits=1)["logits"], atol=2e-4, rtol=1e-4)
    if prefix._cache is not None:
        calls: list[int] = []
        hook = instrument.model.register_forward_pre_hook(lambda module, args: calls.append(1))
        prefix.last_row(TAIL[:, :3], drop=3)
        hook.remove()
        assert not calls


def test_copies_carry_their_own_edits(instrument: Instrument) -> None:
    prefix, layer = Prefix(instrument, collate(HEADS)), instrument.attention_layers[0]
    edits = [HeadScale(layer, 0, 0.0, batch=range(1, 6, 2))]
    got = prefix.run(TAIL, drop=2, edits=edits, copies=2)["logits"]
    torch.testing.assert_close(got[::2], prefix.run(TAIL, drop=2)["logits"], atol=2e-4, rtol=1e-4)
    alone = prefix.run(TAIL, drop=2, edits=[HeadScale(layer, 0, 0.0)])["logits"]
    torch.testing.assert_close(got[1::2], alone, atol=2e-4, rtol=1e-4)
    assert float((got[1::2] - got[::2]).abs().max()) > 1e-3


def test_nothing_kept_is_the_ending_alone(instrument: Instrument) -> None:
    prefix = Prefix(instrument, collate([h[:8] for h in HEADS]))
    got = prefix.run(TAIL, drop=8)["logits"]
    torch.testing.assert_close(got, instrument.run(TAIL)["logits"], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(prefix.last_row(TAIL, drop=8).run()["logits"], got[:, -1:], atol=2e-4, rtol=1e-4)


def test_what_is_read_of_the_beginnings_is_handed_on() -> None:
    instrument = Instrument(wrap(build("llama"), tiny_tokenizer()))
    seen: dict[str, Any] = {}
    Prefix(instrument, collate(HEADS), reads=("resid_post.*",), on_read=lambda point, x: seen.update({str(point): x.shape}))
    assert seen == {"resid_post.0": (3, 13, 64), "resid_post.1": (3, 13, 64)}


def test_refusals() -> None:
    instrument = Instrument(wrap(build("llama"), tiny_tokenizer()))
    prefix = Prefix(instrument, collate(HEADS))
    with pytest.raises(EditError, match="ending's rows"):
        prefix.run(TAIL, edits=[HeadScale(0, 0, 0.5, rows=(3,))])
    with pytest.raises(EditError, match="ositions"):
        prefix.run(TAIL, edits=[Positions(torch.arange(4)[None])])
    with pytest.raises(InstrumentError, match="left out"):
        prefix.run(TAIL, drop=14)
    with pytest.raises(InstrumentError, match="do not fit"):
        prefix.run(TAIL[:2])
    with pytest.raises(InstrumentError, match="left padding"):
        Prefix(instrument, collate(HEADS, side="right"))
    with pytest.raises(InstrumentError, match="context"):
        prefix.run(TAIL.repeat(1, 70))
