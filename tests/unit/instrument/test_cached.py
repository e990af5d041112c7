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
    AttentionRead,
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


def test_last_rows_that_ran_apart_are_joined(instrument: Instrument) -> None:
    """Of other widths, with and without a kept run: the joined row equals the batch that ran together, under edits too."""
    together = LastRow(instrument, collate(sequences(), pad_id=3))
    for kept in (False, True):
        rows = [LastRow(instrument, collate(part, pad_id=3)) for part in (sequences()[1:2], sequences()[:1], sequences()[2:])]
        if kept:
            for row in rows:
                row.run(keep=True)
        joined = LastRow.join(rows).select([1, 0, 2]) if not kept else LastRow.join([rows[1], rows[0], rows[2]])
        assert (joined.size, joined.width, joined.batch.lead) == (together.size, together.width, together.batch.lead)
        assert joined.batch.mask.tolist() == together.batch.mask.tolist()
        for name in ("none", "head", "mask"):
            torch.testing.assert_close(joined.run(EDITS[name])["logits"], together.run(EDITS[name])["logits"], atol=2e-4, rtol=2e-4)
        decoders = [row.continued() for row in (joined, together)]
        token = decoders[1].logits.argmax(-1)
        torch.testing.assert_close(decoders[0].logits, decoders[1].logits, atol=2e-4, rtol=2e-4)
        steps = [decoder.step(ids=token) for decoder in decoders]
        torch.testing.assert_close(steps[0], steps[1], atol=2e-4, rtol=2e-4)


def test_a_kept_run_is_not_run_again(instrument: Instrument) -> None:
    """What follows it equals the whole forward; what came before can still be edited, and edited runs are not kept."""
    batch, calls = collate(sequences(), pad_id=3), list[int]()
    row = LastRow(instrument, batch)
    row.run(EDITS["head"], keep=True)
    plain = row.run(keep=True)["logits"][:, -1]
    hook = instrument.model.register_forward_pre_hook(lambda module, args: calls.append(1))
    decoder = row.continued()
    assert not calls
    hook.remove()
    torch.testing.assert_close(decoder.logits, plain, atol=0, rtol=0)
    token = decoder.logits.argmax(-1)
    decoder.step(ids=token)
    longer = [[*s, int(t)] for s, t in zip(sequences(), token, strict=True)]
    torch.testing.assert_close(decoder.logits, instrument.run(collate(longer, pad_id=3))["logits"][:, -1], atol=2e-4, rtol=2e-4)
    want = instrument.run(batch, edits=EDITS["head"])["logits"][:, -1]
    torch.testing.assert_close(row.run(EDITS["head"])["logits"][:, -1], want, atol=2e-4, rtol=2e-4)


def test_the_last_row_reads_attention_and_the_rows_before(instrument: Instrument) -> None:
    """Statistics of the cached row are those of the whole forward's last row; the other rows are read while they run."""
    batch, early = collate(sequences(), pad_id=3), dict[str, torch.Tensor]()
    read = AttentionRead(stats=("entropy", "max", "argmax"), rows=(-1,), weights=True)
    row = LastRow(instrument, batch, reads=("resid_post.1",), on_read=lambda point, x: early.update({str(point): x}))
    got = row.run(attention=read).attention
    whole = instrument.run(batch, attention=read, reads=("resid_post.1",))
    want = whole.attention
    assert got is not None
    assert want is not None
    for name in ("entropy", "max", "weights"):
        torch.testing.assert_close(got[name][..., -want[name].shape[-1] :], want[name], atol=2e-4, rtol=2e-4)
    assert got["argmax"].tolist() == want["argmax"].tolist()
    mask = batch.mask[:, :-1].bool()
    torch.testing.assert_close(early["resid_post.1"][mask], whole["resid_post.1"][:, :-1][mask], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", ["jamba", "qwen3_next"])
def test_a_state_is_continued_but_not_joined(family: str) -> None:
    model = build(family)
    instrument = Instrument(SimpleNamespace(model=model, parts=bind(model)))  # type: ignore[arg-type]
    rows = [LastRow(instrument, collate([s])) for s in sequences()[:2]]
    plain = rows[0].run(keep=True)["logits"][:, -1]
    torch.testing.assert_close(rows[0].continued().logits, plain, atol=2e-4, rtol=2e-4)
    with pytest.raises(InstrumentError, match="cannot be joined"):
        LastRow.join(rows)


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
