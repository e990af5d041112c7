"""Binding: the family table's paths resolved on a model, every part checked, weights handed out with named axes.

1. The model's class and config decide the family; adapters still attached, quantised linears and refused variants stop here.
2. Sizes come from the config; each path of the table is resolved to a module.
3. Every module is compared with the sizes: embedding and unembedding ``[vocab, d_model]``, norms ``[d_model]``, the attention
   output's input ``n_heads * d_head``, q, k and v, the MLP's last linear, the number of layers, ``layer_idx`` of each attention.
4. Every norm is run on a random vector and compared with its formula, so that a wrong kind, offset or epsilon cannot pass.

RMS norm: Zhang and Sennrich 2019, y = g x / sqrt(mean(x²) + eps). Layer norm: Ba et al. 2016, y = g (x - mean) / sqrt(var + eps) + b.
Tensors handed out are detached views of the model's own weights: read them, never write to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn, Tensor

from symbolic_residue.errors import AdapterError, UnsupportedModelError, VerificationError
from symbolic_residue.models._families import FAMILIES, FamilySpec, REFUSED

__all__ = ["LayerParts", "Norm", "Parts", "bind", "check_family"]


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """One normalisation: its module and what it computes."""

    module: nn.Module
    kind: Literal["rms", "layer"]
    offset: float
    eps: float

    def gain(self) -> Tensor:
        """The factor after normalising, ``[d_model]``; gemma's stored weight plus one."""
        weight: Tensor = self.module.weight.detach()  # type: ignore[assignment]
        return weight + self.offset if self.offset else weight

    def bias(self) -> Tensor | None:
        """What is added last, ``[d_model]``; ``None`` for RMS norms."""
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach()

    def formula(self, x: Tensor) -> Tensor:
        """The norm by its formula in float64, ``[..., d_model] -> [..., d_model]``: the oracle of the module's forward."""
        x = x.double()
        if self.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.gain().double()
        bias = self.bias()
        return x if bias is None else x + bias.double()


@dataclass(frozen=True, slots=True, eq=False)
class LayerParts:
    """The modules of one block. Heads are query heads throughout; a key-value head's weights come out for each head it serves."""

    index: int
    block: nn.Module
    attn: nn.Module
    o_proj: nn.Module
    """The linear (or Conv1D) from the concatenated heads to the residual stream."""

    mlp: nn.Module
    mlp_down: nn.Module
    """The linear (or Conv1D) whose input is the MLP's neuron activations."""

    pre_attn_norm: Norm
    pre_mlp_norm: Norm
    post_attn_norm: Norm | None
    post_mlp_norm: Norm | None
    parallel: bool
    """Attention and MLP both read the block's input (GPT-NeoX), instead of the MLP reading what attention left."""

    spec: FamilySpec
    n_heads: int
    n_kv_heads: int
    d_head: int

    def w_o(self, head: int) -> Tensor:
        """The head's output weights, ``[d_head, d_model]``: ``z @ w_o`` is what the head writes (before any norm of the output).

        Raises:
            IndexError: no such head.
        """
        self._check_head(head)
        return _weight_in_out(self.o_proj)[head * self.d_head : (head + 1) * self.d_head]

    @property
    def b_o(self) -> Tensor | None:
        """Bias of the attention output, ``[d_model]``: written once a layer, by no head."""
        return _bias(self.o_proj)

    def projection(self, which: Literal["q", "k", "v"], head: int) -> tuple[Tensor, Tensor | None]:
        """Weights ``[d_model, d_head]`` and bias ``[d_head] | None`` that make the head's q, k or v from the normed input.

        q and k come before any rotation and before any norm of their own (qwen3, gemma3).

        Raises:
            IndexError: no such head.
        """
        self._check_head(head)
        part = "qkv".index(which)
        if self.spec.qkv_layout == "split":
            module, row = (
                getattr(self.attn, self.spec.qkv[part]),
                head if which == "q" else head // (self.n_heads // self.n_kv_heads),
            )
        else:
            module = getattr(self.attn, self.spec.qkv[0])
            row = part * self.n_heads + head if self.spec.qkv_layout == "stacked" else head * 3 + part
        chosen = slice(row * self.d_head, (row + 1) * self.d_head)
        bias = _bias(module)
        return _weight_in_out(module)[:, chosen], None if bias is None else bias[chosen]

    def _check_head(self, head: int) -> None:
        if not 0 <= head < self.n_heads:
            raise IndexError(f"head {head}: layer {self.index} has heads 0 to {self.n_heads - 1}")


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """A model's parts, checked; see ``bind``."""

    family: str
    spec: FamilySpec
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocab_size: int
    embed: nn.Module
    """Token embedding. Its output is what enters the residual stream: gemma's √d_model is inside the module, not in its weight."""

    position_embed: nn.Module | None
    """Learned positions added to the embedding (gpt2), or ``None``."""

    unembed: nn.Linear
    final_norm: Norm
    layers: list[LayerParts]
    logit_softcap: float | None
    """c where the logits are ``c tanh(x / c)``, else ``None``."""

    max_context: int | None
    """Tokens that the config says the model was made for."""

    qkv_bias: bool
    """Whether any of q, k, v has a bias."""

    windows: tuple[int | None, ...]

    @property
    def w_u(self) -> Tensor:
        """Unembedding, ``[vocab, d_model]``."""
        return self.unembed.weight.detach()

    @property
    def b_u(self) -> Tensor | None:
        """Bias of the logits, ``[vocab]``."""
        return None if self.unembed.bias is None else self.unembed.bias.detach()

    def attention_window(self, layer: int) -> int | None:
        """How many keys a query of this layer sees, itself included (key j for query i if i - j < window); ``None``: all before it."""
        return self.windows[layer]


