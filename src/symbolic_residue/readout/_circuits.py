"""OV and QK circuits of heads, in factored form: no ``d_model × d_model`` matrix of a head, no ``vocab × vocab`` matrix at all.

1. **OV**: the head moves ``x̂ A B + b B`` from a key to a query that attends to it fully; ``x̂`` is the residual stream over its norm's frozen scale, ``A`` is
   ``W_V`` with the norm's gain and centring folded in, ``B`` is ``W_O``. Singular values come from a ``d_head × d_head`` problem: with ``A = Q_a R_a`` and
   ``Bᵀ = Q_b R_b`` they are those of ``R_a R_bᵀ``.
2. **Copying score** of the full circuit ``W_E A B W_U``: ``Σλ / Σ|λ|`` over its eigenvalues, 1 where every token raises itself. The non-zero
   eigenvalues of ``[vocab, vocab]`` are those of ``B (W_Uᵀ W_E) A``, ``[d_head, d_head]``. Positive scales (norms, logit factors) are left out, as in the
   source, and gains are folded in. Its control is the score of random ``A`` and ``B`` of the same shapes between the model's own embedding and unembedding.
3. **QK**: the score of a query ``x̂`` and a key ``ŷ`` is ``scale · (x̂ A_Q + b_Q)(ŷ A_K + b_K)ᵀ``. Rotary positions make it depend on the distance Δ between
   the two; then Δ must be given, and the model's own rotation at Δ is applied to ``A_Q`` (``_rotary`` checks it against the q and k of a forward).
4. Heads whose OV or QK is no fixed matrix are refused: gated outputs, normed or clipped queries, keys and values.

Sources: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits); Su et al. 2021 (RoFormer) for the rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, ReadError
from symbolic_residue.readout._heads import refuse_gated
from symbolic_residue.readout._norm import fold, frozen_scale
from symbolic_residue.readout._rotary import probe, Rotate
from symbolic_residue.stats import Estimate

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.models import LayerParts, Norm, Parts

__all__ = ["CopyingScores", "OVCircuit", "QKCircuit", "copying_scores", "ov_circuit", "ov_top_tokens", "qk_circuit"]

_CHUNK = 8192
"""Vocabulary rows multiplied at a time."""


def _singular(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of ``left @ right`` for ``[n, d]`` and ``[d, m]``: ``[n, k]``, ``[k]``, ``[k, m]``, in float64."""
    q_l, r_l = torch.linalg.qr(left.double())
    q_r, r_r = torch.linalg.qr(right.double().mT)
    u, s, vh = torch.linalg.svd(r_l @ r_r.mT, full_matrices=False)
    return q_l @ u, s, vh @ q_r.mT


def _normed(norm: Norm | None, x: Tensor) -> Tensor:
    """``x`` times its norm's frozen scale; gain, centring and bias are in the factors."""
    return x.float() if norm is None else x.float() * frozen_scale(norm, x)[..., None]


def _reading(layer: LayerParts, which: str, head: int) -> tuple[Tensor, Tensor]:
    """``[d_model, d_head]`` and ``[d_head]`` that make q, k or v from the residual over its norm's scale."""
    weight, bias = layer.projection(which, head)  # type: ignore[arg-type]
    weight = weight.float()
    added = torch.zeros(weight.shape[1], device=weight.device) if bias is None else bias.float()
    norm = layer.pre_attn_norm
    if norm is None:
        return weight, added
    beta = norm.bias()
    return fold(norm, weight.mT).mT, added if beta is None else added + beta.to(weight) @ weight


