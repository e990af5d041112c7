"""The family table: for every supported architecture, where the parts of the model are.

1. One ``FamilySpec`` an architecture, keyed by ``config.model_type``; ``_spec`` says what its fields mean.
2. ``REFUSED`` names model types that come close to a supported one, with the reason why they are not served.

Nothing here imports torch; ``bind`` (in ``_bind``) checks every entry against the actual modules.
"""

from __future__ import annotations

from typing import Any

from symbolic_residue.models._spec import FamilySpec

__all__ = ["FAMILIES", "REFUSED", "FamilySpec"]


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
    _llama_like(
        "gemma3_text",
        pre_mlp_norm="pre_feedforward_layernorm",
        post_attn_norm="post_attention_layernorm",
        post_mlp_norm="post_feedforward_layernorm",
        norm_offset=1.0,
        windows="by_layer",
        embed_scaled=True,
        refuse_when=(
            ("use_bidirectional_attention", bool, "Attention to later tokens is not a causal language model."),
            ("attn_logit_softcapping", lambda value: value is not None, "SDPA attention cannot soft-cap its scores."),
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
)

FAMILIES: dict[str, FamilySpec] = {spec.model_type: spec for spec in _SPECS}
"""Supported architectures by ``config.model_type``."""

REFUSED: dict[str, str] = {
    "gemma3": "It joins the text model to an image tower; only the text model (gemma3_text) is in the table.",
    "gemma": "Only the third generation (gemma3_text) is in the table.",
    "gemma2": "Its attention soft-caps the scores, which SDPA attention cannot do.",
    "mixtral": "A mixture of experts has no single MLP per layer.",
    "qwen2_moe": "A mixture of experts has no single MLP per layer.",
    "qwen3_moe": "A mixture of experts has no single MLP per layer.",
    "mamba": "It has no attention.",
}
"""Near neighbours of supported architectures, each with the reason for the refusal."""
