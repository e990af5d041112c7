"""The parts of a bound model, and its weights with named axes.

1. ``Parts`` holds the model's sizes, its embedding, final norm and unembedding, and one ``LayerParts`` for each block.
2. A part that an architecture lacks is ``None``; ``LayerParts.absent`` says in a sentence why a point does not exist in a layer.
3. Weights come for query heads throughout: a key-value head's weights come out for each head that it serves.

``bind`` (in ``_bind``) makes and checks them. Tensors handed out are detached: read them, never write to them.
RMS norm: Zhang and Sennrich 2019, y = g x / sqrt(mean(x²) + eps). Layer norm: Ba et al. 2016, y = g (x - mean) / sqrt(var + eps) + b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn, Tensor

from symbolic_residue.errors import ReadError
from symbolic_residue.models._spec import FamilySpec, QkvLayout
from symbolic_residue.models._weights import linear_bias, weight_in_out
from symbolic_residue.types import Point, PointKind

__all__ = ["LayerParts", "Norm", "Parts"]

_ATTENTION_POINTS = ("attn_out", "z", "q", "k", "v")
_MLP_POINTS = ("mlp_in", "mlp_act", "mlp_out")


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """One normalisation: its module and what it computes."""

    module: nn.Module
    kind: Literal["rms", "layer"]
    offset: float
    eps: float
    like: Tensor
    """A weight of the model beside it: device and dtype of the gain of a norm without weights (olmo), and its size."""

    def gain(self) -> Tensor:
        """The factor after normalising, ``[d_model]``; gemma's stored weight plus one; ones for a norm without weights."""
        weight: Tensor | None = getattr(self.module, "weight", None)
        if weight is None:
            return torch.ones_like(self.like)
        return weight.detach() + self.offset if self.offset else weight.detach()

    def bias(self) -> Tensor | None:
        """What is added last, ``[d_model]``; ``None`` for RMS norms and layer norms without one."""
        found = getattr(self.module, "bias", None)
        return None if found is None else found.detach()

    def formula(self, x: Tensor) -> Tensor:
        """The norm by its formula in float64, ``[..., d_model] -> [..., d_model]``: the oracle of the module's forward."""
        x = x.double()
        if self.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.gain().double().to(x.device)
        added = self.bias()
        return x if added is None else x + added.double()


