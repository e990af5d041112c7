"""Decoding: greedy at threshold 1, cached equals whole, siblings apart, keys counted."""

from __future__ import annotations

import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.instrument import AttentionRead, Instrument
from symbolic_residue.models import wrap
from symbolic_residue.parallel import decode, grow, Grown, ParallelConfig, Pruning, Tree
from symbolic_residue.parallel._forward import call_model

FAMILIES = ("llama", "qwen3", "mistral", "gemma3", "gemma2", "gpt_neox", "phi3", "smollm3", "gpt_oss", "cohere2")
PROMPT = [5, 9, 120, 33, 47, 200, 8, 91, 60, 14]
FREE = {"stop_ids": ()}


def instrument(name: str, dtype: torch.dtype = torch.float32) -> Instrument:
    return Instrument(wrap(build(name).to(dtype), tiny_tokenizer()))


@pytest.mark.parametrize("name", FAMILIES)
def test_threshold_one_is_greedy(name: str) -> None:
    ins = instrument(name)
    tree = decode(ins, [PROMPT], ParallelConfig(threshold=1.0, max_steps=12, **FREE))[0]
    ids = list(PROMPT)
    for _ in range(12):
        with torch.no_grad():
            ids.append(int(ins.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert tree.path == ids[len(PROMPT) :]
    assert all(len(step.tokens) == 1 for step in tree.steps)


@pytest.mark.parametrize("mode", ["isolated", "causal", "visible"])
@pytest.mark.parametrize("scheme", ["shared", "offset", "unique"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox", "mistral"])
def test_cached_equals_whole(name: str, scheme: str, mode: str) -> None:
    ins = instrument(name, torch.float64)
    config = ParallelConfig(threshold=0.05, mode=mode, scheme=scheme, max_steps=6, max_siblings=4, bias=0.7, **FREE)
    logits, layouts = [], []

    def keep(step: Grown) -> None:
        assert step.trace is not None
        logits.append(step.trace.logits[0])
        layouts.append(step.layout)

    tree = decode(ins, [PROMPT], config, on_step=keep)[0]
    assert max(len(step.tokens) for step in tree.steps) > 1
    layout = tree.layout()
    with torch.no_grad():
        whole = call_model(ins, layout, mode=config.mode, bias=config.bias).logits[0]
    torch.testing.assert_close(torch.cat(logits), whole[len(PROMPT) :], atol=1e-5, rtol=1e-5)
    assert torch.equal(layout.ids, layouts[-1].ids)
    assert tree.n_keys == len(PROMPT) + sum(len(step.tokens) for step in tree.steps) == layout.n_slots


def test_several_prompts_equal_each_alone() -> None:
    ins = instrument("llama", torch.float64)
    config = ParallelConfig(threshold=0.05, max_steps=6, max_siblings=4, **FREE)
    prompts = [PROMPT, PROMPT[:4], PROMPT[3:]]
    together = decode(ins, prompts, config)
    for prompt, tree in zip(prompts, together, strict=True):
        alone = decode(ins, [prompt], config)[0]
        assert [[t.id for t in s.tokens] for s in tree.steps] == [[t.id for t in s.tokens] for s in alone.steps]
        assert [t.position for s in tree.steps for t in s.tokens] == [t.position for s in alone.steps for t in s.tokens]
        assert [t.slot for s in tree.steps for t in s.tokens] == [t.slot for s in alone.steps for t in s.tokens]


@pytest.mark.parametrize("removal", ["mask", "recompute"])
def test_pruned_tokens_are_gone(removal: str) -> None:
    ins = instrument("llama", torch.float64)
    config = ParallelConfig(threshold=0.03, max_steps=8, max_siblings=5, pruning=Pruning("relative", 0.9, removal=removal), **FREE)
    logits: list[torch.Tensor] = []
    tree = decode(ins, [PROMPT], config, on_step=lambda s: logits.append(s.trace.logits[0]))[0]
    gone = [t for s in tree.steps for t in s.tokens if t.gone is not None]
    assert gone and all(s.top.gone is None for s in tree.steps)
    layout = tree.layout()
    assert layout.n_slots == tree.n_keys
    if removal == "recompute":
        assert all(t.slot == -1 for t in gone)
    with torch.no_grad():
        last = call_model(ins, layout, mode=config.mode).logits[0, -len(tree.steps[-1].tokens) :]
    if removal == "mask":
        torch.testing.assert_close(logits[-1], last, atol=1e-6, rtol=1e-6)
    slots = sorted(t.slot for s in tree.steps for t in s.tokens if t.slot >= 0)
    assert slots == list(range(len(PROMPT), layout.n_slots))


def test_a_tree_survives_json_and_is_read_step_by_step() -> None:
    ins = instrument("llama")
    config = ParallelConfig(threshold=0.05, max_steps=4, **FREE)
    read = AttentionRead(stats=("entropy",))
    steps = list(grow(ins, [PROMPT], config, attention=read))
    assert [s.number for s in steps] == [0, 1, 2, 3]
    assert steps[1].trace.attention["entropy"].shape[-1] == steps[1].rows
    tree = steps[-1].trees[0]
    assert Tree.from_json(tree.to_json()) == tree
