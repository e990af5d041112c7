"""Null attribution: a head that is made to push end-of-text is named and confirmed, the head it overrules too; parts are those of plain algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.shells import null_attribution
from symbolic_residue.shells._confirm import head_means
from symbolic_residue.store._schema import conform

WORDS = ("gate", "river", "mill", "key", "door", "boat", "hill", "road")
REFERENCE = ("Anna put the red book", "Please write the answer", "One two three four", "Should the captain answer")
END, WORD = 2, 300
END_HEAD, WORD_HEAD = (1, 2), (1, 0)


def asked(tokenizer: Any, texts: tuple[str, ...] | list[str]) -> list[Prompt]:
    return [build_prompt(tokenizer, text) for text in texts]


def planted(strength: float = 60.0) -> tuple[Instrument, list[Prompt], list[Prompt]]:
    """On the prompts, and not on the reference ones, head 1.2 writes end-of-text and head 1.0, less strongly, a word."""
    model, tokenizer = build("llama"), tiny_tokenizer()
    instrument = Instrument(wrap(model, tokenizer))
    prompts = asked(tokenizer, [f"the old {word} stands near the" for word in WORDS])
    reference = asked(tokenizer, REFERENCE)
    z, usual = head_means(instrument, prompts)[1], head_means(instrument, reference)[1]
    wanted = torch.cat([torch.ones(len(prompts)), torch.zeros(len(reference))])
    weight = model.model.layers[1].self_attn.o_proj.weight
    d_head = instrument.parts.d_head
    with torch.no_grad():
        for (layer, head), token, share in ((END_HEAD, END, 1.0), (WORD_HEAD, WORD, 0.6)):
            every = torch.cat([z[:, layer, head], usual[:, layer, head]])
            reads = torch.linalg.lstsq(every.double(), wanted[:, None].double(), driver="gelsd").solution[:, 0].float()
            u = model.lm_head.weight[token] * model.model.norm.weight
            weight[:, head * d_head : (head + 1) * d_head] = share * strength * torch.outer(u / u.norm(), reads)
    return Instrument(wrap(model, tokenizer)), prompts, reference


def test_the_planted_head_silences_and_the_planted_word_is_overruled() -> None:
    instrument, prompts, reference = planted()
    found = null_attribution(instrument, prompts, reference, top=4, random_heads=4)
    assert found.ended.all()
    assert set(found.pairs) == {(END, WORD)}
    assert found.difference.above(0.0)
    assert found.error < 1e-2
    rows = {(r["component"], r["layer"], r["head"]): r for r in found.frame.to_dicts()}
    end, word = rows["head", *END_HEAD], rows["head", *WORD_HEAD]
    assert (end["role"], end["confirmed"]) == ("silences", True)
    assert (word["role"], word["q"] <= 0.05) == ("pushes content", True)
    assert end["ablation"] < 0 < word["ablation"]  # heads before it feed it, so random heads move as much: it is not confirmed
    assert found.overruled()[0] == "head 1.0"
    assert set(found.overruled(confirmed=True)) <= set(found.overruled())
    assert "head 1.2" not in found.overruled()
    conform("overruled", found.frame, "x")


@torch.no_grad()
def test_parts_are_those_of_plain_algebra() -> None:
    instrument, prompts, reference = planted()
    found = null_attribution(instrument, prompts[:1], reference, top=1, random_heads=2)
    model = instrument.model
    seen: dict[str, torch.Tensor] = {}
    layer = model.model.layers[1]  # type: ignore[union-attr, index]
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a: seen.__setitem__("z", a[0][0, -1].double())),
        model.model.norm.register_forward_pre_hook(lambda m, a: seen.__setitem__("x", a[0][0, -1].double())),  # type: ignore[union-attr]
    ]
    logits = model(input_ids=torch.tensor([prompts[0].ids]), use_cache=False).logits[0, -1].double()
    for handle in handles:
        handle.remove()
    end, word = found.pairs[0]
    assert found.difference.value == pytest.approx(float(logits[end] - logits[word]), abs=1e-3)
    norm = model.model.norm  # type: ignore[union-attr]
    scale = (seen["x"].square().mean() + norm.variance_epsilon).rsqrt()
    u = (model.lm_head.weight[end] - model.lm_head.weight[word]).double() * norm.weight.double()  # type: ignore[union-attr, index, operator]
    write = layer.self_attn.o_proj.weight.double()[:, 32:48] @ seen["z"][32:48]
    row = found.frame.filter(component="head", layer=1, head=2).row(0, named=True)
    assert row["contribution"] == pytest.approx(float(scale * write @ u), rel=1e-3)
    assert row["n"] == 1
    assert row["low"] is None
    assert row["role"] == "unclear"  # one prompt has no interval
    assert row["confirmed"] is None


def test_a_model_that_speaks_overrules_nobody() -> None:
    tokenizer = tiny_tokenizer()
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[END] = 0.0  # logit 0, under the best of 384 random ones
    instrument = Instrument(wrap(model, tokenizer))
    prompts = asked(tokenizer, [f"the old {word} stands near the" for word in WORDS])
    found = null_attribution(instrument, prompts, asked(tokenizer, REFERENCE), top=2, random_heads=2)
    assert not found.ended.any()
    assert found.difference.below(0.0)
    with pytest.raises(PromptError, match="ends none"):
        found.overruled()


def test_content_is_never_a_special_token() -> None:
    instrument, prompts, reference = planted()
    found = null_attribution(instrument, prompts, reference, end=[WORD], top=1, random_heads=2)
    assert all(a == WORD and b not in instrument.loaded.tokenizer.all_special_ids for a, b in found.pairs)


def test_what_cannot_be_attributed_is_refused() -> None:
    instrument, prompts, reference = planted()
    with pytest.raises(ConfigError, match="end tokens"):
        null_attribution(instrument, prompts, reference, end=[10**6])
    with pytest.raises(ConfigError, match="reference"):
        null_attribution(instrument, prompts, [])
    capped = Instrument(wrap(build("gemma2"), tiny_tokenizer()))
    with pytest.raises(ConfigError, match="soft-caps"):
        null_attribution(capped, prompts, reference)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen3_next", "mixtral"])
def test_other_families_add_up(family: str) -> None:
    instrument = Instrument(wrap(build(family), tiny_tokenizer()))
    tokenizer = instrument.loaded.tokenizer
    prompts = asked(tokenizer, [f"the old {word} stands near the" for word in WORDS[:3]])
    found = null_attribution(instrument, prompts, asked(tokenizer, REFERENCE), top=2, random_heads=2)
    assert found.error < 1e-2
    ended = found.ended.any()
    n = int(found.ended.sum()) if ended else 3
    assert set(found.frame["n"]) == {n}
    assert float(found.frame["contribution"].sum()) == pytest.approx(found.difference.value, abs=1e-2)
    assert np.isfinite(found.frame["contribution"].to_numpy()).all()
