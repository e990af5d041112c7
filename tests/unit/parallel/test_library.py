"""Decoding as a library: a user's own model, options as words, what is refused; attention kept beside its key map; trees as tables."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, InstrumentError, PromptError, ResidueError, UnsupportedModelError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.parallel import Capture, decode, generate, Grown, make_config, ParallelConfig, Pruning, Tree, tree_tables
from symbolic_residue.parallel._forward import call_model

TEXT = "the answer of the user is"
WIDE: dict[str, Any] = {"threshold": 0.03, "max_steps": 6, "max_siblings": 4, "stop_ids": ()}


@cache
def llama() -> Any:
    return build("llama").to(torch.float64)


def sets(tree: Tree) -> list[list[int]]:
    return [[t.id for t in step.tokens] for step in tree.steps]


def test_a_model_of_ones_own() -> None:
    tokenizer = tiny_tokenizer()
    seen: list[Grown] = []
    one = generate(llama(), tokenizer, TEXT, on_step=seen.append, **WIDE)
    assert len(one) == 1 and len(seen) == 6
    assert one[0].prompt_text == TEXT and one[0].prompt == tuple(tokenizer(TEXT)["input_ids"])
    several = generate(llama(), tokenizer, [TEXT, "yes or no", TEXT], ParallelConfig(**WIDE), checked=True)
    assert sets(several[0]) == sets(several[2]) == sets(one[0]) != sets(several[1])
    by_ids = generate(llama(), tokenizer, list(one[0].prompt), checked=True, **WIDE)
    assert sets(by_ids[0]) == sets(one[0])
    plain = decode(Instrument(wrap(llama(), tokenizer)), [one[0].prompt], ParallelConfig(**WIDE))[0]
    assert sets(plain) == sets(one[0])


def test_several_prompts_pruned_by_recompute_are_decoded_one_by_one() -> None:
    pruning = Pruning("relative", 1.0, removal="recompute")
    trees = generate(llama(), tiny_tokenizer(), [TEXT, "yes or no"], checked=True, pruning=pruning, **WIDE)
    alone = generate(llama(), tiny_tokenizer(), "yes or no", checked=True, pruning=pruning, **WIDE)
    assert sets(trees[1]) == sets(alone[0])
    assert any(t.gone is not None for tree in trees for step in tree.steps for t in step.tokens)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": 0}, "not above 0"),
        ({"threshold": 1.5}, "not above 0"),
        ({"threshold": "soon"}, "cannot be read"),
        ({"mode": "blind"}, "mode='blind'"),
        ({"scheme": "offset", "epsilon": 0.5}, "spreads a set"),
        ({"epsilon": 0.1}, "epsilon has nothing to act on"),
        ({"epsilon": 0.1, "scheme": "unique"}, "scheme unique"),
        ({"prune_least": 0.2}, "Nothing is pruned"),
        ({"prune": "relative", "pruning": Pruning()}, "say the same"),
        ({"threshold": 1, "prune": "relative"}, "pruning has nothing to act on"),
        ({"threshold": 1.0, "bias": 2.0}, "bias has nothing to act on"),
        ({"max_siblings": 1, "bias": 2.0}, "bias has nothing to act on"),
        ({"temperature": 0.7}, "temperature makes no sense"),
        ({"num_beams": 4}, "Nothing is drawn"),
        ({"treshold": 0.1}, "no option treshold"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(options)
    assert match in f"{caught.value.what} {caught.value.why}"


def test_options_become_the_configuration() -> None:
    given = {
        "threshold": "linear:0.3,0.1",
        "mode": None,
        "scheme": "offset",
        "epsilon": 0.02,
        "prune": "absolute",
        "prune_after": 2,
    }
    expected = ParallelConfig("linear:0.3,0.1", scheme="offset", epsilon=0.02, pruning=Pruning("absolute", after=2))
    assert make_config(given) == expected
    assert make_config({}) == ParallelConfig()


@pytest.mark.parametrize(
    ("prompts", "error"), [("", PromptError), ("  ", PromptError), ([], PromptError), ([TEXT, ""], PromptError), ([[5, 6], []], PromptError), ("no " * 400, PromptError)]
)  # fmt: skip
def test_prompts_that_cannot_be_read(prompts: Any, error: type[ResidueError]) -> None:
    with pytest.raises(error):
        generate(llama(), tiny_tokenizer(), prompts, checked=True, **WIDE)


def test_models_that_cannot_share_positions() -> None:
    with pytest.raises(UnsupportedModelError, match="learned positions"):
        generate(build("gpt2"), tiny_tokenizer(), TEXT)
    with pytest.raises(UnsupportedModelError, match="position"):
        generate(build("falcon_alibi"), tiny_tokenizer(), TEXT)
    with pytest.raises(UnsupportedModelError, match="other means than attention"):
        generate(build("qwen3_next"), tiny_tokenizer(), TEXT)


def test_other_refusals() -> None:
    training = build("llama").train()
    with pytest.raises(InstrumentError, match="training mode"):
        generate(training, tiny_tokenizer(), TEXT)
    with pytest.raises(ConfigError, match="not both"):
        generate(llama(), tiny_tokenizer(), TEXT, ParallelConfig(), threshold=0.1)
    for pruning, match in ((Pruning(layers=(9,)), "Layer 9"), (Pruning(heads=(4,)), "no head 4")):
        with pytest.raises(ConfigError, match=match):
            generate(llama(), tiny_tokenizer(), TEXT, checked=True, pruning=pruning)
    with pytest.raises(InstrumentError, match="GiB"):
        generate(llama(), tiny_tokenizer(), TEXT, capture=Capture(max_bytes=1000), checked=True, **WIDE)


@pytest.mark.parametrize("pruning", [None, Pruning("relative", 1.0), Pruning("relative", 1.0, removal="recompute")])
@pytest.mark.parametrize("scheme", ["shared", "offset", "unique"])
def test_attention_is_kept_with_the_map_of_its_keys(scheme: str, pruning: Pruning | None) -> None:
    """Every row sums to 1, stands at the key that the map names, and equals the model's own attention without a cache."""
    tokenizer = tiny_tokenizer()
    capture, layouts = Capture(tokenizer), {}
    config = ParallelConfig(scheme=scheme, pruning=pruning, **WIDE)
    (tree,) = generate(
        llama(), tokenizer, TEXT, config, capture=capture, on_step=lambda g: layouts.update({g.number: g.seen}), checked=True
    )
    steps, keys = capture.steps(), capture.key_map()
    assert list(steps) == [step.number for step in tree.steps]
    n_prompt = len(tree.prompt)
    for number, weights in steps.items():
        layout, size = layouts[number], len(tree.steps[number].tokens)
        mine = keys.filter(step=number)
        assert weights.shape == (2, 4, size, layout.n_slots) and len(mine) == layout.n_slots
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, size), atol=1e-5, rtol=0)
        assert mine["cache"].to_list() == mine["physical"].to_list() == list(range(layout.n_slots))
        assert mine["token"].to_list() == layout.ids[0].tolist()
        assert mine["position"].to_list() == pytest.approx(layout.position[0].tolist(), abs=1e-5)  # the model takes float32
        assert mine["text"][:n_prompt].to_list() == [tokenizer.decode([t]) for t in tree.prompt]
        own = mine.filter(set_step=number)
        assert own["token"].to_list() == [t.id for t in tree.steps[number].tokens] and own["rank"].to_list() == list(range(size))
        hidden = mine.filter(set_step=number)["cache"].to_list()
        off = ~torch.eye(size, dtype=torch.bool)
        assert bool((weights[..., hidden][..., off] == 0).all())  # isolated siblings do not see each other
        whole = _attention(layout, config)
        torch.testing.assert_close(weights, whole[:, :, -size:].float(), atol=1e-5, rtol=1e-4)
    assert capture.tensors()["attention_00000"] is steps[0]
    if pruning is not None:
        assert any(t.gone is not None for step in tree.steps for t in step.tokens)


