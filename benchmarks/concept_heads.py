"""What the permutation nulls of the per-head decomposition cost.

1. Random activations of the demo model's shape (30 layers, 9 heads of 64, width 576): 24 scenarios, each told neutrally and under 12 concepts.
2. Every concept is decomposed over all layers with 1000 permutations of its labels: norms, selectivity, concentration and direct, observed and permuted, and
   family-wise p values. Wall clock of all concepts; peak memory above what the activations take.

Run: python benchmarks/concept_heads.py [--write] [--draws 1000] (one thread)
"""

from __future__ import annotations

import argparse
import os
import time
from types import SimpleNamespace
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import numpy as np
import torch
from _common import machine, peak_above, write_section

from symbolic_residue.concepts import decompose_heads, find_directions, Pooled, ReadoutModel

LAYERS, HEADS, D_HEAD, D_MODEL, CONCEPTS, SCENARIOS = 30, 9, 64, 576, 12, 24


def activations() -> tuple[Pooled, list[str], list[str | None]]:
    rng = np.random.default_rng(0)
    names = ["baseline", *(f"concept {i}" for i in range(CONCEPTS))]
    labels = [name for _ in range(SCENARIOS) for name in names]
    scenarios: list[str | None] = [f"{i:02}" for i in range(SCENARIOS) for _ in names]
    n = len(labels)
    resid = {i: rng.normal(size=(n, D_MODEL)).astype(np.float32) for i in range(LAYERS)}
    heads = {i: rng.normal(size=(n, HEADS, D_HEAD)).astype(np.float32) for i in range(LAYERS)}
    return Pooled(resid, heads, np.full(n, 60), "last", None, (), ()), labels, scenarios


def model_parts() -> Any:
    generator = torch.Generator().manual_seed(0)
    layers = []
    for _ in range(LAYERS):
        w_o = torch.randn(HEADS, D_HEAD, D_MODEL, generator=generator)
        layers.append(SimpleNamespace(w_o=w_o.__getitem__, n_heads=HEADS, attn_scale=1.0, post_attn_norm=None, qkv_layout="split"))
    return SimpleNamespace(layers=layers, n_heads=HEADS, n_kv_heads=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    pooled, labels, scenarios = activations()
    parts = model_parts()
    model = ReadoutModel("random", "0" * 64, None, "float32", D_MODEL, LAYERS)
    start = time.perf_counter()
    directions = find_directions(pooled, labels, scenarios, model)
    found = time.perf_counter() - start
    seconds, smallest = [], []

    def decompose() -> None:
        for concept in directions.concepts:
            begin = time.perf_counter()
            result = decompose_heads(pooled, labels, scenarios, concept, parts, directions, n_draws=options.draws)
            seconds.append(time.perf_counter() - begin)
            smallest.append(min(float(layer.p_model.min()) for layer in result.layers.values()))

    peak = peak_above(decompose)
    text = "\n".join(
        [
            "## Concepts: permutation nulls of the heads",
            "",
            f"Machine: {machine(1)}. {CONCEPTS} concepts × {LAYERS} layers × {HEADS} heads × {options.draws} permutations, "
            f"{SCENARIOS} pairs a concept, random activations of the demo model's shape.",
            "",
            f"All concepts: {sum(seconds):.1f} s (target 60), {min(seconds):.2f} to {max(seconds):.2f} s a concept; {peak:.0f} MB above the activations. "
            f"Directions by difference of means: {found:.2f} s.",
            "",
            f"Random labels: the smallest family-wise p over a concept's {LAYERS * HEADS} heads is at most .05 in {sum(p <= 0.05 for p in smallest)} of "
            f"{CONCEPTS} concepts.",
        ]
    )
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
