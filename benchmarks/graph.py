"""What an attribution graph costs: seconds and ratios to the same prompt's plain forward, and peak memory.

1. Demo model, float32, the first tokens of a text that is no list of random tokens (Python's own help topics): neurons that matter lie where they lie in text.
   Targets ``top``; 1000 neurons as nodes. ``rest="layer"``: what was not chosen is a node a layer; ``"position"``: a node a layer and position. Embeddings are
   nodes in both. Plain forward and graph are timed in turn (A B A B …); medians and ranges over rounds. The largest gap of a row's sum is printed beside.
2. Memory: each case in a process of its own, the peak above what was resident once the model was loaded, for the graph and for one plain forward with the last
   row's logits.
3. Long prompts: 2048 tokens with fewer nodes, in a process of its own: total peak, time once.

Run: python benchmarks/graph.py [--write] [--rounds 3] [--threads 2] [--parts time memory long]
"""

from __future__ import annotations

import argparse
import json
import os
import pydoc_data.topics
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from _common import cell, in_own_process, machine, peak_above, ratios, write_section

from symbolic_residue.graph import attribute_prompt, Graph
from symbolic_residue.instrument import Instrument, open_model
from symbolic_residue.prompts import build_prompt, Prompt

CASES = ((64, 1000, "layer"), (64, 1000, "position"), (256, 1000, "layer"))
LONG = ((1024, 300, "layer"), (2048, 100, "layer"))


def prompt_of(instrument: Instrument, n: int) -> Prompt:
    """The first ``n`` tokens of the text."""
    text = " ".join(pydoc_data.topics.topics.values())[: n * 16]
    built = build_prompt(instrument.loaded.tokenizer, text)
    if len(built.ids) < n:
        raise SystemExit(f"The text has {len(built.ids)} tokens, {n} are needed.")
    return replace(built, ids=built.ids[:n], tokens=built.tokens[:n])


def calls(instrument: Instrument, n: int, nodes: int, rest: str) -> tuple[Callable[[], object], Callable[[], Graph]]:
    """The plain forward and the graph."""
    prompt = prompt_of(instrument, n)
    ids = torch.tensor([prompt.ids])

    def forward() -> object:
        return instrument.run(ids, keep_logits=1)

    def graph() -> Graph:
        return attribute_prompt(instrument, prompt, targets=["top"], max_nodes=nodes, rest=rest)

    return forward, graph


def times(rounds: int) -> list[str]:
    """A row a case."""
    instrument = Instrument(open_model("demo"))
    lines = ["| tokens | nodes | rest by | graph | plain forward | ratio | largest gap of a row |", "|---|---|---|---|---|---|---|"]
    for n, nodes, rest in CASES:
        forward, graph = calls(instrument, n, nodes, rest)
        kept: list[Graph] = []
        took: list[float] = []

        def timed(graph: Callable[[], Graph] = graph, kept: list[Graph] = kept, took: list[float] = took) -> None:
            start = time.perf_counter()
            kept[:] = [graph()]
            took.append(time.perf_counter() - start)

        found = ratios(forward, {"graph": timed}, rounds)
        seconds = took[1:]  # the first warms up
        span = f"{statistics.median(seconds):.1f} s [{min(seconds):.1f}, {max(seconds):.1f}]"
        gap = kept[0].check().worst
        lines.append(
            f"| {n} | {nodes} | {rest} | {span} | {statistics.median(found['base']):.2f} s | {cell(found['graph'])} | {gap:.0e} |"
        )
        print(lines[-1], flush=True)
    return lines


def memory(threads: int) -> list[str]:
    """A row a case, each in its own process."""
    lines = [
        "| tokens | nodes | rest by | peak above the loaded model | of a plain forward | edges alone |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        got = in_own_process(sys.executable, __file__, "--threads", str(threads), "--one", "memory", *map(str, case))
        lines.append(f"| {' | '.join(map(str, case))} | {got['graph']:.0f} MB | {got['forward']:.0f} MB | {got['edges']:.0f} MB |")
        print(lines[-1], flush=True)
    return lines


def long(threads: int) -> list[str]:
    """A row a case, each in its own process."""
    lines = [
        "| tokens | nodes | rest by | peak of the process, model and libraries included | time | largest gap of a row |",
        "|---|---|---|---|---|---|",
    ]
    for case in LONG:
        got = in_own_process(sys.executable, __file__, "--threads", str(threads), "--one", "long", *map(str, case))
        lines.append(f"| {' | '.join(map(str, case))} | {got['total']:.2f} GB | {got['seconds']:.0f} s | {got['gap']:.0e} |")
        print(lines[-1], flush=True)
    return lines


def one(kind: str, n: int, nodes: int, rest: str) -> None:
    """One case in this process; prints a line of JSON."""
    instrument = Instrument(open_model("demo"))
    forward, graph = calls(instrument, n, nodes, rest)
    if kind == "memory":
        plain = peak_above(forward)
        kept: list[Graph] = []
        above = peak_above(lambda: kept.append(graph()))
        print(json.dumps({"graph": above, "forward": plain, "edges": kept[0].edges.numel() * 4 / 2**20}))
        return
    start = time.perf_counter()
    found = graph()
    took = time.perf_counter() - start
    total = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"total": total, "seconds": took, "gap": found.check().worst}))


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the section into RESULTS.md")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=("time", "memory", "long"), default=["time", "memory", "long"])
    parser.add_argument("--one", nargs=4, metavar=("KIND", "TOKENS", "NODES", "REST"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        kind, n, nodes, rest = options.one
        one(kind, int(n), int(nodes), rest)
        return
    parts = []
    if "time" in options.parts:
        parts.append("\n".join(times(options.rounds)))
    if "memory" in options.parts:
        parts.append("\n".join(memory(options.threads)))
    if "long" in options.parts:
        parts.append("\n".join(long(options.threads)))
    if options.write:
        head = f"## Attribution graphs: time and memory\n\nDemo model (SmolLM2-135M-Instruct), float32. {machine(options.threads)}. {options.rounds} rounds.\n\n"
        write_section(head + "\n\n".join(parts))


if __name__ == "__main__":
    main()
