"""Patterns that are not kept but computed when they are needed give the same graph."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import instrument_of

import symbolic_residue.graph._local as local_module
from symbolic_residue.errors import EditError
from symbolic_residue.graph import attribute_prompt, freeze, head_loadings, qk_attribution
from symbolic_residue.instrument import AttentionMask, AttentionRead
from symbolic_residue.instrument.attention import Call, row_weights
from symbolic_residue.prompts import build_prompt

TEXT = "Please write the answer in one word. The answer is"


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "falcon_alibi", "gpt_neox"])
def test_a_graph_without_kept_patterns_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instrument = instrument_of(name)
    prompt = build_prompt(instrument.loaded.tokenizer, TEXT)
    kept = attribute_prompt(instrument, prompt, targets=["top:2"], max_nodes=30)
    monkeypatch.setattr(local_module, "_PATTERNS", 0)
    local = freeze(instrument, torch.tensor(prompt.ids))
    assert all(layer.kept is None for layer in local.layers)
    lazy = attribute_prompt(instrument, prompt, targets=["top:2"], max_nodes=30)
    torch.testing.assert_close(lazy.edges, kept.edges, rtol=0, atol=1e-12)
    assert head_loadings(instrument, lazy).error < 1e-12
    assert qk_attribution(instrument, lazy, 1, 2, 6, 3).weight == pytest.approx(qk_attribution(instrument, kept, 1, 2, 6, 3).weight)


def test_a_call_gives_the_weights_that_a_read_gives_and_no_edits() -> None:
    instrument = instrument_of("mistral")
    ids = torch.arange(5, 17)[None]
    calls: dict[int, Call] = {}
    read = AttentionRead(stats=(), rows=tuple(range(-12, 0)), weights=True, on_call=calls.__setitem__)
    trace = instrument.run(ids, attention=read)
    for layer, call in calls.items():
        torch.testing.assert_close(row_weights(call, 3, 9), trace.attention["weights"][layer][:, :, 3:9], rtol=0, atol=1e-12)
    assert sorted(calls) == [0, 1]
    with pytest.raises(EditError, match="edited"):
        instrument.run(ids, attention=read, edits=[AttentionMask(layers=(0,), heads=(1,), rows=(5,), keys=(2,))])
