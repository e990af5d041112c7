"""One pass over texts: what is pooled, from which token, whatever the batch and the padding; layers without heads are listed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.concepts import collect, pooled_positions
from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import Instrument
from symbolic_residue.models import bind, wrap
from symbolic_residue.prompts import build_prompt

TEXTS = [
    "The mill stands where the river turns.",
    "Anna put the red book under the table before Ben came home in the evening!",
    'Should the captain answer yes or no?"',
    "One two three four five six seven eight nine ten …",
    "Please write the answer in one word.\n",
]


def instrument_of(name: str) -> Instrument:
    model = build(name)
    return Instrument(SimpleNamespace(model=model, parts=bind(model), tokenizer=tiny_tokenizer()))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3_next", "bamba", "falcon_h1"])
@pytest.mark.parametrize(("pooling", "m"), [("last", 16), ("last_content", 16), ("mean_last_m", 4)])
def test_pooled_rows_are_those_of_the_text_run_alone_whatever_batch_and_padding(name: str, pooling: Any, m: int) -> None:
    instrument = instrument_of(name)
    parts = instrument.parts
    names = ["resid_post.*", "z.*"]
    alone_resid = {i: [] for i in range(parts.n_layers)}
    alone_heads = {i: [] for i in parts.attention_layers}
    for text in TEXTS:
        prompt = build_prompt(instrument.loaded.tokenizer, text)
        trace = instrument.run(torch.tensor([prompt.ids]), reads=names)
        n = len(prompt.ids)
        if pooling == "last":
            rows = [n - 1]
        elif pooling == "mean_last_m":
            rows = list(range(n - m, n))
        else:
            rows = [max(j for j, token in enumerate(prompt.tokens) if any(c.isalnum() for c in token))]
        for i in alone_resid:
            alone_resid[i].append(trace[f"resid_post.{i}"][0, rows].double().mean(0).numpy())
        for i in alone_heads:
            alone_heads[i].append(trace[f"z.{i}"][0, rows].double().mean(0).numpy())
    for batch_size, side in ((1, "right"), (2, "left"), (5, "left"), (3, "right"), (64, "right")):
        pooled = collect(instrument, TEXTS, pooling=pooling, m=m, batch_size=batch_size, side=side)  # type: ignore[arg-type]
        assert len(pooled) == len(TEXTS) and pooled.layers == tuple(range(parts.n_layers))
        assert set(pooled.heads) == set(parts.attention_layers)
        for i, expected in alone_resid.items():
            np.testing.assert_allclose(pooled.resid[i], np.array(expected), atol=2e-4, rtol=2e-4)
        for i, expected in alone_heads.items():
            assert pooled.heads[i].shape == (len(TEXTS), parts.n_heads, parts.d_head)
            np.testing.assert_allclose(pooled.heads[i], np.array(expected), atol=2e-4, rtol=2e-4)


def test_the_heads_and_their_output_weights_make_the_attention_output() -> None:
    instrument = instrument_of("llama")
    pooled = collect(instrument, TEXTS)
    for at, text in enumerate(TEXTS):
        prompt = build_prompt(instrument.loaded.tokenizer, text)
        trace = instrument.run(torch.tensor([prompt.ids]), reads=("attn_out.*",))
        for i in pooled.heads:
            layer = instrument.parts.layers[i]
            written = sum(torch.tensor(pooled.heads[i][at, h]) @ layer.w_o(h) for h in range(4))
            torch.testing.assert_close(written, trace[f"attn_out.{i}"][0, -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "skipped", "beside", "module"),
    [
        ("qwen3_next", [0, 2], [], "Qwen3NextGatedDeltaNet"),
        ("bamba", [0, 2], [], "BambaMixer"),
        ("falcon_h1", [], [0, 1], "FalconH1Mixer"),
        ("llama", [], [], ""),
    ],
)
def test_layers_without_softmax_attention_are_listed_with_the_reason(name: str, skipped: Any, beside: Any, module: str) -> None:
    pooled = collect(instrument_of(name), TEXTS[:2])
    assert [entry.layer for entry in pooled.skipped] == skipped
    assert [entry.layer for entry in pooled.beside] == beside
    for entry in (*pooled.skipped, *pooled.beside):
        assert entry.module == module and module in entry.reason
    assert not set(pooled.heads) & set(skipped)
    assert set(pooled.heads) | set(skipped) == set(pooled.layers)


def test_the_pooled_rows_may_lie_in_files(tmp_path: Path) -> None:
    instrument = Instrument(wrap(build("llama"), tiny_tokenizer()))
    kept = collect(instrument, TEXTS, layers=[-1])
    filed = collect(instrument, TEXTS, layers=[1], folder=tmp_path / "rows")
    assert isinstance(filed.resid[1], np.memmap) and isinstance(filed.heads[1], np.memmap)
    np.testing.assert_array_equal(filed.resid[1], kept.resid[1])
    np.testing.assert_array_equal(np.load(tmp_path / "rows" / "heads_1.npy"), kept.heads[1])
    assert kept.layers == (1,)


def test_which_tokens_are_pooled() -> None:
    tokenizer = tiny_tokenizer()
    prompt = build_prompt(tokenizer, TEXTS[3])
    n = len(prompt)
    assert pooled_positions(prompt) == range(n - 1, n)
    content = pooled_positions(prompt, "last_content")
    assert prompt.text[prompt.offsets[content.start][0] :].strip(" …") and not prompt.text[
        prompt.offsets[content.start][1] :
    ].strip(" …")
    assert content.stop < n
    chat = build_prompt(tokenizer, "Anna put the red book there!", chat=True)  # ends with the template's "assistant"
    at = pooled_positions(chat, "last_content").start
    assert chat.text[chat.offsets[at][1] :].startswith("!") and pooled_positions(chat).stop == len(chat)
    assert pooled_positions(prompt, "mean_last_m", 3) == range(n - 3, n)
    assert pooled_positions(prompt, "mean_last_m", n - 1) == range(1, n)
    with pytest.raises(PromptError, match="to be averaged"):
        pooled_positions(prompt, "mean_last_m", n)
    with pytest.raises(PromptError, match="no token to pool with a letter"):
        pooled_positions(build_prompt(tokenizer, "?! ... !!"), "last_content")
    with pytest.raises(PromptError, match="sink"):
        pooled_positions(build_prompt(tokenizer, "a"))
    with pytest.raises(ConfigError, match="no pooling"):
        pooled_positions(prompt, "first")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="1 or more"):
        pooled_positions(prompt, "mean_last_m", 0)


def test_refusals_come_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    instrument = instrument_of("llama")
    monkeypatch.setattr(instrument, "run", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(PromptError, match=r"2 of 3 texts cannot be used: text 0: .* text 2: "):
        collect(instrument, ["", TEXTS[0], "word " * 400])
    with pytest.raises(PromptError, match="no texts"):
        collect(instrument, [])
    with pytest.raises(PromptError, match="a list"):
        collect(instrument, "one text")
    with pytest.raises(ConfigError, match="no layer 7"):
        collect(instrument, TEXTS, layers=[7])
    with pytest.raises(ConfigError, match="No layer"):
        collect(instrument, TEXTS, layers=[])
    with pytest.raises(ConfigError, match="batch"):
        collect(instrument, TEXTS, batch_size=0)
