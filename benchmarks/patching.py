"""What a head-patching sweep between two models costs: one whole forward a cell against restarted batches, side by side in one process.

1. Two copies of the demo model (float32): the base, and the base with rank-8 noise of fixed seed on every attention and MLP matrix, as an adapter would be. Heads'
   outputs (``z``) of the second go into the first, for every head of every layer asked, at the last row or at all rows.
2. A: the source is read once, then each cell is a plain ``Instrument.run`` with one ``HeadReplace``. B: ``patch_sweep`` without controls (both models were
   verified by the warm-up). Timed in turn (A B A B …); the ratio A / B is taken round by round, its median and range are printed.
3. Checked on the way: the metric (a logit difference) of every cell is the same in A and B to 1e-5 of the largest logit.

Run: python benchmarks/patching.py [--length 24] [--layers 30] [--rounds 3] [--threads 2] [--max-batch 64] [--smoke] [--write]
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _common import cell, machine, ratios, write_section

from symbolic_residue.instrument import HeadReplace, Instrument
from symbolic_residue.models import load_model, wrap
from symbolic_residue.readout import LogitDifference, patch_pair, patch_sweep

METRIC = LogitDifference(100, 200)


def noisy(model: torch.nn.Module, rank: int = 8, size: float = 0.1) -> torch.nn.Module:
    """A copy with low-rank noise on every matrix of the blocks, ``size`` of the matrix's norm."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if weight.dim() == 2 and "layers" in name:
                a, b = (
                    torch.randn(weight.shape[0], rank, generator=generator),
                    torch.randn(rank, weight.shape[1], generator=generator),
                )
                noise = a @ b
                weight += noise * (size * weight.norm() / noise.norm())
    return other


def measure(
    base: Instrument, tuned: Instrument, ids: torch.Tensor, layers: list[int], where: str, rounds: int, max_batch: int
) -> str:
    """One line of the table.

    Raises:
        SystemExit: the two ways differ.
    """
    pair, n_heads = patch_pair(ids, positions=(where,)), base.parts.n_heads
    rows = [row for _, row in pair.rows[where]]
    found: dict[str, torch.Tensor] = {}

    def one_by_one() -> None:
        z = tuned.run(ids[None], reads=[f"z.{layer}" for layer in layers], keep_logits=1)
        values = []
        for layer in layers:
            for head in range(n_heads):
                edit = HeadReplace(layer, head, z[f"z.{layer}"][:, rows][:, :, [head]], rows=rows)
                values.append(METRIC(base.run(ids[None], edits=[edit], keep_logits=1)["logits"][:, -1]))
        found["one by one"] = torch.cat(values).double()

    def swept() -> None:
        sweep = patch_sweep(
            base, [pair], source=tuned, metric=METRIC, components=("z",), layers=layers, controls=0, max_batch=max_batch
        )
        found["swept"] = torch.tensor(sweep.table()["patched"].to_list(), dtype=torch.float64)

    times = ratios(swept, {"one by one": one_by_one}, rounds)
    size = float(base.run(ids[None], keep_logits=1)["logits"].abs().max())
    worst = float((found["swept"] - found["one by one"]).abs().max()) / size
    if worst > 1e-5:
        raise SystemExit(f"The sweep and the single runs differ by {worst:.2g} of the largest logit.")
    cells = len(layers) * n_heads
    return f"| {where} | {cells} | {statistics.median(times['base']):.2f} s | {cell(times['one by one'])} | {worst:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--layers", type=int, default=30, help="how many, evenly spread over the depth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--smoke", action="store_true", help="three layers, one round")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load_model("demo")
    base, tuned = Instrument(loaded), Instrument(wrap(noisy(loaded.model), loaded.tokenizer))
    n_layers = base.parts.n_layers
    count, rounds = (3, 1) if options.smoke else (min(options.layers, n_layers), options.rounds)
    layers = sorted({round(i * (n_layers - 1) / max(1, count - 1)) for i in range(count)})
    ids = torch.randint(5, 49000, (options.length,), generator=torch.Generator().manual_seed(0))
    lines = [measure(base, tuned, ids, layers, where, rounds, options.max_batch) for where in ("last", "all")]
    text = (
        "## Patching every head from one model into another\n\n"
        f"{machine(options.threads)}; `benchmarks/patching.py`, {rounds} round{'s' * (rounds != 1)}, {len(layers)} layers, {options.length} tokens, "
        "demo model, float32. Difference: largest over cells, over the largest logit.\n\n"
        "| rows patched | cells | one sweep | one run a cell, over the sweep | difference |\n|---|---|---|---|---|\n"
        + "\n".join(lines)
    )
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
