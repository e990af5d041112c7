"""Random masks, paddings, windows, packings, caches, biases, softcaps and sinks: every backend against the float64 oracle, many times.

1. The cases are those of ``tests/unit/instrument/test_backends.py``, drawn here from a generator seeded with the case's number instead of by hypothesis.
2. ``blocks`` and ``dense`` are asked for every statistic; ``native`` and ``torch`` for every one but the column sums, which they do not serve. Then all for fewer.
3. The largest error of each statistic and of the output is kept for each backend, over rows that see at least one key.
4. A case that fails stops the run and names its number; ``--start`` goes on from there, and ``--start N --cases N+1`` runs it alone.

Run: python benchmarks/fuzz_attention.py [--cases 10000] [--start 0] [--write]
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from _common import machine, write_section
from rich.progress import track
from torch import Tensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests" / "unit"), str(HERE.parent / "tests" / "unit" / "instrument")]

import test_backends as tests  # noqa: E402

from symbolic_residue.instrument.attention import _native  # noqa: E402

EVERY = tests.EVERY
ASKED = ((EVERY, ("blocks", "dense")), (EVERY - {"received"}, tuple(b for b in tests.BACKENDS if b not in ("blocks", "dense"))))


class Watch:
    """Stands between the tests and their comparisons, and keeps the largest errors and the number of readouts.

    Attributes:
        served: readouts compared, by backend.
        worst: largest error by backend and statistic.
    """

    def __init__(self) -> None:
        self.served: Counter[str] = Counter()
        self.worst: dict[tuple[str, str], float] = {}
        self._backend = ""
        self._output: Tensor | None = None
        self._check, self._compare, self._compute, self._want = tests.check, tests.compare, tests.compute, tests.Case.want
        tests.check, tests.compare, tests.compute = self.check, self.compare, self.compute
        tests.Case.want = lambda case, regions: self.want(case, regions)

    def check(self, backend: str, case: Any, stats: set[str]) -> bool:
        self._backend = backend
        served = self._check(backend, case, stats)
        self.served[backend] += served
        return served

    def compute(self, *args: Any, **options: Any) -> Any:
        result = self._compute(*args, **options)
        if options.get("output"):
            self._output = result[1]
        return result

    def want(self, case: Any, regions: Any) -> Any:
        output, stats = self._want(case, regions)
        if self._output is not None:
            self._note("output", (self._output.double() - output).abs())
        return output, stats

    def compare(self, got: dict[str, Tensor], want: dict[str, Tensor], seen: Tensor) -> None:
        self._compare(got, want, seen)
        for name in tests.TOLERANCE:
            if name in got:
                gap = (got[name].double() - want[name]).abs()
                self._note(name, gap if name == "received" else gap[seen.expand(gap.shape[:3])])

    def _note(self, name: str, gap: Tensor) -> None:
        key = (self._backend, name)
        if gap.numel():
            self.worst[key] = max(self.worst.get(key, 0.0), float(gap.max()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10_000, help="number of the last case plus one")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the result into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    watch = Watch()
    begin = time.perf_counter()
    for number in track(range(options.start, options.cases), description="cases"):
        try:
            for every, backends in ASKED:
                tests.EVERY = every
                drawn = random.Random(number)
                tests.random_case(drawn.randint, drawn.choice, backends)
        except Exception as error:
            sys.exit(
                f"case {number} failed on {watch._backend} (go on with --start {number + 1}):\n{type(error).__name__}: {error}"
            )
    minutes = (time.perf_counter() - begin) / 60
    missing = "" if _native.available() else f" The native kernel was not at hand: {_native.why()}."
    names = [name for name in (*tests.TOLERANCE, "output") if any(name == n for _, n in watch.worst)]
    limits = tests.TOLERANCE | {"output": 2e-5}

    def line(backend: str) -> str:
        errors = " | ".join(f"{watch.worst[backend, n]:.1e}" if (backend, n) in watch.worst else "" for n in names)
        return f"| {backend} | {watch.served[backend]} | {errors} |"

    text = "\n".join(
        [
            "## Attention backends against the oracle",
            "",
            f"Machine: {machine(1)}. {options.cases - options.start:,} cases (numbers {options.start} to {options.cases - 1}) of random sizes, grouped heads, windows, "
            "padding on either side, packed sequences, masks with holes, biases, softcaps, sink logits and rows behind a cache, each by every backend that serves it, "
            f"outputs and statistics against a dense float64 softmax: all within tolerance, in {minutes:.1f} minutes.{missing}",
            "",
            "Largest error of each statistic (entropy in nats, distance in tokens):",
            "",
            f"| backend | readouts compared | {' | '.join(names)} |",
            "|---" * (len(names) + 2) + "|",
            *(line(backend) for backend in tests.BACKENDS),
            "| tolerance | | " + " | ".join(f"{limits[n]:g}" for n in names) + " |",
            "",
            "Outputs are allowed a relative 1e-5 more.",
        ]
    )
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
