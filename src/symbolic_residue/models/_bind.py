"""Binding: the family table's paths resolved on a model, every part checked.

1. The config decides the family; one that the table has never seen is looked for by its structure (``_discover``). Quantised, packed
   and offloaded weights and refused variants stop here.
2. Sizes come from the config; each path of the table is resolved to a module. LoRA layers of PEFT stay where they are: hooks go on what
   runs, weights are those that act.
3. Every module is compared with the sizes: embedding and unembedding ``[vocab, d_model]``, norms ``[d_model]``, the attention
   output's input ``n_heads * d_head``, q, k and v, the MLP's last linear, the number of layers, ``layer_idx`` of each attention.
4. Every norm is run on a random vector and compared with its formula, so that a wrong kind, offset or epsilon cannot pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from symbolic_residue.errors import AdapterError, UnsupportedModelError, VerificationError
from symbolic_residue.models._families import FAMILIES, REFUSED
from symbolic_residue.models._parts import LayerParts, Norm, Parts
from symbolic_residue.models._spec import FamilySpec, QkvLayout, resolve
from symbolic_residue.models._weights import (
    base_of,
    check_linear,
    check_plain,
    check_shape,
    linear_bias,
    module_at,
    weight_in_out,
)

__all__ = ["bind", "bind_with", "check_family", "unwrap"]


def check_family(model_type: str | None) -> FamilySpec | None:
    """The table's entry for a ``config.model_type``; ``None`` for an architecture that transformers has and the table has not seen,
    whose parts ``bind`` then looks for by their structure.

    Raises:
        UnsupportedModelError: a near neighbour that is not served, with its reason; or a type that transformers does not know.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    spec = FAMILIES.get(model_type or "")
    why = REFUSED.get(model_type or "")
    if spec is None and (why is not None or model_type not in CONFIG_MAPPING):
        raise UnsupportedModelError(
            f"The architecture {model_type!r} is not in the family table.",
            why=why or "Where its parts are is not written down, and transformers does not know it.",
            todo=f"Supported model types: {', '.join(sorted(FAMILIES))}.",
        )
    return spec


def unwrap(model: Any) -> Any:
    """The transformers model inside a ``PeftModel`` (its adapters stay attached), or the model itself.

    Raises:
        AdapterError: an adapter that lives outside the model's layers (prompts, prefixes).
    """
    if not type(model).__module__.startswith("peft"):
        return model
    if getattr(model, "active_peft_config", None) is not None and model.active_peft_config.is_prompt_learning:
        raise AdapterError(
            "The adapter puts trained vectors before the text (prompt learning).",
            why="They are no tokens and no change of weights.",
            todo="Use a LoRA.",
        )
    return model.get_base_model()


def bind(model: Any) -> Parts:
    """Resolves the family table on ``model`` and checks every part; nothing is changed.

    Args:
        model: a transformers causal language model with plain (not quantised) weights; LoRA adapters may be attached.

    Raises:
        UnsupportedModelError: an architecture or a variant of it that the table does not know; quantised linears, offloaded weights.
        AdapterError: an adapter attached that does not simply add to the weights.
        VerificationError: a part that is missing, has the wrong shape, or a norm that does not follow its formula.
    """
    model = unwrap(model)
    config = getattr(model, "config", None)
    if config is None or not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no transformers model.", todo="Give a model made by AutoModelForCausalLM.from_pretrained."
        )
    spec = check_family(getattr(config, "model_type", None))
    if spec is not None:
        return bind_with(model, spec)
    from symbolic_residue.models._discover import discover  # it binds, too

    return bind_with(model, discover(model), discovered=True)


