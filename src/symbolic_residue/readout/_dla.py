"""Direct logit attribution: what each component writes into a logit, or a logit difference, directly.

1. Freeze the final norm's scale ``s`` at the row, and fold its gain (and centring), the unembedding and the constant factor of the logits into one
   direction ``u`` for each target.
2. A component that added ``c`` to the residual stream contributes ``s · c·u``. The components are the embedding, every attention head, every
   attention output bias, every other token mixer (in hybrids), every MLP; norm and unembedding biases are constants.
3. A head's write is never formed: its direction is folded through its output projection first, ``u_h = W_O,h u``, then ``z_h·u_h``. Where the
   family norms the attention output before adding it (gemma2, gemma3, olmo2), that norm's gain is folded too and its scale frozen.
4. The parts sum to the logit (difference); ``error`` is what is missing, and should be rounding. Where the model soft-caps its logits, the *uncapped*
   logit is attributed, because the capped one is no sum; ``uncapped`` says so.

``direct_logit_attribution`` takes a trace that holds the points. ``dla_during`` folds each point as the forward reaches it and keeps numbers only,
``[target, batch, row]`` a head, so all heads and rows of a long prompt cost O(layers · rows · heads) memory; ``s`` comes last and multiplies them.

Source: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits), "direct path" and per-head logit terms; the identity is exact here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TYPE_CHECKING

import torch
from torch import nn, Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.readout._norm import fold, frozen_scale

if TYPE_CHECKING:
    from symbolic_residue.instrument import Batch, Edit, Instrument, Trace
    from symbolic_residue.models import LayerParts, Norm, Parts

__all__ = ["DirectLogitAttribution", "direct_logit_attribution", "dla_during", "dla_reads"]

Targets = Sequence[tuple[int, int | Literal["mean"] | None]]


def dla_reads(parts: Parts) -> tuple[str, ...]:
    """The points that :func:`direct_logit_attribution` needs in its trace."""
    kinds = ("z", "mixer_out", "mlp_out")
    inner = [f"{kind}.{layer.index}" for layer in parts.layers for kind in kinds if layer.absent(kind) is None]
    return ("resid_pre.0", *inner, f"resid_post.{parts.n_layers - 1}")


@dataclass
class DirectLogitAttribution:
    """Contributions in logits (nats of log-odds for a difference).

    A layer that lacks a part (no softmax attention, no other mixer, no MLP) has NaN there.

    Attributes:
        heads: ``[target, batch, row, layer, head]``.
        mlps: ``[target, batch, row, layer]``.
        mixers: ``[target, batch, row, layer]``: token mixers other than softmax attention.
        attention_bias: ``[target, batch, row, layer]``: output projection biases (and the bias of a norm after it).
        embedding: ``[target, batch, row]``: token (and learned position) embedding.
        constant: ``[target]``: final norm's bias and unembedding bias.
        total: ``[target, batch, row]``: the logit (difference) that the model produced, before any softcap.
        uncapped: the model soft-caps its logits, and ``total`` is what goes into the cap.
    """

    heads: Tensor
    mlps: Tensor
    mixers: Tensor
    attention_bias: Tensor
    embedding: Tensor
    constant: Tensor
    total: Tensor
    uncapped: bool

    @property
    def sum(self) -> Tensor:
        """Sum of all parts that exist, ``[target, batch, row]``."""
        layers = sum(_total(part) for part in (self.heads.flatten(-2), self.mlps, self.mixers, self.attention_bias))
        return layers + self.embedding + self.constant[:, None, None]

    @property
    def error(self) -> Tensor:
        """``sum − total``, ``[target, batch, row]``: rounding, when all is well."""
        return self.sum - self.total


def _total(part: Tensor) -> Tensor:
    """Sum over the last axis without columns that are NaN throughout; a NaN that is not an absent part stays one."""
    absent = part.isnan().flatten(0, -2).all(0)
    return part[..., ~absent].sum(-1)


def direct_logit_attribution(
    trace: Trace, parts: Parts, targets: Targets, rows: Sequence[int] | None = (-1,)
) -> DirectLogitAttribution:
    """Attribute logits or logit differences at chosen rows.

    Args:
        trace: a forward with :func:`dla_reads`.
        parts: the model's parts.
        targets: ``(a, b)`` for logit(a) − logit(b), ``(a, "mean")`` for logit(a) − the mean logit, ``(a, None)`` for logit(a).
        rows: query rows, counted from the end (−1 is the last); None takes all.

    Raises:
        ConfigError: no target, or a token id out of the vocabulary.
        ReadError: the trace lacks a point.
    """
    if rows is not None and any(r >= 0 for r in rows):
        raise ConfigError("Rows are counted from the end here.", todo="Write -1 for the last row.")
    at = slice(None) if rows is None else list(rows)
    folding = _Folding(parts, targets)
    for name in dla_reads(parts):
        kind, _, index = name.partition(".")
        layer = int(index)
        tensor = trace[name][:, at]
        if kind == "z" and (post := parts.layers[layer].post_attn_norm) is not None:
            o_proj = parts.layers[layer].o_proj
            assert o_proj is not None
            with torch.no_grad():
                folding.write_scale[layer] = frozen_scale(post, o_proj(tensor.flatten(2)))
        folding.take(kind, layer, tensor)
    total = None
    logits = trace.logits
    if (
        logits is not None
        and parts.logit_softcap is None
        and (rows is not None or logits.shape[1] == trace["resid_pre.0"].shape[1])
    ):
        kept = logits[:, at].float()
        total = torch.stack([kept[..., a] - _other(kept, b) for a, b in targets])
    return folding.result(total)


@torch.no_grad()
def dla_during(
    instrument: Instrument, batch: Batch | Tensor, targets: Targets, *, edits: Sequence[Edit] = (), **run: Any
) -> tuple[DirectLogitAttribution, Trace]:
    """Attribution of all rows and heads in one forward, keeping no activations.

    Args:
        instrument: the model's instrument.
        batch: a ``Batch``, or ids ``[batch, query]``.
        targets: ``(a, b)`` for logit(a) − logit(b), ``(a, "mean")`` for logit(a) − the mean logit, ``(a, None)`` for logit(a).
        edits: applied as in :meth:`Instrument.run`; an edit of ``attn_out`` is by no head, and shows up in ``error``.
        **run: further arguments of :meth:`Instrument.run`, but reads; ``keep_logits`` is 1 unless given.

    Returns:
        The attribution, ``row`` being every position (those of padding mean nothing), and the forward's trace (logits, attention).

    Raises:
        ConfigError: no target, or a token id out of the vocabulary.
    """
    parts = instrument.parts
    folding = _Folding(parts, targets)
    options: dict[str, Any] = {"keep_logits": 1} | run
    handles = [
        layer.post_attn_norm.module.register_forward_pre_hook(_write_hook(folding, layer.index, layer.post_attn_norm))
        for layer in parts.layers
        if layer.attn is not None and layer.post_attn_norm is not None
    ]
    try:
        trace = instrument.run(
            batch,
            reads=dla_reads(parts),
            edits=edits,
            on_read=lambda point, tensor: folding.take(point.kind, point.layer or 0, tensor),
            **options,
        )
    finally:
        for handle in handles:
            handle.remove()
    return folding.result(None), trace


def _other(by_token: Tensor, b: int | Literal["mean"] | None) -> Tensor:
    """What is subtracted: the entry of token ``b`` along the last axis, the mean over tokens, or zero."""
    if b is None:
        return torch.zeros_like(by_token[..., 0], dtype=torch.float32)
    return by_token.float().mean(-1) if b == "mean" else by_token[..., b].float()


def _write_hook(folding: _Folding, layer: int, norm: Norm) -> Any:
    """Hook of a norm after attention: its scale, from what the output projection wrote."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        folding.write_scale[layer] = frozen_scale(norm, args[0])

    return hook


