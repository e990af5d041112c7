"""What the analysis of a contrast costs on 100,000 rows of 32 layers of 32 heads, from the records alone.

1. Two models' masses are drawn, ``[row, layer, head, region]`` in float32: 10,000 examples (200 questions of 50) of one event row, five C1, two C2 and two C5 rows; a rise
   is planted in one head of three layers of the tuned model.
2. Deltas, gates, differences, verdict and head selection are timed once each, over layers and over heads (1024 columns), with the peak memory above what was
   resident before the call.
3. The long table is timed too, with heads averaged (a record for each row, layer and region): by head it would have some hundred million records a region.
4. What was planted is looked for: a fast analysis that does not find it would be worth nothing.

Run: python benchmarks/contrast_analysis.py [--examples 10000] [--questions 200] [--write]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from _common import machine, peak_above, write_section

from symbolic_residue.contrast import deltas, dense_deltas, diff_of_diffs, gates, select_heads, verdict

REGIONS = ("system", "user", "answer")
STRATA = ("event", *["C1"] * 5, *["C2"] * 2, *["C5"] * 2)
LAYERS = HEADS = 32
PLANTED = {10: 3, 11: 7, 12: 1}
"""Layer → the head that rises."""


def draw(examples: int, seed: int, rise: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    masses = rng.random((examples * len(STRATA), LAYERS, HEADS, len(REGIONS)), dtype=np.float32)
    masses *= 0.2
    for layer, head in PLANTED.items():
        masses[:: len(STRATA), layer, head, 0] += rise
    return masses


def rows_of(examples: int, questions: int) -> pl.DataFrame:
    at = np.repeat(np.arange(examples), len(STRATA))
    return pl.DataFrame(
        {
            "example": pl.Series(at).cast(pl.String),
            "cluster": pl.Series(at % questions).cast(pl.String),
            "condition": "on",
            "stratum": list(STRATA) * examples,
            "query_offset": -1,
            "row": np.tile(np.arange(len(STRATA)), examples),
        }
    )


def long_table(masses: np.ndarray, rows: pl.DataFrame) -> pl.DataFrame:
    mean = masses.mean(axis=2, dtype=np.float64)
    row, layer, region = np.indices(mean.shape).reshape(3, -1)
    return rows[row].with_columns(
        model=pl.lit("tuned"),
        segmentation=pl.lit("full"),
        layer=pl.Series(layer),
        region=pl.Series(REGIONS)[region],
        mass=mean.reshape(-1),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--write", action="store_true", help="put the result into RESULTS.md")
    options = parser.parse_args()
    rows = rows_of(options.examples, options.questions)
    tuned, base = draw(options.examples, 0, 0.05), draw(options.examples, 1, 0.0)
    done: dict[str, Any] = {}
    lines: list[str] = []

    def timed(name: str, key: str, call: Callable[[], Any]) -> None:
        def once() -> None:
            start = time.perf_counter()
            done[key] = call()
            done[key + " s"] = time.perf_counter() - start

        peak = peak_above(once)
        lines.append(f"| {name} | {done[key + ' s']:.1f} | {peak / 1000:.1f} |")
        print(lines[-1], flush=True)

    for heads in (False, True):
        what = "heads (1024 columns)" if heads else "layers (32 columns)"
        timed(
            f"deltas of one model from arrays, {what}",
            "t",
            partial(dense_deltas, tuned, rows, model="tuned", regions=REGIONS, heads=heads),
        )
        done["b"] = dense_deltas(base, rows, model="base", regions=REGIONS, heads=heads)
        timed(f"gates of one model, {what}", "gt", partial(gates, done["t"], heads=heads))
        timed(f"tuned − base, {what}", "d", partial(diff_of_diffs, done["t"], done["b"], heads=heads))
        done["gb"] = gates(done["b"], heads=heads)
        timed(f"verdict, {what}", "v", lambda: verdict(done["gt"], done["gb"], done["d"]))
        found = done["v"].filter((pl.col("region") == "system") & (pl.col("outcome") == "induced"))
        if heads:
            done["induced heads"] = sorted((int(row["layers"]), row["head"]) for row in found.iter_rows(named=True))
            timed("heads chosen on one half, tested on the other", "s", lambda: select_heads(done["t"], done["b"]))
        else:
            done["induced layers"] = found["layers"].to_list()
    size = tuned.nbytes / 1e9
    del base
    for key in ("t", "b", "d", "gt", "gb"):
        done.pop(key)
    table = long_table(tuned, rows)
    del tuned
    timed("the long table, heads averaged: deltas", "t", lambda: deltas(table))
    timed("the long table, heads averaged: gates of one model", "gt", lambda: gates(done["t"]))
    text = "\n".join(
        [
            "## Contrast: what the analysis costs",
            "",
            f"Machine: {machine()}. {options.examples:,} examples of {options.questions} questions, {len(rows):,} rows × {LAYERS} layers × {HEADS} heads × {len(REGIONS)} regions "
            f"({size:.1f} GB of float32 a model), one segmentation, one offset; 2000 flips. Seconds of one call, wall clock; memory above what was resident before it. "
            f"The long table has {len(table):,} records.",
            "",
            "| | s | GB |",
            "|---|---|---|",
            *lines,
            "",
            f"Planted: {', '.join(f'layer {a} head {b}' for a, b in PLANTED.items())}. Induced, of layers: {', '.join(done['induced layers']) or 'none'}; of heads: "
            f"{', '.join(f'layer {a} head {b}' for a, b in done['induced heads']) or 'none'}.",
        ]
    )
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
