"""What the native attention kernel costs beside plain SDPA: one layer (9 heads, 3 key/value heads, d_head 64, float32), causal, and one decoding step.

1. Tensors as transformers hands them over: transposed views of [batch, token, head, d_head].
2. In turn (A B A B …) one ``scaled_dot_product_attention`` call and one call of the kernel for each choice of statistics; the ratio of the best times,
   and the range of the ratios of neighbouring calls.

Run: python benchmarks/native_kernel.py [--rounds 15] [--lengths 512 2048]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F

from symbolic_residue.instrument.attention import _native

HEADS, KV_HEADS, D_HEAD = 9, 3, 64
NONE: frozenset[str] = frozenset()
ALL = _native.STATISTICS


def labels(n: int, kind: str) -> torch.Tensor:
    """Eight equal parts, or eight regions that take turns key by key."""
    j = torch.arange(n)
    return (j * 8 // n if kind == "parts" else j % 8).int()[None]


def calls(n: int, decode: bool) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    rows = 1 if decode else n
    q = torch.randn(1, rows, HEADS, D_HEAD).transpose(1, 2)
    k = torch.randn(1, n, KV_HEADS, D_HEAD).transpose(1, 2)
    v = torch.randn(1, n, KV_HEADS, D_HEAD).transpose(1, 2)
    low = torch.zeros(1, rows, dtype=torch.int32)
    high = (torch.arange(n - rows, n) + 1).int()[None]

    def native(want: frozenset[str], kind: str = "parts") -> Callable[[], object]:
        regions = {"labels": labels(n, kind), "n_regions": 8} if "mass" in want else {}
        return lambda: _native.attend(q, k, v, D_HEAD**-0.5, low, high, want=want, **regions)  # type: ignore[arg-type]

    return {
        "SDPA": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=not decode, enable_gqa=True),
        "output only": native(NONE),
        "8 regions, entropy, distance": native(frozenset({"mass", "entropy", "distance"})),
        "all statistics, 8 regions": native(ALL),
        "all, 8 interleaved regions": native(ALL, "interleaved"),
    }


def compare(n: int, decode: bool, rounds: int) -> None:
    functions = calls(n, decode)
    times: dict[str, list[float]] = {name: [] for name in functions}
    repeat = 20 if decode else 1
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(repeat):
                function()
            times[name].append((time.perf_counter() - start) / repeat)
    what = f"one row over {n} keys" if decode else f"{n} rows, causal"
    base = times.pop("SDPA")[1:]  # the first round warms up
    print(f"{what}, {torch.get_num_threads()} thread(s): SDPA 1.00 ({min(base) * 1e3:.2f} ms)")
    for name, all_times in times.items():
        mine = all_times[1:]
        ratios = sorted(a / b for a, b in zip(mine, base, strict=True))
        print(
            f"  {name:32s} {min(mine) / min(base):5.2f}   (rounds {ratios[0]:.2f} – {ratios[len(ratios) // 2]:.2f} – {ratios[-1]:.2f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
    arguments = parser.parse_args()
    if not _native.available():
        raise SystemExit(_native.why())
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for n in arguments.lengths:
            compare(n, decode=False, rounds=arguments.rounds)
        compare(max(arguments.lengths), decode=True, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
