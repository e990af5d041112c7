"""Discovery: a table entry for a llama-like architecture that the table has never seen, accepted only if the model itself confirms it.

1. Candidate entries come from module names alone: blocks at ``model.layers``, ``self_attn`` with q, k, v and an output projection, an ``mlp`` with a last
   linear, norms before or after each sublayer. Nothing else is guessed at.
2. The kind and the offset of the norms are those whose formula every norm of the model follows.
3. The candidate is bound with all checks of ``bind``, and then run on random tokens. Attention must be asked through transformers' attention interface
   once a layer with the heads' shapes, and its answer must reach the output projection untouched. The residual stream must be the sum of embedding and
   contributions; each attention output the sum of its heads through ``w_o``; the logits final norm and unembedding of the last residual. Zeroing a
   layer's heads must change the logits, and a later token must not change earlier ones.
4. Constant factors on embedding and logits are measured and must fit everywhere. A factor inside the blocks, experts, second streams or other mixers make
   a check fail, and the model is refused in one sentence.

The model is left as it was: hooks are removed, the attention function is restored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import nn, Tensor

from symbolic_residue.errors import ModelError, UnsupportedModelError, VerificationError
from symbolic_residue.models._parts import LayerParts, Parts
from symbolic_residue.models._spec import FamilySpec, NormKind

__all__ = ["discover"]

_LENGTH = 8
_TOLERANCE = 1e-3
_PROBE = "residue_probe"


def discover(model: Any) -> FamilySpec:
    """An entry that this model fulfils.

    Raises:
        UnsupportedModelError: none of the layouts that are looked for fits, with the last reason.
    """
    from symbolic_residue.models._bind import bind_with

    reasons: list[str] = []
    was_training = model.training
    model.eval()
    try:
        for spec in _candidates(model):
            bound = False
            try:
                parts = bind_with(model, spec, discovered=True)
                bound = True
                return _confirm(model, parts)
            except ModelError as error:
                reason = " ".join(part for part in (error.what, error.why) if part)
            except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                # A forward of an unknown architecture may fail in any way; it is refused all the same.
                reason = f"A forward on plain tokens fails ({type(error).__name__}: {str(error).strip()[:120]})."
            reasons.insert(0 if bound else len(reasons), reason)  # what came closest says most
    finally:
        model.train(was_training)
    raise UnsupportedModelError(
        f"The architecture {model.config.model_type!r} is not in the family table, and its parts could not be found by their structure.",
        why=reasons[0]
        if reasons
        else "Its modules are not laid out as in llama (model.layers, self_attn, mlp, norms beside them).",
        todo="Supported model types: symbolic_residue.models.FAMILIES. A new one is one entry of the table.",
    )


def _first(root: Any, *names: str) -> str | None:
    return next((name for name in names if isinstance(getattr(root, name, None), nn.Module)), None)


def _candidates(model: Any) -> Iterator[FamilySpec]:
    """Entries that the module names allow, the likelier first."""
    body = getattr(model, "model", None)
    blocks = getattr(body, "layers", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        return
    block = blocks[0]
    attn, final = getattr(block, "self_attn", None), _first(body, "norm", "final_layernorm")
    mlp = _first(block, "mlp", "feed_forward")
    if attn is None or final is None or mlp is None:
        return
    o_proj = _first(attn, "o_proj", "dense", "out_proj")
    down = _first(getattr(block, mlp), "down_proj", "fc2", "c_proj", "w2")
    split = all(isinstance(getattr(attn, name, None), nn.Module) for name in ("q_proj", "k_proj", "v_proj"))
    if o_proj is None or down is None or not (split or hasattr(attn, "qkv_proj")):
        return
    config = model.config
    by_layer = bool(getattr(config, "layer_types", None))
    fields: dict[str, Any] = {
        "model_type": config.model_type,
        "layers": "model.layers",
        "embed": "model.embed_tokens",
        "final_norm": f"model.{final}",
        "attn": "self_attn",
        "o_proj": f"self_attn.{o_proj}",
        "mlp": mlp,
        "mlp_down": f"{mlp}.{down}",
        "qkv_layout": "split" if split else "stacked",
        "qkv": ("q_proj", "k_proj", "v_proj") if split else ("qkv_proj",),
        "windows": "by_layer" if by_layer else "all" if getattr(config, "sliding_window", None) else "none",
    }
    for norms, kind, offset in itertools.product(_norm_paths(block), get_args(NormKind), (0.0, 1.0)):
        yield FamilySpec(**fields, **norms, norm_kind=kind, norm_offset=offset)


def _norm_paths(block: nn.Module) -> Iterator[dict[str, Any]]:
    before = _first(block, "input_layernorm", "pre_attention_layernorm", "attention_layernorm")
    between = _first(block, "post_attention_layernorm", "pre_mlp_layernorm", "feedforward_layernorm", "ffn_layernorm")
    pre_mlp = _first(block, "pre_feedforward_layernorm")
    post_mlp = _first(block, "post_feedforward_layernorm")
    if before and pre_mlp:
        post = between if post_mlp else None
        yield {"pre_attn_norm": before, "pre_mlp_norm": pre_mlp, "post_attn_norm": post, "post_mlp_norm": post_mlp}
    elif before and between:
        yield {"pre_attn_norm": before, "pre_mlp_norm": between}
        yield {"pre_attn_norm": before, "pre_mlp_norm": between, "parallel": lambda config: True}
    elif before:
        yield {"pre_attn_norm": before, "pre_mlp_norm": before, "parallel": lambda config: True}
    elif between and post_mlp:
        yield {"pre_attn_norm": None, "pre_mlp_norm": None, "post_attn_norm": between, "post_mlp_norm": post_mlp}


def _confirm(model: Any, parts: Parts) -> FamilySpec:
    """The entry with its measured factors, after the checks of step 3."""
    from dataclasses import replace

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, parts.vocab_size, (2, _LENGTH), generator=generator)
    ids[1, :-1] = ids[0, :-1]  # the second sequence differs from the first in its last token only
    ids[1, -1] = (ids[0, -1] + 1) % parts.vocab_size
    ids = ids.to(parts.embed.weight.device)  # type: ignore[arg-type]
    _check_door(model, parts, ids)
    with _recorded(parts) as seen:
        logits = _run(model, ids)
    if not _close(logits[0, :-1], logits[1, :-1]):
        raise VerificationError("A later token changes the logits before it, so it is no causal language model.")
    factor = _factor(parts.embed(ids).detach(), seen["block", 0][0], "embedding")
    _check_sums(parts, seen)
    last = parts.final_norm.formula(seen["block", parts.n_layers - 1][1])
    made = last @ parts.w_u.double().T
    made = made if parts.b_u is None else made + parts.b_u.double()
    if parts.logit_softcap is not None:
        scale = 1.0
        if not _close(parts.logit_softcap * torch.tanh(made / parts.logit_softcap), logits.double()):
            raise VerificationError("Final norm and unembedding of the last residual are not the logits.")
    else:
        scale = _factor(made, logits.double(), "logits")
    for layer in (parts.layers[0], parts.layers[-1]):
        assert layer.o_proj is not None
        handle = layer.o_proj.register_forward_pre_hook(lambda module, args: (torch.zeros_like(args[0]), *args[1:]))
        try:
            changed = not torch.equal(_run(model, ids), logits)
        finally:
            handle.remove()
        if not changed:
            raise VerificationError(f"Zeroing the heads of layer {layer.index} changes nothing.")
    return replace(parts.spec, embed_scale=lambda config: factor, logit_scale=lambda config: scale)


def _run(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def _check_door(model: Any, parts: Parts, ids: Tensor) -> None:
    """Attention goes through transformers' attention interface, once a layer, with plain softmax."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    calls: list[int] = []
    given: list[Tensor] = []
    modules = {id(layer.attn): layer.index for layer in parts.layers}

    def probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        calls.append(modules.get(id(module), -1))
        heads, sizes = (query.shape[1], key.shape[1], value.shape[1]), (query.shape[-1], key.shape[-1], value.shape[-1])
        if heads != (parts.n_heads, parts.n_kv_heads, parts.n_kv_heads) or sizes != (parts.d_head,) * 3:
            raise VerificationError(f"Attention is called with heads {heads} of sizes {sizes}, which are not those of the config.")
        shape = (query.shape[0], query.shape[2], query.shape[1], value.shape[3])
        given.append(torch.linspace(-1.0, 1.0, query.numel()).to(value).reshape(shape))
        return given[-1], None

    AttentionInterface.register(_PROBE, probe)
    AttentionMaskInterface.register(_PROBE, sdpa_mask)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(_PROBE)
        with _recorded(parts) as seen:
            _run(model, ids)
    finally:
        model.set_attn_implementation(before)
    if calls != list(range(parts.n_layers)):
        raise VerificationError("Its attention does not go through transformers' attention interface once a layer.")
    for i, heads in enumerate(given):
        if not torch.equal(seen["o_proj", i][0], heads.flatten(2)):
            raise VerificationError(f"Something stands between the heads of layer {i} and their output projection.")


