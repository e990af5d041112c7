"""From a model and a prompt to the local replacement model (``_local``), checked against the model.

1. One forward gives what is held. A layer is built as soon as all of it was read, so that no more than one layer's reads are held.
2. What the replacement gives is compared with what the model gave, layer by layer: an architecture that does something else between two points (a gate, a
   clip, another mixer) is refused here and never attributed wrongly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import UnsupportedModelError, VerificationError
from symbolic_residue.graph._device import on
from symbolic_residue.graph._local import LocalLayer, LocalModel, scaled
from symbolic_residue.graph._mlp import find_mlp, NeuronMlp
from symbolic_residue.graph._norm import FrozenNorm
from symbolic_residue.instrument import AttentionRead, Instrument
from symbolic_residue.instrument.attention import Call, row_weights
from symbolic_residue.models import weight_in_out
from symbolic_residue.types import Point

if TYPE_CHECKING:
    from symbolic_residue.models import LayerParts

__all__ = ["freeze"]

_PATTERNS, _NEURONS = 128 * 2**20, 32 * 2**20
"""Bytes of attention patterns, and of neurons' pre-activations, that are kept; more are computed when they are needed."""
_TOLERANCE = 1e-4
"""Of a rebuilt layer's write, relative to its largest entry: float32's rounding, with room for large cancelling writes; a forgotten gain is off by far more."""


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
    kept = scaled(own, parts, norm_in, norm_out, slice(None), slice(None)) if keep[0] else None
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
