"""What a shift does to the states and the words of the continuation."""

from __future__ import annotations

from typing import Any

import polars as pl
import torch

from symbolic_residue.shells.temporal_inference._config import TemporalInferenceConfig
from symbolic_residue.shells.temporal_inference._residue import Asked
from symbolic_residue.shells.temporal_inference._runs import Tail, TextRuns
from symbolic_residue.shells.temporal_inference._shift import make_tail

__all__ = ["state_frames"]


def state_frames(
    runs: TextRuns, tokenizer: Any, n_layers: int, cut: int, asked: Asked, config: TemporalInferenceConfig
) -> dict[str, pl.DataFrame]:
    """REMEMBER at the last place: how far the continuation's residual states move under the asked shift; and PREDICT there."""
    window = config.window
    points = [f"resid_post.{i}" for i in range(n_layers)]
    tail = make_tail(runs.ids, cut, asked.distance, asked.direction, asked.mode, window + 1)
    still = make_tail(runs.ids, cut, 0, "forward", "tokens", window + 1)
    plain, _ = runs.states(still, points, window + 2)
    moved, found = runs.states(tail, points, window + 2)
    rows = []
    for layer, point in enumerate(points):
        far = (1 - torch.nn.functional.cosine_similarity(plain[point][1:], moved[point][1:], dim=-1)).tolist()
        rows += [("state change (1 − cosine)", layer, cut + i, value, "") for i, value in enumerate(far)]
    maps = pl.DataFrame(
        rows,
        schema={"map": pl.String, "layer": pl.Int64, "position": pl.Int64, "value": pl.Float64, "unit": pl.String},
        orient="row",
    )
    logits = found[0]  # the row before the continuation
    p = torch.softmax(logits, -1)
    best = p.topk(min(config.top_k, len(p)))
    candidates = [
        (rank, int(i), tokenizer.decode([int(i)]), float(v), float(logits[int(i)]), "shifted")
        for rank, (v, i) in enumerate(zip(best.values, best.indices, strict=True))
    ]
    frames = {"maps": maps}
    frames["candidates"] = pl.DataFrame(
        candidates, schema=["rank", "token_id", "token", "probability", "logit", "source"], orient="row"
    )
    if config.steps:
        k = len(tail.ids) - window - 1
        before = Tail(tail.start, tail.ids[:k], tail.positions[:k], 0)
        start = Tail(cut - 1, (runs.ids[cut - 1],), (cut - 1,), 0)
        true = runs.ids[cut : cut + config.steps]
        texts = [
            ("shifted", runs.greedy(before, config.steps)),
            ("unshifted", runs.greedy(start, config.steps)),
            ("true", true),
        ]
        frames["changes"] = pl.DataFrame(
            [(i, "continuation", f"{name}: {tokenizer.decode(ids)}", None, "greedy", "") for i, (name, ids) in enumerate(texts)],
            schema={
                "rank": pl.Int64,
                "kind": pl.String,
                "description": pl.String,
                "needed": pl.Float64,
                "effect": pl.String,
                "unit": pl.String,
            },
            orient="row",
        )
    return frames
