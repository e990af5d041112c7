"""RECALL, ANCHOR and INHIBIT by themselves, against plain forwards and their own definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, SpanError
from symbolic_residue.instrument import AttentionRead
from symbolic_residue.shells import MemtraceConfig, MemtraceShell
from symbolic_residue.shells.memtrace._operations import readable_from

TEXT = "The miller keeps the key to the gate. Anna put the red book under the table."


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2"])
def shell(request: pytest.FixtureRequest) -> MemtraceShell:
    return MemtraceShell(build(request.param), tiny_tokenizer(), MemtraceConfig.make(readable_rank=3))


@torch.no_grad()
def logits(shell: MemtraceShell) -> torch.Tensor:
    return shell.loaded.model(input_ids=torch.tensor([shell.tokenizer.encode(TEXT)]), use_cache=False).logits[0].double()


def test_recall_ends_in_the_models_own_probability(shell: MemtraceShell) -> None:
    row = logits(shell)[-3]
    best = int(row.argmax())
    found = shell.recall_operation(-3, best, TEXT)
    assert found.position == len(shell.tokenizer.encode(TEXT)) - 3
    assert found.probability.shape == found.rank.shape == (3,)
    assert found.probability[-1] == pytest.approx(float(torch.softmax(row, -1)[best]), abs=1e-5)
    assert found.rank[-1] == 0
    assert found.readable_from is not None
    by_text = shell.recall_operation(-3, shell.tokenizer.decode([best]), TEXT) if best > 260 else found
    assert by_text.rank[-1] == 0


def test_readable_means_to_the_end() -> None:
    assert readable_from([9, 2, 9, 1, 0], 3) == 3
    assert readable_from([0, 0, 0], 3) == 0
    assert readable_from([0, 0, 3], 3) is None


def test_anchor_multiplies_the_odds_of_the_span(shell: MemtraceShell) -> None:
    """In the first layer, whose scores nothing has changed yet, the odds of the span's keys are multiplied by the strength."""
    ids = torch.tensor([shell.tokenizer.encode(TEXT)])
    found = shell.anchor_operation(" red book", 3.0, context=TEXT, layers=(0,))
    keys = list(range(found.span.start, found.span.stop))
    read = AttentionRead(stats=("entropy",), rows=(-1,), layers=(0,), weights=True)
    from symbolic_residue.instrument import AttentionBias

    edit = AttentionBias(math.log(3.0), keys, layers=(0,), rows=range(found.span.stop, ids.shape[1]))
    plain = shell.instrument.run(ids, attention=read)
    edited = shell.instrument.run(ids, attention=read, edits=[edit])
    assert plain.attention is not None
    assert edited.attention is not None
    p, q = (t.attention["weights"][0, 0, :, 0][:, keys].sum(-1).double() for t in (plain, edited))  # type: ignore[index]
    np.testing.assert_allclose((q / (1 - q)).numpy(), 3.0 * (p / (1 - p)).numpy(), rtol=1e-3)
    want = torch.softmax(edited["logits"][0, -1].double(), -1)
    np.testing.assert_allclose(found.after, want.numpy(), atol=1e-6)


def test_strength_one_changes_nothing_and_before_is_the_model(shell: MemtraceShell) -> None:
    for mode in ("attention", "embedding"):
        found = shell.anchor_operation(" red book", 1.0, context=TEXT, mode=mode)
        np.testing.assert_allclose(found.after, found.before, atol=1e-6)
        np.testing.assert_allclose(found.before, torch.softmax(logits(shell)[-1], -1).numpy(), atol=1e-6)
        assert found.ids == (int(found.before.argmax()),)
        assert found.shift == pytest.approx([0.0], abs=1e-5)


def test_inhibit_hides_the_span(shell: MemtraceShell) -> None:
    """Hidden from every later row, the span's words can be others: the output is the same."""
    hidden = shell.inhibit_operation((4, 7), context=TEXT)
    ids = shell.tokenizer.encode(TEXT)
    other = [*ids[:4], 50, 51, 52, *ids[7:]]
    rows = range(7, len(ids))
    from symbolic_residue.instrument import AttentionMask

    edited = shell.instrument.run(torch.tensor([other]), edits=[AttentionMask([4, 5, 6], rows=rows)])
    np.testing.assert_allclose(hidden.after, torch.softmax(edited["logits"][0, -1].double(), -1).numpy(), atol=1e-5)
    assert np.abs(hidden.after - hidden.before).max() > 1e-6
    found = shell.inhibit_operation((4, 7), 0.0, context=TEXT, mode="embedding", tokens=[10, " the"])
    assert len(found.shift) == 2


def test_refusals(shell: MemtraceShell) -> None:
    with pytest.raises(ConfigError, match="below 1"):
        shell.inhibit_operation((4, 7), 1.0, context=TEXT)
    with pytest.raises(ConfigError, match="strength"):
        shell.anchor_operation((4, 7), -1.0, context=TEXT)
    with pytest.raises(ConfigError, match="mode"):
        shell.anchor_operation((4, 7), 2.0, context=TEXT, mode="logits")
    with pytest.raises(ConfigError, match="no layers"):
        shell.anchor_operation((4, 7), 2.0, context=TEXT, mode="embedding", layers=(0,))
    with pytest.raises(ConfigError, match="end of the prompt"):
        shell.anchor_operation((4, None), 2.0, context=TEXT)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sink"):
        shell.inhibit_operation((0, 2), context=TEXT)
    with pytest.raises(SpanError):
        shell.anchor_operation("no such text", 2.0, context=TEXT)
    with pytest.raises(ConfigError, match="position"):
        shell.recall_operation(500, " the", TEXT)
    with pytest.raises(ConfigError, match="vocabulary"):
        shell.recall_operation(-1, 10**6, TEXT)