def check_family(model_type: str | None) -> FamilySpec:
    """The table's entry for a ``config.model_type``.

    Raises:
        UnsupportedModelError: not in the table; near neighbours with their reason.
    """
    spec = FAMILIES.get(model_type or "")
    if spec is None:
        raise UnsupportedModelError(
            f"The architecture {model_type!r} is not in the family table.",
            why=REFUSED.get(model_type or "", "Where its parts are, and how it attends, has not been written down and checked."),
            todo=f"Supported model types: {', '.join(sorted(FAMILIES))}.",
        )
    return spec


def bind(model: Any) -> Parts:
    """Resolves the family table on ``model`` and checks every part; nothing is changed.

    Args:
        model: a transformers causal language model with plain (not quantised) weights and no adapter attached.

    Raises:
        UnsupportedModelError: an architecture or a variant of it that the table does not know; quantised linears.
        AdapterError: a PEFT model, or a model with an adapter still attached.
        VerificationError: a part that is missing, has the wrong shape, or a norm that does not follow its formula.
    """
    _refuse_adapters(model)
    config = getattr(model, "config", None)
    if config is None or not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no transformers model.", todo="Give a model made by AutoModelForCausalLM.from_pretrained."
        )
    spec = check_family(getattr(config, "model_type", None))
    for entry, refused, reason in spec.refuse_when:
        if refused(getattr(config, entry, None)):
            raise UnsupportedModelError(f"A {spec.model_type} model with {entry} set is not supported.", why=reason)

    n_layers, d_model = config.num_hidden_layers, config.hidden_size
    n_heads, vocab_size = config.num_attention_heads, config.vocab_size
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    d_head = getattr(config, "head_dim", None) or d_model // n_heads
    if n_heads % n_kv_heads:
        raise VerificationError(f"{n_heads} heads cannot share {n_kv_heads} key-value heads evenly.")

    embed = _module(model, spec.embed, nn.Embedding)
    _check_shape(spec.embed, embed.weight, (vocab_size, d_model))
    position_embed = None if spec.position_embed is None else _module(model, spec.position_embed, nn.Embedding)
    if position_embed is not None:
        _check_shape(str(spec.position_embed), position_embed.weight, (config.max_position_embeddings, d_model))
    unembed = _module(model, spec.unembed, nn.Linear)
    _check_shape(spec.unembed, unembed.weight, (vocab_size, d_model))
    blocks = _module(model, spec.layers, nn.ModuleList)
    if len(blocks) != n_layers:
        raise VerificationError(f"{spec.layers} has {len(blocks)} blocks; the config says {n_layers}.")
    layers = [_bind_layer(block, i, spec, config, n_heads, n_kv_heads, d_head) for i, block in enumerate(blocks)]
    widths = {_weight_in_out(layer.mlp_down).shape[0] for layer in layers}
    if len(widths) != 1:
        raise UnsupportedModelError(f"The MLPs have different widths: {sorted(widths)}.", why="The tables assume one width.")
    return Parts(
        family=spec.model_type,
        spec=spec,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_model=d_model,
        d_head=d_head,
        d_mlp=widths.pop(),
        vocab_size=vocab_size,
        embed=embed,
        position_embed=position_embed,
        unembed=unembed,
        final_norm=_norm(model, spec.final_norm, spec, d_model),
        layers=layers,
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        max_context=getattr(config, "max_position_embeddings", None),
        qkv_bias=any(_bias(getattr(layer.attn, name)) is not None for layer in layers for name in spec.qkv),
        windows=_windows(spec, config, n_layers),
    )