@contextmanager
def _recorded(parts: Parts) -> Iterator[dict[tuple[str, int], tuple[Tensor, Tensor]]]:
    """First input and first output of the modules that the checks need."""
    seen: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def keep(name: tuple[str, int]) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            into = args[0] if args else kwargs["hidden_states"]
            seen[name] = (into.detach(), (output[0] if isinstance(output, tuple) else output).detach().clone())

        return hook

    handles = []
    for layer in parts.layers:
        modules = {"block": layer.block, "o_proj": layer.o_proj, "attn": _writer(layer, "attn"), "mlp": _writer(layer, "mlp")}
        modules["mid"] = layer.pre_mlp_norm.module if layer.pre_mlp_norm is not None else layer.mlp
        for name, module in modules.items():
            assert module is not None
            handles.append(module.register_forward_hook(keep((name, layer.index)), with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _writer(layer: LayerParts, sublayer: str) -> nn.Module:
    norm = layer.post_attn_norm if sublayer == "attn" else layer.post_mlp_norm
    module = norm.module if norm is not None else layer.attn if sublayer == "attn" else layer.mlp
    assert module is not None
    return module


def _check_sums(parts: Parts, seen: dict[tuple[str, int], tuple[Tensor, Tensor]]) -> None:
    for layer in parts.layers:
        i = layer.index
        into, out = seen["block", i]
        after = into + seen["attn", i][1]
        if not _close(after + seen["mlp", i][1], out):
            raise VerificationError(f"Layer {i} does not simply add the outputs of attention and MLP to its input.")
        if not _close(seen["mid", i][0], into if layer.parallel else after):
            raise VerificationError(f"The MLP of layer {i} does not read what its place says.")
        z, write = seen["o_proj", i]
        heads = z.unflatten(-1, (parts.n_heads, parts.d_head))
        total = sum((heads[..., h, :] @ layer.w_o(h) for h in range(parts.n_heads)), torch.zeros_like(write))
        total = total if layer.b_o is None else total + layer.b_o
        if not _close(total, write):
            raise VerificationError(f"The heads of layer {i} do not add up to its attention output.")
        if layer.post_attn_norm is None and not _close(write, seen["attn", i][1]):
            raise VerificationError(f"Something stands between the output projection of layer {i} and the residual stream.")


def _factor(of: Tensor, want: Tensor, what: str) -> float:
    """The constant c with ``want = c · of``, 1 exactly where they are equal."""
    of, want = of.double(), want.double()
    if _close(of, want):
        return 1.0
    factor = float((of * want).sum() / of.square().sum().clamp_min(1e-12))
    if not factor > 0 or not _close(of * factor, want):
        raise VerificationError(f"The {what} is not what the parts give, nor a constant multiple of it.")
    return factor


def _close(got: Tensor, want: Tensor) -> bool:
    """Within rounding of the model's dtype, relative to the largest entry."""
    tolerance = 3e-2 if got.dtype in (torch.bfloat16, torch.float16) else _TOLERANCE
    return bool((got - want).abs().max() <= tolerance * want.abs().max().clamp_min(1e-12))
