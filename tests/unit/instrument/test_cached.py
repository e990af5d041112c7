"""Runs that share a prefix equal full forwards, on every family, with padding and beyond the sliding window."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import build, FAMILIES, HYBRIDS

from symbolic_residue.errors import EditError, InstrumentError
from symbolic_residue.instrument import (
    Add,
    AttentionBias,
    AttentionMask,
    collate,
    Decoder,
    HeadScale,
    Instrument,
    LastRow,
    Positions,
    Scale,
)
from symbolic_residue.models import bind

LENGTHS = (20, 13, 9)  # the sliding windows of the tiny models are 8


@pytest.fixture(scope="module", params=list(FAMILIES))
def instrument(request: pytest.FixtureRequest) -> Instrument:
    model = build(request.param)
    return Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]


def sequences() -> list[list[int]]:
    g = torch.Generator().manual_seed(0)
    return [torch.randint(4, 384, (n,), generator=g).tolist() for n in LENGTHS]


EDITS = {
    "none": (),
    "head": (HeadScale(0, 1, 0.0, rows=(-1,)), HeadScale(1, 2, -1.0, rows=(-1,), batch=(1,))),
    "resid": (Scale("mlp_out.0", rows=(-1,), factor=-1.0), Add("mlp_out.1", rows=(-1,), value=0.3)),
    "bias": (AttentionBias(2.0, keys=(-3, -5), rows=(-1,)),),
    "mask": (AttentionMask(keys=(-2,), rows=(-1,), layers=(1,), batch=(0, 2)),),
}


@pytest.mark.parametrize("name", list(EDITS))
def test_the_last_row_equals_the_full_forward(instrument: Instrument, name: str) -> None:
    batch = collate(sequences(), pad_id=3)
    last = LastRow(instrument, batch)
    for _ in range(2):  # the prefix is not spent by a run
        got = last.run(EDITS[name], reads=("z.*", "resid_post.1"))
        want = instrument.run(batch, edits=EDITS[name], reads=("z.*", "resid_post.1"))
        torch.testing.assert_close(got["logits"][:, -1], want["logits"][:, -1], atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(got["z.1"][:, -1], want["z.1"][:, -1], atol=2e-4, rtol=2e-4)
    if name != "none":
        assert float((last.run()["logits"] - got["logits"]).abs().max()) > 1e-3


def test_copies_carry_their_own_edits(instrument: Instrument) -> None:
    batch = collate(sequences(), pad_id=3)
    last = LastRow(instrument, batch)
    edits = [AttentionMask(keys=(-2 - c,), rows=(-1,), batch=(1 * 4 + c,)) for c in range(4)]
    got = last.run(edits, copies=4)["logits"][:, -1]
    plain = last.run()["logits"][:, -1]
    for c in range(4):
        alone = last.run([AttentionMask(keys=(-2 - c,), rows=(-1,), batch=(1,))])["logits"][1, -1]
        torch.testing.assert_close(got[4 + c], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got[c], plain[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "family", [name for name in HYBRIDS if name != "bamba"]
)  # its own decoding differs from its whole forward on the CPU
def test_copies_of_hybrids_carry_their_own_edits(family: str) -> None:
    """A recurrent state is copied with its sequence, like keys and values: copy c of sequence i is the whole forward of sequence i under edit c."""
    model = build(family)
    instrument = Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]
    batch = collate([sequences()[0], sequences()[0][::-1]], pad_id=3)
    edits = [AttentionMask(keys=(-2 - c,), rows=(-1,), batch=(1 * 3 + c,)) for c in range(3)]
    got = LastRow(instrument, batch).run(edits, copies=3)["logits"][:, -1]
    plain = instrument.run(batch)["logits"][:, -1]
    for c in range(3):
        alone = instrument.run(batch, edits=[AttentionMask(keys=(-2 - c,), rows=(-1,), batch=(1,))])["logits"][1, -1]
        torch.testing.assert_close(got[3 + c], alone, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(got[c], plain[0], atol=2e-4, rtol=2e-4)


def test_edits_elsewhere_are_refused(instrument: Instrument) -> None:
    last = LastRow(instrument, collate(sequences(), pad_id=3))
    with pytest.raises(EditError, match="last row"):
        last.run([HeadScale(0, 1, 0.0, rows=(3,))])
    with pytest.raises(EditError, match="Positions"):
        last.run([Positions(torch.zeros(1, 1, dtype=torch.long))])
    with pytest.raises(InstrumentError, match="left padding"):
        LastRow(instrument, collate(sequences(), pad_id=3, side="right"))


def test_decoding_equals_full_forwards(instrument: Instrument) -> None:
    batch = collate(sequences(), pad_id=3)
    decoder = Decoder(instrument, batch)
    grown = sequences()
    for step in range(4):
        full = instrument.run(collate(grown, pad_id=3))["logits"][:, -1]
        torch.testing.assert_close(decoder.logits, full, atol=2e-4, rtol=2e-4)
        token = decoder.logits.argmax(-1)
        grown = [[*s, int(t)] for s, t in zip(grown, token, strict=True)]
        if step % 2 and not instrument.parts.spec.embed_scaled:
            decoder.step(embeds=instrument.parts.embed(token))
        else:
            decoder.step(ids=token)
    assert decoder.length == max(LENGTHS) + 4


def test_decoding_refuses_what_it_cannot_do(instrument: Instrument) -> None:
    decoder = Decoder(instrument, collate([[5] * 255]))
    with pytest.raises(InstrumentError, match="either"):
        decoder.step()
    decoder.step(ids=torch.tensor([7]))
    with pytest.raises(InstrumentError, match="full"):
        decoder.step(ids=torch.tensor([7]))
