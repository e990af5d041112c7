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


_RATIOS = (("all keys", 1.02), ("prompt excluded", 1.04), ("sink excluded", 0.98), ("distance matched", 1.01))


def measured_tables(*, n: int = 12, n_layers: int = 3, n_heads: int = 2) -> dict[str, pl.DataFrame]:
    """Tables of the item ``all prompts``, numbers chosen by hand."""

    def verdict(question: str, quantity: str, value: float | None, outcome: str, **more: object) -> dict[str, object]:
        row: dict[str, object] = dict.fromkeys(("p", "margin", "control", "control_value", "control_low", "control_high", "note"))
        row |= {"arm": "shared", "reference": "visible", "form": "sink excluded", "unit": "ratio"}
        row |= {"question": question, "quantity": quantity, "outcome": outcome, "value": value, "n": n if value is not None else 0}
        row |= {"low": None if value is None else value * 0.9, "high": None if value is None else value * 1.1}
        return row | more

    control = {"control": "shared against offset 0.5", "control_value": 0.875, "control_low": 0.75, "control_high": 0.96875}
    moved = {"arm": "moved", "reference": "unique"}
    rows = [verdict("shared position", "equal distance", value, "undecided", form=form, **moved) for form, value in _RATIOS]
    rows += [
        verdict("shared position", "heads: local", 1.5, "undecided", note="3 heads.", **moved),
        verdict(
            "shared position", "equal distance, change before the softmax", 0.0625, "undecided", form="score", unit="nats", **moved
        ),
        verdict(
            "shared position", "verdict", 0.8125, "down-weighted", p=0.0078125, margin=0.05, note="Both agree.", **moved, **control
        ),
        verdict("isolation", "verdict", 1.0, "no effect", margin=0.05),
        verdict("competition", "verdict", None, "undecided", reference="competition null", note="The drop is too small."),
        verdict("sink", "published, with sink", 0.5, "measured", reference="other keys", form="with sink", note="Misleads."),
        verdict("sink", "published, without sink", 1.25, "measured", reference="other keys", form="without sink", note="Misleads."),
        verdict("sink", "verdict", 0.4, "down-weighted", reference="without sink", form="with sink"),
        verdict("pruning", "AUC of attention", 0.75, "measured", unit="AUC", reference=""),
        verdict("pruning", "AUC of probability", 0.625, "measured", unit="AUC", reference=""),
        verdict("pruning", "verdict", 0.125, "measured", unit="AUC difference", reference=""),
    ]
    layers = [
        {"question": "shared position", "arm": "moved", "reference": "unique", "form": "sink excluded", "layer": i, "value": 0.8 + 0.1 * i,
         "low": 0.7 + 0.1 * i, "high": 0.9 + 0.1 * i, "p": 0.01 * (i + 1), "p_adjusted": 0.04 * (i + 1), "n": n, "outcome": "undecided"}
        for i in range(n_layers)
    ]  # fmt: skip
    heads = [
        {"layer": i, "head": h, "sink": 0.5, "local": 0.25, "distance": 3.0, "entropy_share": 0.5, "induction": 0.1, "control": 0.05,
         "kind": "sink" if h else "local", "n": n}
        for i in range(n_layers) for h in range(n_heads)
    ]  # fmt: skip
    curves = [
        {"curve": curve, "series": series, "x": x, "x_unit": "nats", "value": 0.5 + x / 10, "low": 0.4 + x / 10, "high": 0.6 + x / 10, "n": n, "unit": unit}
        for curve, series, unit in (("parallel offset", "all keys", "ratio"), ("parallel bias", "member against alone", "ratio"),
                                    ("parallel bias", "kl", "nats"), ("parallel scaling", "drop", "ratio"), ("parallel scaling", "total", "share"),
                                    *(("parallel entropy", arm, "share") for arm in ("standard", "shared", "offset 0.001", "causal", "unique", "visible", "unrelated", "offset 0.5")))
        for x in (0.0, 1.0, 2.0)
    ]  # fmt: skip
    frames = {"parallel_verdicts": rows, "parallel_layers": layers, "parallel_heads": heads, "curves": curves}
    return {name: pl.DataFrame(held, infer_schema_length=None) for name, held in frames.items()}


def prompt_tables(index: int, *, nasty: bool = False) -> dict[str, pl.DataFrame]:
    """Tables of one prompt's measurement that the page reads, beside its tree."""
    intra = [
        {"mode": mode, "size": size, "layer": 0, "query_rank": q, "key_rank": k, "value": 0.1 * (q + 1) * (1 if k <= q else 0), "n": 2}
        for mode in ("visible", "causal") for size in (2, 3) for q in range(size) for k in range(size)
    ]  # fmt: skip
    trace = [
        {"arm": arm, "step": 1, "rank": rank, "token": NASTY if nasty else " sea", "layer": layer, "received": 0.125 * (rank + 1) + index,
         "value_norm": 2.0, "write": 0.5, "lens": -4.0 - layer}
        for arm in ("shared", "unique") for rank in (0, 1) for layer in range(3)
    ]  # fmt: skip
    return {"parallel_intra": pl.DataFrame(intra), "parallel_trace": pl.DataFrame(trace)}


def write_measure(folder: Path, *, prompts: int = 3, failed: int = 0, nasty: bool = False, judged: bool = True) -> Path:
    """Write a run of kind ``parallel-measure``."""

    def row(prompt: str, status: str = "done", error: str | None = None, summary: str | None = None) -> pl.DataFrame:
        held = {"prompt": prompt, "text": None, "chat": False, "n_tokens": None, "seed": 0, "status": status, "error": error, "summary": summary}  # fmt: skip
        return pl.DataFrame([held])

    provenance = {"model": f"SmolLM2 {SCRIPT}" if nasty else "SmolLM2-135M-Instruct", "source": "wheel"}
    with RunFolder.create(
        folder,
        kind="parallel-measure",
        command=["residue", "parallel", "measure"],
        provenance=provenance,
        config={"measure": {"margin": 0.05}},
        planned=prompts + failed + 1,
    ) as run:
        for index in range(prompts):
            name = f"{SCRIPT}/{index}" if nasty else f"story-{index:02d}"
            tables = {**tree_tables(make_tree(index, n_steps=6, nasty=nasty)), **prompt_tables(index, nasty=nasty)}
            run.write_item(name, {"items": row(NASTY if nasty else "The cat sat on", summary="6 steps."), **tables})
        for index in range(failed):
            run.write_item(f"bad{index}", {"items": row("x", "failed", f"too long {SCRIPT}")})
        if judged:
            run.write_item("all prompts", {"items": row("all prompts", summary=f"{prompts} prompts."), **measured_tables()})
    return folder
