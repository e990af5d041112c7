"""What the benchmark scripts share: the machine's name, alternating timings, peak memory, the reduction of a whole pattern, a section of RESULTS.md."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def region_labels(n: int) -> list[int]:
    """A sink and seven equal parts: the region (0 to 7) of each of ``n`` keys."""
    return [0, *(min(1 + i * 7 // n, 7) for i in range(1, n))]


def region_columns(n: int) -> torch.Tensor:
    """``[key, 9]``: indicators of the eight regions, and the key's index; what :func:`reduce_pattern` multiplies with."""
    labels = torch.tensor(region_labels(n))
    return torch.cat([torch.nn.functional.one_hot(labels, 8).float(), torch.arange(n).float()[:, None]], 1)


def reduce_pattern(weights: torch.Tensor, columns: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every statistic from a whole attention pattern, by the cheapest torch calls found; what a user of eager attention would write.

    Args:
        weights: ``[batch, head, query, key]``.
        columns: of :func:`region_columns`.

    Returns:
        ``mass [batch, head, query, 8]``, ``entropy``, ``distance``, ``max``, ``argmax`` ``[batch, head, query]``.
    """
    both = weights @ columns.to(weights.dtype)
    best = weights.max(-1)
    return {
        "mass": both[..., :8],
        "distance": torch.arange(weights.shape[-2]) - both[..., 8],
        "entropy": torch.special.entr(weights).sum(-1),
        "max": best.values,
        "argmax": best.indices,
    }


def random_ids(n: int, vocabulary: int = 49_000) -> torch.Tensor:
    """``[1, n]`` token ids, the same in every process."""
    return torch.randint(5, vocabulary, (1, n), generator=torch.Generator().manual_seed(0))


def in_own_process(*command: str) -> Any:
    """Run a command that prints one line of JSON last, and read that line.

    Raises:
        RuntimeError: it failed; with the end of what it wrote.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise RuntimeError(said[-1] if said else f"ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_above(call: Callable[[], object]) -> float:
    """Peak resident memory during a call above what was resident before it, in MB (Linux: the kernel's own high-water mark)."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # else what loading freed would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _kilobytes("VmRSS")
    call()
    return (_kilobytes("VmHWM") - before) / 1024


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))