@dataclass(frozen=True)
class OVCircuit:
    """What a head moves: ``x̂ → (x̂ @ into + bias) @ out``, before any post-attention norm.

    Attributes:
        layer, head: which.
        into: ``[d_model, d_head]``, gain and centring of the norm before attention folded in.
        out: ``[d_head, d_model]``, the block's constant factor in it.
        bias: ``[d_head]``: the value whatever the input.
        out_gained: ``out`` with the gain (and centring) of a post-attention norm; ``out`` itself where there is none.
    """

    layer: int
    head: int
    into: Tensor
    out: Tensor
    bias: Tensor
    out_gained: Tensor
    _norm: Norm | None

    def apply(self, resid: Tensor) -> Tensor:
        """What the head adds for a query that attends to these residuals fully, ``[..., d_model] → [..., d_model]``, before any post-attention norm.

        A head's write is the attention-weighted sum of this over keys (tested).
        """
        return (_normed(self._norm, resid) @ self.into + self.bias) @ self.out

    def singular(self, k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The ``k`` largest singular values with directions read ``[k, d_model]``, values ``[k]``, directions written ``[k, d_model]``, float64."""
        u, s, vh = _singular(self.into, self.out)
        return u.mT[:k], s[:k], vh[:k]


def ov_circuit(parts: Parts, layer: int, head: int) -> OVCircuit:
    """The OV circuit of one head.

    Raises:
        ReadError: a layer without softmax attention, a gated head, clipped values, or no such layer or head.
    """
    found = _layer(parts, layer, head)
    refuse_gated(found)
    _refuse_clipped(found)
    into, bias = _reading(found, "v", head)
    out = found.w_o(head).float() * found.attn_scale
    post = found.post_attn_norm
    gained = out
    if post is not None:  # w → (w C) ⊙ γ, the post norm with its scale left out
        centred = out - out.mean(-1, keepdim=True) if post.kind == "layer" else out
        gained = centred * post.gain().to(out)
    return OVCircuit(layer, head, into, out, bias, gained, found.pre_attn_norm)


def ov_top_tokens(parts: Parts, layer: int, head: int, tokens: Sequence[int], k: int = 10) -> tuple[Tensor, Tensor]:
    """Which tokens' logits the head raises most when it attends fully to a bare token embedding.

    The embedding is normed as the layer norms it; the final norm's scale is left out, so values compare within a token only.

    Returns:
        Token ids ``[token, k]`` and values ``[token, k]``, largest first.

    Raises:
        ReadError, ConfigError: as :func:`ov_circuit`; a token out of the vocabulary, or more than there are.
    """
    vocab = parts.w_u.shape[0]
    if not tokens or not all(0 <= t < vocab for t in tokens) or not 1 <= k <= vocab:
        raise ConfigError(f"Tokens must lie in the vocabulary of {vocab}, and 1 <= k <= {vocab}.")
    circuit = ov_circuit(parts, layer, head)
    with torch.no_grad():
        x = parts.embed(torch.tensor(list(tokens), device=parts.embed.weight.device)) * parts.embed_scale  # type: ignore[arg-type]
    moved = (_normed(circuit._norm, x).to(circuit.into) @ circuit.into + circuit.bias) @ circuit.out_gained
    # Read with u·(moved C ⊙ γ): the gain goes to the moved vector, so that no gained copy of the unembedding is made.
    norm = parts.final_norm
    moved = (moved - moved.mean(-1, keepdim=True) if norm.kind == "layer" else moved) * norm.gain().to(moved)
    best = (moved.to(parts.w_u.device) @ parts.w_u.float().mT).topk(k, -1)
    return best.indices, best.values


@dataclass(frozen=True)
class CopyingScores:
    """``Σλ / Σ|λ|`` of heads' full OV circuits.

    Attributes:
        scores: ``[layer, head]`` between −1 and 1; NaN where not asked for, and in layers without softmax attention.
        control: random ``A`` and ``B``: mean, and the interval that holds 95 % of the draws.
    """

    scores: Tensor
    control: Estimate


def copying_scores(parts: Parts, layers: Sequence[int] | None = None, *, seed: int = 0, n_random: int = 100) -> CopyingScores:
    """Copying scores of all heads of the layers (default every layer with softmax attention).

    Raises:
        ReadError: a layer without softmax attention or with gated heads or clipped values.
        ConfigError: fewer than 20 random draws.
    """
    if n_random < 20:
        raise ConfigError(f"{n_random} random draws are too few for an interval of 95 %.", todo="Draw at least 20.")
    middle = _unembed_embed(parts)
    scores = torch.full((parts.n_layers, parts.n_heads), float("nan"), dtype=torch.float64)
    for layer in parts.attention_layers if layers is None else layers:
        for head in range(parts.n_heads):
            circuit = ov_circuit(parts, layer, head)
            scores[layer, head] = _copying(circuit.into, circuit.out_gained, middle)
    generator = torch.Generator().manual_seed(seed)
    null = []
    for _ in range(n_random):
        into = torch.randn(parts.d_model, parts.d_head, generator=generator)
        out = torch.randn(parts.d_head, parts.d_model, generator=generator)
        null.append(float(_copying(into, out, middle)))
    return CopyingScores(scores, interval_of_draws(null))


def interval_of_draws(draws: Sequence[float]) -> Estimate:
    """Mean of a null's draws and the interval that holds 95 % of them; n counts draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(np.mean(draws)), float(low), float(high), len(draws), 0.95, "2.5 to 97.5 percentile of random matrices")


def _copying(into: Tensor, out: Tensor, middle: Tensor) -> Tensor:
    small = out.to(middle) @ middle @ into.to(middle)
    values = torch.linalg.eigvals(small)
    return values.real.sum() / values.abs().sum()


def _unembed_embed(parts: Parts) -> Tensor:
    """``C diag(γ) W_Uᵀ W_E`` with the final norm's gain and centring, ``[d_model, d_model]`` float64 on the CPU."""
    w_e: Tensor = parts.embed.weight.detach()  # type: ignore[assignment]
    w_u = parts.w_u
    if w_e.shape != w_u.shape:
        raise ReadError(f"Embedding {list(w_e.shape)} and unembedding {list(w_u.shape)} do not share a vocabulary.")
    total = torch.zeros(parts.d_model, parts.d_model, dtype=torch.float64)
    for start in range(0, w_u.shape[0], _CHUNK):
        piece = slice(start, start + _CHUNK)
        total += (w_u[piece].float().mT @ w_e[piece].to(w_u.device).float()).double().cpu()
    gain = parts.final_norm.gain().double().cpu()
    total = gain[:, None] * total
    return total - total.mean(0, keepdim=True) if parts.final_norm.kind == "layer" else total


@dataclass(frozen=True)
class QKCircuit:
    """How a head scores a query against a key: ``scale · (x̂ @ query + query_bias) · (ŷ @ key + key_bias)``, before softcap and mask.

    Attributes:
        layer, head: which.
        query, key: ``[d_model, d_head]``, gain and centring of the norm before attention folded in; rotated where positions are rotary.
        query_bias, key_bias: ``[d_head]``, rotated alike.
        scale: of the scores.
        distance: query position minus key position that the rotation is for; None where no positions enter.
    """

    layer: int
    head: int
    query: Tensor
    key: Tensor
    query_bias: Tensor
    key_bias: Tensor
    scale: float
    distance: int | None
    _norm: Norm | None

    def scores(self, query_resid: Tensor, key_resid: Tensor) -> Tensor:
        """Scores of every query with every key, ``[..., query, d_model]``, ``[..., key, d_model] → [..., query, key]``.

        Each pair is taken to be at ``distance``.
        """
        q = _normed(self._norm, query_resid) @ self.query + self.query_bias
        k = _normed(self._norm, key_resid) @ self.key + self.key_bias
        return self.scale * q @ k.mT

    def singular(self, k: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The ``k`` largest singular values of the bilinear form (``scale`` left out): directions of the query, values, directions of the key; float64."""
        u, s, vh = _singular(self.query, self.key.mT)
        return u.mT[:k], s[:k], vh[:k]


def qk_circuit(instrument: Instrument, layer: int, head: int, *, distance: int | None = None) -> QKCircuit:
    """The QK circuit of one head.

    Args:
        instrument: the model's instrument; a forward of three tokens checks the factors against the model's own q and k.
        layer: a layer with softmax attention.
        head: a query head.
        distance: query position minus key position, for rotary positions.

    Raises:
        ConfigError: rotary positions and no distance; a distance where no rotation is; one beyond the context.
        ReadError: q and k are normed or clipped; no such layer or head; q and k of the forward do not agree with the factors.
    """
    return circuit_of(_layer(instrument.parts, layer, head), head, rotation(instrument, layer, distance), distance)


def rotation(instrument: Instrument, layer: int, distance: int | None) -> Rotate | None:
    """A layer's rotation at a distance, None where it rotates nothing; refusals as in :func:`qk_circuit`."""
    found = _layer(instrument.parts, layer, 0)
    _refuse_clipped(found)
    rotate = probe(instrument, found, 1 if distance is None else distance)
    if rotate is not None and distance is None:
        raise ConfigError(
            f"The QK circuit of layer {layer} depends on the distance between query and key.",
            why="The family rotates queries and keys by their positions.",
            todo="Give distance=1 for the token before, distance=0 for no rotation.",
        )
    if rotate is None and distance is not None:
        raise ConfigError(
            f"Layer {layer} does not rotate queries and keys, so its QK circuit has no distance.", todo="Leave distance out."
        )
    return rotate


def circuit_of(layer: LayerParts, head: int, rotate: Rotate | None, distance: int | None) -> QKCircuit:
    """One head's QK circuit from its layer's rotation."""
    query, query_bias = _reading(layer, "q", head)
    key, key_bias = _reading(layer, "k", head)
    scale = layer.score_scale
    if layer.spec.query_prescaled:
        scale = float(getattr(layer.attn, "scaling", layer.d_head**-0.5))
    if rotate is not None:
        query, query_bias = rotate(query, query=True), rotate(query_bias[None], query=True)[0]
        key, key_bias = rotate(key, query=False), rotate(key_bias[None], query=False)[0]
    return QKCircuit(layer.index, head, query, key, query_bias, key_bias, scale, distance, layer.pre_attn_norm)


def _layer(parts: Parts, layer: int, head: int) -> LayerParts:
    if not 0 <= layer < parts.n_layers or not 0 <= head < parts.n_heads:
        raise ReadError(f"There is no head {layer}.{head}: {parts.n_layers} layers of {parts.n_heads} heads.")
    found = parts.layers[layer]
    if found.attn is None:
        raise ReadError(
            found.absent("z") or f"Layer {layer} has no attention.", todo=f"Layers that have it: {parts.attention_layers}."
        )
    return found


def _refuse_clipped(layer: LayerParts) -> None:
    clip = getattr(getattr(layer.attn, "config", None), "clip_qkv", None)
    if clip is not None:
        raise ReadError(
            f"Layer {layer.index} clips queries, keys and values at {clip:g}.",
            why="A clipped vector is no linear function of the residual stream.",
        )
