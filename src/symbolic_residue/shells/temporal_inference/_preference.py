"""Which word a model prefers after a pair of events, and which heads that preference needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from symbolic_residue.instrument import Instrument
from symbolic_residue.shells._confirm import confirm_heads, head_means, PairRuns, SMALLEST
from symbolic_residue.shells._rows import LastRows
from symbolic_residue.shells.temporal_inference._heads import HeadBehaviours
from symbolic_residue.shells.temporal_inference._observe import gap_preferences, preferences_frame
from symbolic_residue.shells.temporal_inference._pairs import PairPrompt
from symbolic_residue.shells.temporal_inference._residue import Asked
from symbolic_residue.stats import bootstrap_mean

__all__ = ["pair_frames", "pair_tests"]


def pair_frames(
    instrument: Instrument,
    tokenizer: Any,
    asked: Asked,
    gaps: Sequence[int],
    rows_of: Callable[[Sequence[PairPrompt]], LastRows],
) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """Table ``preferences``, and the curve over gaps where there are any.

    Args:
        instrument, tokenizer: the model's.
        asked: what was asked, with its pair.
        gaps: positions put between story and question; none where the model does not look at positions.
        rows_of: the cached last rows of prompts.
    """
    found, sides = [], (("pair", asked.prompts), ("neutral", asked.neutral))
    for side, prompts in sides:
        rows = rows_of(prompts)
        logits = torch.cat([trace["logits"][:, -1].double().cpu() for trace in rows.run()])
        log_odds = np.array([float(row[p.right] - row[p.wrong]) for row, p in zip(logits, prompts, strict=True)])
        found.append(preferences_frame(prompts, log_odds, side))
    for gap in gaps:
        for side, prompts in sides:
            found.append(preferences_frame(prompts, gap_preferences(instrument, tokenizer, prompts, gap), side, gap))
    frame = pl.concat(found)
    if not gaps:
        return frame, []
    rows = []
    for side, series in (("pair", "story with an order"), ("neutral", "control: no order")):
        for gap in (0, *gaps):
            e = bootstrap_mean(
                frame.filter((pl.col("side") == side) & (pl.col("gap") == gap))
                .group_by("wording")
                .agg(pl.col("log_odds").mean())["log_odds"]
                .to_numpy(),
                seed=asked.seed,
            )
            row = {
                "curve": "preference for the right word",
                "series": series,
                "x": float(gap),
                "x_unit": "positions between story and question",
            }
            rows.append({**row, "value": e.value, "low": e.low, "high": e.high, "n": e.n, "unit": "nats"})
    return frame, [pl.DataFrame(rows).with_columns(pl.col("low", "high").fill_nan(None))]


def pair_tests(
    instrument: Instrument, asked: Asked, heads: HeadBehaviours, rows_of: Callable[[Sequence[PairPrompt]], LastRows]
) -> pl.DataFrame:
    """Table ``head_tests`` of the same heads ablated at the pair's last row."""
    last, neutral = rows_of(asked.prompts), rows_of(asked.neutral)
    runs = PairRuns(instrument, last.prompts, [(p.right, p.wrong) for p in asked.prompts], rows=last)
    means, _ = head_means(instrument, neutral.prompts, rows=neutral)
    # The direct part of each head is not asked here: an effect of either sign counts.
    first = confirm_heads(
        runs,
        heads.chosen,
        heads.drawn,
        means=means,
        contribution=np.zeros(len(heads.chosen)),
        seed=asked.seed,
        rng=np.random.default_rng(asked.seed),
        clusters=[f"{p.wording}" for p in asked.prompts],
    )
    n = len({p.wording for p in asked.prompts})
    limit = first.random_effect if np.isfinite(first.random_effect) else None
    rows = []
    for t, name in zip(first.tests, heads.behaviour, strict=True):
        ok = bool(t.q <= 0.05 and limit is not None and abs(t.ablation) > max(limit, SMALLEST) and t.specificity <= 0.05)
        said = ok if n >= 6 and limit is not None else None
        numbers = (t.ablation, t.low, t.high, n, "nats", limit, first.random_n, t.p, t.q)
        rows.append((t.layer, t.head, f"pair: {name}", *numbers, said))
    return pl.DataFrame(rows, schema=heads.tests.schema, orient="row")
