"""Tiny random models and a tiny tokenizer, built in code: two layers (hybrids: four) of every family that the family table knows.

1. ``ALL`` maps a name to the keyword arguments of a transformers config (``model_type`` among them). ``HYBRIDS`` names those whose layers do not
   all mix tokens by softmax attention alone; ``FAMILIES`` is the others.
2. ``build`` makes the model from its config with a fixed seed and then spreads it out, so that a mistake shows: weight matrices
   are multiplied by ``scale`` (attention far from uniform), embeddings kept moderate (logits stay under about 50 in size), and
   every vector parameter (norm gains, biases) gets random numbers, because ones and zeros would hide a forgotten gain or bias.
3. ``tiny_tokenizer`` is a byte-level BPE trained on a few sentences of our own, with a chat template of our own.

Import it as ``from tiny_models import build`` (``tests/conftest.py`` puts this folder on the path).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

VOCAB = 384
SLIDING_WINDOW = 8

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.05,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2, "head_dim": 16}

_WITHOUT_HEAD_DIM = {key: value for key, value in _GROUPED.items() if key != "head_dim"}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

_DENSE: dict[str, dict[str, Any]] = {
    "llama": _GROUPED | {"model_type": "llama", "tie_word_embeddings": False},
    "llama_mha": _COMMON | {"model_type": "llama", "num_key_value_heads": 4, "head_dim": 16, "tie_word_embeddings": True},
    "qwen2": _WITHOUT_HEAD_DIM | {"model_type": "qwen2", "use_sliding_window": False, "tie_word_embeddings": False},
    "qwen3": _GROUPED | {"model_type": "qwen3", "head_dim": 32, "use_sliding_window": False, "tie_word_embeddings": False},
    "gemma3": _GROUPED
    | {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 16,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
    },
    "mistral": _GROUPED | {"model_type": "mistral", "sliding_window": SLIDING_WINDOW, "tie_word_embeddings": False},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": 64,
        "n_inner": 96,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "initializer_range": 0.05,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
    },
    "gpt_neox": _COMMON | {"model_type": "gpt_neox", "use_parallel_residual": True, "tie_word_embeddings": False},
    "mixtral": _GROUPED | {"model_type": "mixtral", "sliding_window": SLIDING_WINDOW, **_EXPERTS, "num_local_experts": 4},
    "qwen2_moe": _WITHOUT_HEAD_DIM
    | {"model_type": "qwen2_moe", **_EXPERTS, "shared_expert_intermediate_size": 40, "mlp_only_layers": [1], "qkv_bias": True},
    "qwen3_moe": _GROUPED | {"model_type": "qwen3_moe", **_EXPERTS, "use_sliding_window": False},
    "gemma": _GROUPED | {"model_type": "gemma"},
    "phi3": _WITHOUT_HEAD_DIM | {"model_type": "phi3", "sliding_window": SLIDING_WINDOW, "tie_word_embeddings": False},
    "olmo": _WITHOUT_HEAD_DIM | {"model_type": "olmo", "clip_qkv": 2.0},
    "olmo2": _WITHOUT_HEAD_DIM | {"model_type": "olmo2"},
    "olmo3": _WITHOUT_HEAD_DIM
    | {"model_type": "olmo3", "sliding_window": SLIDING_WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "exaone4": _GROUPED
    | {"model_type": "exaone4", "sliding_window": SLIDING_WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "glm4": _GROUPED | {"model_type": "glm4", "attention_bias": True},
    "granite": _WITHOUT_HEAD_DIM
    | {
        "model_type": "granite",
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.4,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "tie_word_embeddings": True,
    },
    "cohere": _WITHOUT_HEAD_DIM | {"model_type": "cohere", "logit_scale": 0.5},
    "cohere_qk_norm": _WITHOUT_HEAD_DIM | {"model_type": "cohere", "logit_scale": 0.5, "use_qk_norm": True, "attention_bias": True},
    "cohere2": _GROUPED
    | {
        "model_type": "cohere2",
        "logit_scale": 0.5,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "starcoder2": _WITHOUT_HEAD_DIM | {"model_type": "starcoder2", "sliding_window": SLIDING_WINDOW, "use_bias": True},
    "stablelm": _WITHOUT_HEAD_DIM | {"model_type": "stablelm", "use_qkv_bias": True},
    "stablelm_parallel": _WITHOUT_HEAD_DIM | {"model_type": "stablelm", "use_parallel_residual": True, "qk_layernorm": True},
    "nemotron": _GROUPED | {"model_type": "nemotron"},
    "phi": _WITHOUT_HEAD_DIM | {"model_type": "phi", "partial_rotary_factor": 0.5},
    "smollm3": _GROUPED | {"model_type": "smollm3", "no_rope_layers": [1, 0], "use_sliding_window": False},
    "opt": {key: value for key, value in _COMMON.items() if key != "intermediate_size"}
    | {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0},
}
"""Names of the tiny models. ``qwen3`` has heads wider than hidden_size / heads, as the released ones do."""

_FALCON: dict[str, Any] = {key: value for key, value in _COMMON.items() if key != "intermediate_size"} | {
    "model_type": "falcon",
    "ffn_hidden_size": 96,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}

_OWN_ATTENTION: dict[str, dict[str, Any]] = {
    "gemma2": _GROUPED
    | {
        "model_type": "gemma2",
        "query_pre_attn_scalar": 16,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
    },
    "gpt_oss": _GROUPED
    | {
        "model_type": "gpt_oss",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        **_EXPERTS,
        "num_local_experts": 4,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "falcon": _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "falcon_mqa": _FALCON | {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True},
    "falcon_alibi": _FALCON
    | {"new_decoder_architecture": False, "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
}
"""Softcapped scores, sink logits, calls of SDPA outside the attention interface."""

_MAMBA2: dict[str, Any] = {
    "num_hidden_layers": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}

_HYBRID: dict[str, dict[str, Any]] = {
    "bamba": _WITHOUT_HEAD_DIM | _MAMBA2 | {"model_type": "bamba", "attn_layer_indices": [1, 3]},
    "falcon_h1": _GROUPED
    | _MAMBA2
    | {
        "model_type": "falcon_h1",
        "num_hidden_layers": 2,
        "mamba_d_ssm": 128,
        "attention_in_multiplier": 0.7,
        "attention_out_multiplier": 0.6,
        "ssm_in_multiplier": 0.8,
        "ssm_out_multiplier": 0.5,
        "ssm_multipliers": [0.9, 0.8, 0.7, 0.6, 0.5],
        "mlp_multipliers": [0.8, 0.7],
        "embedding_multiplier": 2.0,
        "lm_head_multiplier": 0.5,
        "key_multiplier": 0.9,
    },
    "jamba": _WITHOUT_HEAD_DIM
    | {
        "model_type": "jamba",
        "num_hidden_layers": 4,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "qwen3_next": _GROUPED
    | {
        "model_type": "qwen3_next",
        "num_hidden_layers": 4,
        **_EXPERTS,
        "shared_expert_intermediate_size": 40,
        "mlp_only_layers": [0],
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "granitemoehybrid": _WITHOUT_HEAD_DIM
    | _MAMBA2
    | {
        "model_type": "granitemoehybrid",
        "num_local_experts": 0,
        "position_embedding_type": "rope",
        "shared_intermediate_size": 96,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.4,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
    },
    "lfm2": _WITHOUT_HEAD_DIM
    | {
        "model_type": "lfm2",
        "num_hidden_layers": 4,
        "layer_types": ["conv", "full_attention"] * 2,
        "block_auto_adjust_ff_dim": False,
    },
}

ALL: dict[str, dict[str, Any]] = _DENSE | _OWN_ATTENTION | _HYBRID

NEEDS_NEW_DOOR: tuple[str, ...] = ()
"""Models that the attention door does not serve yet: they are bound and checked, but no instrument is attached to them. (``opt`` scales its queries
itself and tells the attention function a factor of 1: an oracle must take ``LayerParts.score_scale``, not the module's ``scaling``.)"""

HYBRIDS: tuple[str, ...] = tuple(_HYBRID)
"""Models with layers whose tokens are mixed by something else than softmax attention, or by both."""

FAMILIES: dict[str, dict[str, Any]] = {name: ALL[name] for name in ALL if name not in NEEDS_NEW_DOOR and name not in HYBRIDS}
"""Models whose every layer has softmax attention and nothing else beside it."""

_MATRIX_STD = 0.05
_EMBEDDINGS = ("embed_tokens", "embed_in", "embed_positions", "word_embeddings", "wte", "wpe", "lm_head")
_QK_NORMS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")
_STATE_SPACE = ("A_log", "dt_bias", "dt_proj.bias", ".D")
"""Recurrences keep the values that transformers gives them: random ones would explode or forget everything."""


def build(name: str, seed: int = 0, scale: float = 4.0, **changes: Any) -> Any:
    """A random tiny model in float32, eval mode, with the attention that transformers picks (SDPA where the family can).

    Args:
        name: a key of ``ALL``.
        seed: of the random weights; the global generator is left as it was.
        scale: factor on every weight matrix but the embeddings and the unembedding.
        changes: config entries that replace those of ``ALL[name]``.
    """
    return spread(ALL[name] | changes, seed, scale)


def spread(entries: dict[str, Any], seed: int = 0, scale: float = 4.0) -> Any:
    """As :func:`build`, from the entries of a config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**entries)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith(_STATE_SPACE):
                    continue
                if parameter_name.endswith("sinks"):
                    parameter.normal_()
                elif parameter.dim() < 2 or "norm" in parameter_name:  # gains and biases: not left at one and zero
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                    if any(part in parameter_name for part in _QK_NORMS):
                        parameter.add_(scale / 4)  # a normed query forgets the scale of its weights: the gain must carry it
                elif any(part in parameter_name for part in _EMBEDDINGS):
                    parameter.normal_(0.0, 4 * _MATRIX_STD)
                else:
                    parameter.normal_(0.0, _MATRIX_STD * scale)
    return model.eval()


_SENTENCES = (
    "The mill stands where the river turns, and the miller keeps the key to the gate.",
    "Should the captain answer yes or no to the question of the harbour master?",
    "Anna put the red book under the table before Ben came home in the evening.",
    "Please write the answer in one word. The answer is",
    "You are a careful helper. One two three four five six seven eight nine ten.",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(chat: bool = True, bos: bool = False, *, texts: Sequence[str] = _SENTENCES, vocab: int = VOCAB) -> Any:
    """A byte-level BPE tokenizer with at most ``vocab`` entries, as a ``PreTrainedTokenizerFast``.

    Args:
        chat: with the chat template (``<|start|>role ... <|end|>``), else without one.
        bos: whether plain text is opened by ``<|text|>``.
        texts: what its merges are learnt from; with a vocabulary large enough every word of them is one token.
        vocab: the most entries.
    """
    from tokenizers import decoders, models, pre_tokenizers, processors, Tokenizer, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|text|>", "<|start|>", "<|end|>", "<|pad|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<|text|> $A", special_tokens=[("<|text|>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|text|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast
