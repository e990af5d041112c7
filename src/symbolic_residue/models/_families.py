"""The family table: for every supported architecture, where the parts of the model are.

1. One ``FamilySpec`` an architecture, keyed by ``config.model_type``; ``_spec`` says what its fields mean.
2. ``REFUSED`` names model types that come close to a supported one, with the reason why they are not served.

Nothing here imports torch; ``bind`` (in ``_bind``) checks every entry against the actual modules.
"""

from __future__ import annotations

from typing import Any

from symbolic_residue.models._spec import FamilySpec, QkvLayout

__all__ = ["FAMILIES", "REFUSED", "FamilySpec"]

_BIDIRECTIONAL = ("use_bidirectional_attention", bool, "Attention to later tokens is not a causal language model.")


def _llama_like(model_type: str, **changes: Any) -> FamilySpec:
    fields: dict[str, Any] = {
        "model_type": model_type,
        "layers": "model.layers",
        "embed": "model.embed_tokens",
        "final_norm": "model.norm",
        "attn": "self_attn",
        "o_proj": "self_attn.o_proj",
        "mlp_down": "mlp.down_proj",
        "pre_attn_norm": "input_layernorm",
        "pre_mlp_norm": "post_attention_layernorm",
        "norm_kind": "rms",
        "qkv_layout": "split",
        "qkv": ("q_proj", "k_proj", "v_proj"),
    }
    return FamilySpec(**(fields | changes))


def _gemma_like(model_type: str, **changes: Any) -> FamilySpec:
    """Norms before and after each sublayer, their gain stored around zero; windows by layer."""
    fields: dict[str, Any] = {
        "pre_mlp_norm": "pre_feedforward_layernorm",
        "post_attn_norm": "post_attention_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
        "norm_offset": 1.0,
        "windows": "by_layer",
        "embed_scaled": True,
    }
    return _llama_like(model_type, **(fields | changes))


