"""What falls with distance: curves with their controls, and the fits to them.

1. *Memory* at a distance is ``ln P(answer | fact) − ln P(answer | control)``, nats, mean over fields, for each draw of the padding; the control states another
   fact of the type, or none. It is what stating the fact is worth; a guess is worth nothing.
2. Intervals are over draws of padding. Without distance there is one text and no interval.
3. *positions only* is the text without padding, its tail's positions shifted by the distance: one text, no interval.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.shells.memtrace._fit import fit_decay, fit_frame
from symbolic_residue.shells.memtrace._observe import NO_TEXT, score
from symbolic_residue.shells.memtrace._residue import Asked
from symbolic_residue.stats import bootstrap_mean

__all__ = ["MEMORY", "PROBABILITY", "curve_frame", "decay_fits", "memory", "peak", "share"]

Array = NDArray[np.float64]
MEMORY = "memory"
PROBABILITY = "log-probability of the answer"
SHARE = "answer's share of its type"
SEEN = "attention to the fact"


def memory(measures: pl.DataFrame, padding: str, distance: int) -> Array:
    """Memory of each draw, nats; one value without distance."""
    gain = score(measures, "fact", padding, distance, "answer") - score(measures, "control", padding, distance, "answer")
    return gain.mean(1)


def peak(measures: pl.DataFrame, asked: Asked) -> tuple[int, Array]:
    """The distance up to the judged one with the largest mean memory (the shortest of equals), judged kind of padding, and its draws' memory."""
    found = {d: memory(measures, asked.paddings[0], d) for d in asked.distances if d <= asked.distance}
    best = max(found, key=lambda d: (float(found[d].mean()), -d))
    return best, found[best]


def share(measures: pl.DataFrame, side: str, padding: str, distance: int) -> Array:
    """``[draw, field]``: P(answer) over P(answer) + P(foils)."""
    p = np.exp(score(measures, side, padding, distance, "answer"))
    return p / np.maximum(p + score(measures, side, padding, distance, "foils"), 1e-300)


def _line(curve: str, series: str, x: int, values: Array, unit: str, seed: int, x_unit: str = "tokens") -> dict[str, Any]:
    found = bootstrap_mean(values, seed=seed) if len(values) > 1 else None
    return {
        "curve": curve,
        "series": series,
        "x": float(x),
        "x_unit": x_unit,
        "value": float(values.mean()),
        "low": found.low if found is not None and found.has_interval else None,
        "high": found.high if found is not None and found.has_interval else None,
        "n": len(values),
        "unit": unit,
    }


def curve_frame(measures: pl.DataFrame, masses: pl.DataFrame, asked: Asked, *, shifted: bool) -> pl.DataFrame:
    """The table ``curves``; ``shifted``: whether positions were shifted without text."""
    rows = []
    kinds = [*asked.paddings, *([NO_TEXT] if shifted else [])]
    for kind in kinds:
        for d in asked.distances:
            rows.append(_line(MEMORY, kind, d, memory(measures, kind, d), "nats", asked.seed))
    for kind in kinds:
        for side in ("fact", "control"):
            name = kind if side == "fact" else f"control, {kind}"
            for d in asked.distances:
                values = score(measures, side, kind, d, "answer").mean(1)
                rows.append(_line(PROBABILITY, name, d, values, "nats", asked.seed))
                rows.append(_line(SHARE, name, d, share(measures, side, kind, d).mean(1), "share", asked.seed))
    kind = asked.paddings[0]
    for region, name in (("fact", SEEN), ("padding", f"control, {SEEN.replace('fact', 'padding')}")):
        for d in (d for d in asked.distances if d > 0):
            here = masses.filter((pl.col("padding") == kind) & (pl.col("distance") == d) & (pl.col("region") == region))
            if len(here):
                rows.append(_line(SEEN, name, d, here["mass"].to_numpy(), "attention mass", asked.seed))
    return pl.DataFrame(rows, schema_overrides={"low": pl.Float64, "high": pl.Float64})


def decay_fits(measures: pl.DataFrame, asked: Asked) -> pl.DataFrame:
    """The table ``fits``: models of the memory's fall for each kind of padding; empty with fewer than three distances."""
    rows: list[dict[str, Any]] = []
    if len(asked.distances) >= 3:
        for kind in asked.paddings:
            points = [(d, r if d else -1, y) for d in asked.distances for r, y in enumerate(memory(measures, kind, d))]
            fitted = fit_decay([p[0] for p in points], [p[2] for p in points], [p[1] for p in points], seed=asked.seed)
            rows += [{"series": kind, **row} for row in fitted]
    return fit_frame(rows)
