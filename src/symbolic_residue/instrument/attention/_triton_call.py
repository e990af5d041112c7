"""Launching the Triton kernels: what a call must look like, tile sizes, and the tensors in the form that the kernels read.

1. Shapes, dtypes and devices are checked, since a kernel would read past a wrong one without a word.
2. Tensors go to the kernels by stride, an axis that is shared having stride 0: nothing is expanded or copied, K and V least of all.
3. For region masses, each tile of keys is looked at once: the region that all its keys share, or ``MIXED``.
4. A statistic that is not wanted is passed as None, and its computation is then not compiled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from symbolic_residue.errors import AttentionError

__all__ = ["FUSED_REGIONS", "STATS", "Call", "blocks", "fits", "interpreted"]

STATS = ("mass", "entropy", "lse", "max", "argmax", "distance", "self", "sink")
"""Statistics of the row kernel, in the order of its arguments."""

FUSED_REGIONS = 64
"""Regions that one program keeps in registers."""

_LOG2E = 1.4426950408889634


class Call:
    """One attention call: tensors in the form the kernels read, and their launches."""

    def __init__(
        self,
        kernels: ModuleType,
        q: Tensor,
        k: Tensor,
        v: Tensor | None,
        scale: float,
        low: Tensor,
        high: Tensor,
        keep: Tensor | None,
        bias: Tensor | None,
        softcap: float | None,
        labels: Tensor | None,
        n_regions: int,
        other: Tensor | None,
    ) -> None:
        _check(q, k, v, softcap, [x for x in (low, high, keep, bias, labels, other) if x is not None])
        self.kernels = kernels
        self.batch, self.n_heads, self.n_queries, self.d_head = q.shape
        self.n_kv, self.n_keys = k.shape[1:3]
        self.groups = self.n_heads // self.n_kv
        fits(low, "low", (self.batch, self.n_queries), "[batch or 1, query]", wide=(0,))
        fits(high, "high", (self.batch, self.n_queries), "[batch or 1, query]", wide=(0,))
        square = (self.batch, self.n_heads, self.n_queries, self.n_keys)
        for name, x in (("keep", keep), ("bias", bias)):
            if x is not None:
                fits(x, name, square, "[batch or 1, 1 or head, 1 or query, key]", wide=(0, 1, 2))
        if labels is not None:
            fits(labels, "labels", (self.batch, self.n_keys), "[batch or 1, key]", wide=(0,))
        elif n_regions:
            raise AttentionError(f"Masses of {n_regions} regions were asked for without labels of the keys.")
        self.q, self.k = _rowwise(q), _rowwise(k)
        self.interval = torch.stack(torch.broadcast_tensors(low.to(torch.int32), high.to(torch.int32)))  # [2, batch or 1, query]
        self.keep = None if keep is None else keep.bool().view(torch.uint8)
        self.bias = None if bias is None else bias.float()
        self.square = keep is not None or bias is not None
        self.labels, self.n_regions = labels, n_regions
        self.own = torch.arange(self.n_keys - self.n_queries, self.n_keys, device=q.device, dtype=torch.int32)
        # In the kernels scores are in base 2; with a softcap the factor sits inside the tanh and the change of base outside.
        self.softcap = softcap is not None
        self.score_scale = scale * _LOG2E if softcap is None else scale / softcap
        self.cap = 0.0 if softcap is None else softcap * _LOG2E

    def select(self, rows: Tensor) -> None:
        """Keep only the given query rows, ``[row]``."""
        if rows.dim() != 1 or not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= self.n_queries:
            raise AttentionError(f"rows must be [row], at least one, each from 0 to {self.n_queries - 1}.")
        self.q, self.interval = self.q.index_select(2, rows), self.interval.index_select(2, rows)
        self.own = self.own.index_select(0, rows)
        if self.keep is not None and self.keep.shape[2] > 1:
            self.keep = self.keep.index_select(2, rows)
        if self.bias is not None and self.bias.shape[2] > 1:
            self.bias = self.bias.index_select(2, rows)
        self.n_queries = len(rows)

    def rows(
        self, want: set[str], *, v: Tensor | None = None, sinks: Tensor | None = None, known: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Launch the row kernel: the output (with ``v``) and the wanted statistics."""
        q, k, v = self.q, self.k, None if v is None else _rowwise(v)
        d_value = 0 if v is None else v.shape[-1]
        shape = (self.batch, self.n_heads, self.n_queries)
        stats = {
            name: q.new_empty(shape, dtype=torch.int64 if name == "argmax" else torch.float32) for name in STATS if name in want
        }
        masses = labels = uniform = None
        r_pad = 0
        if "mass" in want:
            stats["mass"] = q.new_empty((*shape, self.n_regions), dtype=torch.float32)
            if self.n_regions:
                masses, r_pad = stats["mass"], min(max(_power(self.n_regions), 16), FUSED_REGIONS)
        output = None if v is None else q.new_empty(self.batch, self.n_queries, self.n_heads, d_value)
        d_pad, dv_pad = max(_power(self.d_head), 16), max(_power(d_value), 16)
        block_m, block_n, warps, stages = blocks(
            max(d_pad, dv_pad), q.element_size(), self.n_queries * self.groups, r_pad, self.square
        )
        if masses is not None:
            labels, uniform = self._tiles(block_n)
        n_blocks = -(-self.n_queries * self.groups // block_m)
        grid = (n_blocks * self.n_kv * self.batch, -(-self.n_regions // r_pad) if r_pad else 1)
        with _launching(self.kernels, q):
            self.kernels.attend_kernel[grid](
                q, k, v, *self._interval()[:2], self.own if want & {"distance", "self"} else None, self.keep, self.bias,
                None if sinks is None else sinks.float().contiguous(), known, labels, uniform,
                output, masses, *(stats.get(name) for name in STATS[1:]),
                self.score_scale, self.cap,
                *q.stride()[:3], *k.stride()[:3], *(v.stride()[:3] if v is not None else (0, 0, 0)),
                self._interval()[2], *self._strides(self.keep), *self._strides(self.bias), _step(labels), _step(uniform),
                self.n_queries, self.n_keys, self.n_kv, n_blocks, self.n_regions,
                GROUPS=self.groups, D_HEAD=self.d_head, D_VALUE=d_value, D_PAD=d_pad, DV_PAD=dv_pad, R_PAD=max(r_pad, 16),
                BLOCK_M=block_m, BLOCK_N=block_n, SOFTCAP=self.softcap, KNOWN=known is not None, UPCAST=interpreted(),
                num_warps=warps, num_stages=stages,
            )  # fmt: skip
        return output, stats

    def received(self, known: Tensor) -> Tensor:
        """Launch the column kernel: attention received, ``[batch, head, key]``."""
        q, k = self.q, self.k
        d_pad = max(_power(self.d_head), 16)
        block_m, block_n, warps, stages = blocks(d_pad, q.element_size(), self.n_queries, 0, self.square)
        out = q.new_empty(self.batch, self.n_heads, self.n_keys, dtype=torch.float32)
        low, high, interval_b = self._interval()
        # Which keys a block of rows reaches, so that a program skips the blocks that cannot see its keys.
        pad, some = (0, -self.n_queries % block_m), low < high
        reach_low = F.pad(torch.where(some, low, self.n_keys), pad, value=self.n_keys).unflatten(1, (-1, block_m)).amin(-1)
        reach_high = F.pad(torch.where(some, high, 0), pad).unflatten(1, (-1, block_m)).amax(-1)
        n_blocks = -(-self.n_keys // block_n)
        with _launching(self.kernels, q):
            self.kernels.received_kernel[(n_blocks * self.n_heads * self.batch,)](
                q, k, low, high, reach_low, reach_high, self.keep, self.bias, known, out,
                self.score_scale, self.cap,
                *q.stride()[:3], *k.stride()[:3], interval_b, _step(reach_low), *self._strides(self.keep), *self._strides(self.bias),
                self.n_queries, self.n_keys, self.n_heads, n_blocks,
                GROUPS=self.groups, D_HEAD=self.d_head, D_PAD=d_pad, BLOCK_M=block_m, BLOCK_N=block_n,
                SOFTCAP=self.softcap, UPCAST=interpreted(), num_warps=warps, num_stages=stages,
            )  # fmt: skip
        return out

    def _interval(self) -> tuple[Tensor, Tensor, int]:
        low, high = self.interval[0], self.interval[1]
        return low, high, _step(low)

    def _tiles(self, block_n: int) -> tuple[Tensor, Tensor]:
        """Labels, and for each tile of keys the one region of all its keys, or ``MIXED``."""
        assert self.labels is not None
        labels = self.labels.to(torch.int32).contiguous()
        padded = torch.cat([labels, labels[:, -1:].expand(-1, -self.n_keys % block_n)], 1).unflatten(1, (-1, block_n))
        least, most = padded.aminmax(dim=-1)
        return labels, torch.where(least == most, least, self.kernels.MIXED)

    def _strides(self, x: Tensor | None) -> tuple[int, ...]:
        """Strides over batch, head, query, key, 0 along an axis that is shared."""
        wide = (self.batch, self.n_heads, self.n_queries, self.n_keys)
        return (0, 0, 0, 0) if x is None else x.expand(wide).stride()


def blocks(width: int, itemsize: int, n_rows: int, r_pad: int = 0, square: bool = False) -> tuple[int, int, int, int]:
    """Tile sizes and launch options: ``(BLOCK_M, BLOCK_N, num_warps, num_stages)``.

    Not timed: no device was at hand. Chosen so that the compiler's reports for capabilities 8.0 and 9.0 show next to no spilled registers and shared
    memory fits the smaller devices of 8.6 and 8.9 (99 KiB).

    Args:
        width: the wider of d_head and d_value, padded to a power of two.
        itemsize: bytes an element of q.
        n_rows: rows of one key-value head.
        r_pad: padded number of regions that one program holds; 0 for none.
        square: whether the kernel also loads a mask or bias of [row, key].
    """
    half = {64: (128, 64, 8, 2), 128: (128, 32, 8, 2), 256: (64, 16, 8, 2), 512: (32, 32, 8, 1)}
    full = {64: (64, 32, 8, 2), 128: (64, 16, 8, 2), 256: (32, 16, 8, 1), 512: (16, 16, 8, 1)}
    block_m, block_n, warps, stages = (half if itemsize == 2 else full).get(max(width, 64), (16, 16, 8, 1))
    if r_pad > 32:
        block_m = min(block_m, 64)
    if square:
        block_n = min(block_n, 32)
    block_m = min(block_m, max(_power(n_rows), 16))
    return block_m, block_n, 4 if block_m == 16 and width <= 128 else warps, stages


def interpreted() -> bool:
    """Whether triton runs in its interpreter: on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@contextmanager
def _launching(kernels: ModuleType, q: Tensor) -> Iterator[None]:
    """Launch on q's device; a kernel too large for it is refused by name."""
    try:
        with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
            yield
    except kernels.OutOfResources as error:
        raise AttentionError(
            f"The attention kernel for heads of width {q.shape[-1]} does not fit this device.",
            why=str(error),
            todo="Name another backend.",
        ) from error


def _check(q: Tensor, k: Tensor, v: Tensor | None, softcap: float | None, others: list[Tensor]) -> None:
    """Refuse what the kernels would read wrongly."""
    given = [q, k] if v is None else [q, k, v]
    if any(x.dim() != 4 for x in given) or any(x.numel() == 0 for x in given):
        raise AttentionError("q, k and v must be [batch, head, position, width], none of them empty.", why=_shapes(given))
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3] or q.shape[1] % k.shape[1]:
        raise AttentionError("q and k do not fit together.", why=_shapes(given))
    if v is not None and v.shape[:3] != k.shape[:3]:
        raise AttentionError("k and v do not fit together.", why=_shapes(given))
    if q.dtype not in (torch.bfloat16, torch.float16, torch.float32) or any(x.dtype != q.dtype for x in given):
        raise AttentionError(
            f"The kernels read bfloat16, float16 and float32, one for q, k and v, not {', '.join(str(x.dtype) for x in given)}."
        )
    if softcap is not None and not softcap > 0:
        raise AttentionError(f"A softcap of {softcap} is not positive.", todo="Leave it out for none.")
    if any(x.device != q.device for x in (*given, *others)):
        raise AttentionError("The tensors of one attention call are on different devices.")
    if not (q.is_cuda or interpreted()):
        raise AttentionError(
            f"The attention backend 'triton' reads CUDA tensors, and these are on {q.device}.", todo="Name another backend."
        )
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        raise AttentionError("The attention backend 'triton' has no backward pass.", todo="Run under torch.no_grad().")


def _shapes(given: list[Tensor]) -> str:
    return "Shapes: " + ", ".join(f"{name} {list(x.shape)}" for name, x in zip("qkv", given, strict=False)) + "."


def fits(x: Tensor, name: str, shape: tuple[int, ...], axes: str, *, wide: tuple[int, ...]) -> None:
    """Refuse a shape other than ``shape``, where the axes in ``wide`` may be 1."""
    fits = x.dim() == len(shape) and all(
        n == m or (n == 1 and i in wide) for i, (n, m) in enumerate(zip(x.shape, shape, strict=True))
    )
    if not fits:
        raise AttentionError(f"{name} has shape {list(x.shape)}, not {axes} of {list(shape)}.")


def _rowwise(x: Tensor) -> Tensor:
    """The tensor itself, or a copy where its last axis is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _step(x: Tensor | None) -> int:
    """Stride along the batch axis, 0 where all sequences share one entry."""
    return 0 if x is None or x.shape[0] == 1 else x.stride(0)


def _power(n: int) -> int:
    """Smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()
