"""What the benchmark scripts share: the machine's name, alternating timings, and a section of RESULTS.md."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

RESULTS = Path(__file__).with_name("RESULTS.md")


def machine(threads: int | None = None) -> str:
    """The machine and the versions that matter."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    said = f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}; Python {platform.python_version()}, torch {torch.__version__}"
    return f"{said}, transformers {transformers.__version__}" + (
        "" if threads is None else f", {threads} thread{'s' * (threads != 1)}"
    )


def ratios(base: Callable[[], object], others: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time of each callable over the base's, measured in turn (A B A B …); key ``base`` holds the base's seconds."""
    base()
    for other in others.values():
        other()
    out: dict[str, list[float]] = {name: [] for name in ("base", *others)}
    for _ in range(rounds):
        for name, other in others.items():
            start = time.perf_counter()
            base()
            middle = time.perf_counter()
            other()
            stop = time.perf_counter()
            out["base"].append(middle - start)
            out[name].append((stop - middle) / (middle - start))
    return out


def cell(values: list[float]) -> str:
    """Median and range of ratios."""
    return f"{statistics.median(values):.2f}× [{min(values):.2f}, {max(values):.2f}]"


def write_section(text: str) -> None:
    """Put a section (its first line is the ``## `` heading) into RESULTS.md, in place of an older one."""
    heading = text.partition("\n")[0]
    whole = RESULTS.read_text("utf-8") if RESULTS.exists() else "# Results\n\nWritten by the scripts in this folder.\n"
    head, found, rest = whole.partition(heading + "\n")
    after = rest.partition("\n## ")
    tail = "\n## " + after[2] if found and after[1] else ""
    RESULTS.write_text(head.rstrip() + "\n\n" + text.rstrip() + "\n" + tail, "utf-8")
