"""Tiny random models and a tiny tokenizer, built in code: two layers of every family that the family table knows.

1. ``FAMILIES`` maps a name to the keyword arguments of a transformers config (``model_type`` among them).
2. ``build`` makes the model from its config with a fixed seed and then spreads it out, so that a mistake shows: weight matrices
   are multiplied by ``scale`` (attention far from uniform), embeddings kept moderate (logits stay under about 50 in size), and
   every vector parameter (norm gains, biases) gets random numbers, because ones and zeros would hide a forgotten gain or bias.
3. ``tiny_tokenizer`` is a byte-level BPE trained on a few sentences of our own, with a chat template of our own.

Import it as ``from tiny_models import build`` (``tests/conftest.py`` puts this folder on the path).
"""

from __future__ import annotations

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

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED | {"model_type": "llama", "tie_word_embeddings": False},
    "llama_mha": _COMMON | {"model_type": "llama", "num_key_value_heads": 4, "head_dim": 16, "tie_word_embeddings": True},
    "qwen2": {key: value for key, value in _GROUPED.items() if key != "head_dim"}
    | {"model_type": "qwen2", "use_sliding_window": False, "tie_word_embeddings": False},
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
}
"""Names of the tiny models. ``qwen3`` has heads wider than hidden_size / heads, as the released ones do."""

_MATRIX_STD = 0.05
_EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "wpe", "lm_head")


def build(name: str, seed: int = 0, scale: float = 4.0, **changes: Any) -> Any:
    """A random two-layer model in float32, eval mode, SDPA attention.

    Args:
        name: a key of ``FAMILIES``.
        seed: of the random weights; the global generator is left as it was.
        scale: factor on every weight matrix but the embeddings and the unembedding.
        changes: config entries that replace those of ``FAMILIES[name]``.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kwargs = FAMILIES[name] | changes
    config = AutoConfig.for_model(**kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.dim() < 2:  # norm gains and biases: not left at one and zero
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                    if "q_norm" in parameter_name or "k_norm" in parameter_name:
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


def tiny_tokenizer(chat: bool = True, bos: bool = False) -> Any:
    """A byte-level BPE tokenizer with at most ``VOCAB`` entries, as a ``PreTrainedTokenizerFast``.

    Args:
        chat: with the chat template (``<|start|>role ... <|end|>``), else without one.
        bos: whether plain text is opened by ``<|text|>``.
    """
    from tokenizers import decoders, models, pre_tokenizers, processors, Tokenizer, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|text|>", "<|start|>", "<|end|>", "<|pad|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
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