@dataclass(frozen=True, slots=True, eq=False)
class LayerParts:
    """The modules of one block. Heads are query heads throughout; a key-value head's weights come out for each head it serves."""

    index: int
    block: nn.Module
    attn: nn.Module | None
    """Softmax attention; ``None`` in a layer of a hybrid that has none."""

    o_proj: nn.Module | None
    """The linear (or Conv1D) from the concatenated heads to the residual stream; ``None`` where ``attn`` is."""

    mixer: nn.Module | None
    """A token mixer that is not softmax attention (mamba, gated delta net); it writes ``mixer_out``."""

    mlp: nn.Module | None
    """The MLP's module; ``None`` where the block has none, or keeps its linears itself (opt)."""

    mlp_up: nn.Module | None
    """The module whose input is ``mlp_in``: the MLP, or its first linear where the block has no MLP module."""

    mlp_down: nn.Module | None
    """The linear (or Conv1D) whose input is the MLP's neuron activations; ``None`` in a mixture of experts."""

    moe: bool
    """The MLP is a mixture of experts: it has no single vector of neuron activations."""

    pre_attn_norm: Norm | None
    """Norm of the input of attention (and of the mixer); ``None`` where only outputs are normed."""

    pre_mlp_norm: Norm | None
    post_attn_norm: Norm | None
    """Norm of attention's output before it is added to the residual stream."""

    post_mlp_norm: Norm | None
    attn_scale: float
    """Constant factor on attention's output (after any norm of it) as it is added to the residual stream."""

    mlp_scale: float
    mixer_scale: float
    attn_in_scale: float
    """Constant factor on the normed input of attention; ``projection`` has it in its weights."""

    key_scale: float
    """Constant factor on the keys; ``projection`` has it in its weights and bias."""

    mlp_down_scale: float
    """Constant factor between ``mlp_down``'s output and the MLP's."""

    parallel: bool
    """Attention and MLP both read the block's input (GPT-NeoX), instead of the MLP reading what attention left."""

    spec: FamilySpec
    qkv_layout: QkvLayout
    n_heads: int
    n_kv_heads: int
    d_head: int

    def absent(self, kind: PointKind) -> str | None:
        """Why this layer does not have the points of a kind, as a sentence, or ``None`` where it has them."""
        if kind in _ATTENTION_POINTS and self.attn is None:
            other = "nothing" if self.mixer is None else f"{type(self.mixer).__name__}"
            return f"Layer {self.index} has no softmax attention; its tokens are mixed by {other}."
        if kind == "mixer_out" and self.mixer is None:
            return f"Layer {self.index} has no token mixer beside softmax attention."
        if kind in _MLP_POINTS and self.mlp_up is None:
            return f"Layer {self.index} has no MLP."
        if kind == "mlp_act" and self.mlp_down is None:
            return f"The MLP of layer {self.index} is a mixture of experts: there is no single vector of neuron activations."
        if kind == "resid_mid" and self.parallel:
            return "In a parallel block attention and MLP read the same residual; there is nothing between them."
        if kind == "resid_mid" and self.mlp_up is None:
            return f"Layer {self.index} has no MLP, so nothing lies between two sublayers."
        return None

    @property
    def score_scale(self) -> float:
        """Factor of the scores from the points q and k: ``scores = score_scale · q·k``, before softcap, mask and bias.

        It is 1 where the architecture scales its queries before the attention function gets them (opt).

        Raises:
            ReadError: the layer has no softmax attention.
        """
        attn, _ = self._attention()
        if self.spec.query_prescaled:
            return 1.0
        scaling = getattr(attn, "scaling", None)
        return float(scaling) if scaling is not None else self.d_head**-0.5

    def w_o(self, head: int) -> Tensor:
        """The head's output weights, ``[d_head, d_model]``: ``z @ w_o`` is what the head writes, before any norm of the output and
        before ``attn_scale``.

        Raises:
            IndexError: no such head.
            ReadError: the layer has no softmax attention.
        """
        _, o_proj = self._attention()
        self._check_head(head)
        return weight_in_out(o_proj)[head * self.d_head : (head + 1) * self.d_head]

    @property
    def b_o(self) -> Tensor | None:
        """Bias of the attention output, ``[d_model]``: written once a layer, by no head.

        Raises:
            ReadError: the layer has no softmax attention.
        """
        return linear_bias(self._attention()[1])

    def projection(self, which: Literal["q", "k", "v"], head: int) -> tuple[Tensor, Tensor | None]:
        """Weights ``[d_model, d_head]`` and bias ``[d_head] | None`` that make the head's q, k or v from the normed input.

        q and k come before any rotation and any norm of their own (qwen3, gemma3, olmo2). Where q's module also makes an output gate
        (qwen3_next), only q's half is given.

        Raises:
            IndexError: no such head.
            ReadError: the layer has no softmax attention.
        """
        attn, _ = self._attention()
        self._check_head(head)
        part = "qkv".index(which)
        group = self.n_heads // self.n_kv_heads
        kv_head = head // group
        if self.qkv_layout in ("split", "gated"):
            module = _at(attn, self.spec.qkv[part])
            row = kv_head if which != "q" else head if self.qkv_layout == "split" else 2 * head
        else:
            module = _at(attn, self.spec.qkv[0])
            if self.qkv_layout == "stacked":
                row = head if which == "q" else self.n_heads + (part - 1) * self.n_kv_heads + kv_head
            elif self.qkv_layout == "interleaved":
                row = 3 * head + part
            else:
                row = kv_head * (group + 2) + (head % group if which == "q" else group + part - 1)
        chosen = slice(row * self.d_head, (row + 1) * self.d_head)
        added = linear_bias(module)
        weight, added = weight_in_out(module)[:, chosen], None if added is None else added[chosen]
        key_scale = self.key_scale if which == "k" else 1.0
        if self.attn_in_scale * key_scale != 1.0:
            weight = weight * (self.attn_in_scale * key_scale)
        if added is not None and key_scale != 1.0:
            added = added * key_scale
        return weight, added

    def _attention(self) -> tuple[nn.Module, nn.Module]:
        if self.attn is None or self.o_proj is None:
            raise ReadError(self.absent("z") or f"Layer {self.index} has no attention output.")
        return self.attn, self.o_proj

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
    d_mlp: int | None
    """Neurons of an MLP; ``None`` where no layer has one that is not a mixture of experts."""

    vocab_size: int
    embed: nn.Module
    """Token embedding. Its output, times the factor of the spec's ``embed_scale``, is what enters the residual stream: the √d_model
    of gemma2 and gemma3 is inside the module, not in its weight."""

    position_embed: nn.Module | None
    """Learned positions added to the embedding (gpt2, opt), or ``None``."""

    unembed: nn.Module
    final_norm: Norm
    layers: list[LayerParts]
    attention_layers: tuple[int, ...]
    """The layers that have softmax attention: all, but in hybrids."""

    embed_scale: float
    """Factor on the embedding module's output before the first block."""

    logit_scale: float
    """logits = logit_scale · unembed(final_norm(x)), and then the softcap."""

    logit_softcap: float | None
    """c where the logits are ``c tanh(x / c)``, else ``None``."""

    max_context: int | None
    """Tokens that the config says the model was made for."""

    qkv_bias: bool
    """Whether any of q, k, v has a bias."""

    position_ids: bool
    """Whether position ids reach the model; where not (ALiBi, no positions at all), changing them changes nothing."""

    windows: tuple[int | None, ...]
    discovered: bool = False
    """Whether the family is not in the table, and its parts were found by their structure."""

    @property
    def w_u(self) -> Tensor:
        """Unembedding, ``[vocab, d_model]``; ``logit_scale`` is not in it."""
        return weight_in_out(self.unembed).T

    @property
    def b_u(self) -> Tensor | None:
        """Bias of the logits, ``[vocab]``."""
        return linear_bias(self.unembed)

    def embedded(self, ids: Tensor) -> Tensor:
        """What the model must be given as ``inputs_embeds`` to do as with these ids, ``[..., d_model]``."""
        out = self.embed(ids)
        return out * self.embed_scale if self.spec.embed_scale_on_ids else out

    def attention_window(self, layer: int) -> int | None:
        """How many keys a query of this layer sees, itself included (key j for query i if i - j < window); ``None``: all before it."""
        return self.windows[layer]

    def check_point(self, point: Point) -> None:
        """Refuse a point that the layer does not have.

        Raises:
            ReadError: naming the layer, the reason, and the layers that have the point.
        """
        if point.layer is None:
            return
        reason = self.layers[point.layer].absent(point.kind)
        if reason is None:
            return
        having = [str(layer.index) for layer in self.layers if layer.absent(point.kind) is None]
        if having:
            todo = f"Layers that have {point.kind}: {', '.join(having)}."
        elif point.kind == "resid_mid":
            todo = f"Read 'resid_pre.{point.layer}' or 'resid_post.{point.layer}'."
        else:
            todo = f"No layer of this model has {point.kind}."
        raise ReadError(f"{point} does not exist here.", why=reason, todo=todo)

    def points(self, text: str) -> list[Point]:
        """Points by name; ``"z.*"`` gives every layer that has the point.

        Raises:
            ReadError: an unknown name, or a point that the layer (or, for ``*``, every layer) lacks.
        """
        found = Point.parse(text, self.n_layers)
        if text.endswith(".*"):
            found = [p for p in found if p.layer is None or self.layers[p.layer].absent(p.kind) is None] or found[:1]
        for point in found:
            self.check_point(point)
        return found


def _at(module: nn.Module, path: str) -> nn.Module:
    for step in path.split("."):
        module = getattr(module, step)
    return module
