"""What exact attention readouts cost: ratios to the same model's plain SDPA forward, side by side in one process.

1. Load the demo model once (float32). For each length, time in turn (A B A B …) the plain forward and each kind of readout; the ratio is taken
   round by round, its median and range are printed.
2. Check on the way that the logits are bit-identical with and without the readout.
3. Memory: each kind in a process of its own, peak resident memory above the loaded model's.

Run: python benchmarks/readout.py [--write] [--rounds 7] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from symbolic_residue.instrument import AttentionRead, Instrument
from symbolic_residue.models import load_model
from symbolic_residue.prompts import Regions

LENGTHS = (512, 2048)
RESULTS = Path(__file__).with_name("RESULTS.md")
TARGETS = {
    "regions, entropy, distance": (1.35, 1.5),
    "the same with max and argmax": (1.8, 1.8),
    "16 chosen rows, all statistics": (1.15, 1.15),
}


def regions(n: int) -> Regions:
    """A sink and seven equal parts."""
    labels = np.minimum(1 + np.arange(n) * 7 // n, 7)
    labels[0] = 0
    return Regions(("sink", *(f"part {i}" for i in range(1, 8))), labels)


def kinds(n: int) -> dict[str, AttentionRead]:
    """What is read, by name."""
    few = tuple(range(-16, 0))
    every = ("mass", "entropy", "distance", "max", "argmax")
    return {
        "regions, entropy, distance": AttentionRead(regions=regions(n), stats=("mass", "entropy", "distance")),
        "the same with max and argmax": AttentionRead(regions=regions(n), stats=every),
        "16 chosen rows, all statistics": AttentionRead(regions=regions(n), stats=every, rows=few),
    }


def plain(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The forward that everything is compared with."""
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1).logits


def ids_of(n: int) -> torch.Tensor:
    return torch.randint(5, 49000, (1, n), generator=torch.Generator().manual_seed(0))


def time_ratios(instrument: Instrument, n: int, rounds: int) -> dict[str, dict[str, float]]:
    ids = ids_of(n)
    reads = kinds(n)
    reference = plain(instrument.model, ids)
    for name, read in reads.items():
        same = torch.equal(instrument.run(ids, attention=read, keep_logits=1)["logits"], reference)
        if not same:
            raise SystemExit(f"{name} at {n}: the logits are not bit-identical")
    ratios: dict[str, list[float]] = {name: [] for name in reads}
    base = []
    for _ in range(rounds):
        for name, read in reads.items():
            start = time.perf_counter()
            plain(instrument.model, ids)
            middle = time.perf_counter()
            instrument.run(ids, attention=read, keep_logits=1)
            stop = time.perf_counter()
            base.append(middle - start)
            ratios[name].append((stop - middle) / (middle - start))
    out = {name: {"median": statistics.median(r), "low": min(r), "high": max(r)} for name, r in ratios.items()}
    out["plain forward, seconds"] = {"median": statistics.median(base), "low": min(base), "high": max(base)}
    return out


def memory(kind: str, n: int) -> float:
    """Peak memory above the loaded model, in MB, in this process (Linux: the kernel's own high-water mark)."""
    loaded = load_model("demo")
    instrument = Instrument(loaded)
    plain(loaded.model, ids_of(64))
    instrument.run(ids_of(64), attention=kinds(64)["the same with max and argmax"], keep_logits=1)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (loading)
    before = _kilobytes("VmRSS")
    ids = ids_of(n)
    if kind == "plain":
        plain(loaded.model, ids)
    elif kind == "eager":
        loaded.model.set_attn_implementation("eager")
        with torch.no_grad():
            loaded.model(input_ids=ids, use_cache=False, logits_to_keep=1, output_attentions=True)
    else:
        instrument.run(ids, attention=kinds(n)[kind], keep_logits=1)
    return (_kilobytes("VmHWM") - before) / 1024


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def machine() -> str:
    name = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}; Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    parser.add_argument("--memory", nargs=2, metavar=("KIND", "LENGTH"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(json.dumps(memory(options.memory[0], int(options.memory[1]))))
        return
    instrument = Instrument(load_model("demo"))
    lines = [
        "## Attention readout: time and memory",
        "",
        f"Machine: {machine()}, {options.threads} threads. Demo model (SmolLM2-135M-Instruct, 30 layers × 9 heads), float32. "
        f"Ratios to the same model's plain SDPA forward, median [range] of {options.rounds} alternating rounds; 8 regions, all layers and heads. "
        "Logits bit-identical in every case (checked in the run).",
        "",
        "| read | T = 512 | target | T = 2048 | target |",
        "|---|---|---|---|---|",
    ]
    timed = {n: time_ratios(instrument, n, options.rounds) for n in LENGTHS}
    for name, targets in TARGETS.items():
        cells = []
        for n, target in zip(LENGTHS, targets, strict=True):
            r = timed[n][name]
            cells += [f"{r['median']:.2f}× [{r['low']:.2f}, {r['high']:.2f}]", f"≤ {target}×"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seconds = [timed[n]["plain forward, seconds"] for n in LENGTHS]
    lines.append(f"| plain forward | {seconds[0]['median']:.2f} s | | {seconds[1]['median']:.2f} s | |")
    lines += [
        "",
        "Peak memory above the loaded model at T = 2048, each in a process of its own:",
        "",
        "| read | MB | above the plain forward |",
        "|---|---|---|",
    ]
    peaks = {}
    for kind in ("plain", *TARGETS, "eager"):
        command = [sys.executable, __file__, "--threads", str(options.threads), "--memory", kind, "2048"]
        peaks[kind] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        label = "eager with output_attentions" if kind == "eager" else kind
        lines.append(f"| {label} | {peaks[kind]:.0f} | {peaks[kind] - peaks['plain']:+.0f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        whole = RESULTS.read_text("utf-8") if RESULTS.exists() else "# Results\n\nWritten by the scripts in this folder.\n"
        head, _, rest = whole.partition(lines[0])
        after = rest.partition("\n## ")
        tail = "\n## " + after[2] if after[1] else ""
        RESULTS.write_text(head.rstrip() + "\n\n" + text + tail, "utf-8")


if __name__ == "__main__":
    main()
