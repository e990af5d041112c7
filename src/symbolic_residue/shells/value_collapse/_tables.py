"""The tables of a residue: everything that one prompt's observation shows, as polars frames.

1. Candidates, refinement traces and what they show, mass moved between candidates, sensitivity to the small edits: from the observation.
2. From the prompt's own run, read at the last row: attention mass by region (the row's own key apart), statistics per head, the mean attention on every token;
   and the logit lens over the last positions.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import polars as pl

from symbolic_residue.instrument import Instrument, Trace
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import computed_by, logit_lens
from symbolic_residue.shells.value_collapse._config import ValueCollapseConfig
from symbolic_residue.shells.value_collapse._observe import Observation
from symbolic_residue.shells.value_collapse._operations import token_text
from symbolic_residue.shells.value_collapse._refine import count_returns, leader_loss, transfer, velocity
from symbolic_residue.shells.value_collapse._residue import Asked
from symbolic_residue.stats import js_divergence

__all__ = ["residue_frames"]


def residue_frames(
    instrument: Instrument,
    tokenizer: Any,
    config: ValueCollapseConfig,
    prompts: list[Prompt],
    asked: Asked,
    found: Observation,
    trace: Trace,
) -> dict[str, pl.DataFrame]:
    """Every table that is observed on one prompt: candidates, traces, refiners, transfer, sensitivity, attention, tokens, lens.

    ``trace``: the prompt's last positions and last row, from :func:`read_prompt`.
    """
    prompt, names = prompts[0], [token_text(tokenizer, t) for t in asked.candidates]
    frames = {
        "candidates": _candidates(found, names, asked.candidate_source),
        **_refinement_frames(found, names, tokenizer),
    }
    top = found.probability.argmax(-1)
    js = js_divergence(found.probability[1:], found.probability[:1])
    frames["sensitivity"] = pl.DataFrame(
        {
            "variant": list(range(1, len(prompts))),
            "kind": [kind for kind, _ in asked.variants],
            "text": [text for _, text in asked.variants],
            "js": js.tolist(),
            "top_token": [token_text(tokenizer, int(t)) for t in top[1:]],
            "top_probability": found.probability[np.arange(1, len(prompts)), top[1:]].tolist(),
            "changed": (top[1:] != top[0]).tolist(),
        },
        schema_overrides={"js": pl.Float64, "variant": pl.Int64, "changed": pl.Boolean, "top_probability": pl.Float64},
    )
    parts = instrument.parts
    table = trace.attention
    assert table is not None
    # Layers without softmax attention have no rows: a place along the table's layer axis is not a layer's number.
    index = [(place, layer, head) for place, layer in enumerate(table.layers) for head in range(parts.n_heads)]
    frames["attention"] = pl.DataFrame(
        [(layer, h, name, float(table["mass"][i, 0, h, 0, r])) for i, layer, h in index for r, name in enumerate(table.regions)],
        schema=["layer", "head", "region", "mass"],
        orient="row",
    )
    frames["readouts"] = computed_by(table, "attention", "attention_stats")
    sink = table.mass("sink")
    frames["attention_stats"] = pl.DataFrame(
        [
            (
                layer,
                h,
                *(float(table[s][i, 0, h, 0]) for s in ("entropy", "distance", "max")),
                int(table["argmax"][i, 0, h, 0]),
                float(sink[i, 0, h, 0]),
            )
            for i, layer, h in index
        ],
        schema=["layer", "head", "entropy", "distance", "max", "argmax", "sink"],
        orient="row",
    )
    attended = table["weights"][:, 0, :, 0].mean((0, 1)).tolist()
    frames["tokens"] = pl.DataFrame(
        {
            "position": list(range(len(prompt))),
            "token_id": prompt.ids,
            "token": prompt.tokens,
            "region": prompt.regions.per_token(),
            "char_start": [a for a, _ in prompt.offsets],
            "char_end": [b for _, b in prompt.offsets],
            "influence": [0.0] * len(prompt),
            "attention": attended,
        }
    )
    n = min(len(prompt), config.lens_positions)
    final = int(found.probability[0].argmax())
    lens = logit_lens(trace, parts, tokens=(final,), rows=tuple(range(-n, 0)))
    frames["lens"] = pl.DataFrame(
        [
            (
                depth,
                len(prompt) - n + i,
                token_text(tokenizer, int(lens.top[depth, 0, i])),
                float(lens.top_probability[depth, 0, i]),
                float(lens.entropy[depth, 0, i]),
                float(lens.log_probability[depth, 0, i, 0].exp()),
            )
            for depth in range(parts.n_layers + 1)
            for i in range(n)
        ],
        schema=["layer", "position", "top_token", "top_probability", "entropy", "answer_probability"],
        orient="row",
    )
    return frames


def _candidates(found: Observation, names: list[str], source: str) -> pl.DataFrame:
    p = found.candidate_probability[0]
    return pl.DataFrame(
        {
            "rank": list(range(1, len(names) + 1)),
            "token_id": found.candidates,
            "token": names,
            "probability": p.tolist(),
            "logit": found.logits[0].tolist(),
            "source": [source] * len(names),
        }
    )


def _refinement_frames(found: Observation, names: list[str], tokenizer: Any) -> dict[str, pl.DataFrame]:
    traces, refiners, moved = [], [], []
    for name, refinement in found.refinements.items():
        share = refinement.share
        for v, step, c in np.argwhere(~np.isnan(share)).tolist():
            traces.append((name, v, step, found.candidates[c], names[c], refinement.probability[v, step, c], share[v, step, c]))
        for v in range(share.shape[0]):
            kept = refinement.trace(v)
            changes = refinement.l1[v][~np.isnan(refinement.l1[v])]
            slope = velocity(refinement.l1[v])
            refiners.append(
                {
                    "refiner": name,
                    "variant": v,
                    "steps": len(kept),
                    "converged": bool(refinement.converged[v]),
                    "returns": count_returns(kept),
                    "leader": names[int(kept[0].argmax())],
                    "leader_loss": leader_loss(kept),
                    "velocity": None if np.isnan(slope) else slope,
                    "final_l1": float(changes[-1]) if len(changes) else None,
                    "appended": tokenizer.decode(list(refinement.appended)) if v == 0 else "",
                }
            )
        mass = transfer(refinement.trace(0))
        moved += [(name, names[i], names[j], float(mass[i, j])) for i, j in permutations(range(len(names)), 2)]
    return {
        "traces": pl.DataFrame(
            traces, schema=["refiner", "variant", "step", "token_id", "token", "probability", "share"], orient="row"
        ),
        "refiners": pl.DataFrame(refiners, schema_overrides={"velocity": pl.Float64, "final_l1": pl.Float64}),
        "transfer": pl.DataFrame(moved, schema=["refiner", "source", "target", "mass"], orient="row"),
    }