class _Folding:
    """Takes points in any order, keeps their products with the targets' directions, and scales them at the end."""

    def __init__(self, parts: Parts, targets: Targets) -> None:
        if not targets:
            raise ConfigError("There is no target to attribute.")
        w_u, b_u = parts.w_u, parts.b_u
        for token in (t for pair in targets for t in pair if isinstance(t, int)):
            if not 0 <= token < w_u.shape[0]:
                raise ConfigError(f"Token id {token} is outside the vocabulary of {w_u.shape[0]}.")
        self.parts = parts
        self.directions = parts.logit_scale * torch.stack([w_u[a].float() - _other(w_u.mT, b) for a, b in targets])
        self.bias = torch.zeros(len(targets), device=w_u.device)
        if b_u is not None:
            self.bias = parts.logit_scale * torch.stack([b_u[a].float() - _other(b_u, b) for a, b in targets])
        self.u = fold(parts.final_norm, self.directions)
        self.write_scale: dict[int, Tensor] = {}
        """Frozen scale ``[batch, row]`` of the norm after attention, by layer, where there is one."""
        self._products: dict[tuple[str, int], Tensor] = {}
        self._last: tuple[Tensor, Tensor] | None = None

    def take(self, kind: str, layer: int, tensor: Tensor) -> None:
        """One point's tensor: folded now, not kept."""
        if kind == "z":
            u = self._into_attention(self.parts.layers[layer]).to(tensor.device)
            # Head by head from the weight's own slices: stacking them would copy the whole matrix in its slow direction.
            folded = torch.stack([self.parts.layers[layer].w_o(h).float() @ u.mT for h in range(self.parts.n_heads)])
            self._products["z", layer] = torch.einsum("brhd,hdn->nbrh", tensor.float(), folded).to(self.u.device)
        elif kind == "resid_post":
            last = tensor.to(self.u.device)
            with torch.no_grad():
                normed = self.parts.final_norm.module(last).float()
            # The uncapped logit by the model's own norm module: independent of the folding that the parts went through.
            total = torch.einsum("brm,nm->nbr", normed, self.directions) + self.bias[:, None, None]
            self._last = frozen_scale(self.parts.final_norm, last), total
        else:
            self._products[kind, layer] = torch.einsum("brm,nm->nbr", tensor.float(), self.u.to(tensor.device)).to(self.u.device)

    def _into_attention(self, layer: LayerParts) -> Tensor:
        """Directions ``[target, d_model]`` that the attention output, as the projection gives it, is read along."""
        into = self.u if layer.post_attn_norm is None else fold(layer.post_attn_norm, self.u)
        return into * layer.attn_scale

    def _bias_product(self, layer: LayerParts, inner: Tensor) -> Tensor:
        """``[target, batch, row]``: the output bias, and the bias of a norm after it."""
        product = torch.zeros(len(self.u), *inner.shape, device=self.u.device)
        if layer.b_o is not None:
            product = product + (self._into_attention(layer) @ layer.b_o.to(self.u))[:, None, None] * inner
        after = layer.post_attn_norm.bias() if layer.post_attn_norm is not None else None
        if after is not None:
            product = product + layer.attn_scale * (self.u @ after.to(self.u))[:, None, None]
        return product

    def result(self, total: Tensor | None) -> DirectLogitAttribution:
        """Everything scaled; ``total`` is the model's own logit (difference) where the caller has it."""
        assert self._last is not None
        scale, own_total = self._last
        absent = torch.full_like(own_total, float("nan"))
        heads, biases, mixers, mlps = [], [], [], []
        for layer in self.parts.layers:
            i = layer.index
            if layer.attn is None:
                heads.append(absent[..., None].expand(*absent.shape, self.parts.n_heads))
                biases.append(absent)
            else:
                inner = self.write_scale[i].to(scale) if layer.post_attn_norm is not None else torch.ones_like(scale)
                heads.append(self._products["z", i] * (scale * inner)[..., None])
                biases.append(self._bias_product(layer, inner) * scale)
            for kind, found in (("mixer_out", mixers), ("mlp_out", mlps)):
                product = self._products.get((kind, i))
                found.append(absent if product is None else product * scale)
        beta = self.parts.final_norm.bias()
        constant = self.bias if beta is None else self.bias + self.directions @ beta.to(self.directions)
        return DirectLogitAttribution(
            heads=torch.stack(heads, 3),
            mlps=torch.stack(mlps, -1),
            mixers=torch.stack(mixers, -1),
            attention_bias=torch.stack(biases, -1),
            embedding=self._products["resid_pre", 0] * scale,
            constant=constant,
            total=own_total if total is None else total.to(own_total.device),
            uncapped=self.parts.logit_softcap is not None,
        )
