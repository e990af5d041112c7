"""A run folder of token trees as the store writes it, made of seeded numbers, with strings that bite. Nothing of it is a measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from report.synthetic_run import NASTY, SCRIPT

from symbolic_residue.parallel import Ending, PathToken, StepStats, Tree, tree_tables, TreeStep
from symbolic_residue.store import RunFolder

WORDS = (" a", " cliff", ",", " the", " sea", " of", " glass", ".", " The", " old", " ferry", "\n", " came", " by", " night")


def make_tree(seed: int = 0, *, n_steps: int = 30, nasty: bool = False) -> Tree:
    """A tree with single tokens and sets, one of them with an ending, one with pruned tokens."""
    rng = np.random.default_rng(seed)
    words = (SCRIPT, NASTY, "\u202eevil", *WORDS[:6]) if nasty else WORDS
    steps, slot, prompt = [], 12, tuple(range(12))
    for number in range(n_steps):
        size = int(rng.integers(1, 5)) if number else 3
        p = np.sort(rng.dirichlet([1.0] * (size + 1)))[::-1][:size]
        tokens = []
        for rank in range(size):
            gone = number + 2 if rank and number % 5 == 0 else None
            score = float(rng.random()) if number % 5 == 0 else None
            text = words[int(rng.integers(len(words)))] if not nasty or number else words[rank]
            tokens.append(PathToken(100 + number * 7 + rank, text, float(p[rank]), float(12 + number), slot + rank, gone, score))
        slot += size
        endings = (Ending(2, 0.125),) if number == 4 else ()
        stats = StepStats(0.1, size, float(p.sum()), float(rng.random() * 4), float(rng.random()), )  # fmt: skip
        steps.append(TreeStep(number, tuple(tokens), stats, endings))
    return Tree(prompt, "The cat sat on", tuple(steps), "steps", {"threshold": "0.1"})


def write_trees(
    folder: Path, *, items: int = 1, failed: int = 0, nasty: bool = False, n_steps: int = 30, captured: bool = False
) -> Path:
    """Write a run of kind ``parallel``."""
    provenance = {"model": f"SmolLM2 {SCRIPT}" if nasty else "SmolLM2-135M-Instruct", "source": "wheel"}
    with RunFolder.create(
        folder, kind="parallel", command=["residue", "parallel", "generate"], provenance=provenance, config={"threshold": "0.1"}
    ) as run:
        for index in range(items):
            name = f"{SCRIPT}/{index}" if nasty else f"p{index:03d}"
            prompt = NASTY if nasty else "The cat sat on"
            row = {"prompt": prompt, "text": prompt, "chat": False, "n_tokens": 12, "seed": 0, "status": "done", "error": None, "summary": "30 steps."}  # fmt: skip
            tables = {"items": pl.DataFrame([row]), **tree_tables(make_tree(index, nasty=nasty, n_steps=n_steps))}
            if captured:
                keys = {"step": [0, 1], "physical": [0, 1], "cache": [0, 1], "set_step": [-1, 0], "rank": [0, 0], "position": [0.0, 12.0], "token": [5, 100], "text": ["The", " a"]}  # fmt: skip
                tables["parallel_keys"] = pl.DataFrame(keys)
            run.write_item(name, tables)
        for index in range(failed):
            row = {"prompt": "x", "text": None, "chat": False, "n_tokens": None, "seed": 0, "status": "failed", "error": f"too long {SCRIPT}", "summary": None}  # fmt: skip
            run.write_item(f"bad{index}", {"items": pl.DataFrame([row])})
    return folder
