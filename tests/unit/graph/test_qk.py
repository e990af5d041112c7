"""QK attribution: pairs sum to the score, and scores rebuilt from the pairs give the attention pattern back."""

from __future__ import annotations

import pytest
import torch
from graph_helpers import instrument_of

from symbolic_residue.errors import ConfigError, VerificationError
from symbolic_residue.graph import attribute_prompt, freeze, Graph, qk_attribution
from symbolic_residue.instrument import Add, AttentionRead, FreezeNorm, Instrument, norm_scales, PatternReplace, Replace
from symbolic_residue.prompts import build_prompt

FAMILIES = [
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "mistral",
    "phi3",
    "phi",
    "mixtral",
    "olmo2",
    "cohere_qk_norm",
    "stablelm_parallel",
    "opt",
    "falcon",
    "smollm3",
]

FLOAT32_INSIDE = {"qwen3", "gemma2", "gemma3", "olmo2", "cohere_qk_norm"}
"""transformers computes their norms of queries and keys (gemma2: its softmax) in float32 whatever the model's dtype, and the maps are exact in float64."""


def graph_of(instrument: Instrument, **options: object) -> Graph:
    prompt = build_prompt(instrument.loaded.tokenizer, "Please write the answer in one word")
    return attribute_prompt(instrument, prompt, targets=["top:1"], max_nodes=30, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FAMILIES)
def test_pairs_sum_to_the_score_and_the_marginals_are_theirs(name: str) -> None:
    instrument = instrument_of(name)
    graph = graph_of(instrument)
    local = freeze(instrument, torch.tensor(graph.ids))
    last = len(graph.ids) - 1
    for layer, head, query, key in ((1, 2, last, last - 1), (0, 1, 3, 0), (1, 3, last, last)):
        found = qk_attribution(instrument, graph, layer, head, query, key, local=local)
        assert found.error < (1e-6 if name in FLOAT32_INSIDE else 1e-11)
        pairs = found.pairs()
        torch.testing.assert_close(pairs.sum(1), found.of_query(), rtol=0, atol=1e-10)
        torch.testing.assert_close(pairs.sum(0), found.of_key(), rtol=0, atol=1e-10)
        top = found.top(5)
        assert float(pairs.abs().max()) == pytest.approx(abs(top["term"][0]))
        later = graph.units.layer >= layer
        assert not found.q[:, : len(graph)][:, later].any()
        elsewhere = graph.units.position > key
        assert not found.k[:, : len(graph)][:, elsewhere].any()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox"])
def test_the_pattern_is_rebuilt_from_the_pairs(name: str) -> None:
    instrument = instrument_of(name)
    graph = graph_of(instrument)
    local = freeze(instrument, torch.tensor(graph.ids))
    query = len(graph.ids) - 1
    found = [qk_attribution(instrument, graph, 1, 2, query, key, local=local) for key in range(query + 1)]
    rebuilt = torch.tensor([float(one.pairs().sum()) for one in found], dtype=torch.float64).softmax(0)
    read = AttentionRead(stats=(), rows=(-1,), weights=True)
    trace = instrument.run(torch.tensor([graph.ids]), attention=read)
    tolerance = 1e-6 if name in FLOAT32_INSIDE else 1e-10
    torch.testing.assert_close(rebuilt, trace.attention["weights"][1, 0, 2, 0], rtol=0, atol=tolerance)
    torch.testing.assert_close(torch.tensor([one.weight for one in found], dtype=torch.float64), rebuilt, rtol=0, atol=tolerance)


def test_a_marginal_is_what_the_score_loses_without_the_write() -> None:
    """Oracle: the transformers model, with patterns below, norms and MLP outputs held, loses exactly the query's part of an embedding."""
    instrument = instrument_of("llama")
    graph = graph_of(instrument)
    ids = torch.tensor([graph.ids])
    n = len(graph.ids)
    query, key, layer, head = n - 1, 2, 1, 2
    found = qk_attribution(instrument, graph, layer, head, query, key)
    read = AttentionRead(stats=(), rows=tuple(range(-n, 0)), weights=True, layers=(0,))
    plain = instrument.run(ids, reads=["resid_pre.0", "resid_pre.1", "mlp_out.0", f"q.{layer}", f"k.{layer}"], attention=read)
    held = [
        PatternReplace(weights=plain.attention["weights"][0], rows=None, layers=(0,)),
        Replace(point="mlp_out.0", value=plain["mlp_out.0"]),
        FreezeNorm(norm="pre_attn_norm.0", scale=norm_scales(plain, "pre_attn_norm.0", instrument.parts)),
        FreezeNorm(norm="pre_attn_norm.1", scale=norm_scales(plain, "pre_attn_norm.1", instrument.parts)),
    ]
    source = 3
    write = plain["resid_pre.0"][0, source]
    changed = instrument.run(ids, reads=[f"q.{layer}"], edits=[*held, Add(point="resid_pre.0", value=-write, rows=(source - n,))])
    lost = (plain[f"q.{layer}"] - changed[f"q.{layer}"])[0, query, head]
    expected = found.scale * (lost @ plain[f"k.{layer}"][0, key, head // 2])
    mine = found.of_query()[graph.columns.embeddings.start + source]
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)


def test_heads_and_positions_that_are_not_there_are_refused() -> None:
    instrument = instrument_of("llama")
    graph = graph_of(instrument)
    for layer, head, query, key in ((2, 0, 1, 0), (0, 4, 1, 0), (0, 0, 0, 1), (0, 0, 99, 0), (0, 0, 1, -1)):
        with pytest.raises(ConfigError):
            qk_attribution(instrument, graph, layer, head, query, key)
    with pytest.raises(VerificationError):
        qk_attribution(instrument_of("gpt2"), graph, 1, 0, 2, 1)