def _bind_layer(
    block: nn.Module, index: int, spec: FamilySpec, config: Any, n_heads: int, n_kv_heads: int, d_head: int
) -> LayerParts:
    d_model, where = config.hidden_size, f"{spec.layers}.{index}"
    attn = _module(block, spec.attn, nn.Module, where)
    if getattr(attn, "layer_idx", None) != index:
        raise VerificationError(
            f"{where}.{spec.attn} has layer_idx {getattr(attn, 'layer_idx', None)}, not {index}.",
            why="The instrument tells layers apart by it.",
        )
    o_proj = _linear(block, spec.o_proj, where, (n_heads * d_head, d_model))
    mlp = _module(block, spec.mlp, nn.Module, where)
    mlp_down = _linear(block, spec.mlp_down, where, (None, d_model))
    if spec.qkv_layout == "split":
        for name, count in zip(spec.qkv, (n_heads, n_kv_heads, n_kv_heads), strict=True):
            _linear(attn, name, f"{where}.{spec.attn}", (d_model, count * d_head))
    else:
        if n_kv_heads != n_heads:
            raise UnsupportedModelError(f"{spec.model_type} with fewer key-value heads than heads is not in the table.")
        _linear(attn, spec.qkv[0], f"{where}.{spec.attn}", (d_model, 3 * n_heads * d_head))
    post_attn, post_mlp = spec.post_attn_norm, spec.post_mlp_norm
    return LayerParts(
        index=index,
        block=block,
        attn=attn,
        o_proj=o_proj,
        mlp=mlp,
        mlp_down=mlp_down,
        pre_attn_norm=_norm(block, spec.pre_attn_norm, spec, d_model, where),
        pre_mlp_norm=_norm(block, spec.pre_mlp_norm, spec, d_model, where),
        post_attn_norm=None if post_attn is None else _norm(block, post_attn, spec, d_model, where),
        post_mlp_norm=None if post_mlp is None else _norm(block, post_mlp, spec, d_model, where),
        parallel=spec.parallel(config),
        spec=spec,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
    )


