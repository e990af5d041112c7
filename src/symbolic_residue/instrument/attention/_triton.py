"""GPU backend: attention output and exact readouts from one fused Triton kernel (CUDA, compute capability 8.0 and later).

1. ``attend`` *replaces* the attention call: one pass of online softmax over the keys gives the layer's output and every statistic that was asked for.
2. ``stats_from_lse`` stands *beside* the model's own attention, whose log-sum-exp is known: one pass over q and k, without V and without rescaling;
   column sums (``received``) come from a second kernel that walks the rows of a block of keys, so they need no atomics and are reproducible.
3. A row sees the keys ``low ≤ j < high``; tiles of keys that no row of a block can see are never loaded. ``keep`` and ``bias`` come on top.
4. Above 64 regions, masses are read in a second pass, 64 regions to a program, from the log-sum-exp of the first.

The kernels, with the formulas, are in ``_triton_kernels``, their launches in ``_triton_call``; triton is imported on first use.

Precision: scores, weights and statistics are float32. In bfloat16 and float16 the products q·k run on the tensor cores and are exact
before they are summed in float32; the weights are rounded to V's dtype for the output alone, as every fused attention does, never for
a statistic. In float32 both products use true float32 multiplication (``input_precision="ieee"``), not TF32: agreement with the oracle to 1e-5 costs the
tensor cores. There is no backward pass.

What has been checked: the numbers in triton's interpreter, and that the kernels compile for capabilities 8.0 and 9.0. They have not been run or timed on
a device yet (``benchmarks/gpu_readout.py`` does both). One program walks all keys of its rows, so decoding one sequence on a long cache does not fill a device.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from types import ModuleType

import torch
from torch import Tensor

from symbolic_residue.errors import AttentionError
from symbolic_residue.instrument.attention._triton_call import Call, fits, FUSED_REGIONS, interpreted, STATS

__all__ = ["attend", "available", "stats_from_lse", "why"]

_OLDEST = (3, 4)
_PIP = "pip install 'triton>=3.4'"


def why() -> str:
    """Why this backend cannot run here, as a sentence; empty when it can."""
    if importlib.util.find_spec("triton") is None:
        return "The package 'triton' is not installed."
    version = _version()
    if version and version < _OLDEST:
        return f"The installed triton is {version[0]}.{version[1]}; the kernels need {_OLDEST[0]}.{_OLDEST[1]} or later."
    if interpreted():
        return ""
    if torch.version.hip is not None:
        return "The kernels are written for CUDA, and this torch is built for ROCm."
    if not torch.cuda.is_available():
        return "There is no CUDA device."
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"The CUDA device has compute capability {major}.{minor}; the kernels need 8.0."
    return ""


def available() -> bool:
    """Whether this backend can run here: triton and a CUDA device, or triton's interpreter (``TRITON_INTERPRET=1``)."""
    return not why()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    scale: float,
    low: Tensor,
    high: Tensor,
    *,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    labels: Tensor | None = None,
    n_regions: int = 0,
    want: Iterable[str] = STATS,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Attention output and exact statistics in one pass.

    Args:
        q: ``[batch, head, query, d_head]``, bfloat16, float16 or float32.
        k: ``[batch, kv_head, key, d_head]``, same dtype; head h reads kv_head h // (head / kv_head).
        v: ``[batch, kv_head, key, d_value]``, or None for statistics alone.
        scale: factor on q·k.
        low: ``[batch or 1, query]`` int32, first key that the row sees.
        high: ``[batch or 1, query]`` int32, first key after those that it sees; equal to ``low``: it sees nothing.
        keep: ``[batch or 1, 1 or head, 1 or query, key]`` bool; False hides a key, on top of the interval.
        bias: ``[batch or 1, 1 or head, 1 or query, key]`` float, added to the scores in nats; −inf hides (as does anything below −2e38).
        softcap: scores become ``softcap · tanh(s / softcap)`` before bias and masks.
        sinks: ``[head]`` logits of a sink that belongs to no key: ``exp(sink)`` more in the denominator.
        labels: ``[batch or 1, key]`` int32, the region of each key; −1 for none.
        n_regions: number of regions.
        want: statistics among mass, entropy, lse, max, argmax, distance, self, sink.

    Returns:
        The output ``[batch, query, head, d_value]`` in q's dtype (None without ``v``), and the statistics ``[batch, head, query]`` in float32, with weights
        ``p_j = exp(s_j − lse)``:
        ``mass`` ``[batch, head, query, region]``; ``entropy`` ``−Σ p ln p`` over keys, nats; ``lse`` nats, sink included; ``max``, and ``argmax`` (int64, the
        first of equals); ``distance`` ``own − Σ p_j j / Σ p_j`` in tokens, own = query + keys − queries; ``self`` = p at the own key (0 if hidden);
        ``sink`` = 1 − Σ p. A row that sees nothing has output and statistics 0, lse −inf, argmax −1.

    Raises:
        AttentionError: the backend cannot run here, shapes or dtypes do not fit, an unknown statistic, or a gradient would be lost.
    """
    kernels = _kernels()
    names = _wanted(want, STATS)
    call = Call(kernels, q, k, v, scale, low, high, keep, bias, softcap, labels, n_regions, sinks)
    if sinks is not None:
        fits(sinks, "sinks", (call.n_heads,), "[head]", wide=())
    later = "mass" in names and n_regions > FUSED_REGIONS
    first = (names - {"mass"}) | {"lse"} if later else names
    output, stats = call.rows(first, v=v, sinks=sinks)
    if later:
        stats |= call.rows({"mass"}, known=stats["lse"])[1]
        stats = {name: value for name, value in stats.items() if name in names}
    return output, stats


def stats_from_lse(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    scale: float,
    low: Tensor,
    high: Tensor,
    *,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    labels: Tensor | None = None,
    n_regions: int = 0,
    rows: Tensor | None = None,
    want: Iterable[str] = STATS,
) -> dict[str, Tensor]:
    """Exact statistics beside an attention that has already run, from its log-sum-exp.

    Arguments and statistics that are not named here are those of :func:`attend`.

    Args:
        lse: ``[batch, head, query]``, nats, the sink inside where the model has one; rows without keys may hold ±inf or NaN.
        rows: ``[row]`` query positions to read (not negative); None reads all. The statistics then are ``[batch, head, row]``.
        want: also ``received`` ``[batch, head, key]``: attention that each key receives, summed over the rows read.

    Raises:
        AttentionError: as in :func:`attend`.
    """
    kernels = _kernels()
    names = _wanted(want, (*STATS, "received"))
    call = Call(kernels, q, k, None, scale, low, high, keep, bias, softcap, labels, n_regions, lse)
    fits(lse, "lse", (call.batch, call.n_heads, call.n_queries), "[batch, head, query]", wide=())
    lse = lse.float()
    if rows is not None:
        rows = rows.to(q.device)
        call.select(rows)
        lse = lse.index_select(2, rows)
    lse = lse.contiguous()
    stats: dict[str, Tensor] = {}
    plain = names - {"mass", "received", "lse"}
    if "mass" in names and n_regions <= FUSED_REGIONS:
        plain |= {"mass"}
    if plain:
        stats |= call.rows(plain, known=lse)[1]
    if "mass" in names - plain:
        stats |= call.rows({"mass"}, known=lse)[1]
    if "lse" in names:
        stats["lse"] = torch.where(lse.isfinite(), lse, float("-inf"))
    if "received" in names:
        stats["received"] = call.received(lse)
    return stats


def _kernels() -> ModuleType:
    reason = why()
    if reason:
        todo = "Name another attention backend, or none; TRITON_INTERPRET=1, set before Python starts, runs this one slowly on the CPU."
        raise AttentionError(
            "The attention backend 'triton' cannot run here.", why=reason, todo=f"{_PIP}." if "installed" in reason else todo
        )
    return importlib.import_module("symbolic_residue.instrument.attention._triton_kernels")


def _version() -> tuple[int, ...]:
    """Major and minor version of the installed triton; empty where it has no such metadata (nightly builds of torch)."""
    try:
        return tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return ()


def _wanted(want: Iterable[str], known: tuple[str, ...]) -> set[str]:
    names = set(want)
    for name in sorted(names):
        if name not in known:
            raise AttentionError(f"Unknown attention statistic {name!r}.", todo=f"Use some of: {', '.join(known)}.")
    return names
