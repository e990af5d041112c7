"""What collecting activations of concept texts costs in time, and what collecting and judging them costs in memory as texts become more.

1. Time: the demo model (float32) and texts of the packaged corpus, in padded batches in order of length. In turn (A B A B …), in one process: the plain
   transformers forward of every batch (``logits_to_keep=1``, no cache), and ``collect`` of the same texts with all layers and heads into a new folder:
   tokenising, pooling, files and their flushing included, for which the plain forward has no counterpart. Throughput is plain time over collect's time.
2. Memory: a random model of the demo model's width with two layers, so that ten times the texts fit into a minute; 312 texts and 3120 (the corpus ten times
   over, each copy with a sentence of its own and scenarios of its own). Each in a process of its own. Collecting: the kernel's high-water mark above the
   loaded model after one pass over a few texts. Judging (directions, then the quality report with the heads' decomposition, of two concepts against all
   other texts, 1000 permutations): the highest sum of what Python and NumPy had allocated (tracemalloc); the activations are mapped from files, whose
   pages belong to the system's cache.

Run: python benchmarks/concept_collect.py [--write] [--texts 104] [--rounds 5] [--batch 16] (one thread)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import torch
from _common import cell, in_own_process, machine, peak_above, ratios, write_section

from symbolic_residue.concepts import collect, find_directions, open_pooled, packaged_corpus, quality_report, ReadoutModel
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.models import load_model, wrap
from symbolic_residue.prompts import build_prompt

CORPUS = packaged_corpus().texts


def timed(n_texts: int, rounds: int, batch_size: int) -> dict[str, list[float]]:
    """Seconds of the plain pass (``base``) and ratios of ``collect`` to it."""
    loaded = load_model("demo")
    instrument = Instrument(loaded)
    texts = [one.text for one in CORPUS[:n_texts]]
    ids = sorted((build_prompt(loaded.tokenizer, text).ids for text in texts), key=len)
    batches = [collate(ids[i : i + batch_size], side="right") for i in range(0, len(ids), batch_size)]

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                loaded.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, logits_to_keep=1)

    def collected() -> None:
        folder = Path(tempfile.mkdtemp())
        try:
            collect(instrument, texts, batch_size=batch_size, folder=folder / "rows")
        finally:
            shutil.rmtree(folder)

    def in_memory() -> None:
        collect(instrument, texts, batch_size=batch_size)

    return ratios(plain, {"folder": collected, "memory": in_memory}, rounds)


def memory(times: int) -> dict[str, float]:
    """Peaks in MB of collecting and of judging the corpus ``times`` over."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = load_model("demo").tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=576, intermediate_size=1536, num_hidden_layers=2, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    loaded = wrap(LlamaForCausalLM(config).eval(), tokenizer)
    instrument = Instrument(loaded)
    texts = [f"{one.text} That was on day {k}." for k in range(times) for one in CORPUS]
    labels = [one.concept for _ in range(times) for one in CORPUS]
    scenarios = [f"{one.scenario} {k}" for k in range(times) for one in CORPUS]
    model = ReadoutModel.of(loaded)
    folder = Path(tempfile.mkdtemp())
    try:
        collect(instrument, texts[:48], folder=folder / "few")
        collecting = peak_above(lambda: collect(instrument, texts, folder=folder / "rows"))
        pooled = open_pooled(folder / "rows")
        chosen = list(dict.fromkeys(label for label in labels if label != "baseline"))[:2]
        tracemalloc.start()
        directions = find_directions(pooled, labels, scenarios, model, concepts=chosen, against="all")
        quality_report(pooled, labels, scenarios, directions, loaded.parts)
        judging = tracemalloc.get_traced_memory()[1] / 2**20
        size = sum(path.stat().st_size for path in (folder / "rows").iterdir()) / 2**20
    finally:
        shutil.rmtree(folder)
    return {"texts": len(texts), "collecting": collecting, "judging": judging, "files": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=104, help="of the packaged corpus, for the time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--memory", type=int, default=None, help="measure the corpus so many times over and print it as JSON")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory is not None:
        print(json.dumps(memory(options.memory)))
        return
    found = timed(options.texts, options.rounds, options.batch)
    peaks: list[list[dict[str, Any]]] = [
        [in_own_process(sys.executable, __file__, "--memory", str(times)) for _ in range(2)] for times in (1, 10)
    ]
    through = {name: [1 / ratio for ratio in found[name]] for name in ("folder", "memory")}
    text = "\n".join(
        [
            "## Concepts: collecting activations",
            "",
            f"Machine: {machine(1)}. Demo model, float32, {options.texts} texts of the packaged corpus in batches of {options.batch}, all 30 layers with heads; "
            f"{options.rounds} rounds in turn with the plain forward of the same batches ({statistics.median(found['base']):.1f} s).",
            "",
            "| | throughput over the plain forward's (target 0.9) |",
            "|---|---|",
            f"| into a folder | {cell(through['folder'])} |",
            f"| into memory | {cell(through['memory'])} |",
            "",
            "Memory as texts become more (random model of the demo model's width, two layers; collecting: resident memory above the loaded model; judging: "
            "directions and quality report with heads, two concepts against all other texts, 1000 permutations, what Python and NumPy allocated):",
            "",
            "| texts | activations in files, MB | collecting, MB | judging, MB |",
            "|---|---|---|---|",
            *(
                f"| {p['texts']} | {p['files']:.0f} | {min(p['collecting'], q['collecting']):.0f} to {max(p['collecting'], q['collecting']):.0f} | "
                f"{max(p['judging'], q['judging']):.0f} |"
                for p, q in peaks
            ),
            "",
            "Collecting: two processes each; the allocator's share differs by more than the rows of ten times the texts would need, so the proof that no row and "
            "no tensor is kept is a unit test (`tests/unit/concepts/test_streaming.py`). Judging grows by the drawn labels (1001 bytes a text, held up to four "
            "times) and by 200 draws of scenarios' weights (1.6 kB a text).",
        ]
    )
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
