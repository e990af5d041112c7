"""What a step of multi-path decoding costs: with one token, against the model's own greedy ``generate``; with k siblings, against a plain cached forward
of k tokens.

1. Load the demo model once (float32). A prompt of 128 random tokens, 64 greedy tokens, no stop id. In turn (A B A B …): ``generate`` of transformers, and
   ``decode`` at
   threshold 1. Times are whole calls, prefill included; the tokens must be the same (checked in the run). Ours feeds its last token too, ``generate`` does
   not, so it
   makes one forward more: ``generate`` is asked for one token more.
2. A set of k tokens on a cache of 128, 512 or 2048: in turn, the model's own forward of k new tokens (its own causal mask, logits and argmax of the last
   row, as any
   decoding needs) and one whole step of ours (choose the set, place it, mask, forward, positions read back, statistics). Median of single steps.

3. One tree of 30 steps: in turn, one uncached forward over all its slots, and the whole measurement of the tree (all arms, sweeps, tables).

Run: python benchmarks/parallel_decoding.py [--write] [--rounds 7] [--threads 1]
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
from symbolic_residue.parallel import check_rotary, decode, grow, measure_prompt, ParallelConfig
from symbolic_residue.parallel._forward import call_model

SIZES, LENGTHS, STEPS = (2, 4, 8), (128, 512, 2048), 6


def prompt(n: int) -> list[int]:
    return torch.randint(5, 49000, (n,), generator=torch.Generator().manual_seed(0)).tolist()


def greedy(instrument: Instrument, ids: list[int], tokens: int) -> tuple[float, list[int]]:
    """Seconds and tokens of the model's own ``generate``."""
    inputs = torch.tensor([ids])
    start = time.perf_counter()
    with torch.no_grad():
        out = instrument.model.generate(  # type: ignore[operator]
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=tokens + 1,
            min_new_tokens=tokens + 1,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return time.perf_counter() - start, out[0, len(ids) : len(ids) + tokens].tolist()


def single(instrument: Instrument, ids: list[int], tokens: int) -> tuple[float, list[int]]:
    """Seconds and tokens of ``decode`` at threshold 1."""
    start = time.perf_counter()
    tree = decode(instrument, [ids], ParallelConfig(threshold=1.0, max_steps=tokens, stop_ids=()), checked=True)[0]
    return time.perf_counter() - start, tree.path


def plain_steps(instrument: Instrument, ids: list[int], k: int) -> list[float]:
    """Seconds of each cached forward of k tokens, the first one left out."""
    from transformers import DynamicCache

    cache, seconds = DynamicCache(), []
    with torch.no_grad():
        out = instrument.model(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1, **{instrument.cache_name: cache})
        for _ in range(STEPS):
            start = time.perf_counter()
            new = torch.topk(out.logits[0, -1], k).indices[None]
            n = cache.get_seq_length()
            out = instrument.model(
                input_ids=new, position_ids=torch.arange(n, n + k)[None], use_cache=True, **{instrument.cache_name: cache}
            )
            seconds.append(time.perf_counter() - start)
    return seconds[1:]


def set_steps(instrument: Instrument, ids: list[int], k: int) -> list[float]:
    """Seconds of each step of ours with k siblings, the first one left out."""
    config = ParallelConfig(threshold=1e-9, max_siblings=k, max_steps=STEPS, stop_ids=())
    seconds, start = [], time.perf_counter()
    for step in grow(instrument, [ids], config, checked=True):
        seconds.append(time.perf_counter() - start)
        assert len(step.steps[0].tokens) == k  # type: ignore[union-attr]
        start = time.perf_counter()
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    instrument = Instrument(load_model("demo"))
    check_rotary(instrument)
    pairs, ids = [], prompt(128)
    for _ in range(options.rounds):
        theirs, ours = greedy(instrument, ids, options.tokens), single(instrument, ids, options.tokens)
        assert theirs[1] == ours[1], "the tokens differ"
        pairs.append(ours[0] / theirs[0])
    lines = [
        "## Multi-path decoding",
        "",
        f"Machine: {machine(options.threads)}. Demo model, float32. Median [range] of {options.rounds} alternating rounds.",
        "",
        f"Without siblings (threshold 1), {options.tokens} tokens after 128, against transformers' greedy `generate`, the tokens being the same (checked in the run): "
        f"{cell(pairs)} (target 1.05).",
        "",
        "A step with k siblings against a plain cached forward of k tokens (target 1.10):",
        "",
        f"| siblings | {' | '.join(f'after {n}' for n in LENGTHS)} |",
        "|---|" + "---|" * len(LENGTHS),
    ]
    for k in SIZES:
        cells = []
        for n in LENGTHS:
            ids, rounds = prompt(n), []
            for _ in range(options.rounds):
                theirs, ours = plain_steps(instrument, ids, k), set_steps(instrument, ids, k)
                rounds.append(statistics.median(ours) / statistics.median(theirs))
            cells.append(cell(rounds))
        lines.append(f"| {k} | {' | '.join(cells)} |")
    ids = instrument.loaded.tokenizer("The weather in the mountains was")["input_ids"]
    tree = decode(instrument, [ids], ParallelConfig(max_steps=30, stop_ids=()), checked=True)[0]
    layout, rounds, arms = tree.layout(), [], 0
    for _ in range(options.rounds):
        start = time.perf_counter()
        with torch.no_grad():
            call_model(instrument, layout, mode="isolated")
        middle = time.perf_counter()
        frames = measure_prompt(instrument, tree)
        rounds.append((time.perf_counter() - middle) / (middle - start))
        arms = frames["parallel_output"]["arm"].n_unique()
    lines += [
        "",
        f"The whole measurement of a tree of 30 steps ({tree.n_keys} keys) against one uncached forward of it: {cell(rounds)}; for each of its {arms} arms "
        f"{cell([r / arms for r in rounds])} (target 12), sweeps and tables included.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
