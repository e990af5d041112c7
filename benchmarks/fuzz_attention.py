"""Random masks, paddings, windows, packings, caches, biases, softcaps and sinks: every backend against the float64 oracle, many times.

The cases are those of ``tests/unit/instrument/test_backends.py``, drawn here from a seeded generator instead of by hypothesis. A case that fails stops the run
and names its number; ``--start`` goes on from there.

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

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests" / "unit"), str(HERE.parent / "tests" / "unit" / "instrument")]

import test_backends  # noqa: E402

from symbolic_residue.instrument.attention import _native  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the result into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checked: Counter[str] = Counter()
    check = test_backends.check

    def counted(backend: str, case: Any, stats: set[str]) -> bool:
        served = check(backend, case, stats)
        checked[backend] += served
        return served

    test_backends.check = counted
    begin = time.perf_counter()
    for number in track(range(options.start, options.cases), description="cases"):
        try:
            drawn = random.Random(number)
            test_backends.random_case(drawn.randint, drawn.choice, test_backends.BACKENDS)
        except AssertionError as error:
            sys.exit(f"case {number} failed (go on with --start {number + 1}):\n{error}")
    minutes = (time.perf_counter() - begin) / 60
    missing = "" if _native.available() else f" The native kernel was not at hand: {_native.why()}."
    text = "\n".join(
        [
            "## Attention backends against the oracle",
            "",
            f"Machine: {machine(1)}. Cases {options.start} to {options.cases - 1} of random sizes, grouped heads, windows, padding on either side, packed sequences, "
            "masks with holes, biases, softcaps, sink logits and rows behind a cache, each by every backend that serves it, outputs and statistics against a dense "
            f"float64 softmax: all passed, in {minutes:.0f} minutes.{missing}",
            "",
            "Tolerances: " + ", ".join(f"{name} {value:g}" for name, value in test_backends.TOLERANCE.items()) + "; outputs 2e-5.",
            "",
            "| backend | readouts compared |",
            "|---|---|",
            *(f"| {name} | {checked[name]} |" for name in test_backends.BACKENDS),
        ]
    )
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
