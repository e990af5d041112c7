"""The local replacement model: a decoder on one prompt with attention patterns and norm denominators frozen, so that it is affine between its neurons.

1. One forward of the model gives, layer by layer, the attention patterns ``A [head, query, key]``, every norm's scale ``s [position]`` and the MLPs' inputs.
   Of long prompts the patterns are not kept: queries and keys are, and a block of a pattern is computed when it is needed, by the instrument's own attention.
2. Attention becomes one linear map of the residual stream: ``x ↦ Σ_h s_out[q] A[h, q, k] s_in[k] · x_k W_V W_O`` with the norms' gains (and centring) folded
   into ``W_V`` and ``W_O``, plus a constant a position (biases of values, of the projection and of norms).
3. An MLP becomes neurons (``_mlp``), read through the frozen norm before it and written through the one after it, if any, plus a constant.
4. What the replacement gives is compared with what the model gave, layer by layer: an architecture that does something else between two points (a gate, a
   clip, another mixer) is refused here and never attributed wrongly.

Source: Ameisen et al. 2025 (Circuit Tracing) for the local replacement model; the linear maps are exact given what is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import UnsupportedModelError, VerificationError
from symbolic_residue.graph._device import on
from symbolic_residue.graph._mlp import find_mlp, NeuronMlp, Rule
from symbolic_residue.graph._norm import FrozenNorm
from symbolic_residue.instrument import AttentionRead, Instrument
from symbolic_residue.instrument.attention import Call, row_weights
from symbolic_residue.models import weight_in_out
from symbolic_residue.types import Point

if TYPE_CHECKING:
    from symbolic_residue.graph._units import LayerUnits, LinearPath
    from symbolic_residue.models import LayerParts, Parts

__all__ = ["LocalLayer", "LocalModel", "freeze"]

_PATTERNS, _NEURONS = 128 * 2**20, 32 * 2**20
"""Bytes of attention patterns, and of neurons' pre-activations, that are kept; more are computed when they are needed."""
_TOLERANCE = 1e-4
"""Of a rebuilt layer's write, relative to its largest entry: float32's rounding, with room for large cancelling writes; a forgotten gain is off by far more."""


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
        return _scaled(own, self.parts, self.norm_in, self.norm_out, slice(first, stop), slice(start, stop))

    def weight(self, head: int, query: int, key: int) -> float:
        """One attention weight, as the model has it."""
        with_scales = self.pattern(0, query + 1, query)[head, 0, key]
        for_one = _scaled(
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


def freeze(instrument: Instrument, ids: Tensor) -> LocalModel:
    """The local replacement model of a prompt.

    Args:
        instrument: the model.
        ids: ``[position]``.

    Raises:
        UnsupportedModelError: half precision, several devices, a layer whose tokens are mixed by something else than softmax attention, or an MLP
            without single neurons.
        VerificationError: the rebuilt layers are not the model's.
    """
    parts = instrument.parts
    for layer in parts.layers:
        if layer.mixer is not None or layer.attn is None:
            other = "nothing" if layer.mixer is None else type(layer.mixer).__name__
            raise UnsupportedModelError(
                f"Layer {layer.index} mixes tokens by {other}, which frozen patterns do not make linear.",
                todo="Attribution graphs need softmax attention in every layer.",
            )
    devices = {str(one.device) for one in instrument.model.parameters()}
    if len(devices) > 1:
        raise UnsupportedModelError(
            f"The model lies on {len(devices)} devices ({', '.join(sorted(devices))}).",
            why="A graph's edges are products of what all layers hold.",
            todo="Load it onto one device.",
        )
    with on(instrument.device):
        return _freeze(instrument, torch.as_tensor(ids).to(instrument.device))


def _freeze(instrument: Instrument, ids: Tensor) -> LocalModel:
    parts = instrument.parts
    n = len(ids)
    dtype = next(instrument.model.parameters()).dtype
    if dtype not in (torch.float32, torch.float64):
        raise UnsupportedModelError(
            f"The model's weights are {str(dtype).removeprefix('torch.')}.",
            why="Its forward rounds after every step, so no sum of edges could give its values back.",
            todo="Load it in float32.",
        )
    mlps = [find_mlp(layer, dtype) for layer in parts.layers]
    keep_patterns = len(parts.layers) * parts.n_heads * n * n * dtype.itemsize <= _PATTERNS
    each = sum(one.gate.shape[1] * (1 + (one.up is not None) + (one.route is not None)) for one in mlps)
    keep_neurons = n * dtype.itemsize * each <= _NEURONS
    # What stays has its place from the first layer on: made one by one, between what goes again, it would leave the heap full of holes.
    stores: dict[str, Tensor] = {}
    took: dict[tuple[str, int], Tensor] = {}
    calls: dict[int, Call] = {}
    built: dict[int, tuple[LocalLayer, float]] = {}
    kinds = ("resid_pre", "resid_mid", "attn_out", "mlp_in", "mlp_act", "mlp_out", "z", "v")
    wanted = {layer.index: {kind for kind in kinds if layer.absent(kind) is None} for layer in parts.layers}
    last = parts.n_layers - 1

    def keep(point: Point, tensor: Tensor) -> None:
        assert point.layer is not None
        took[point.kind, point.layer] = tensor[0].to(dtype)
        here = {kind for kind, layer in took if layer == point.layer}
        if point.layer in calls and wanted[point.layer] <= here and point.layer not in built:
            i = point.layer
            made, off = _layer(parts.layers[i], mlps[i], calls.pop(i), (keep_patterns, keep_neurons), took, dtype)
            for name in ("stream", "wrote", *(("kept",) if keep_patterns else ())):
                if name not in stores:
                    stores[name] = torch.empty(parts.n_layers, *getattr(made, name).shape, dtype=dtype)
            own = {name: store[i].copy_(getattr(made, name)) for name, store in stores.items()}
            built[i] = replace(made, **own), off
            for kind in wanted[i] - ({"resid_pre"} if i == 0 else set()):
                del took[kind, i]

    reads = [f"{kind}.{i}" for i, found in wanted.items() for kind in found]
    read = AttentionRead(stats=(), on_call=calls.__setitem__)
    trace = instrument.run(ids[None], reads=[*reads, f"resid_post.{last}"], attention=read, keep_logits=1, on_read=keep)
    assert trace.logits is not None
    final = took["resid_post", last]
    layers = tuple(built[i][0] for i in range(parts.n_layers))
    error = max(off for _, off in built.values())
    found = LocalModel(parts, ids, layers, took["resid_pre", 0], FrozenNorm.of(parts.final_norm, final, dtype), final, error)
    _agree(found.logits_at(n - 1)[None], trace.logits[0], "Its last logits", last)
    return found


def _layer(
    parts: LayerParts, mlp: NeuronMlp, call: Call, keep: tuple[bool, bool], took: dict[tuple[str, int], Tensor], dtype: torch.dtype
) -> tuple[LocalLayer, float]:
    i = parts.index
    pre = took["resid_pre", i]
    norm_in = FrozenNorm.of(parts.pre_attn_norm, pre, dtype)
    z = took["z", i].flatten(1)
    b_o = parts.b_o
    raw = z @ weight_in_out(parts.o_proj).to(dtype) + (0 if b_o is None else b_o.to(dtype))
    norm_out = FrozenNorm.of(parts.post_attn_norm, raw, dtype)
    own = row_weights(call, 0, len(pre))[0].to(dtype)
    kept = _scaled(own, parts, norm_in, norm_out, slice(None), slice(None)) if keep[0] else None
    group = parts.n_heads // parts.n_kv_heads
    constant_v = []
    for kv in range(parts.n_kv_heads):
        w, b = parts.projection("v", kv * group)
        value = torch.zeros(parts.d_head, dtype=dtype, device=pre.device)
        if norm_in.bias is not None:
            value = value + norm_in.bias @ w.to(dtype)
        constant_v.append(value if b is None else value + b.to(dtype))
    values = torch.stack(constant_v).repeat_interleave(group, 0)  # [head, d_head]
    constant_z = own.sum(-1).T[:, :, None] * values  # [query, head, d_head]; rows sum to less than 1 where a sink took mass
    constant = constant_z.flatten(1) @ weight_in_out(parts.o_proj).to(dtype) + (0 if b_o is None else b_o.to(dtype))
    constant = norm_out.linear(constant) * parts.attn_scale if bool(constant.any()) else torch.zeros_like(pre[:1]).expand_as(pre)
    if norm_out.bias is not None:
        constant = constant + parts.attn_scale * norm_out.bias
    mid = pre if parts.parallel else took["resid_mid", i]
    mlp_in = FrozenNorm.of(parts.pre_mlp_norm, mid, dtype)
    gate, up = mlp.read(took["mlp_in", i])
    route = None if mlp.route is None else mlp.route(took["mlp_in", i])
    activations = mlp.respond(gate, up, route)
    alone = activations @ mlp.down
    down = (alone if mlp.down_bias is None else alone + mlp.down_bias) * parts.mlp_down_scale
    mlp_out = FrozenNorm.of(parts.post_mlp_norm, down, dtype)
    fixed = torch.zeros(1, pre.shape[1], dtype=dtype, device=pre.device)
    if mlp.down_bias is not None:
        fixed = mlp_out.linear((mlp.down_bias * parts.mlp_down_scale).expand_as(pre)) * parts.mlp_scale
    if mlp_out.bias is not None:
        fixed = fixed + parts.mlp_scale * mlp_out.bias
    wrote = mlp_out.linear(alone * parts.mlp_down_scale) * parts.mlp_scale
    built = LocalLayer(
        parts,
        None if keep[0] else replace(call, v=call.v[:, :, :0]),  # patterns need queries and keys alone
        kept,
        norm_in,
        norm_out,
        constant,
        mlp,
        mlp_in,
        mlp_out,
        parts.mlp_scale,
        fixed,
        wrote,
        (gate, up, route) if keep[1] else None,
        mid,
        dtype,
    )
    checks = [
        (
            "the values at its attention's output",
            (own @ _values(took["v", i], parts.n_heads).transpose(0, 1)).transpose(0, 1).flatten(1),
            z,
        ),
        ("what its attention writes", _attended(built, pre, constant), took["attn_out", i]),
        ("its MLP's input", mlp_in.linear(mid) + (0 if mlp_in.bias is None else mlp_in.bias), took["mlp_in", i]),
        ("what its MLP writes", wrote + fixed, took["mlp_out", i]),
    ]
    if ("mlp_act", i) in took:
        checks.append(("its neurons' activations", activations, took["mlp_act", i]))
    worst = max(_agree(rebuilt, model, what, i) for what, rebuilt, model in checks)
    return built, worst


def _scaled(own: Tensor, parts: LayerParts, norm_in: FrozenNorm, norm_out: FrozenNorm, queries: slice, keys: slice) -> Tensor:
    """Attention weights ``[head, query, key]`` with the norms' scales at query and key and the block's constant factor in them."""
    if parts.attn_scale != 1:
        own = own * parts.attn_scale
    if norm_in.scale is not None:
        own = own * norm_in.scale[keys]
    return own if norm_out.scale is None else own * norm_out.scale[queries, None]


def _agree(rebuilt: Tensor, model: Tensor, what: str, layer: int) -> float:
    """How far what was rebuilt is from the model's, relative to the largest entry.

    Raises:
        VerificationError: too far for rounding.
    """
    off = float((rebuilt - model).abs().max() / model.abs().max().clamp(min=1e-30))
    if not off <= _TOLERANCE:
        raise VerificationError(
            f"Layer {layer} does not do what its family's table says: {what} is off by {off:.1e} of its size.",
            why="An edge computed from it would be wrong.",
            todo="This architecture has no attribution graph yet.",
        )
    return off


def _values(v: Tensor, n_heads: int) -> Tensor:
    """``[position, head, d_head]`` from what the point v gives: key-value heads, or all heads already (falcon)."""
    return v if v.shape[1] == n_heads else v.repeat_interleave(n_heads // v.shape[1], 1)


def _attended(layer: LocalLayer, x: Tensor, constant: Tensor) -> Tensor:
    """What the frozen attention writes, head by head: written apart from the maps that the sweeps use, and checked against the model."""
    w_v, w_o = layer.attention_weights()
    group, d_head = layer.parts.n_heads // layer.parts.n_kv_heads, layer.parts.d_head
    v = x @ w_v
    out = constant
    for h, pattern in enumerate(layer.pattern()):
        kv = h // group
        out = out + pattern @ v[:, kv * d_head : (kv + 1) * d_head] @ w_o[h * d_head : (h + 1) * d_head]
    return out
