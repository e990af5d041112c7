"""What direct logit attribution of all heads and rows costs, and how complete it is.

1. Load the demo model once (float32). Time in turn (A B A B …) the plain SDPA forward and the forward that attributes one logit difference to every head of
   every layer at every row; the ratio is taken round by round, its median and range are printed. Both compute the last row's logits only.
2. Completeness: the largest |sum of parts − logit difference| over all rows, relative to the sum of the parts' sizes at that row.

Run: python benchmarks/dla.py [--length 512] [--rounds 7] [--threads 2] [--targets 1] [--write]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _common import cell, machine, write_section

from symbolic_residue.instrument import Instrument
from symbolic_residue.models import load_model
from symbolic_residue.readout import dla_during


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--targets", type=int, default=1, help="how many logit differences at once")
    parser.add_argument("--write", action="store_true", help="put the result into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    instrument = Instrument(load_model("demo"))
    ids = torch.randint(5, 49000, (1, options.length), generator=torch.Generator().manual_seed(0))
    targets = [(100 + i, 200 + i) for i in range(options.targets)]

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return instrument.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, logits_to_keep=1).logits

    dla, trace = dla_during(instrument, ids, targets)
    same = torch.equal(trace["logits"], plain())
    size = dla.heads.abs().sum((-1, -2)) + dla.mlps.abs().sum(-1) + dla.attention_bias.abs().sum(-1) + dla.embedding.abs()
    error = float((dla.error.abs() / size).max())
    ratios, base = [], []
    for _ in range(options.rounds):
        start = time.perf_counter()
        plain()
        middle = time.perf_counter()
        dla_during(instrument, ids, targets)
        stop = time.perf_counter()
        base.append(middle - start)
        ratios.append((stop - middle) / (middle - start))
    plural = "s" * (options.targets != 1)
    text = "\n".join(
        [
            "## Direct logit attribution: what it costs",
            "",
            f"Machine: {machine(options.threads)}. Demo model, float32, {options.length} tokens, {options.targets} logit difference{plural} attributed to every head of every layer at "
            f"every row {tuple(dla.heads.shape)}; {options.rounds} rounds, in turn with the plain forward.",
            "",
            "| | |",
            "|---|---|",
            f"| time over a plain SDPA forward ({statistics.median(base):.2f} s) | {cell(ratios)} |",
            f"| logits bit-identical to the plain forward's | {'yes' if same else 'NO'} |",
            f"| largest error of the sum of parts | {error:.1e} of the parts' size, {float(dla.error.abs().max()):.1e} nats |",
        ]
    )
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
