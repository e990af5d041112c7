"""What heads write into the residual stream, and which keys it comes from, without a d_model-wide tensor for every head.

1. A head's write is ``z_h W_O,h`` (times the block's constant factor). ``head_writes`` forms it for chosen layers, heads and rows only.
2. Its norm needs no write: with the Gram matrix ``G_h = W_O,h W_O,hᵀ`` of size ``d_head × d_head``, ``‖z W_O‖² = z G zᵀ``. ``G`` is kept as its
   triangular factor ``R`` (``W_O,hᵀ = Q R``, ``G = RᵀR``), so ``‖z W_O‖ = ‖R zᵀ‖`` and nothing is lost where ``z`` is nearly in the null space.
3. Value-weighted attention is the norm of what each key contributes to the head's write, ``‖a_ij v_j W_O,h‖ = a_ij ‖R v_j‖``, with ``v`` of the
   key-value head that serves the query head. Over a region it is summed two ways: the sum of the keys' norms, and the norm of the keys' sum (vectors
   may cancel).

All norms are *before* a post-attention norm (gemma2, gemma3, olmo2): there, what reaches the residual stream is the write times a factor that all
heads of the row share, and times the norm's gain, which is not in these numbers. Output biases belong to no head.

Source: Kobayashi et al. 2020 (Attention is Not Only a Weight: Analyzing Transformers with Vector Norms).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import ReadError
from symbolic_residue.instrument.attention import RegionMap

if TYPE_CHECKING:
    from symbolic_residue.instrument import Trace
    from symbolic_residue.models import LayerParts, Parts
    from symbolic_residue.prompts import Regions

__all__ = ["ValueWeighted", "head_writes", "value_weighted_attention", "write_norms"]


def head_writes(
    trace: Trace, parts: Parts, layers: Sequence[int], heads: Sequence[int], rows: Sequence[int] | None = (-1,)
) -> Tensor:
    """What chosen heads add to the residual stream, before any post-attention norm.

    Args:
        trace: a forward with ``z`` of the layers.
        parts: the model's parts.
        layers: layers with softmax attention.
        heads: the same heads in each of them; negative counts from the end.
        rows: query rows; negative counts from the end; None takes all.

    Returns:
        ``[layer, batch, row, head, d_model]`` in float32. Where no norm follows, their sum over all heads plus the output bias is ``attn_out``.

    Raises:
        ReadError: a layer, head or row that does not exist, or a point that was not read.
    """
    layers, heads = _chosen(layers, parts.n_layers, "layer"), _chosen(heads, parts.n_heads, "head")
    out = []
    for i in layers:
        layer = parts.layers[i]
        z = _rows(trace[f"z.{i}"], rows)[:, :, heads].float()
        w_o = torch.stack([layer.w_o(h) for h in heads]).to(z)
        out.append(torch.einsum("brhd,hdm->brhm", z, w_o) * layer.attn_scale)
    return torch.stack(out)


def write_norms(trace: Trace, parts: Parts, rows: Sequence[int] | None = None) -> Tensor:
    """``‖z_h W_O,h‖`` of every layer, head and row, before any post-attention norm.

    Args:
        trace: a forward with ``z.*``.
        parts: the model's parts.
        rows: query rows; negative counts from the end; None takes all.

    Returns:
        ``[layer, batch, row, head]`` in float32, one entry for each of the model's layers; NaN in layers without softmax attention.

    Raises:
        ReadError: ``z`` was not read, a row that does not exist, or a model without attention.
    """
    if not parts.attention_layers:
        raise ReadError("No layer of this model has softmax attention.")
    found = {i: _norms(_rows(trace[f"z.{i}"], rows), output_factor(parts.layers[i])) for i in parts.attention_layers}
    first = next(iter(found.values()))
    absent = torch.full_like(first, float("nan"))
    return torch.stack([found.get(i, absent).to(first.device) for i in range(parts.n_layers)])


def output_factor(layer: LayerParts) -> Tensor:
    """``R_h``, ``[head, d_head, d_head]`` upper triangular, with ``R_hᵀ R_h = W_O,h W_O,hᵀ`` (the block's constant factor in it)."""
    w_o = torch.stack([layer.w_o(h) for h in range(layer.n_heads)]).float() * layer.attn_scale
    if w_o.shape[1] > w_o.shape[2]:  # a head wider than the residual stream: R would not be square
        gram = torch.einsum("hdm,hem->hde", w_o.double(), w_o.double())
        values, vectors = torch.linalg.eigh(gram)
        return (values.clamp_min(0).sqrt()[..., None] * vectors.mT).float()
    return torch.linalg.qr(w_o.mT, mode="r").R


def _norms(x: Tensor, factor: Tensor) -> Tensor:
    """``‖R_h x_h‖`` for ``x [batch, position, head, d_head]``, as ``[batch, position, head]``."""
    return torch.einsum("bphd,hed->bphe", x.float(), factor.to(x.device)).norm(dim=-1)


@dataclass
class ValueWeighted:
    """Value-weighted attention of chosen rows, before any post-attention norm.

    Attributes:
        norms: ``[layer, batch, head, row, key]``: ``‖a_ij v_j W_O,h‖``, in the residual stream's units; NaN in rows that are padding.
        layers: the model's layer numbers along the layer axis.
        rows: query positions along the row axis.
    """

    norms: Tensor
    layers: tuple[int, ...]
    rows: Tensor
    lead: tuple[int, ...]
    _weights: Tensor
    _reduced_values: list[Tensor]
    """Per layer ``R_h v_j``, ``[batch, head, key, d_head]``."""

    @property
    def share(self) -> Tensor:
        """``norms`` divided by their sum over keys: each key's share."""
        return self.norms / self.norms.sum(-1, keepdim=True)

    def regions(self, regions: Regions | Sequence[Regions]) -> tuple[tuple[str, ...], Tensor, Tensor]:
        """Sums over regions of keys.

        Args:
            regions: one for all sequences of the batch, or one each.

        Returns:
            Names; ``Σ_j ‖a_ij v_j W_O,h‖`` and ``‖Σ_j a_ij v_j W_O,h‖`` over each region's keys, both ``[layer, batch, head, row, region]``. The second
            is at most the first.

        Raises:
            ReadError: labels that do not fit the sequences.
        """
        batch, n_keys = self.norms.shape[1], self.norms.shape[-1]
        found = RegionMap.build(regions, batch, n_keys, self.lead or (0,) * batch, self.norms.device)
        indicator = found.indicator(self.norms.dtype)
        of_norms = torch.einsum("lbhrk,bkg->lbhrg", self.norms, indicator)
        of_sums = [
            torch.stack([torch.matmul(w * indicator[:, None, None, :, g], v).norm(dim=-1) for g in range(len(found.names))], -1)
            for w, v in zip(self._weights, self._reduced_values, strict=True)
        ]
        return found.names, of_norms, torch.stack(of_sums)


def value_weighted_attention(trace: Trace, parts: Parts) -> ValueWeighted:
    """``‖a_ij v_j W_O,h‖`` for the layers and rows whose whole attention weights the trace holds.

    Args:
        trace: a forward with ``AttentionRead(weights=True, rows=…)`` and the points ``v`` of the layers read.
        parts: the model's parts.

    Raises:
        ReadError: weights or ``v`` were not read; a head whose output is gated (qwen3_next) is no weighted sum of values.
    """
    if trace.attention is None or "weights" not in trace.attention.values:
        raise ReadError(
            "The trace holds no attention weights.",
            todo="Run with attention=AttentionRead(weights=True, rows=…) and reads=('v.*',).",
        )
    table = trace.attention
    weights = table["weights"]
    norms, reduced = [], []
    for at, i in enumerate(table.layers):
        layer = parts.layers[i]
        refuse_gated(layer)
        v = trace[f"v.{i}"].float()  # [batch, key, kv_head, d_head]
        if v.shape[1] != weights.shape[-1]:
            raise ReadError(
                f"The weights are over {weights.shape[-1]} keys, and v.{i} holds {v.shape[1]}.", why="A key-value cache was in use.",
                todo="Run the whole sequence at once.",
            )  # fmt: skip
        group = layer.n_heads // v.shape[2]
        factor = output_factor(layer).unflatten(0, (v.shape[2], group)).to(v.device)
        r = torch.einsum("bkcd,cged->bcgke", v, factor).flatten(1, 2)
        reduced.append(r)
        norms.append(weights[at].to(r.device) * r.norm(dim=-1)[:, :, None])
    home = norms[0].device
    return ValueWeighted(
        torch.stack([n.to(home) for n in norms]),
        table.layers,
        table.rows,
        trace.lead,
        weights.to(home),
        [r.to(home) for r in reduced],
    )


def refuse_gated(layer: LayerParts) -> None:
    """Refuse a layer whose heads' outputs are gated by the query's own input before the output projection.

    Raises:
        ReadError: naming the layer.
    """
    if layer.qkv_layout == "gated":
        raise ReadError(
            f"The heads of layer {layer.index} are gated.",
            why="What a head writes is its weighted values times a gate that depends on the row, so keys and the OV matrix do not give it.",
            todo="Read 'z' and use write_norms or head_writes, which are exact here.",
        )


def _rows(x: Tensor, rows: Sequence[int] | None) -> Tensor:
    return x if rows is None else x[:, _chosen(rows, x.shape[1], "row")]


def _chosen(indices: Sequence[int], size: int, what: str) -> list[int]:
    if wrong := [i for i in indices if not -size <= i < size]:
        raise ReadError(f"There is no {what} {wrong[0]}: there are {size}.")
    if not indices:
        raise ReadError(f"No {what} was asked for.")
    return [i % size for i in indices]
