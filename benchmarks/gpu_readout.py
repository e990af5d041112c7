"""What exact readouts cost on a CUDA device: one attention layer, the fused Triton kernel against torch's fused attention, side by side.

1. For each dtype and length, the same random q, k, v in the shape of a model's layer (32 query heads, 8 key-value heads, d_head 128), causal.
2. Check first, at each length: the output against torch's, region masses summing to one.
3. Time in turn, A B A B …: torch's attention (flash in bfloat16; the memory-efficient kernel in float32, which flash does not serve), then each kind of readout.
   A round is as many calls as take about 50 ms, between two CUDA events; the ratio is taken round by round, median and range are printed.

Run: python benchmarks/gpu_readout.py [--rounds 7] [--longest 32768]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel, SDPBackend

from symbolic_residue.errors import AttentionError
from symbolic_residue.instrument.attention import _triton

HEADS, KV_HEADS, D_HEAD, REGIONS = 32, 8, 128, 8
KINDS = {
    "output alone": set(),
    "output, masses, entropy": {"mass", "entropy"},
    "output, every statistic": {"mass", "entropy", "lse", "max", "argmax", "distance", "self", "sink"},
}
BESIDE = {"mass", "entropy", "max"}
TOLERANCE = {torch.bfloat16: 3e-2, torch.float32: 1e-3}  # torch may multiply float32 in parts of TF32


def milliseconds(call: Callable[[], object], times: int) -> float:
    """Mean time of ``times`` calls."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / times


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Torch's own fused attention, ``[batch, head, query, d_head]``."""
    if q.dtype == torch.float32:  # its kernel has no grouped heads: repeated once, outside the clock
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def measure(dtype: torch.dtype, n: int, rounds: int) -> None:
    """Print the ratios at one dtype and length."""
    g = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(1, n, h, D_HEAD, generator=g, device="cuda", dtype=dtype).transpose(1, 2) for h in (HEADS, KV_HEADS, KV_HEADS)
    )
    high = torch.arange(1, n + 1, device="cuda", dtype=torch.int32)[None]
    low, scale = torch.zeros_like(high), D_HEAD**-0.5
    labels = (torch.arange(n, device="cuda") * REGIONS // n).int()[None]
    mixed = (torch.arange(n, device="cuda") % REGIONS).int()[None]
    groups = HEADS // KV_HEADS
    theirs = (q, k, v) if dtype != torch.float32 else (q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))

    def ours(want: set[str], regions: torch.Tensor = labels) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        return _triton.attend(q, k, v, scale, low, high, labels=regions, n_regions=REGIONS, want=want)

    output, stats = ours({"mass", "lse"})
    assert output is not None
    gap = float((output.transpose(1, 2).float() - plain(*theirs).float()).abs().max())
    whole = float((stats["mass"].sum(-1) - 1).abs().max())
    if gap > TOLERANCE[dtype] or whole > 1e-5:
        raise SystemExit(f"{dtype}, {n} tokens: outputs differ by {gap:.1e}, masses miss one by {whole:.1e}: not timed.")
    calls: dict[str, Callable[[], object]] = {kind: (lambda want=want: ours(want)) for kind, want in KINDS.items()}
    calls["the same, regions interleaved"] = lambda: ours(KINDS["output, every statistic"], mixed)
    calls["beside, from a known lse"] = lambda: _triton.stats_from_lse(
        q, k, stats["lse"], scale, low, high, labels=labels, n_regions=REGIONS, want=BESIDE
    )
    calls["attention received"] = lambda: _triton.stats_from_lse(q, k, stats["lse"], scale, low, high, want={"received"})
    for call in calls.values():
        call()  # compiled
    times = max(1, int(50 / max(milliseconds(lambda: plain(*theirs), 3), 0.01)))
    for kind, call in calls.items():
        ratios, base = [], []
        for _ in range(rounds):
            base.append(milliseconds(lambda: plain(*theirs), times))
            ratios.append(milliseconds(call, times) / base[-1])
        name = str(dtype).removeprefix("torch.")
        middle, span = statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name:9} {n:6} {statistics.median(base):9.3f} ms  {kind:32} {middle:5.2f}  ({span})", flush=True)


def main() -> int:
    """Entry point."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--longest", type=int, default=32768)
    asked = options.parse_args()
    if not torch.cuda.is_available() or not _triton.available():
        reason = "There is no CUDA device." if not torch.cuda.is_available() else _triton.why()
        print(f"This benchmark needs a CUDA device and triton. {reason}", file=sys.stderr)
        return 2
    from importlib.metadata import version

    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {version('triton')}; ratio to torch's fused attention, smaller is cheaper"
    )
    n = 1024
    while n <= asked.longest:
        for dtype in (torch.bfloat16, torch.float32):
            try:
                with torch.no_grad():
                    measure(dtype, n, asked.rounds)
            except AttentionError as error:
                print(f"{dtype}, {n} tokens: {error}", file=sys.stderr)
        n *= 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
