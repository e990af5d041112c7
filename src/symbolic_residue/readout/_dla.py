"""Direct logit attribution: what each component writes into a logit, or a logit difference, directly.

1. Freeze the final norm's scale ``s`` at the row, and fold its gain (and centring) and the unembedding into one direction ``u``.
2. A component that wrote ``c`` into the residual stream contributes ``s · c·u``. The components are the embedding, every attention head, every
   attention output bias, every MLP; norm and unembedding biases are constants.
3. A head's write is never formed: its direction is folded through its output projection first, ``u_h = W_O,h u``, then ``z_h·u_h``. Where the
   family norms the attention output before adding it (gemma3), that norm's scale is frozen too.
4. The parts sum to the logit (difference); ``error`` is what is missing, and should be rounding.

Source: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits), "direct path" and per-head logit terms; the identity is exact here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.readout._norm import fold, frozen_scale

if TYPE_CHECKING:
    from symbolic_residue.instrument import Trace
    from symbolic_residue.models import LayerParts, Parts

__all__ = ["DirectLogitAttribution", "direct_logit_attribution", "dla_reads"]


def dla_reads(parts: Parts) -> tuple[str, ...]:
    """The points that :func:`direct_logit_attribution` needs in its trace."""
    return ("resid_pre.0", "z.*", "mlp_out.*", f"resid_post.{parts.n_layers - 1}")


@dataclass
class DirectLogitAttribution:
    """Contributions in logits (nats of log-odds for a difference).

    Attributes:
        heads: ``[target, batch, row, layer, head]``.
        mlps: ``[target, batch, row, layer]``.
        attention_bias: ``[target, batch, row, layer]``: output projection biases.
        embedding: ``[target, batch, row]``: token (and learned position) embedding.
        constant: ``[target]``: final norm's bias and unembedding bias.
        total: ``[target, batch, row]``: the logit (difference) that the model produced.
    """

    heads: Tensor
    mlps: Tensor
    attention_bias: Tensor
    embedding: Tensor
    constant: Tensor
    total: Tensor

    @property
    def sum(self) -> Tensor:
        """Sum of all parts, ``[target, batch, row]``."""
        return (
            self.heads.sum((-1, -2))
            + self.mlps.sum(-1)
            + self.attention_bias.sum(-1)
            + self.embedding
            + self.constant[:, None, None]
        )

    @property
    def error(self) -> Tensor:
        """``sum − total``, ``[target, batch, row]``: rounding, when all is well."""
        return self.sum - self.total


def direct_logit_attribution(
    trace: Trace, parts: Parts, targets: Sequence[tuple[int, int | None]], rows: Sequence[int] = (-1,)
) -> DirectLogitAttribution:
    """Attribute logits or logit differences at chosen rows.

    Args:
        trace: a forward with :func:`dla_reads` and the logits of at least the chosen rows.
        parts: the model's parts.
        targets: ``(a, b)`` for logit(a) − logit(b), ``(a, None)`` for logit(a).
        rows: query rows, counted from the end (−1 is the last).

    Raises:
        ConfigError: no target, or a token id out of the vocabulary.
        ReadError: the trace lacks a point.
    """
    if not targets:
        raise ConfigError("There is no target to attribute.")
    w_u, b_u = parts.w_u, parts.b_u
    for token in (t for pair in targets for t in pair if t is not None):
        if not 0 <= token < w_u.shape[0]:
            raise ConfigError(f"Token id {token} is outside the vocabulary of {w_u.shape[0]}.")
    if any(r >= 0 for r in rows):
        raise ConfigError("Rows are counted from the end here.", todo="Write -1 for the last row.")
    at = list(rows)
    zero = torch.zeros_like(w_u[0])
    directions = torch.stack([w_u[a] - (w_u[b] if b is not None else zero) for a, b in targets]).float()
    last = trace[f"resid_post.{parts.n_layers - 1}"][:, at].float()
    scale = frozen_scale(parts.final_norm, last)
    u = fold(parts.final_norm, directions)
    constant = torch.zeros(len(targets), device=u.device)
    beta = parts.final_norm.bias()
    if beta is not None:
        constant = constant + directions @ beta.float()
    if b_u is not None:
        constant = constant + torch.stack([b_u[a] - (b_u[b] if b is not None else 0.0) for a, b in targets]).float()

    heads, biases, mlps = [], [], []
    for i, layer in enumerate(parts.layers):
        into, inner = _attention_direction(layer, trace[f"z.{i}"][:, at].float(), u)
        w_o = torch.stack([layer.w_o(h) for h in range(parts.n_heads)]).float()  # [head, d_head, d_model]
        folded = torch.einsum("hdm,nm->nhd", w_o, into)
        z = trace[f"z.{i}"][:, at].float()
        heads.append(torch.einsum("brhd,nhd->nbrh", z, folded) * (scale * inner)[None, :, :, None])
        bias = layer.b_o
        constant_write = into @ bias.float() if bias is not None else torch.zeros(len(targets), device=u.device)
        biases.append(constant_write[:, None, None] * (scale * inner)[None])
        mlps.append(torch.einsum("brm,nm->nbr", trace[f"mlp_out.{i}"][:, at].float(), u) * scale)
    embedding = torch.einsum("brm,nm->nbr", trace["resid_pre.0"][:, at].float(), u) * scale
    logits = trace["logits"][:, at].float()
    total = torch.stack([logits[..., a] - (logits[..., b] if b is not None else 0.0) for a, b in targets])
    return DirectLogitAttribution(torch.stack(heads, 3), torch.stack(mlps, -1), torch.stack(biases, -1), embedding, constant, total)


def _attention_direction(layer: LayerParts, z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Direction ``[target, d_model]`` that an attention output is read along, and a factor ``[batch, row]``.

    Without a post-attention norm these are ``u`` and 1. With one, its gain goes into the direction and its frozen scale into the factor.
    """
    if layer.post_attn_norm is None:
        return u, torch.ones(z.shape[:2], device=z.device)
    write = sum((z[:, :, h] @ layer.w_o(h).float() for h in range(z.shape[2])), torch.zeros((), device=z.device))
    if layer.b_o is not None:
        write = write + layer.b_o.float()
    return fold(layer.post_attn_norm, u), frozen_scale(layer.post_attn_norm, write)
