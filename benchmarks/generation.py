"""What reading every new token costs: generation with all readouts against the same loop without any, and against the model's own ``generate``.

1. Load the demo model once (float32). Prompts of 512 and 2048 random tokens, then 32 greedy tokens, no stop id.
2. In turn (A B A B …): our loop without readouts, our loop with 8 regions, entropy and the largest weight of every layer and head at every step; and
   in turn the model's own ``generate`` and our loop. Times are whole calls (prefill included) and, for the first pair, the decode steps alone.
3. The tokens of all three must be the same (checked in the run).

Run: python benchmarks/generation.py [--write] [--rounds 5] [--threads 2] [--tokens 32]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from _common import cell, machine, ratios, write_section

from symbolic_residue.instrument import AttentionRead, generate, Instrument, stream
from symbolic_residue.models import load_model
from symbolic_residue.prompts import Regions

LENGTHS = (512, 2048)
TARGET = 1.10


def read(n: int) -> AttentionRead:
    """A sink, six equal parts, and what is generated: eight regions."""
    labels = np.minimum(1 + np.arange(n) * 6 // n, 6)
    labels[0] = 0
    return AttentionRead(regions=Regions(("sink", *(f"part {i}" for i in range(1, 7))), labels), stats=("mass", "entropy", "max"))


def decode_seconds(instrument: Instrument, ids: torch.Tensor, tokens: int, attention: AttentionRead | None) -> float:
    """Median seconds of a decode step (the first one, which attaches, is left out)."""
    at = []
    for _ in stream(instrument, ids, max_new_tokens=tokens, stop_ids=(), attention=attention):
        at.append(time.perf_counter())
    return statistics.median(b - a for a, b in itertools.pairwise(at[1:]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    instrument = Instrument(load_model("demo"))
    model, tokens = instrument.model, options.tokens
    lines = [
        "## Generation with readouts at every new token",
        "",
        f"Machine: {machine(options.threads)}. Demo model (SmolLM2-135M-Instruct, 30 layers × 9 heads), float32, {tokens} greedy tokens. 8 regions, "
        f"entropy and maximum of every layer and head at every step. Median [range] of {options.rounds} alternating rounds; the tokens are the same in all (checked in the run).",
        "",
        "| ratio | after 512 tokens | after 2048 tokens | target |",
        "|---|---|---|---|",
    ]
    rows: dict[str, list[str]] = {}
    for n in LENGTHS:
        ids = torch.randint(5, 49000, (1, n), generator=torch.Generator().manual_seed(0))
        mask, attention = torch.ones_like(ids), read(n)

        def plain(ids: torch.Tensor = ids) -> list[list[int]]:
            return generate(instrument, ids, max_new_tokens=tokens, stop_ids=()).ids

        def reading(ids: torch.Tensor = ids, attention: AttentionRead = attention):
            return generate(instrument, ids, max_new_tokens=tokens, stop_ids=(), attention=attention)

        def own(ids: torch.Tensor = ids, mask: torch.Tensor = mask) -> list[list[int]]:
            with torch.no_grad():
                out = model.generate(  # type: ignore[operator]
                    ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=None
                )
            return out[:, ids.shape[1] :].tolist()

        made = reading()
        if not made.ids == plain() == own():
            raise SystemExit(f"after {n} tokens: the tokens differ")
        assert made.attention is not None
        ours = ratios(plain, {"with readouts / without": reading}, options.rounds)
        whole = ratios(own, {"without readouts / model.generate": plain, "with readouts / model.generate": reading}, options.rounds)
        steps, base = [], []
        for _ in range(options.rounds):
            base.append(decode_seconds(instrument, ids, tokens, None))
            steps.append(decode_seconds(instrument, ids, tokens, attention) / base[-1])
        rows.setdefault("with readouts / without, whole call", []).append(cell(ours["with readouts / without"]))
        rows.setdefault("with readouts / without, a decode step", []).append(cell(steps))
        for name in ("with readouts / model.generate", "without readouts / model.generate"):
            rows.setdefault(f"{name}, whole call", []).append(cell(whole[name]))
        rows.setdefault("a decode step without readouts", []).append(f"{1000 * statistics.median(base):.1f} ms")
        rows.setdefault("the readouts came from", []).append(f"{made.attention.backend}, {made.attention.mode}")
    for i, (name, cells) in enumerate(rows.items()):
        lines.append(f"| {name} | {' | '.join(cells)} | {f'≤ {TARGET:.2f}×' if i == 0 else ''} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
