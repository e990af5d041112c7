"""Beginnings that are run once: what follows must be what whole forwards give, in every family, hidden tokens and continuations included."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import EditError, InstrumentError
from symbolic_residue.instrument import AttentionMask, AttentionRead, collate, Decoder, Instrument, LastRow
from symbolic_residue.models import wrap
from symbolic_residue.prompts import Regions
from symbolic_residue.types import Span

HEADS = [[5, 9, 11, 40, 41, 42, 17, 60, 61, 62], [7, 9, 30], [5, 9, 11, 40, 41, 42, 17, 60, 61, 62], [7, 9, 30]]
TAILS = [[70, 71, 72], [80], [90, 91], [100, 101, 102, 103, 104]]
SEQUENCES = [h + t for h, t in zip(HEADS, TAILS, strict=True)]
SHARED = [len(h) for h in HEADS]
FAMILIES = ["llama", "gemma3", "gpt2", "gpt_neox", "qwen3", "mistral", "gemma2", "falcon_alibi", "gpt_oss"]


@pytest.fixture(scope="module", params=FAMILIES)
def instrument(request: pytest.FixtureRequest) -> Instrument:
    return Instrument(wrap(build(request.param), tiny_tokenizer()))


def test_a_shared_beginning_changes_no_number(instrument: Instrument) -> None:
    batch = collate(SEQUENCES)
    whole = LastRow(instrument, batch).run()["logits"]
    shared = LastRow(instrument, batch, shared=SHARED).run()["logits"]
    torch.testing.assert_close(shared, whole, atol=2e-4, rtol=2e-4)
    for i, ids in enumerate(SEQUENCES):  # and the padding is seen by nobody
        alone = instrument.run(torch.tensor([ids]))["logits"][0, -1]
        torch.testing.assert_close(shared[i, 0], alone, atol=2e-4, rtol=2e-4)


def test_a_beginning_may_be_part_of_a_longer_one(instrument: Instrument) -> None:
    """The second sequence shares three tokens with the first, whose beginning is longer."""
    sequences = [SEQUENCES[0], [*HEADS[0][:3], 80, 81], SEQUENCES[1]]
    row = LastRow(instrument, collate(sequences), shared=[len(HEADS[0]), 3, len(HEADS[1])])
    got = row.run()["logits"]
    for i, ids in enumerate(sequences):
        torch.testing.assert_close(got[i, 0], instrument.run(torch.tensor([ids]))["logits"][0, -1], atol=2e-4, rtol=2e-4)


def test_hidden_tokens_are_those_masked_from_the_rows_after_the_beginning(instrument: Instrument) -> None:
    hidden = [(2, 6), None, (1, 3), (1, 2)]
    row = LastRow(instrument, collate(SEQUENCES), shared=SHARED, hidden=hidden)
    got, copied = row.run()["logits"], row.run(copies=3)["logits"]
    moved = []
    for i, (ids, k, span) in enumerate(zip(SEQUENCES, SHARED, hidden, strict=True)):
        edits = [] if span is None else [AttentionMask(range(*span), rows=range(k, len(ids)))]
        want = instrument.run(torch.tensor([ids]), edits=edits)["logits"][0, -1]
        torch.testing.assert_close(got[i, 0], want, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(copied[3 * i + 2, 0], want, atol=2e-4, rtol=2e-4)
        if span is not None:
            plain = instrument.run(torch.tensor([ids]))["logits"][0, -1]
            moved.append(float((got[i, 0] - plain).abs().max()))
    assert max(moved) > 1e-3  # (a window hides some spans anyway)


def test_sequences_go_on_from_their_last_row(instrument: Instrument) -> None:
    batch = collate(SEQUENCES)
    decoder, shared = Decoder(instrument, batch), LastRow(instrument, batch, shared=SHARED)
    mine = shared.decoder()
    first = mine.step(ids=shared.last)
    torch.testing.assert_close(first, decoder.logits, atol=2e-4, rtol=2e-4)
    for _ in range(3):
        chosen = decoder.logits.argmax(-1)
        torch.testing.assert_close(mine.step(ids=chosen), decoder.step(ids=chosen), atol=3e-4, rtol=3e-4)
    mine.keep([2, 0])
    chosen = decoder.logits.argmax(-1)
    torch.testing.assert_close(mine.step(ids=chosen[[2, 0]]), decoder.step(ids=chosen)[[2, 0]], atol=3e-4, rtol=3e-4)
    # The row itself can be run again: a decoder has a cache of its own.
    torch.testing.assert_close(shared.run()["logits"][:, 0], first, atol=2e-4, rtol=2e-4)


def test_selected_sequences_are_the_same_rows(instrument: Instrument) -> None:
    hidden = [(2, 6), None, (1, 3), (1, 2)]
    row = LastRow(instrument, collate(SEQUENCES), shared=SHARED, hidden=hidden)
    whole = row.run()["logits"]
    some = row.select([3, 0])
    torch.testing.assert_close(some.run()["logits"], whole[[3, 0]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(some.run(copies=2)["logits"][[0, 2]], whole[[3, 0]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(row.run()["logits"], whole)


def test_what_follows_is_read_as_in_whole_forwards(instrument: Instrument) -> None:
    """Row r of the trace is the one that chose tail token r; attention by region too."""
    tails = [[11, 12, 13], [14], [], [15, 16]]
    row = LastRow(instrument, collate(SEQUENCES), shared=SHARED)
    regions = [Regions.from_spans(len(s), [Span(0, 1, "sink"), Span(1, 3, "block")], rest="rest") for s in SEQUENCES]
    trace = row.follow(tails, reads=("resid_post.1",), attention=AttentionRead(regions=regions, stats=("mass",)))
    assert trace.attention is not None
    for i, (ids, tail) in enumerate(zip(SEQUENCES, tails, strict=True)):
        whole = regions[i].append(len(tail), "generated")
        want = instrument.run(
            torch.tensor([ids + tail]), reads=("resid_post.1",), attention=AttentionRead(regions=whole, stats=("mass",))
        )
        assert want.attention is not None
        rows = slice(len(ids) - 1, len(ids) + len(tail))
        n = len(tail) + 1
        torch.testing.assert_close(trace["resid_post.1"][i, :n], want["resid_post.1"][0, rows], atol=3e-4, rtol=3e-4)
        torch.testing.assert_close(trace["logits"][i, :n], want["logits"][0, rows], atol=3e-4, rtol=3e-4)
        for name in ("sink", "block"):
            got = trace.attention.mass(name)[:, i, :, :n]
            torch.testing.assert_close(got, want.attention.mass(name)[:, 0, :, rows], atol=1e-4, rtol=1e-4)
    with pytest.raises(InstrumentError, match="tails for"):
        row.follow(tails[:2])


def test_a_hybrid_runs_its_prompts_whole_and_hides_nothing() -> None:
    instrument = Instrument(wrap(build("qwen3_next"), tiny_tokenizer()))
    batch = collate(SEQUENCES)
    torch.testing.assert_close(
        LastRow(instrument, batch, shared=SHARED).run()["logits"], LastRow(instrument, batch).run()["logits"]
    )
    with pytest.raises(EditError, match="keeps a state"):
        LastRow(instrument, batch, shared=SHARED, hidden=[(1, 2), None, None, None])


def test_beginnings_and_spans_that_are_none_are_refused() -> None:
    instrument = Instrument(wrap(build("llama"), tiny_tokenizer()))
    batch = collate(SEQUENCES)
    with pytest.raises(InstrumentError, match="shorter than its sequence"):
        LastRow(instrument, batch, shared=[len(s) for s in SEQUENCES])
    for span in ((0, 10), (3, 3), (8, 12), (-1, 2)):
        with pytest.raises(EditError, match="cannot be hidden"):
            LastRow(instrument, batch, shared=SHARED, hidden=[span, None, None, None])
