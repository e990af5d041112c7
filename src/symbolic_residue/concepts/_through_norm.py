"""Head importance by ablation through a norm: how much of a concept's readout goes when a head's write is taken away and the norm is made anew.

An option beside ``direct``, which is before any norm.

1. A residual stream x of a layer is read through the model's final norm N: ``s(x) = v · N(x)``. Head h of the same layer or an earlier one wrote ``w_h =
   z_h W_h`` into it. Its importance for a text is ``s(x) − s(x − w_h)``: the head's write is replaced by nothing, and N is made anew, so a head also counts
   for making the stream longer (RMS norm: Zhang & Sennrich 2019, ``N(x) = g ⊙ x / sqrt(mean x² + ε)``; layer norm: Ba et al. 2016, the same of ``x − mean x``,
   plus a constant that cancels here). What later layers would have made of the difference is not in it.
2. Only inner products are needed: ``mean (x − w)² = (‖x‖² − 2 x·w + ‖w‖²) / d``, with ``x·w_h = (x W_hᵀ) · z_h``.
3. A concept's importance of h is the difference of means of the texts' (paired within scenarios). Its null permutes labels within scenarios, with family-wise p
   of its size over the heads given. v is kept as it was found, so the p is of heads, given v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._design import Design
from symbolic_residue.concepts._heads import output_weights
from symbolic_residue.concepts._null import max_t_p, standardised
from symbolic_residue.errors import ConfigError, ReadError

if TYPE_CHECKING:
    from symbolic_residue.models import Norm, Parts

__all__ = ["NormAblation", "ablated_through_norm", "head_importance"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NormAblation:
    """A concept's head importance through the norm: ``importance [head]`` (units of the normed stream along v), its mean under permuted labels, and p."""

    importance: Array
    null_mean: Array
    p: Array


def ablated_through_norm(
    resid: NDArray[np.floating], z: NDArray[np.floating], w_o: Array, v: NDArray[np.floating], norm: Norm
) -> Array:
    """``s(x) − s(x − w_h)`` of every text and head, ``[text, head]``.

    Args:
        resid: ``[text, d_model]``: the stream that the heads' writes are part of.
        z: ``[text, head, d_head]``: the heads' outputs.
        w_o: ``[head, d_head, d_model]``: of :func:`output_weights`.
        v: ``[d_model]``: what the normed stream is read along.
        norm: the model's final norm, or any.

    Raises:
        ConfigError: shapes that do not fit.
    """
    x, out, gain = np.asarray(resid, dtype=np.float64), np.asarray(z, dtype=np.float64), norm.gain().double().cpu().numpy()
    if (
        x.ndim != 2
        or out.ndim != 3
        or len(x) != len(out)
        or w_o.shape != (*out.shape[1:], x.shape[1])
        or np.shape(v) != (x.shape[1],)
    ):
        raise ConfigError(
            f"Stream {x.shape}, heads {out.shape}, output weights {w_o.shape} and direction {np.shape(v)} do not fit."
        )
    read = gain * np.asarray(v, dtype=np.float64)
    if norm.kind == "layer":
        x, w_o = x - x.mean(1, keepdims=True), w_o - w_o.mean(2, keepdims=True)
    d = x.shape[1]
    along = np.einsum("nhd,hd->nh", out, w_o @ read)
    cross = np.einsum("nhd,hdm,nm->nh", out, w_o, x, optimize=True)
    own = np.einsum("nhd,hde,nhe->nh", out, w_o @ w_o.transpose(0, 2, 1), out, optimize=True)
    length = (x**2).sum(1)[:, None]
    whole = (x @ read)[:, None]
    left = np.maximum(length - 2 * cross + own, 0.0)
    return whole / np.sqrt(length / d + norm.eps) - (whole - along) / np.sqrt(left / d + norm.eps)


def head_importance(
    resid: NDArray[np.floating],
    z: NDArray[np.floating],
    parts: Parts,
    layer: int,
    v: NDArray[np.floating],
    design: Design,
    drawn: NDArray[np.bool_],
) -> NormAblation:
    """One layer's heads for one concept, through the model's final norm.

    Args:
        resid: ``[n, d_model]``: the design's rows, of this layer or a later one.
        z: ``[n, head, d_head]``: the layer's heads.
        parts: the model's.
        layer: whose heads.
        v: ``[d_model]``.
        design: labels and strata.
        drawn: ``[draw, n]``: of :func:`draw_labels`.

    Raises:
        ReadError: the layer norms the attention output before adding it: what one head adds then depends on the others.
        ConfigError: shapes that do not fit.
    """
    if parts.layers[layer].post_attn_norm is not None:
        raise ReadError(
            f"Layer {layer} norms its attention output before adding it.",
            why="What a head adds to the stream depends on the other heads then.",
            todo="Use write norms and direct, which are before that norm.",
        )
    each = ablated_through_norm(resid, z, output_weights(parts, layer), v, parts.final_norm)
    labels = np.concatenate([design.positive[None], drawn])
    values = design.weights(labels) @ each
    score = standardised(np.abs(values))
    return NormAblation(values[0], values[1:].mean(0), max_t_p(score[0], score.max(1)))
