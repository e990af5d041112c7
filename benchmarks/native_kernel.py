"""What the native attention kernel costs beside plain SDPA: one layer (9 heads, 3 key/value heads, d_head 64, float32), causal, and one decoding step.

1. Tensors as transformers hands them over: transposed views of [batch, token, head, d_head].
2. In turn (A B A B …) one ``scaled_dot_product_attention`` call and one call of the kernel for each choice of statistics; the ratio of
   neighbouring calls, its median and range.

Run: python benchmarks/native_kernel.py [--rounds 15] [--lengths 512 2048] [--write]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from _common import cell, machine, write_section

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


def compare(n: int, decode: bool, rounds: int) -> str:
    """A row of the table: SDPA's best time, then each function's time over SDPA's, round by round."""
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
    cells = [cell([a / b for a, b in zip(mine[1:], base, strict=True)]) for mine in times.values()]
    row = f"| {what} | {torch.get_num_threads()} | {min(base) * 1e3:.2f} ms | {' | '.join(cells)} |"
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    arguments = parser.parse_args()
    if not _native.available():
        raise SystemExit(_native.why())
    names = list(calls(8, decode=False))[1:]
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        rows += [compare(n, decode=False, rounds=arguments.rounds) for n in arguments.lengths]
        rows.append(compare(max(arguments.lengths), decode=True, rounds=arguments.rounds))
    text = "\n".join(
        [
            "## The native kernel, one layer",
            "",
            f"Machine: {machine()}. {HEADS} heads, {KV_HEADS} key-value heads of {D_HEAD}, float32; time over one `scaled_dot_product_attention` call, "
            f"{arguments.rounds} rounds in turn.",
            "",
            f"| attention | threads | SDPA (best) | {' | '.join(names)} |",
            "|---" * (len(names) + 3) + "|",
            *rows,
        ]
    )
    print(text)
    if arguments.write:
        write_section(text)


if __name__ == "__main__":
    main()