def _norm_last(model_type: str, **changes: Any) -> FamilySpec:
    """Only the outputs of the sublayers are normed (olmo2)."""
    fields: dict[str, Any] = {
        "pre_attn_norm": None,
        "pre_mlp_norm": None,
        "post_attn_norm": "post_attention_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    }
    return _llama_like(model_type, **(fields | changes))


def _cohere_like(model_type: str, **changes: Any) -> FamilySpec:
    """Parallel blocks with one shared LayerNorm without bias."""
    fields: dict[str, Any] = {
        "pre_mlp_norm": "input_layernorm",
        "norm_kind": "layer",
        "parallel": lambda config: True,
        "logit_scale": lambda config: config.logit_scale,
    }
    return _llama_like(model_type, **(fields | changes))


def _granite_factors() -> dict[str, Any]:
    return {
        "attn_scale": lambda config: config.residual_multiplier,
        "mlp_scale": lambda config: config.residual_multiplier,
        "mixer_scale": lambda config: config.residual_multiplier,
        "embed_scale": lambda config: config.embedding_multiplier,
        "logit_scale": lambda config: 1.0 / config.logits_scaling,
    }


def _mamba_hybrid(model_type: str, **changes: Any) -> FamilySpec:
    fields: dict[str, Any] = {
        "final_norm": "model.final_layernorm",
        "mixer": "mamba",
        "hybrid": True,
        "mlp": "feed_forward",
        "mlp_down": "feed_forward.down_proj",
        "pre_mlp_norm": "pre_ff_layernorm",
    }
    return _llama_like(model_type, **(fields | changes))


def _falcon_layout(config: Any) -> QkvLayout:
    if config.new_decoder_architecture:
        return "grouped"
    return "stacked" if config.multi_query else "interleaved"


def _falcon_kv_heads(config: Any) -> int:
    if config.new_decoder_architecture:
        return config.num_kv_heads
    return 1 if config.multi_query else config.num_attention_heads


def _falcon_norm(config: Any, sublayer: str) -> str:
    if not config.parallel_attn:
        return "input_layernorm" if sublayer == "attn" else "post_attention_layernorm"
    return f"ln_{sublayer}" if config.num_ln_in_parallel_attn == 2 else "input_layernorm"


def _falcon_refused(config: Any) -> str | None:
    if config.new_decoder_architecture and not config.parallel_attn:
        return "The newer blocks of falcon are parallel; transformers cannot run them otherwise."
    if not config.new_decoder_architecture and config.num_ln_in_parallel_attn == 2:
        return "The older blocks of falcon have one norm; transformers cannot run them with two."
    return None


def _opt_refused(config: Any) -> str | None:
    if config.word_embed_proj_dim != config.hidden_size:
        return "word_embed_proj_dim differs from hidden_size: tokens enter and leave through projections that the table does not describe."
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        return "Its residual stream itself is normed after each sublayer (do_layer_norm_before=False), so it is no sum of contributions."
    return None


_SPECS = (
    _llama_like("llama"),
    _llama_like("qwen2", windows="by_layer"),
    _llama_like("qwen3", windows="by_layer"),
    _llama_like(
        "mistral",
        windows="all",
        refuse_when=(
            (
                "layer_types",
                bool,
                "A mistral config with layer types belongs to another architecture (ministral); this one windows all layers alike.",
            ),
        ),
    ),
    _llama_like("mixtral", moe=True, windows="all"),
    _llama_like("qwen2_moe", moe=True, windows="by_layer"),
    _llama_like("qwen3_moe", moe=True, windows="all"),
    _llama_like("gpt_oss", moe=True, windows="by_layer"),
    _llama_like("phi3", qkv_layout="stacked", qkv=("qkv_proj",), windows="all"),
    _llama_like("smollm3", windows="by_layer"),
    _llama_like("olmo", norm_kind="layer", norm_eps=1e-5),
    _norm_last("olmo2"),
    _norm_last("olmo3", windows="by_layer"),
    _norm_last("exaone4", windows="by_layer"),
    _llama_like("glm4", post_attn_norm="post_self_attn_layernorm", post_mlp_norm="post_mlp_layernorm"),
    _llama_like("granite", **_granite_factors()),
    _llama_like("starcoder2", norm_kind="layer", mlp_down="mlp.c_proj", windows="all"),
    _llama_like("nemotron", norm_kind="layer", norm_offset=1.0),
    _llama_like(
        "stablelm",
        norm_kind="layer",
        parallel=lambda config: bool(config.use_parallel_residual),
        pre_mlp_norm=lambda config: "input_layernorm" if config.use_parallel_residual else "post_attention_layernorm",
    ),
    _llama_like(
        "phi",
        norm_kind="layer",
        final_norm="model.final_layernorm",
        o_proj="self_attn.dense",
        mlp_down="mlp.fc2",
        pre_mlp_norm="input_layernorm",
        parallel=lambda config: True,
    ),
    _cohere_like("cohere"),
    _cohere_like("cohere2", windows="by_layer"),
    _llama_like("gemma", norm_offset=1.0, embed_scaled=True, refuse_when=(_BIDIRECTIONAL,)),
    _gemma_like("gemma2", refuse_when=(_BIDIRECTIONAL,)),
    _gemma_like(
        "gemma3_text",
        refuse_when=(
            _BIDIRECTIONAL,
            ("attn_logit_softcapping", lambda value: value is not None, "The released models have no softcap; it is untested."),
        ),
    ),
    FamilySpec(
        model_type="gpt2",
        layers="transformer.h",
        embed="transformer.wte",
        position_embed="transformer.wpe",
        final_norm="transformer.ln_f",
        attn="attn",
        o_proj="attn.c_proj",
        mlp_down="mlp.c_proj",
        pre_attn_norm="ln_1",
        pre_mlp_norm="ln_2",
        norm_kind="layer",
        qkv_layout="stacked",
        qkv=("c_attn",),
        refuse_when=(("add_cross_attention", bool, "Cross-attention layers are not in the table."),),
    ),
    FamilySpec(
        model_type="gpt_neox",
        layers="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        attn="attention",
        o_proj="attention.dense",
        mlp_down="mlp.dense_4h_to_h",
        pre_attn_norm="input_layernorm",
        pre_mlp_norm="post_attention_layernorm",
        norm_kind="layer",
        qkv_layout="interleaved",
        qkv=("query_key_value",),
        parallel=lambda config: bool(config.use_parallel_residual),
    ),
    FamilySpec(
        model_type="opt",
        layers="model.decoder.layers",
        embed="model.decoder.embed_tokens",
        position_embed="model.decoder.embed_positions",
        position_offset=2,
        final_norm="model.decoder.final_layer_norm",
        attn="self_attn",
        o_proj="self_attn.out_proj",
        mlp=None,
        mlp_up="fc1",
        mlp_down="fc2",
        pre_attn_norm="self_attn_layer_norm",
        pre_mlp_norm="final_layer_norm",
        norm_kind="layer",
        qkv_layout="split",
        qkv=("q_proj", "k_proj", "v_proj"),
        query_prescaled=True,
        refuse=_opt_refused,
    ),
    FamilySpec(
        model_type="falcon",
        layers="transformer.h",
        embed="transformer.word_embeddings",
        final_norm="transformer.ln_f",
        attn="self_attention",
        o_proj="self_attention.dense",
        mlp_down="mlp.dense_4h_to_h",
        pre_attn_norm=lambda config: _falcon_norm(config, "attn"),
        pre_mlp_norm=lambda config: _falcon_norm(config, "mlp"),
        norm_kind="layer",
        qkv_layout=_falcon_layout,
        qkv=("query_key_value",),
        parallel=lambda config: bool(config.parallel_attn),
        sizes=lambda config: {"n_kv_heads": _falcon_kv_heads(config)},
        position_ids=lambda config: not config.alibi,
        door="sdpa_call",
        refuse=_falcon_refused,
    ),
    _mamba_hybrid("bamba"),
    _mamba_hybrid("jamba", moe=True, position_ids=lambda config: False),
    _mamba_hybrid(
        "falcon_h1",
        attn_scale=lambda config: config.attention_out_multiplier,
        mixer_scale=lambda config: config.ssm_out_multiplier,
        embed_scale=lambda config: config.embedding_multiplier,
        embed_scale_on_ids=True,
        logit_scale=lambda config: config.lm_head_multiplier,
        attn_in_scale=lambda config: config.attention_in_multiplier,
        key_scale=lambda config: config.key_multiplier,
        mlp_down_scale=lambda config: config.mlp_multipliers[1],
    ),
    _llama_like(
        "qwen3_next",
        mixer="linear_attn",
        hybrid=True,
        moe=True,
        norm_offset=1.0,
        qkv_layout="gated",
    ),
    _llama_like(
        "granitemoehybrid",
        mixer="mamba",
        hybrid=True,
        mlp="shared_mlp",
        mlp_down="shared_mlp.output_linear",
        position_ids=lambda config: config.position_embedding_type == "rope",
        refuse_when=(
            (
                "num_local_experts",
                bool,
                "Experts and a shared MLP are added outside any module, so no module's output is what the MLP writes.",
            ),
        ),
        **_granite_factors(),
    ),
    _llama_like(
        "lfm2",
        final_norm="model.embedding_norm",
        mixer="conv",
        hybrid=True,
        o_proj="self_attn.out_proj",
        mlp="feed_forward",
        mlp_down="feed_forward.w2",
        pre_attn_norm="operator_norm",
        pre_mlp_norm="ffn_norm",
    ),
)

FAMILIES: dict[str, FamilySpec] = {spec.model_type: spec for spec in _SPECS}
"""Supported architectures by ``config.model_type``."""

_NO_SOFTMAX = "It has no softmax attention."
_OWN_ATTENTION = (
    "Its attention is computed in its own code, not through transformers' attention interface, so it cannot be read exactly."
)

REFUSED: dict[str, str] = {
    "gemma3": "It joins the text model to an image tower; only the text model (gemma3_text) is in the table.",
    "gemma3n_text": "It keeps several residual streams that are predicted from one another, so no single stream adds up.",
    "gemma4": "It joins the text model to other towers, and its layers take further inputs of their own.",
    "gemma4_text": "Its layers take further inputs of their own and share keys and values with one another.",
    "deepseek_v3": "Its values have another width than its queries and keys (latent attention), which the table does not describe.",
    "llama4_text": "Its chunked attention has no window that the table could describe.",
    "nemotron_h": "Each of its blocks holds a single sublayer (mamba, attention or MLP), which the table does not describe.",
    "zamba2": "Its attention block is shared between layers and reads the embedding again.",
    "recurrent_gemma": "Its recurrent layers and windowed attention are not in the table.",
    "mamba": _NO_SOFTMAX,
    "mamba2": _NO_SOFTMAX,
    "falcon_mamba": _NO_SOFTMAX,
    "rwkv": _NO_SOFTMAX,
    "gpt_neo": _OWN_ATTENTION,
    "gptj": _OWN_ATTENTION,
    "codegen": _OWN_ATTENTION,
    "bloom": _OWN_ATTENTION,
    "mpt": _OWN_ATTENTION,
}
"""Near neighbours of supported architectures, each with the reason for the refusal."""
