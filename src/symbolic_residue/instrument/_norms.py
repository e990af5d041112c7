"""Norms with their denominator held at another run's value, so that they are linear in what they read.

1. A norm computes ``norm(x) = γ ⊙ (x − μ) · s + β`` with ``s = 1/√(mean((x − μ)²) + ε)``; ``μ = mean(x)`` for LayerNorm (Ba et al. 2016), 0 for RMSNorm (Zhang
   and Sennrich 2019), which also has no β.
2. ``norm_scales`` takes ``s`` from a run: from the norm's input, which is a point (``resid_pre``, ``resid_mid``, ``resid_post``) or one linear map from a point
   (the norms of a sublayer's output: ``o_proj(z)``, ``mlp_down(mlp_act)``).
3. With ``s`` given, the norm is linear in x (for RMSNorm), or affine (β). LayerNorm's μ stays live: it is linear already.
4. ``norm_hooks`` puts the formula in place of the module's output, for the selected sequences and rows only; other rows keep the module's own output, bit
   for bit. Register these hooks before any other hook on a norm, so that reads and edits of its output see the frozen one.

The formula is computed in float32 (float64 for a float64 model) and cast once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TYPE_CHECKING

import torch
from torch import nn, Tensor

from symbolic_residue.errors import EditError, ReadError
from symbolic_residue.instrument._apply import resolve
from symbolic_residue.instrument._edits import FreezeNorm, NORM_NAMES
from symbolic_residue.instrument._trace import Trace

if TYPE_CHECKING:
    from symbolic_residue.models import Norm, Parts

__all__ = ["apply_frozen_norm", "find_norm", "norm_hooks", "norm_scales"]


def find_norm(parts: Parts, name: str) -> Norm:
    """A norm by name: ``pre_attn_norm.L``, ``pre_mlp_norm.L``, ``post_attn_norm.L``, ``post_mlp_norm.L``, ``final_norm``.

    Raises:
        EditError: an unknown name, a layer out of range, or a norm that this architecture does not have.
    """
    if name == "final_norm":
        return parts.final_norm
    kind, _, layer = name.partition(".")
    if kind not in NORM_NAMES or not layer.isdecimal():
        raise EditError(f"{name!r} is no norm.", todo=f"Use one of {', '.join(f'{n}.L' for n in NORM_NAMES)}, final_norm.")
    if int(layer) >= parts.n_layers:
        raise EditError(f"{name!r}: the model has layers 0 to {parts.n_layers - 1}.")
    norm = getattr(parts.layers[int(layer)], kind)
    if norm is None:
        has = [n for n in NORM_NAMES if getattr(parts.layers[int(layer)], n) is not None]
        raise EditError(f"{parts.family} has no {name}.", todo=f"Norms of this block: {', '.join(has) or 'none'}.")
    return norm


def norm_scales(source: Trace | Tensor, norm: str, parts: Parts) -> Tensor:
    """``s = 1/√(mean((x − μ)²) + ε)`` of a norm, as it was in a run.

    Args:
        source: the run's trace, holding the point that the norm's input comes from (``resid_pre.L`` for ``pre_attn_norm.L``, and for
            ``pre_mlp_norm.L`` of a parallel block; ``resid_mid.L`` for ``pre_mlp_norm.L``; ``z.L`` for ``post_attn_norm.L``; ``mlp_act.L`` for
            ``post_mlp_norm.L``; the last ``resid_post`` for ``final_norm``), or the norm's input ``[batch, row, d_model]`` itself.
        norm: its name.
        parts: the model's.

    Returns:
        ``[batch, row]``, float32 (float64 for float64 inputs): what ``FreezeNorm`` takes.

    Raises:
        EditError: no such norm here.
        ReadError: the point was not read.
    """
    found = find_norm(parts, norm)
    x = source if isinstance(source, Tensor) else _input_of(source, norm, parts)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if found.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return torch.rsqrt(x.square().mean(-1) + found.eps)


def _input_of(trace: Trace, norm: str, parts: Parts) -> Tensor:
    if norm == "final_norm":
        return trace[f"resid_post.{parts.n_layers - 1}"]
    kind, _, number = norm.partition(".")
    layer = parts.layers[int(number)]
    if kind == "pre_attn_norm":
        return trace[f"resid_pre.{number}"]
    if kind == "pre_mlp_norm":
        return trace[f"resid_pre.{number}" if layer.parallel else f"resid_mid.{number}"]
    point, module = (f"z.{number}", layer.o_proj) if kind == "post_attn_norm" else (f"mlp_act.{number}", layer.mlp_down)
    if module is None:
        raise ReadError(
            f"The input of {norm} is no point of {parts.family}.",
            why="No single linear writes this sublayer's output.",
            todo="Give the norm's input [batch, row, d_model] itself.",
        )
    with torch.no_grad():
        return module(trace[point].flatten(2))


def apply_frozen_norm(norm: Norm, x: Tensor, edit: FreezeNorm, own: Tensor) -> Tensor:
    """The norm's output with the edit's denominators at the selected sequences and rows.

    Args:
        norm: which norm.
        x: its input, ``[batch, row, d_model]``.
        edit: scale ``[batch or 1, row]`` over the selected sequences and rows.
        own: what stands at all other entries, ``[batch, row, d_model]``: the module's own output.

    Raises:
        EditError: an index out of range or named twice, or a scale that does not fit.
    """
    sequences, rows = resolve(edit.batch, x.shape[0], "sequence"), resolve(edit.rows, x.shape[1], "row")
    if len(set(sequences)) < len(sequences) or len(set(rows)) < len(rows):
        raise EditError(f"A frozen {edit.norm} names a sequence or a row twice.")
    try:
        s = edit.scale.expand(len(sequences), len(rows))
    except RuntimeError:
        raise EditError(
            f"A scale of shape {tuple(edit.scale.shape)} does not fit {edit.norm}, where {(len(sequences), len(rows))} entries are selected.",
            todo="Give [batch or 1, row].",
        ) from None
    if not sequences or not rows:
        return own
    index = (torch.tensor(sequences, device=x.device)[:, None], torch.tensor(rows, device=x.device)[None])
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = x[index].to(dtype)
    if norm.kind == "layer":
        y = y - y.mean(-1, keepdim=True)
    y = y * s.to(device=x.device, dtype=dtype)[..., None] * norm.gain().to(device=x.device, dtype=dtype)
    bias = norm.bias()
    if bias is not None:
        y = y + bias.to(device=x.device, dtype=dtype)
    out = own.clone()
    out[index] = y.to(own.dtype)
    return out


def norm_hooks(parts: Parts, edits: Sequence[Any]) -> list[Any]:
    """Hooks that freeze norms, in the order of the edits (a later one at the same entries wins); the handles remove them.

    Args:
        parts: the model's.
        edits: all edits of a forward; those that are no ``FreezeNorm`` are passed over.

    Raises:
        EditError: a norm that this architecture does not have; nothing is registered then.
    """
    chosen = [(find_norm(parts, edit.norm), edit) for edit in edits if isinstance(edit, FreezeNorm)]
    size = _Size()
    handles: list[Any] = []
    if chosen and parts.spec.mlp_up is not None:  # opt joins sequences and rows before the norm of its MLP
        handles = [layer.block.register_forward_pre_hook(size.note, with_kwargs=True) for layer in parts.layers]
    return handles + [norm.module.register_forward_hook(_hook(norm, edit, size), with_kwargs=True) for norm, edit in chosen]


class _Size:
    """``(batch, row)`` of the block that is running."""

    def __init__(self) -> None:
        self.shape = torch.Size((0, 0))

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.shape = (args[0] if args else kwargs["hidden_states"]).shape[:2]


def _hook(norm: Norm, edit: FreezeNorm, size: _Size) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = args[0] if args else next(iter(kwargs.values()))
        if x.dim() == 2:
            split = apply_frozen_norm(norm, x.unflatten(0, size.shape), edit, output.unflatten(0, size.shape))
            return split.flatten(0, 1)
        return apply_frozen_norm(norm, x, edit, output)

    return hook
