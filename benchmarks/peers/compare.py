"""The same attention numbers by other tools: what each costs over the same model's plain SDPA forward, and how far its numbers lie from ours.

1. Each tool runs in a process of its own (``run_peer.py``), ours and plain transformers here, the others in the environment that ``make_env.sh`` built.
2. The ratio is to the plain SDPA forward of the same model in the same process, round by round. Tools are compared by their ratios.
3. A tool that is not installed or cannot load the model is listed with its own last words.

Run: sh benchmarks/peers/make_env.sh FOLDER; python benchmarks/peers/compare.py --python FOLDER/bin/python [--write] [--rounds 5] [--lengths 512 2048]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from _common import cell, in_own_process, machine, write_section

from symbolic_residue.models import fetch

TOOLS = ("residue", "transformers", "transformer-lens", "nnsight")
HERE = ("residue", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", help="interpreter of the peers' environment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    folder = str(fetch("demo"))
    script = str(Path(__file__).with_name("run_peer.py"))
    rows: list[str] = []
    how: dict[str, str] = {}
    for n in options.lengths:
        with tempfile.TemporaryDirectory() as scratch:
            got: dict[str, dict[str, Any]] = {}
            for tool in options.tools:
                python = sys.executable if tool in HERE else options.python
                numbers = str(Path(scratch) / f"{tool}.npz")
                if python is None:
                    rows.append(f"| {n} | {tool} | not run: no environment was given (`--python`) | | | |")
                    continue
                try:
                    got[tool] = in_own_process(
                        python, script, tool, folder, str(n), str(options.rounds), str(options.threads), numbers
                    )
                except RuntimeError as error:
                    rows.append(f"| {n} | {tool} | not run: {str(error).replace('|', '/')} | | | |")
                    continue
                result = got[tool]
                versions = result["versions"]
                how[tool] = f"{', '.join(f'{name} {v}' for name, v in versions.items())}: {result['how']}"
                slower = apart = ""
                if tool != "residue" and "residue" in got:
                    slower = f"{statistics.median(result['ratios']) / statistics.median(got['residue']['ratios']):.1f}×"
                    ours, theirs = np.load(Path(scratch) / "residue.npz"), np.load(numbers)
                    apart = ", ".join(f"{name} {np.abs(ours[name] - theirs[name]).max():.1e}" for name in ours.files)
                rows.append(
                    f"| {n} | {tool} | {cell(result['ratios'])} | {slower} | {statistics.median(result['seconds']):.2f} s | {apart} |"
                )
    text = "\n".join(
        [
            "## Attention readout: other tools",
            "",
            f"Machine: {machine(options.threads)}. Demo model (SmolLM2-135M-Instruct), float32, random tokens: masses of 8 regions, entropy, distance, largest "
            "weight and its key, of all layers, heads and rows. Each tool in a process of its own; ratio to the same model's plain SDPA forward in that process, "
            f"median [range] of {options.rounds} alternating rounds. The others reduce each layer's pattern as it comes, by the same code. "
            "Target: ours ≥ 4× faster at 2048.",
            "",
            "| T | tool | over the plain forward | over ours | plain forward | largest difference from ours |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            *(f"- {tool}: {said}." for tool, said in how.items()),
        ]
    )
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
