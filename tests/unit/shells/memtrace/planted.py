"""A random model in which one head, and nothing else, carries the fact.

1. Every head's output and every MLP of a random two-layer model is scaled to a hundredth, so that they say next to nothing.
2. Head 1.2 looks, from the last word of the question, at tokens that are values, and raises each one's own logit. Attention is shared by all values
   in sight: facts about other things dilute it.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.prompts._padding import NATURAL, REPETITIVE

HEAD = (1, 2)
QUIET = 0.01
FACT = "the mill is{}."
QUESTION = "\nAs was said, the mill is"


def value_words(tokenizer: Any, n: int = 6) -> list[str]:
    """Words of one token that no padding and no question holds."""
    texts = [
        *NATURAL,
        *REPETITIVE,
        FACT + QUESTION,
        *(f" the {thing} is" for thing in ("gate", "door", "road", "cup", "hat", "hill")),
    ]
    used = {token for text in texts for token in (*tokenizer.encode(text), *tokenizer.encode(" " + text))}
    words = [tokenizer.decode([i]) for i in range(len(tokenizer)) if i not in used]
    return [w for w in words if re.fullmatch(r" [a-z]{2,}", w) and len(tokenizer.encode(w)) == 1][:n]


@torch.no_grad()
def planted_model(tokenizer: Any, *, working: bool = True) -> Any:
    """The model; with ``working=False`` the head is quiet like the others."""
    model = build("llama")
    values = [tokenizer.encode(w)[0] for w in value_words(tokenizer)]
    asking = tokenizer.encode(QUESTION)[-1]
    embed, unembed = model.model.embed_tokens.weight, model.lm_head.weight
    n = len(values)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight *= QUIET
        layer.mlp.down_proj.weight *= QUIET
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.fill_(1.0)
    embed[:, : 2 + n] = 0.0
    embed[values, 0] = 3.0
    embed[asking, 1] = 3.0
    for k, token in enumerate(values):
        embed[token, 2 + k] = 2.0
        unembed[:, 30 + k] = 0.0
        unembed[token, 30 + k] = 2.0
    embed[:, 30 : 30 + n] = 0.0
    attn, d = model.model.layers[HEAD[0]].self_attn, 16
    q, kv = HEAD[1] * d, (HEAD[1] // 2) * d
    attn.q_proj.weight[q : q + d] = 0.0
    attn.k_proj.weight[kv : kv + d] = 0.0
    attn.v_proj.weight[kv : kv + d] = 0.0
    attn.q_proj.weight[q + 7, 1] = 1.5  # dimension 7 turns slowest with the position
    attn.k_proj.weight[kv + 7, 0] = 1.5
    attn.o_proj.weight[:, q : q + d] = 0.0
    for k in range(n):
        attn.v_proj.weight[kv + k, 2 + k] = 1.0
        if working:
            attn.o_proj.weight[30 + k, q + k] = 1.0
    return model


def planted(working: bool = True) -> tuple[Any, Any, list[str]]:
    """Model, tokenizer, and the values."""
    tokenizer = tiny_tokenizer()
    return planted_model(tokenizer, working=working), tokenizer, value_words(tokenizer)