def _attention(layout: Any, config: ParallelConfig) -> torch.Tensor:
    """``[layer, head, row, key]`` of one uncached forward, from transformers itself."""
    model = build("llama").to(torch.float64)
    model.set_attn_implementation("eager")
    held: list[torch.Tensor] = []
    hooks = [layer.self_attn.register_forward_hook(lambda m, a, out: held.append(out[1])) for layer in model.model.layers]
    with torch.no_grad():
        call_model(Instrument(wrap(model, tiny_tokenizer())), layout, mode=config.mode)
    for hook in hooks:
        hook.remove()
    return torch.stack(held)[:, 0]


def test_a_batch_keeps_each_sequence_apart() -> None:
    """Physical columns count padding, cache slots do not."""
    capture = Capture()
    trees = generate(llama(), tiny_tokenizer(), [TEXT, "yes or no"], capture=capture, checked=True, **WIDE)
    shorter = min(range(2), key=lambda i: len(trees[i].prompt))
    alone = Capture()
    generate(llama(), tiny_tokenizer(), "yes or no", capture=alone, checked=True, **WIDE)
    assert shorter == 1
    for number, weights in alone.steps().items():
        torch.testing.assert_close(capture.steps(1)[number], weights, atol=1e-6, rtol=1e-5)
    mine, theirs = capture.key_map(1), alone.key_map()
    assert mine.drop("physical").equals(theirs.drop("physical"))
    lead = len(trees[0].prompt) - len(trees[1].prompt)
    assert (mine.filter(step=0)["physical"] - mine.filter(step=0)["cache"]).to_list()[0] == lead > 0


def test_trees_as_tables() -> None:
    config = ParallelConfig(**(WIDE | {"stop_ids": tuple(range(2, 384, 7))}), pruning=Pruning("relative", 1.0, removal="recompute"))
    (tree,) = generate(llama(), tiny_tokenizer(), TEXT, config, checked=True)
    tables = tree_tables(tree)
    tokens, steps = tables["parallel_tokens"], tables["parallel_steps"]
    assert tokens.group_by("step", maintain_order=True).len()["len"].to_list() == steps["size"].to_list()
    for row in tokens.to_dicts():
        held = tree.steps[row["step"]].tokens[row["rank"]]
        assert (row["token"], row["text"], row["probability"]) == (held.id, held.text, held.probability)
        assert (row["position"], row["slot"], row["gone"], row["score"]) == (held.position, held.slot, held.gone, held.score)
    for row in steps.to_dicts():
        step = tree.steps[row["step"]]
        assert row["ending"] == (sum(e.probability for e in step.endings) if step.endings else None)
        assert (row["threshold"], row["above"], row["entropy"]) == (step.stats.threshold, step.stats.above, step.stats.entropy)
    assert Tree.from_json(tables["parallel_trees"]["tree"][0]) == tree
