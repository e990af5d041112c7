"""The local replacement model: a decoder on one prompt with attention patterns and norm denominators frozen, so that it is affine between its neurons.

1. One forward of the model gives, layer by layer, the attention patterns ``A [head, query, key]``, every norm's scale ``s [position]`` and the MLPs' inputs.
   Of long prompts the patterns are not kept: queries and keys are, and a block of a pattern is computed when it is needed, by the instrument's own attention.
2. Attention becomes one linear map of the residual stream: ``x ↦ Σ_h s_out[q] A[h, q, k] s_in[k] · x_k W_V W_O`` with the norms' gains (and centring) folded
   into ``W_V`` and ``W_O``, plus a constant a position (biases of values, of the projection and of norms).
3. An MLP becomes neurons (``_mlp``), read through the frozen norm before it and written through the one after it, if any, plus a constant.
4. ``_freeze`` makes it, and refuses an architecture of which it is not the model.

Source: Ameisen et al. 2025 (Circuit Tracing) for the local replacement model; the linear maps are exact given what is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.graph._mlp import NeuronMlp, Rule
from symbolic_residue.graph._norm import FrozenNorm
from symbolic_residue.instrument.attention import Call, row_weights
from symbolic_residue.models import weight_in_out

if TYPE_CHECKING:
    from symbolic_residue.graph._units import LayerUnits, LinearPath
    from symbolic_residue.models import LayerParts, Parts

__all__ = ["LocalLayer", "LocalModel", "scaled"]


@dataclass(frozen=True, eq=False)
class LocalLayer:
    """One block on the prompt.

    Attributes:
        parts: the block's own.
        call: its attention: queries, keys, and who sees whom; None where the whole pattern is kept.
        kept: the whole :meth:`pattern`, where it is short enough to be kept.
        norm_in, norm_out: before and after attention.
        attn_constant: ``[position, d_model]``: what attention adds whatever it reads.
        mlp: its neurons.
        mlp_in, mlp_out: norms before and after the MLP.
        mlp_scale: constant factor of what the MLP writes.
        mlp_constant: ``[position, d_model]`` or ``[1, d_model]``.
        wrote: ``[position, d_model]``: what all neurons write together; the constant is not in it.
        kept_neurons: what :meth:`pre_activations` gives, where it is small enough to be kept.
        stream: ``[position, d_model]``: the residual stream that the MLP reads, before its norm.
        dtype: of all of it.
        skip: a dictionary's skip connection, around the MLP.
        written_by_units: ``[position, d_model]``: where a dictionary stands for the MLP, what its features and the error write together.
        unexplained: ``[position, d_model]``: the error alone.
    """

    parts: LayerParts
    call: Call | None
    kept: Tensor | None
    norm_in: FrozenNorm
    norm_out: FrozenNorm
    attn_constant: Tensor
    mlp: NeuronMlp
    mlp_in: FrozenNorm
    mlp_out: FrozenNorm
    mlp_scale: float
    mlp_constant: Tensor
    wrote: Tensor
    kept_neurons: tuple[Tensor, Tensor | None, Tensor | None] | None
    stream: Tensor
    dtype: torch.dtype
    skip: LinearPath | None = None
    written_by_units: Tensor | None = None
    unexplained: Tensor | None = None

    @property
    def n_neurons(self) -> int:
        """Neurons at a position."""
        return self.mlp.gate.shape[1]

    def _mlp_reads(self) -> Tensor:
        """What the MLP reads after its norm, ``[position, d_model]``."""
        x = self.mlp_in.linear(self.stream)
        return x if self.mlp_in.bias is None else x + self.mlp_in.bias

    def pre_activations(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gate, up (None in plain MLPs) and the router's weight of each neuron (None but in a mixture of experts), ``[position, neuron]`` each.

        Of long prompts they are computed when they are needed.
        """
        if self.kept_neurons is not None:
            return self.kept_neurons
        x = self._mlp_reads()
        return *self.mlp.read(x), None if self.mlp.route is None else self.mlp.route(x)

    def pre_activations_of(self, neurons: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The same of single neurons at positions, ``[unit]`` each."""
        if self.kept_neurons is not None:
            gate, up, route = (None if one is None else one[positions, neurons] for one in self.kept_neurons)
            assert gate is not None
            return gate, up, route
        x = self._mlp_reads()
        route = None
        if self.mlp.route is not None:
            where, back = positions.unique(return_inverse=True)
            route = self.mlp.route(x[where])[back, neurons]
        gate, up = self.mlp.read_some(x[positions], neurons)
        return gate, up, route

    @property
    def activations(self) -> Tensor:
        """The neurons' activations ``[position, neuron]``."""
        return self.mlp.respond(*self.pre_activations())

    def activations_of(self, neurons: Tensor, positions: Tensor) -> Tensor:
        """Of single neurons at positions, ``[unit]``."""
        return self.mlp.respond(*self.pre_activations_of(neurons, positions))

    def pattern(self, start: int = 0, stop: int | None = None, first_query: int | None = None) -> Tensor:
        """Attention weights ``[head, query, key]`` with the norms' scales at query and key and the block's constant factor in them.

        Args:
            start, stop: the keys' positions.
            first_query: queries from this position to ``stop``; None: from ``start``.
        """
        stop = self.stream.shape[0] if stop is None else stop
        first = start if first_query is None else first_query
        if self.kept is not None:
            return self.kept[:, first:stop, start:stop]
        assert self.call is not None
        own = row_weights(self.call, first, stop)[0, :, :, start:stop].to(self.dtype)
        return scaled(own, self.parts, self.norm_in, self.norm_out, slice(first, stop), slice(start, stop))

    def weight(self, head: int, query: int, key: int) -> float:
        """One attention weight, as the model has it."""
        with_scales = self.pattern(0, query + 1, query)[head, 0, key]
        for_one = scaled(
            torch.ones_like(with_scales)[None, None, None],
            self.parts,
            self.norm_in,
            self.norm_out,
            slice(query, query + 1),
            slice(key, key + 1),
        )
        return float(with_scales / for_one[0, 0, 0])

    def attention_weights(self) -> tuple[Tensor, Tensor]:
        """``W_V [d_model, kv head · d_head]`` and ``W_O [head · d_head, d_model]`` with the gains of the norms around them folded in."""
        parts = self.parts
        group = parts.n_heads // parts.n_kv_heads
        w_v = torch.cat([parts.projection("v", kv * group)[0].to(self.dtype) for kv in range(parts.n_kv_heads)], dim=1)
        w_o = weight_in_out(parts.o_proj).to(self.dtype)
        w_v = self.norm_in.fold(w_v.T).T  # C γ W
        gain = self.norm_out.gain
        if gain is not None:
            w_o = (w_o - w_o.mean(-1, keepdim=True) if self.norm_out.centred else w_o) * gain
        return w_v, w_o

    def written(self, neurons: Tensor, positions: Tensor, values: Tensor) -> Tensor:
        """What single neurons write into the residual stream, ``[unit, d_model]``: value × decoder row, through the norm after the MLP.

        Args:
            neurons, positions, values: ``[unit]`` each.
        """
        rows = self.mlp.down[neurons] * values[:, None]
        return self._out(rows, positions)

    def _out(self, rows: Tensor, positions: Tensor | slice) -> Tensor:
        return self.mlp_out.linear(rows * self.parts.mlp_down_scale, positions) * self.mlp_scale

    def out_back(self, g: Tensor) -> Tensor:
        """Directions at the MLP's write, pulled back to the neurons' decoder rows, ``[position, d_model]``."""
        return self.mlp_out.back(g * self.mlp_scale) * self.parts.mlp_down_scale

    def neurons_write(self) -> Tensor:
        """What all neurons of a position write together, ``[position, d_model]``; the constant is not in it."""
        return self.wrote

    def read_by(self, neurons: Tensor, positions: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
        """The directions ``[unit, d_model]`` of the residual stream that single neurons read, and the constants ``[unit]``: a = x · direction + constant."""
        c_g, c_u = self.mlp.coefficients(*self.pre_activations_of(neurons, positions), rule)
        direction = torch.zeros(len(neurons), self.mlp.gate.shape[0], dtype=self.dtype, device=self.stream.device)
        constant = torch.zeros(len(neurons), dtype=self.dtype, device=self.stream.device)
        for c, weight, added in ((c_g, self.mlp.gate, self.mlp.gate_bias), (c_u, self.mlp.up, self.mlp.up_bias)):
            if c is None or weight is None:
                continue
            rows = weight[:, neurons].T
            direction += c[:, None] * rows
            if self.mlp_in.bias is not None:
                constant += c * (rows @ self.mlp_in.bias)
            if added is not None:
                constant += c * added[neurons]
        return self.mlp_in.back(direction, positions), constant

    def neurons_back(
        self, per_neuron: Tensor, rule: Rule, pre: tuple[Tensor, Tensor | None, Tensor | None] | None = None
    ) -> Tensor:
        """Directions on the activations ``[position, neuron]`` pulled back to the residual stream that the MLP reads, ``[position, d_model]``."""
        c_g, c_u = self.mlp.coefficients(*(self.pre_activations() if pre is None else pre), rule)
        into = torch.zeros(len(per_neuron), self.mlp.gate.shape[0], dtype=self.dtype, device=per_neuron.device)
        for c, weight in ((c_g, self.mlp.gate), (c_u, self.mlp.up)):
            if c is not None and weight is not None:
                into += (per_neuron * c) @ weight.T
        return self.mlp_in.back(into)

    @property
    def parallel(self) -> bool:
        """Attention and MLP both read the block's input."""
        return self.parts.parallel


@dataclass(frozen=True, eq=False)
class LocalModel:
    """The whole decoder on one prompt.

    Attributes:
        parts: the model's.
        ids: the prompt's token ids ``[position]``.
        layers: the blocks.
        embedded: ``[position, d_model]``: what enters the first block.
        norm: the final norm.
        final: ``[position, d_model]``: what it reads.
        error: largest relative difference of a rebuilt layer's write from the model's.
        units: what stands for the MLPs of some layers instead of their neurons, by layer.
    """

    parts: Parts
    ids: Tensor
    layers: tuple[LocalLayer, ...]
    embedded: Tensor
    norm: FrozenNorm
    final: Tensor
    error: float
    units: Mapping[int, LayerUnits] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        """Of all tensors."""
        return self.embedded.device

    @property
    def dtype(self) -> torch.dtype:
        """Of all tensors."""
        return self.embedded.dtype

    def mlp_place(self, layer: int) -> int:
        """Where the MLP of a layer reads, as a place of ``Rows``."""
        return 2 * layer if self.layers[layer].parallel else 2 * layer + 1

    @property
    def end(self) -> int:
        """The place of the last residual stream."""
        return 2 * len(self.layers)

    @property
    def vocab_size(self) -> int:
        """Entries of a row of logits."""
        return self.parts.w_u.shape[0]

    def uncapped_logits(self, position: int = -1) -> Tensor:
        """``[vocab]`` before any softcap, by the model's own norm and unembedding: what targets are checked against."""
        with torch.no_grad():
            row = self.parts.final_norm.module(self.final[position][None])
            return self.parts.unembed(row)[0] * self.parts.logit_scale

    def logits_at(self, position: int = -1) -> Tensor:
        """``[vocab]`` as the model gives them, softcap included."""
        cap = self.parts.logit_softcap
        raw = self.uncapped_logits(position)
        return raw if cap is None else cap * torch.tanh(raw / cap)

    def logit_direction(self, weights: Tensor, position: int = -1) -> tuple[Tensor, Tensor]:
        """The residual direction ``[d_model]`` of Σ weights · logits at a position (before any softcap), and its constant.

        Args:
            weights: ``[vocab]``: one for a logit, 1 and −1 for a difference.
            position: the row.
        """
        w = weights.to(self.dtype)
        bias = self.parts.b_u
        return self._read_out(w @ self.parts.w_u.to(self.dtype), None if bias is None else w @ bias.to(self.dtype), position)

    def token_direction(self, weights: Mapping[int, float], *, against_mean: bool, position: int = -1) -> tuple[Tensor, Tensor]:
        """The same of a few tokens' logits, by token id; ``against_mean``: less Σ weights times the mean logit."""
        ids = torch.tensor(list(weights), device=self.device)
        w = torch.tensor(list(weights.values()), dtype=self.dtype, device=self.device)
        bias = None if self.parts.b_u is None else self.parts.b_u.to(self.dtype)
        folded, added = w @ self.parts.w_u[ids].to(self.dtype), None if bias is None else w @ bias[ids]
        if against_mean:
            folded = folded - w.sum() * self._mean_row
            added = None if added is None or bias is None else added - w.sum() * bias.mean()
        return self._read_out(folded, added, position)

    @cached_property
    def _mean_row(self) -> Tensor:
        return self.parts.w_u.to(self.dtype).mean(0)

    def _read_out(self, folded: Tensor, added: Tensor | None, position: int) -> tuple[Tensor, Tensor]:
        """A direction after the final norm and its constant, pulled back through the norm."""
        folded = folded * self.parts.logit_scale
        constant = torch.zeros((), dtype=self.dtype, device=self.device)
        if self.norm.bias is not None:
            constant = constant + folded @ self.norm.bias
        if added is not None:
            constant = constant + self.parts.logit_scale * added
        at = torch.tensor([position % len(self)], device=self.device)
        return self.norm.back(folded[None], at)[0], constant


def scaled(own: Tensor, parts: LayerParts, norm_in: FrozenNorm, norm_out: FrozenNorm, queries: slice, keys: slice) -> Tensor:
    """Attention weights ``[head, query, key]`` with the norms' scales at query and key and the block's constant factor in them."""
    if parts.attn_scale != 1:
        own = own * parts.attn_scale
    if norm_in.scale is not None:
        own = own * norm_in.scale[keys]
    return own if norm_out.scale is None else own * norm_out.scale[queries, None]
