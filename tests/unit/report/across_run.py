"""A run folder with one item of every measure across shells, made of seeded numbers; nothing of it is a measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from symbolic_residue.store import RunFolder, TABLES

LAYERS, HEADS, N = 6, 4, 7


def across_tables() -> dict[str, pl.DataFrame]:
    """Tables of the item ``together``: seven pairs, six layers of four heads, a head that differs and one that silences."""
    rng = np.random.default_rng(0)
    measured = [
        ("silence", True, N, "silent prompts", "the matched controls", "What silence is.", "Silenced most by head 5.2.", None),
        ("ghosts", True, N, "silent prompts", None, "What ghosts are.", None, "no silent prompt has a control."),
        *(
            (name, True, N, "pairs", "the controls", f"What {name} is.", "Found.", None)
            for name in ("graphs", "disruption", "errors", "cross-run", "attention")
        ),
    ]
    cells = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    disruption = [
        (layer, head, metric, 0.5, 0.5 - d, d, d - 0.01, d + 0.01, 2.0, q, q, N, "share")
        for metric in ("sink mass", "entropy")
        for layer, head in cells
        for d, q in [(0.3, 0.01) if (metric, layer, head) == ("entropy", 3, 1) else (float(rng.normal(0, 0.02)), 0.8)]
    ]
    overruled = [("head", 5, 2, 3.0, 2.5, 3.5, N, "silences", -2.0, -2.5, -1.5, 0.02, True, 0.1, 0.02)]
    overruled += [
        ("mlp", layer, -1, -0.2 * layer, None, None, N, "pushes content", None, None, None, None, None, None, None)
        for layer in range(LAYERS)
    ]
    curves = [
        (curve, series, float(layer), "layer", 0.1 * layer, 0.0, 0.1 * layer + 0.1, N, "nats")
        for curve in ("KL", "relative error")
        for series in ("injected", "accumulated", "control: random error")
        for layer in range(LAYERS)
    ]
    cross = [(layer, f"head {head}", 1.0, 1.5, 0.5, 0.1, 0.9, 1.1, 0.03, 0.2, N) for layer, head in cells]
    rows = [(3, 1, q, k, 1.0 / (q + 1)) for q in range(N) for k in range(q + 1)]
    graphs = [
        (
            f"p{i}",
            "flatness",
            "collapse",
            "a − b",
            2.0 + i,
            -1.0,
            "difference",
            i < 2,
            5,
            5,
            3,
            1e-7,
            *_ghosts(i),
            f"graphs/value-collapse/0{i + 1}",
            None,
        )
        for i in range(3)
    ]
    graphs.append(("p3", "flatness", "wrong", "c − d", 9.0, *(None,) * 3, 900, *(None,) * 8, "The prompt has <900> tokens."))
    parts = [
        (f"p{i}", "collapse", split, part, value + i * (part == "x"), abs(value) / 3, control, 0.5)
        for i in range(3)
        for split in ("span", "place", "kind", "layer")
        for part, value, control in (("x", 1.5, -0.5), ("y", 0.5, -0.5))
    ]
    units = [
        (f"p{i}", "collapse", side, 1, 3, 4, " w", neuron, 1.0, effect, None, "a b")
        for i in range(3)
        for side, neuron, effect in (("failing", 7, 1.0 + i), ("failing", 90 + i, 3.0), ("control", 7 if i == 0 else 8, 1.0))
    ]
    tokens = [(i, i, f" w{i}", "sink" if i == 0 else "text", i, i + 1, None, None) for i in range(N)]
    made: dict[str, list[Any]] = {
        "across": measured,
        "disruption": disruption,
        "overruled": overruled,
        "endings": [("prompt", "<end>", " a", 1.5, 0.5, 0.1, 1, True), ("control", "<end>", " b", -2.0, 0.01, 0.5, 9, False)],
        "curves": curves,
        "failure_graphs": graphs,
        "failure_parts": parts,
        "failure_units": units,
        "cross_run": cross,
        "attention_rows": rows,
        "ov_keys": [(3, 1, k, " a − b", 0.1 * k) for k in range(N)],
        "ov_heads": [(3, 1, " a − b", 2.1, 4.0)],
        "tokens": tokens,
        "items": [("seven prompts", None, False, N, 0, "done", None, "Silenced most by head 5.2.")],
    }
    return {
        name: pl.DataFrame(rows, schema={k: v for k, v in TABLES[name].items() if k != "item"}, orient="row")
        for name, rows in made.items()
    }


def _ghosts(i: int) -> tuple[float, float, float, float]:
    return (0.5 + 0.1 * i, 0.95, 0.4, 0.94)


def write_across(folder: Path, *, before: int = 1) -> Path:
    """The run: ``before`` items of single prompts, then ``together``."""
    with RunFolder.create(
        folder, kind="silence", command=["residue"], provenance={"model": "m"}, config={}, planned=before + 1
    ) as run:
        tables = across_tables()
        single = {"items": tables["items"], "across": tables["across"].head(1).with_columns(pooled=pl.lit(False), n=pl.lit(1))}
        for i in range(before):
            run.write_item(f"p{i}", single)
        run.write_item("together", tables)
    return folder
