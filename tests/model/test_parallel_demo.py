"""What must hold of multi-path decoding, on the demo model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from symbolic_residue.instrument import AttentionRead, Instrument, Trace
from symbolic_residue.parallel import check_rotary, decode, Grown, Layout, ParallelConfig, Pruning, Tree
from symbolic_residue.parallel._choose import choose, combine, log_softmax
from symbolic_residue.parallel._forward import call_model
from symbolic_residue.parallel._layout import place, seats_of

pytestmark = pytest.mark.model

TEXT = "The old lighthouse keeper opened the door and saw"


@pytest.fixture(scope="module")
def ins(demo: Any) -> Instrument:
    instrument = Instrument(demo)
    check_rotary(instrument)
    return instrument


@pytest.fixture(scope="module")
def prompt(ins: Instrument) -> list[int]:
    return ins.loaded.tokenizer(TEXT)["input_ids"]


@pytest.fixture(scope="module")
def tree(ins: Instrument, prompt: list[int]) -> Tree:
    return decode(ins, [prompt], ParallelConfig(threshold=0.08, max_steps=12, max_siblings=5))[0]


def run(ins: Instrument, layout: Layout, mode: str = "isolated", reads: tuple[str, ...] = ()) -> Trace:
    read = AttentionRead(stats=("entropy",), rows=tuple(range(layout.n_slots)), weights=True)
    with torch.no_grad(), ins.attached(reads=reads, attention=read) as trace:
        trace.logits = call_model(ins, layout, mode=mode).logits  # type: ignore[arg-type]
    return trace


def one_set(prompt: list[int], ids: list[int], scheme: str = "shared", epsilon: float = 0.0) -> Layout:
    positions, following = place(scheme, float(len(prompt)), len(ids), epsilon)  # type: ignore[arg-type]
    layout = Layout.of_prompts([prompt]).with_set(0, [ids], [positions], [seats_of(scheme, positions)])
    return layout.with_set(1, [[253]], [[following]])


def test_threshold_one_is_transformers_greedy(ins: Instrument, prompt: list[int]) -> None:
    tree = decode(ins, [prompt], ParallelConfig(threshold=1.0, max_steps=25, stop_ids=()))[0]
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = ins.model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=25, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    assert tree.path == out[0, len(prompt) :].tolist()
    assert tree.text == ins.loaded.tokenizer.decode(out[0]).removeprefix(TEXT)


@pytest.mark.parametrize("scheme", ["shared", "offset", "unique"])
@pytest.mark.parametrize("mode", ["isolated", "causal", "visible"])
def test_cached_equals_whole(ins: Instrument, prompt: list[int], mode: str, scheme: str) -> None:
    config = ParallelConfig(threshold=0.08, max_steps=6, max_siblings=5, mode=mode, scheme=scheme)  # type: ignore[arg-type]
    logits: list[torch.Tensor] = []

    def keep(step: Grown) -> None:
        assert step.trace is not None and step.trace.logits is not None
        logits.append(step.trace.logits[0])

    tree = decode(ins, [prompt], config, on_step=keep)[0]
    layout = tree.layout()
    assert layout.n_slots == tree.n_keys == len(prompt) + sum(len(step.tokens) for step in tree.steps) > len(prompt) + 6
    with torch.no_grad():
        whole = call_model(ins, layout, mode=config.mode).logits[0, len(prompt) :]
    torch.testing.assert_close(torch.cat(logits), whole, atol=2e-3, rtol=1e-3)


def test_isolated_siblings(ins: Instrument, prompt: list[int], tree: Tree) -> None:
    """Weights among siblings are exactly zero, rows sum to one, and each sibling is as if it stood there alone, at every layer."""
    wide = next(step for step in tree.steps if len(step.tokens) > 2)
    ids, n = [t.id for t in wide.tokens], len(prompt)
    together = run(ins, one_set(prompt, ids), reads=("resid_post.*",))
    weights = together.attention["weights"][:, 0]  # type: ignore[index]
    apart = ~torch.eye(len(ids), dtype=torch.bool)
    assert bool((weights[:, :, n : n + len(ids), n : n + len(ids)][:, :, apart] == 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), atol=1e-4, rtol=0)
    for i, token in enumerate(ids):
        alone = run(ins, one_set(prompt, [token]), reads=("resid_post.*",))
        for point, states in alone.tensors.items():
            torch.testing.assert_close(together.tensors[point][0, n + i], states[0, n], atol=5e-3, rtol=1e-3)
    turned = run(ins, one_set(prompt, ids[::-1]))
    torch.testing.assert_close(
        turned.logits[0, n : n + len(ids)], together.logits[0, n : n + len(ids)].flip(0), atol=2e-3, rtol=1e-3
    )  # type: ignore[index]


def test_duplicates_share_equally(ins: Instrument, prompt: list[int]) -> None:
    n = len(prompt)
    shares = run(ins, one_set(prompt, [260] * 4)).attention["weights"][:, 0, :, -1, n : n + 4]  # type: ignore[index]
    torch.testing.assert_close(shares, shares[..., :1].expand_as(shares), atol=1e-5, rtol=1e-3)


def test_positions(ins: Instrument, prompt: list[int], tree: Tree) -> None:
    """A vanishing offset is a shared position; shifting everything changes nothing; a real offset changes something."""
    ids = [t.id for t in next(step for step in tree.steps if len(step.tokens) > 2).tokens]
    shared = run(ins, one_set(prompt, ids)).logits[0, -1]  # type: ignore[index]
    far = [float((run(ins, one_set(prompt, ids, "offset", e)).logits[0, -1] - shared).abs().max()) for e in (0.1, 0.01, 0.001)]  # type: ignore[index]
    assert far[0] > far[1] > far[2]
    layout = one_set(prompt, ids)
    moved = run(ins, replace(layout, position=layout.position + 300)).logits[0, -1]  # type: ignore[index]
    torch.testing.assert_close(moved, shared, atol=1e-2, rtol=1e-2)


def test_recompute_is_as_if_the_token_had_never_been_there(ins: Instrument, prompt: list[int]) -> None:
    config = ParallelConfig(threshold=0.05, max_steps=8, max_siblings=5, pruning=Pruning("relative", 0.7, removal="recompute"))
    seen: list[Tree] = []
    tree = decode(ins, [prompt], config, on_step=lambda step: seen.append(step.trees[0]))[0]
    assert any(t.slot < 0 for step in tree.steps for t in step.tokens)
    before, then = seen[-2], seen[-1]
    rows = run(ins, before.layout()).logits[0, -len(before.steps[-1].tokens) :]  # type: ignore[index]
    weights = torch.tensor([t.probability for t in before.steps[-1].tokens])
    chosen = choose(combine(log_softmax(rows), weights / weights.sum(), "mixture"), 0.05, 5)
    assert chosen.ids == [t.id for t in then.steps[-1].tokens]
    assert chosen.probabilities == pytest.approx([t.probability for t in then.steps[-1].tokens], rel=1e-3)