def bind_with(model: Any, spec: FamilySpec, *, discovered: bool = False) -> Parts:
    """Bind by a given entry; see :func:`bind`."""
    config = model.config
    _refuse_absent_weights(model)
    for entry, refused, reason in spec.refuse_when:
        if refused(getattr(config, entry, None)):
            raise UnsupportedModelError(f"A {spec.model_type} model with {entry} set is not supported.", why=reason)
    reason = spec.refuse(config)
    if reason is not None:
        raise UnsupportedModelError(f"This variant of {spec.model_type} is not supported.", why=reason)
    sizes = _sizes(spec, config)
    n_layers, d_model, vocab_size = sizes["n_layers"], sizes["d_model"], config.vocab_size
    embed = module_at(model, spec.embed, nn.Embedding)
    check_shape(spec.embed, base_of(embed).weight, (vocab_size, d_model))
    position_embed = None if spec.position_embed is None else module_at(model, spec.position_embed, nn.Embedding)
    if position_embed is not None:
        rows = config.max_position_embeddings + spec.position_offset
        check_shape(str(spec.position_embed), position_embed.weight, (rows, d_model))
    unembed = module_at(model, spec.unembed, nn.Linear)
    check_plain(unembed, spec.unembed)
    check_shape(spec.unembed, base_of(unembed).weight, (vocab_size, d_model))
    blocks = module_at(model, spec.layers, nn.ModuleList)
    if len(blocks) != n_layers:
        raise VerificationError(f"{spec.layers} has {len(blocks)} blocks; the config says {n_layers}.")
    layers = [_bind_layer(block, i, spec, config, sizes) for i, block in enumerate(blocks)]
    attention_layers = tuple(layer.index for layer in layers if layer.attn is not None)
    if not attention_layers:
        raise UnsupportedModelError(f"No layer of this {spec.model_type} model has softmax attention.")
    widths = {weight_in_out(base_of(layer.mlp_down)).shape[0] for layer in layers if layer.mlp_down is not None}
    if len(widths) > 1:
        raise UnsupportedModelError(f"The MLPs have different widths: {sorted(widths)}.", why="The tables assume one width.")
    return Parts(
        family=f"{spec.model_type} (discovered)" if discovered else spec.model_type,
        spec=spec,
        n_layers=n_layers,
        n_heads=sizes["n_heads"],
        n_kv_heads=sizes["n_kv_heads"],
        d_model=d_model,
        d_head=sizes["d_head"],
        d_mlp=widths.pop() if widths else None,
        vocab_size=vocab_size,
        embed=embed,
        position_embed=position_embed,
        unembed=unembed,
        final_norm=_norm(model, spec.final_norm, spec, d_model),
        layers=layers,
        attention_layers=attention_layers,
        embed_scale=float(spec.embed_scale(config)),
        logit_scale=float(spec.logit_scale(config)),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        max_context=sizes["max_context"],
        qkv_bias=any(
            linear_bias(module_at(layer.attn, name, nn.Module)) is not None
            for layer in layers
            if layer.attn is not None
            for name in spec.qkv
        ),
        position_ids=bool(spec.position_ids(config)),
        windows=_windows(spec, config, n_layers, attention_layers),
        discovered=discovered,
    )


def _sizes(spec: FamilySpec, config: Any) -> dict[str, Any]:
    n_heads = config.num_attention_heads
    sizes = {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "n_heads": n_heads,
        "n_kv_heads": getattr(config, "num_key_value_heads", None) or n_heads,
        "d_head": getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        "max_context": getattr(config, "max_position_embeddings", None),
    } | spec.sizes(config)
    if n_heads % sizes["n_kv_heads"]:
        raise VerificationError(f"{n_heads} heads cannot share {sizes['n_kv_heads']} key-value heads evenly.")
    return sizes


def _bind_layer(block: nn.Module, index: int, spec: FamilySpec, config: Any, sizes: dict[str, Any]) -> LayerParts:
    d_model, where = sizes["d_model"], f"{spec.layers}.{index}"
    layout = resolve(spec.qkv_layout, config)
    attn = o_proj = None
    if not spec.hybrid or _has(block, spec.attn):
        attn = module_at(block, spec.attn, nn.Module, where)
        if getattr(attn, "layer_idx", None) != index:
            raise VerificationError(
                f"{where}.{spec.attn} has layer_idx {getattr(attn, 'layer_idx', None)}, not {index}.",
                why="The instrument tells layers apart by it.",
            )
        o_proj = check_linear(block, spec.o_proj, where, (sizes["n_heads"] * sizes["d_head"], d_model))
        _check_qkv(attn, f"{where}.{spec.attn}", spec, layout, sizes)
    mixer = getattr(block, spec.mixer, None) if spec.mixer is not None else None
    if attn is None and mixer is None:
        raise VerificationError(f"{where} has neither {spec.attn} nor another token mixer.")

    mlp = None if spec.mlp is None else module_at(block, spec.mlp, nn.Module, where)
    moe = spec.moe and mlp is not None and (hasattr(mlp, "experts") or hasattr(mlp, "router"))
    mlp_down = None if moe or spec.mlp_down is None else check_linear(block, spec.mlp_down, where, (None, d_model))
    mlp_up = mlp if spec.mlp_up is None else module_at(block, spec.mlp_up, nn.Module, where)

    def norm(path: str | None) -> Norm | None:
        return None if path is None else _norm(block, path, spec, d_model, where)

    return LayerParts(
        index=index,
        block=block,
        attn=attn,
        o_proj=o_proj,
        mixer=mixer,
        mlp=mlp,
        mlp_up=mlp_up,
        mlp_down=mlp_down,
        moe=moe,
        pre_attn_norm=norm(resolve(spec.pre_attn_norm, config)),
        pre_mlp_norm=norm(resolve(spec.pre_mlp_norm, config)),
        post_attn_norm=norm(resolve(spec.post_attn_norm, config)),
        post_mlp_norm=norm(resolve(spec.post_mlp_norm, config)),
        attn_scale=float(spec.attn_scale(config)),
        mlp_scale=float(spec.mlp_scale(config)),
        mixer_scale=float(spec.mixer_scale(config)),
        attn_in_scale=float(spec.attn_in_scale(config)),
        key_scale=float(spec.key_scale(config)),
        mlp_down_scale=float(spec.mlp_down_scale(config)),
        parallel=spec.parallel(config),
        spec=spec,
        qkv_layout=layout,
        n_heads=sizes["n_heads"],
        n_kv_heads=sizes["n_kv_heads"],
        d_head=sizes["d_head"],
    )


