"""What one run observes: shifts of a text and of the reference text, and the preferences of a pair; as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.instrument import collate, Instrument, Positions
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.shells._rows import in_pieces
from symbolic_residue.shells.temporal_inference._config import DIRECTIONS, MODES, TemporalInferenceConfig
from symbolic_residue.shells.temporal_inference._pairs import PairPrompt
from symbolic_residue.shells.temporal_inference._residue import Asked
from symbolic_residue.shells.temporal_inference._runs import TextRuns
from symbolic_residue.shells.temporal_inference._shift import coherence, fitting
from symbolic_residue.stats import bootstrap_columns, bootstrap_mean

__all__ = ["SHIFTS", "coherence_curves", "gap_preferences", "preferences_frame", "shifts_frame", "token_frame"]

Array = NDArray[np.float64]
SHIFTS = {
    "side": pl.String,
    "mode": pl.String,
    "direction": pl.String,
    "distance": pl.Int64,
    "place": pl.Int64,
    "token": pl.Int64,
    "coherence": pl.Float64,
}


def shifts_frame(runs: TextRuns, cuts: Sequence[int], asked: Asked, config: TemporalInferenceConfig, side: str) -> pl.DataFrame:
    """Table ``shifts`` of one text: the asked mode and direction at all distances; the other direction and modes at ``other_distances``.

    ``side``: ``text``, which also gets the shuffled span, or the name of a reference.
    """
    jobs: list[tuple[str, str, list[int]]] = [
        (asked.mode, asked.direction, fitting(config.distances, cuts, config, asked.distance))
    ]
    few = fitting(config.other_distances, cuts, config)
    if side == "text":
        can_jump = runs.may_jump()
        for mode in MODES:
            for direction in DIRECTIONS:
                if (mode, direction) == (asked.mode, asked.direction) or (mode != asked.mode and mode not in config.modes):
                    continue
                if mode == "tokens" or can_jump:
                    jobs.append((mode, direction, sorted({*few, asked.distance})))
        jobs.append(("shuffled", "forward", [asked.distance]))
    frames = []
    for mode, direction, distances in jobs:
        main = (mode, direction) == (asked.mode, asked.direction)
        after = [config.horizon if main and d == asked.distance else config.window for d in distances]
        found = coherence(runs, cuts, distances, direction, mode, after, seed=asked.seed)  # type: ignore[arg-type]
        for d, matrix in zip(distances, found, strict=True):
            place, token = (g.ravel() for g in np.indices(matrix.shape))
            same = {"side": side, "mode": mode, "direction": direction, "distance": d}
            frames.append(
                pl.DataFrame({"place": place, "token": token, "coherence": matrix.ravel()}).with_columns(
                    **{k: pl.lit(v) for k, v in same.items()}
                )
            )
    return pl.concat(frames).select(pl.col(name).cast(kind) for name, kind in SHIFTS.items())


def coherence_curves(shifts: pl.DataFrame, asked: Asked, config: TemporalInferenceConfig) -> pl.DataFrame:
    """Table ``curves``: coherence against distance, by direction and mode, with controls; and coherence along the continuation."""
    rows: list[dict[str, Any]] = []
    window = shifts.filter(pl.col("token") < config.window)
    mean = window.group_by("side", "mode", "direction", "distance", "place", maintain_order=True).agg(pl.col("coherence").mean())
    for (side, mode, direction, distance), part in mean.group_by("side", "mode", "direction", "distance", maintain_order=True):
        if side == "text":
            series = "control: span shuffled" if mode == "shuffled" else f"{direction}, {mode}"
        else:
            series = f"control: {side} text, {direction}, {mode}"
        e = bootstrap_mean(part["coherence"].to_numpy(), seed=asked.seed)
        row = {
            "curve": "coherence",
            "series": series,
            "x": float(distance),
            "x_unit": "tokens of shift",
            "value": e.value,
            "low": e.low,
            "high": e.high,
        }  # type: ignore[arg-type]
        rows.append({**row, "n": e.n, "unit": "nats a token"})
    rows.sort(
        key=lambda r: (r["series"].startswith("control"), r["series"] != f"{asked.direction}, {asked.mode}", r["series"], r["x"])
    )
    at = shifts.filter(
        (pl.col("mode") == asked.mode) & (pl.col("direction") == asked.direction) & (pl.col("distance") == asked.distance)
    )
    for (side,), part in at.group_by("side", maintain_order=True):
        matrix = part.sort("place", "token")["coherence"].to_numpy().reshape(-1, config.horizon)
        series = "text" if side == "text" else f"control: {side} text"
        for i, (value, low, high) in enumerate(zip(*bootstrap_columns(matrix, seed=asked.seed), strict=True)):
            row = {
                "curve": "coherence along the continuation",
                "series": series,
                "x": float(i + 1),
                "x_unit": "token of the continuation",
            }
            rows.append(
                {**row, "value": float(value), "low": float(low), "high": float(high), "n": len(matrix), "unit": "nats a token"}
            )
    schema = {**dict.fromkeys(("curve", "series"), pl.String), "x": pl.Float64, "x_unit": pl.String}
    return pl.DataFrame(
        rows, schema={**schema, **dict.fromkeys(("value", "low", "high"), pl.Float64), "n": pl.Int64, "unit": pl.String}
    ).with_columns(pl.col("low", "high").fill_nan(None))


def token_frame(prompt: Prompt) -> pl.DataFrame:
    """Table ``tokens``."""
    names = prompt.regions.names
    return pl.DataFrame(
        {
            "position": range(len(prompt)),
            "token_id": prompt.ids,
            "token": prompt.tokens,
            "region": [names[int(i)] for i in prompt.regions.labels],
            "char_start": [a for a, _ in prompt.offsets],
            "char_end": [b for _, b in prompt.offsets],
            "influence": None,
            "attention": None,
        },
        schema_overrides={"influence": pl.Float64, "attention": pl.Float64},
    )


def preferences_frame(prompts: Sequence[PairPrompt], log_odds: Array, side: str, gap: int = 0) -> pl.DataFrame:
    """Table ``preferences``: one row a prompt."""
    return pl.DataFrame(
        {
            "side": side,
            "gap": gap,
            "wording": [p.wording for p in prompts],
            "a_first": [p.a_first for p in prompts],
            "log_odds": log_odds,
        },
        schema={"side": pl.String, "gap": pl.Int64, "wording": pl.Int64, "a_first": pl.Boolean, "log_odds": pl.Float64},
    )


def gap_preferences(instrument: Instrument, tokenizer: Any, prompts: Sequence[PairPrompt], gap: int) -> Array:
    """``[prompt]`` log-odds of the right word with the question's positions ``gap`` further on than the story's; the text is the same."""
    built = [build_prompt(tokenizer, p.text) for p in prompts]
    out: list[float] = []
    first = 0
    for piece in in_pieces(built):
        batch = collate(piece)
        positions = (batch.mask.cumsum(-1) - 1).clamp_min(0)
        for i, prompt in enumerate(piece):
            text = prompts[first + i].text
            question = text.rindex(". ") + 1  # where the last sentence begins
            start = next(k for k, (a, _) in enumerate(prompt.offsets) if a >= question)
            positions[i, batch.lead[i] + start :] += gap
        logits = instrument.run(batch, edits=(Positions(positions),), keep_logits=1)["logits"][:, -1].double().cpu()
        mine = prompts[first : first + len(piece)]
        out += [float(row[p.right] - row[p.wrong]) for row, p in zip(logits, mine, strict=True)]
        first += len(piece)
    return np.array(out)
