"""A two-layer gpt2 whose weights are set so that head 0.0 looks at the token before and head 1.0 is an induction head; the other heads are weak noise.

Residual stream: 64 dimensions for the token, 64 for the position (one-hot, for the first 64), 64 for the token before. Head 0.0 matches position i with key i − 1 and copies the token into
the third part; head 1.0 matches the own token with the third part of the keys and copies the token that stands there.
"""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import VOCAB

WIDTH, PART = 192, 64


def induction_model(*, knocked_out: bool = False, vocab: int = VOCAB) -> Any:
    """The model; ``knocked_out`` leaves head 1.0 without output."""
    from transformers import AutoConfig, AutoModelForCausalLM

    entries: dict[str, Any] = {"vocab_size": vocab, "n_embd": WIDTH, "n_inner": 8, "n_layer": 2, "n_head": 3, "n_positions": 256}
    entries |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "tie_word_embeddings": False}
    config = AutoConfig.for_model("gpt2", bos_token_id=0, eos_token_id=2, pad_token_id=3, **entries)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        token = torch.randn(vocab, PART).sign()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "ln" not in name:
                    p.copy_(torch.randn_like(p) * 0.002 if p.dim() > 1 else torch.zeros_like(p))
            model.transformer.wte.weight.zero_()
            model.transformer.wte.weight[:, :PART] = token
            model.transformer.wpe.weight.zero_()
            model.transformer.wpe.weight[:PART, PART : 2 * PART] = torch.eye(PART) * 8
            model.lm_head.weight.zero_()
            model.lm_head.weight[:, 2 * PART :] = token / 4
            eye = torch.eye(PART)
            for layer, block in enumerate(model.transformer.h):
                block.mlp.c_proj.weight.zero_()
                qkv, out = block.attn.c_attn.weight, block.attn.c_proj.weight  # [in, out]
                first = slice(0, PART)
                qkv[:, first] = 0
                qkv[:, WIDTH : WIDTH + PART] = 0
                qkv[:, 2 * WIDTH : 2 * WIDTH + PART] = 0
                out[first] = 0
                if layer == 0:
                    qkv[PART : 2 * PART, first] = eye * 8
                    qkv[PART : 2 * PART, WIDTH : WIDTH + PART] = torch.roll(eye, 1, dims=1) * 8  # key j answers to position j + 1
                    qkv[:PART, 2 * WIDTH : 2 * WIDTH + PART] = eye
                    out[first, 2 * PART :] = eye
                else:
                    qkv[:PART, first] = eye * 3
                    qkv[2 * PART :, WIDTH : WIDTH + PART] = eye * 3
                    qkv[:PART, 2 * WIDTH : 2 * WIDTH + PART] = eye
                    if not knocked_out:
                        out[first, 2 * PART :] = eye * 4
    return model.eval()
