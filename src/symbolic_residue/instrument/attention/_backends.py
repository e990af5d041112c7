"""The backends, what each serves, and which one is taken.

1. Each backend computes the same numbers in its own way: ``native`` (one fused kernel on the CPU, replaces the layer's attention), ``triton`` (the same on a
   GPU), ``torch`` (a fused call beside the model's own), ``blocks`` (anything at all), ``dense`` (float64, the whole matrix: the oracle).
2. ``why_not`` is the capability table: None where the backend serves a call, else the reason in a few words.
3. Automatic choice takes the first that serves the call; a backend forced by name that does not serve it is refused with that reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args, Literal

import torch
from torch import Tensor

from symbolic_residue.errors import AttentionError, ConfigError
from symbolic_residue.instrument.attention import _native, _triton
from symbolic_residue.instrument.attention._blocks import attend_rows
from symbolic_residue.instrument.attention._call import Call, MaskCache
from symbolic_residue.instrument.attention._request import RegionMap
from symbolic_residue.instrument.attention._torch import attend_fused, cannot_fuse
from symbolic_residue.instrument.attention._triton_call import interpreted

__all__ = ["Backend", "BackendName", "Mode", "check_backend", "compute", "fused_kernel", "why_not"]

Backend = Literal["native", "triton", "torch", "blocks", "dense"]
BackendName = Literal["auto", "native", "triton", "torch", "blocks", "dense"]
Mode = Literal["auto", "observe", "replace"]

_KERNEL_STATS = frozenset({"mass", "entropy", "lse", "distance", "max", "argmax", "self", "sink"})
_ORDER: tuple[Backend, ...] = ("native", "triton", "torch", "blocks")
_DENSE_LIMIT = 4096


def check_backend(name: str, mode: str) -> None:
    """Refuse names that do not exist.

    Raises:
        ConfigError: an unknown backend or mode.
    """
    if name not in get_args(BackendName):
        raise ConfigError(f"There is no attention backend {name!r}.", todo=f"Use one of: {', '.join(get_args(BackendName))}.")
    if mode not in get_args(Mode):
        raise ConfigError(f"There is no readout mode {mode!r}.", todo=f"Use one of: {', '.join(get_args(Mode))}.")


def fused_kernel(device: torch.device) -> bool:
    """Whether a kernel that gives output and readouts in one pass can be had on this device."""
    return _native.available() if device.type == "cpu" else _triton.available() if device.type == "cuda" else False


def why_not(backend: Backend, call: Call, want: set[str]) -> str | None:
    """Why this backend does not serve this attention, or None."""
    if backend == "blocks":
        return None
    if backend == "torch":
        return cannot_fuse(call, want)
    if backend == "dense":
        if max(call.n_queries, call.n_keys) > _DENSE_LIMIT:
            return f"more than {_DENSE_LIMIT} tokens (it makes the whole matrix)"
        return None
    if not want <= _KERNEL_STATS:
        return ", ".join(sorted(want - _KERNEL_STATS))
    if call.q.dtype == torch.float64:
        return "float64 (its kernel computes in float32)"
    if backend == "native":
        if call.q.device.type != "cpu":
            return f"tensors on {call.q.device.type}"
        return None if _native.available() else _native.why()
    if call.q.device.type != "cuda" and not interpreted():
        return f"tensors on {call.q.device.type}"
    return None if _triton.available() else _triton.why()


def compute(
    name: BackendName, call: Call, regions: RegionMap | None, want: set[str], *, output: bool, masks: MaskCache
) -> tuple[Backend, Tensor | None, dict[str, Tensor]]:
    """Readouts of every row, and the attention output when asked.

    Args:
        name: a backend, or ``auto``.
        call: the attention.
        regions: of its keys.
        want: statistics.
        output: whether the output is wanted too.
        masks: of this forward.

    Returns:
        The backend taken, output ``[batch, query, head, d_value]`` in the model's dtype or None, statistics ``[batch, head, query, …]``.

    Raises:
        AttentionError: the backend named does not serve this attention.
    """
    if name == "auto":
        backend: Backend = next(b for b in _ORDER if why_not(b, call, want) is None)
    else:
        backend = name
        reason = why_not(backend, call, want)
        if reason is not None:
            raise AttentionError(
                f"The attention backend {backend!r} does not serve this read.",
                why=f"It cannot do: {reason}.",
                todo="Use backend='blocks', or leave the choice to backend='auto'.",
            )
    if backend == "torch":
        return backend, *attend_fused(call, regions, want, output=output, masks=masks)
    if backend == "blocks":
        return backend, *attend_rows(call, None, regions, want, output=output)
    if backend == "dense":
        return backend, *_dense(call, regions, want, output)
    kernel = _native.attend if backend == "native" else _triton.attend
    q, k, v = call.q, call.k, call.v if output else None
    if backend == "native":
        q, k, v = q.float(), k.float(), None if v is None else v.float()
    mixed, stats = kernel(
        q,
        k,
        v,
        call.scale,
        call.low,
        call.high,
        keep=call.keep,
        bias=call.bias,
        softcap=call.softcap,
        sinks=call.sinks,
        labels=None if regions is None else regions.labels,
        n_regions=0 if regions is None else len(regions.names),
        want=frozenset(want),
    )
    return backend, None if mixed is None else mixed.to(call.v.dtype), stats


def _dense(call: Call, regions: RegionMap | None, want: set[str], output: bool) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The blocked computation with one block, in float64."""
    wide = replace(call, q=call.q.double(), k=call.k.double(), v=call.v.double())
    mixed, stats = attend_rows(wide, None, regions, want, output=output, block=call.n_queries)
    stats = {name: t.float() if t.is_floating_point() and call.q.dtype != torch.float64 else t for name, t in stats.items()}
    return None if mixed is None else mixed.to(call.v.dtype), stats