def _windows(spec: FamilySpec, config: Any, n_layers: int) -> tuple[int | None, ...]:
    if spec.windows == "none":
        return (None,) * n_layers
    window = getattr(config, "sliding_window", None)
    if spec.windows == "all":
        return (window,) * n_layers
    kinds = list(config.layer_types)
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown or len(kinds) != n_layers:
        raise UnsupportedModelError(
            f"The config's layer_types are not usable: {len(kinds)} entries for {n_layers} layers, unknown kinds {sorted(unknown)}."
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _refuse_adapters(model: Any) -> None:
    modules = model.modules() if isinstance(model, nn.Module) else ()
    if any(type(module).__module__.split(".")[0] == "peft" for module in modules):
        raise AdapterError(
            "The model still has a PEFT adapter attached.",
            why="With it, a head's output is no single matrix, so its direct effect cannot be read off.",
            todo="Merge it first: model = model.merge_and_unload(), or load with load_model(base, adapter=folder).",
        )


def _module(root: nn.Module, path: str, kind: type[Any], where: str = "") -> Any:
    name = f"{where}.{path}" if where else path
    module: Any = root
    for step in path.split("."):
        module = getattr(module, step, None)
    if not isinstance(module, kind):
        found = "nothing" if module is None else type(module).__name__
        raise VerificationError(
            f"{name}: expected {kind.__name__}, found {found}.", why="The family table does not fit this model."
        )
    return module


def _linear(root: nn.Module, path: str, where: str, in_out: tuple[int | None, int]) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    module = _module(root, path, nn.Module, where)
    name = f"{where}.{path}"
    # Exact types: quantised layers subclass Linear, and their weight is not the matrix that acts.
    if type(module) not in (nn.Linear, Conv1D) or not module.weight.is_floating_point():
        raise UnsupportedModelError(
            f"{name} is a {type(module).__name__} holding {module.weight.dtype if hasattr(module, 'weight') else 'no weight'}.",
            why="Quantised or wrapped linears have no plain weight matrix to read.",
            todo="Load the model dequantised (float32, float16 or bfloat16).",
        )
    expected = tuple(size if want is None else want for size, want in zip(_weight_in_out(module).shape, in_out, strict=True))
    _check_shape(f"{name} as [in, out]", _weight_in_out(module), expected)
    bias = _bias(module)
    if bias is not None:
        _check_shape(f"{name}.bias", bias, (in_out[1],))
    return module


def _norm(root: nn.Module, path: str, spec: FamilySpec, d_model: int, where: str = "") -> Norm:
    module = _module(root, path, nn.Module, where)
    name = f"{where}.{path}" if where else path
    eps = next((value for key in ("eps", "variance_epsilon") if isinstance(value := getattr(module, key, None), float)), None)
    if eps is None or getattr(module, "weight", None) is None:
        raise VerificationError(f"{name}: a {type(module).__name__} without weight or epsilon is no norm of this table.")
    _check_shape(name, module.weight, (d_model,))
    norm = Norm(module, spec.norm_kind, spec.norm_offset, eps)
    if module.weight.is_meta:
        raise VerificationError(f"{name} has no data (meta device).", todo="Load the whole model onto one device.")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, d_model, generator=generator).to(module.weight.device, module.weight.dtype) + 0.5
    with torch.no_grad():
        got, want = module(x).double(), norm.formula(x)
    tolerance = 1e-4 if module.weight.dtype in (torch.float32, torch.float64) else 3e-2
    error = (got - want).abs().max() / want.abs().max().clamp_min(1e-12)
    if not error <= tolerance:
        raise VerificationError(
            f"{name} does not compute the {spec.norm_kind} norm of the family table (relative error {float(error):.2g}).",
            todo="Report the architecture and the transformers version.",
        )
    return norm


def _weight_in_out(module: Any) -> Tensor:
    """``[in, out]`` for Linear (stored ``[out, in]``) and Conv1D (stored ``[in, out]``)."""
    weight = module.weight.detach()
    return weight.T if isinstance(module, nn.Linear) else weight


def _bias(module: Any) -> Tensor | None:
    return None if module.bias is None else module.bias.detach()


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise VerificationError(
            f"{name} has shape {list(tensor.shape)}; the config asks for {list(expected)}.",
            why="The family table does not fit this model.",
        )