def _has(block: nn.Module, path: str) -> bool:
    module: Any = block
    for step in path.split("."):
        module = getattr(module, step, None)
    return module is not None


def _check_qkv(attn: nn.Module, where: str, spec: FamilySpec, layout: QkvLayout, sizes: dict[str, Any]) -> None:
    n_heads, n_kv, d_head, d_model = sizes["n_heads"], sizes["n_kv_heads"], sizes["d_head"], sizes["d_model"]
    if layout in ("split", "gated"):
        counts = (2 * n_heads if layout == "gated" else n_heads, n_kv, n_kv)
        for name, count in zip(spec.qkv, counts, strict=True):
            check_linear(attn, name, where, (d_model, count * d_head))
        return
    if layout == "interleaved" and n_kv != n_heads:
        raise UnsupportedModelError(f"{spec.model_type} with fewer key-value heads than heads is not in the table.")
    check_linear(attn, spec.qkv[0], where, (d_model, (n_heads + 2 * n_kv) * d_head))


def _windows(spec: FamilySpec, config: Any, n_layers: int, attention_layers: tuple[int, ...]) -> tuple[int | None, ...]:
    if spec.windows == "none":
        return (None,) * n_layers
    window = getattr(config, "sliding_window", None)
    if spec.windows == "all":
        return (window,) * n_layers
    kinds = list(config.layer_types)
    unknown = {kind for i, kind in enumerate(kinds) if i in attention_layers} - {"full_attention", "sliding_attention"}
    if unknown or len(kinds) != n_layers:
        raise UnsupportedModelError(
            f"The config's layer_types are not usable: {len(kinds)} entries for {n_layers} layers, unknown kinds {sorted(unknown)}."
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _refuse_absent_weights(model: nn.Module) -> None:
    """Offloaded weights are placeholders on the meta device between forwards; quantised ones are no matrices."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UnsupportedModelError(
                f"{name} has no data in memory (meta device).",
                why="Offloaded weights are only there while their layer runs, so they cannot be read.",
                todo="Load the whole model into memory: device_map without offloading to cpu or disk hooks.",
            )
    if getattr(model, "is_quantized", False):
        config = getattr(model.config, "quantization_config", None)
        method = getattr(config, "quant_method", None) or getattr(model, "quantization_method", "unknown")
        raise UnsupportedModelError(
            f"The model's weights are quantised ({getattr(method, 'value', method)}).",
            why="Quantised or wrapped linears have no plain weight matrix to read.",
            todo="Load the model dequantised (float32, float16 or bfloat16).",
        )


def _norm(root: nn.Module, path: str, spec: FamilySpec, d_model: int, where: str = "") -> Norm:
    module = module_at(root, path, nn.Module, where)
    name = f"{where}.{path}" if where else path
    eps = next(
        (value for key in ("eps", "variance_epsilon") if isinstance(value := getattr(module, key, None), float)), spec.norm_eps
    )
    weight = getattr(module, "weight", None)
    if eps is None:
        raise VerificationError(f"{name}: a {type(module).__name__} without epsilon is no norm of this table.")
    if weight is not None:
        check_shape(name, weight, (d_model,))
    like = torch.empty_like(next(root.parameters()).detach().flatten()[:d_model]) if weight is None else weight.detach()
    norm = Norm(module, spec.norm_kind, spec.norm_offset, eps, like)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, d_model, generator=generator).to(like.device, like.dtype) + 0.5
    with torch.no_grad():
        got, want = module(x).double(), norm.formula(x)
    tolerance = 1e-4 if like.dtype in (torch.float32, torch.float64) else 3e-2
    error = (got - want).abs().max() / want.abs().max().clamp_min(1e-12)
    if not error <= tolerance:
        raise VerificationError(
            f"{name} does not compute the {spec.norm_kind} norm of the family table (relative error {float(error):.2g}).",
            todo="Report the architecture and the transformers version.",
        )
    return norm
