"""A tiny model with a planted truth: one token gets hardly any attention, in every layer, and yet a single head carries it to the output.

1. Every embedding holds a shared direction ``c``; the embedding of :data:`NEEDLE`'s token holds ``e`` as well. Queries read ``c``, keys read ``−e``, both into the
   slowest rotary pair, so all tokens get the same attention except the needle, which gets ``exp(−depth)`` of it.
2. In layer :data:`LAYER`, head :data:`HEAD`, ``e`` becomes a very long value that the output projection turns into the unembedding of the answer. All other values
   are short and of random direction, MLPs zero.
"""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import build, tiny_tokenizer

LAYER, HEAD, N_LAYERS, N_HEADS = 1, 2, 4, 4
ANSWER = 40
WITH = "The mill stands where the river turns, and Anna keeps the gate. Ben came home"
WITHOUT = "The mill stands where the river turns, and the miller keeps the gate. Ben came home"
NEEDLE = "Anna"


def needle_position(tokenizer: Any) -> int:
    ids, needle = tokenizer.encode(WITH), tokenizer.encode(" " + NEEDLE)[-1]
    assert ids.count(needle) == 1
    assert needle not in tokenizer.encode(WITHOUT)
    return ids.index(needle)


@torch.no_grad()
def planted(depth: float = 3.5, strength: float = 300.0) -> tuple[Any, Any]:
    """Model and tokenizer."""
    model, tokenizer = build("llama_mha", num_hidden_layers=N_LAYERS, tie_word_embeddings=False), tiny_tokenizer()
    needle = tokenizer.encode(" " + NEEDLE)[-1]
    generator = torch.Generator().manual_seed(0)
    d, width = 64, 16
    embed = model.model.embed_tokens.weight
    embed.zero_()
    embed[:, 8:] = 0.3 * torch.randn(embed.shape[0], d - 8, generator=generator)
    embed[:, 0] = 4.0  # c
    embed[needle, 1] = 4.0  # e
    model.model.norm.weight.fill_(1.0)
    unembed = model.lm_head.weight
    unembed.zero_()
    unembed[:, 8:] = 0.05 * torch.randn(unembed.shape[0], d - 8, generator=generator)
    unembed[ANSWER, 2] = 8.0
    for i, layer in enumerate(model.model.layers):
        layer.input_layernorm.weight.fill_(1.0)
        layer.mlp.down_proj.weight.zero_()
        attention = layer.self_attn
        for module in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            module.weight.zero_()
        for head in range(N_HEADS):
            slow = head * width + width // 2 - 1
            attention.q_proj.weight[slow, 0] = 1.0
            attention.k_proj.weight[slow, 1] = -1.0
        attention.v_proj.weight[:, 8:] = 0.1 * torch.randn(d, d - 8, generator=generator)
        attention.o_proj.weight[8:] = 0.1 * torch.randn(d - 8, d, generator=generator)
        if i == LAYER:
            attention.v_proj.weight[HEAD * width, 1] = strength
            attention.o_proj.weight[8:, HEAD * width] = 0.0
            attention.o_proj.weight[2, HEAD * width] = 1.0
    # The norm scales c and e alike: set the score of the needle to −depth.
    x = embed[needle]
    unit = 4.0 / float(x.pow(2).mean().sqrt())
    other = embed[tokenizer.encode(WITH)[-1]]
    scale = depth * width**0.5 / (unit * 4.0 / float(other.pow(2).mean().sqrt()))
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.mul_(scale)
    return model, tokenizer
