"""One text observed: what it attends to, and what cancelling does. Everything that verdicts need, as frames.

1. SENSE once. Neglected tokens are the counted ones that are under the threshold in at least half of the layers.
2. Doses: for each threshold, CANCEL of every cell under it, beside ``draws`` random exchanges of the same cells (and as many of matched distance).
3. Single tokens: CANCEL of each neglected token in the layers where it is under the threshold. Where there are more than ``max_tokens``, those are
   taken whose hiding from the last row alone (in the same layers) moves the output most.
4. The token whose CANCEL costs the answer most gets its controls: ``draws`` other tokens, drawn at random, hidden in the same layers; and its nearest
   neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from symbolic_residue.instrument import AttentionMask, collate, Edit, Instrument, LastRow
from symbolic_residue.prompts import Prompt
from symbolic_residue.shells.layer_salience._cancel import BLOCK, cancel, Cells, effects, exchanged, moved_to
from symbolic_residue.shells.layer_salience._config import LayerSalienceConfig
from symbolic_residue.shells.layer_salience._sense import Salience
from symbolic_residue.shells.layer_salience._tokens import token_kinds
from symbolic_residue.stats import bound

__all__ = ["hidden_from_last", "neglected", "observe", "worst_tokens"]

Array = NDArray[np.float64]
Told = Callable[[str, float], None]
ROWS_AT_ONCE = 32
_CANCELS = {
    "kind": pl.String,
    "threshold": pl.Float64,
    "position": pl.Int64,
    "control": pl.String,
    "draw": pl.Int64,
    "cells": pl.Int64,
    "kl": pl.Float64,
    "fall": pl.Float64,
}


def neglected(under: NDArray[np.bool_]) -> list[int]:
    """Tokens (columns of ``under [layer, token]``) that are under the threshold in at least half of the layers."""
    return np.flatnonzero((2 * under.sum(0) >= len(under)) & under.any(0)).tolist()


def hidden_from_last(row: LastRow, edits: Sequence[Sequence[Edit]]) -> torch.Tensor:
    """``[set, vocab]`` float64 log-probabilities of the next token, each with its edits of the last row (given without ``batch``)."""
    out = []
    for start in range(0, len(edits), ROWS_AT_ONCE):
        group = edits[start : start + ROWS_AT_ONCE]
        placed = [_at(edit, c) for c, mine in enumerate(group) for edit in mine]
        logits = row.run(placed, copies=len(group))["logits"][:, -1]
        out.append(torch.log_softmax(logits.double(), -1).cpu())
    return torch.cat(out)


def _at(edit: Any, sequence: int) -> Any:
    return replace(edit, batch=(sequence,))


def worst_tokens(
    instrument: Instrument, prompt: Prompt, under: Cells, tokens: Sequence[int], base: torch.Tensor, answer: int, n: int
) -> list[int]:
    """The ``n`` of ``tokens`` whose hiding from the last row, in their own layers, moves the output most (KL plus fall of ln P(answer)), by position."""
    if len(tokens) <= n:
        return list(tokens)
    layers = instrument.attention_layers
    sets: list[list[Edit]] = [
        [AttentionMask([j], rows=(-1,), layers=[layers[place] for place in np.flatnonzero(under[:, j]).tolist()])] for j in tokens
    ]
    kl, fall = effects(base, hidden_from_last(LastRow(instrument, collate([prompt])), sets), answer)
    order = np.argsort(-(kl + np.abs(fall)), kind="stable")[:n]
    return sorted(tokens[int(i)] for i in order)


def observe(
    instrument: Instrument, prompt: Prompt, salience: Salience, config: LayerSalienceConfig, answer: int, seed: int, told: Told
) -> dict[str, pl.DataFrame]:
    """The frames ``cells, layers, rows, cancels, carry, tokens, salience, maps``; see the module."""
    rng = np.random.default_rng(seed)
    base, counted = salience.log_probability, list(salience.counted)
    under = salience.under(config.threshold)
    sets: list[Cells] = []
    labels: list[tuple[str, float, int, str, int]] = []

    def add(kind: str, threshold: float, position: int, control: str, cells: Sequence[Cells]) -> None:
        for draw, one in enumerate(cells):
            sets.append(one)
            labels.append((kind, threshold, position, control, draw))

    for dose in config.all_doses:
        cells = salience.under(dose)
        add("dose", dose, -1, "none", [cells])
        if cells.any():
            add("dose", dose, -1, "random", exchanged(cells, counted, rng, config.draws))
            if config.matched_doses:
                add("dose", dose, -1, "matched", exchanged(cells, counted, rng, config.draws, block=BLOCK))
    told("hiding tokens from the last row", 0.0)
    tokens = worst_tokens(instrument, prompt, under, neglected(under), base, answer, config.max_tokens)
    for j in tokens:
        add("token", config.threshold, j, "none", [_only(under, j)])
    known: dict[bytes, torch.Tensor] = {}
    found = cancel(instrument, prompt, sets, lambda share: told("cancelling", 0.1 + 0.6 * share), known=known)
    kl, fall = effects(base, found, answer)

    alone = [i for i, label in enumerate(labels) if label[0] == "token"]
    if alone:
        worst = labels[max(alone, key=lambda i: fall[i])][2]
        others = [j for j in counted if j != worst]
        near = sorted(others, key=lambda j: (abs(j - worst), j))[: config.draws]
        drawn = [others[int(i)] for i in rng.permutation(len(others))[: config.draws]]
        first = len(sets)
        add("token", config.threshold, worst, "random", moved_to(_only(under, worst), worst, drawn))
        add("token", config.threshold, worst, "matched", moved_to(_only(under, worst), worst, near))
        more = cancel(instrument, prompt, sets[first:], lambda share: told("cancelling controls", 0.7 + 0.2 * share), known=known)
        more_kl, more_fall = effects(base, more, answer)
        kl, fall = np.concatenate([kl, more_kl]), np.concatenate([fall, more_fall])
    cancels = pl.DataFrame(
        [(*label, int(cells.sum()), float(k), float(f)) for label, cells, k, f in zip(labels, sets, kl, fall, strict=True)],
        schema=_CANCELS,
        orient="row",
    )
    return {"cancels": cancels, **_frames(prompt, salience, config, cancels)}


def _only(under: Cells, token: int) -> Cells:
    out = np.zeros_like(under)
    out[:, token] = under[:, token]
    return out


def blamed(cancels: pl.DataFrame) -> list[int]:
    """The tokens that may matter: the one whose CANCEL costs most, and those that cost at least half as much; none where nothing costs anything."""
    alone = cancels.filter((pl.col("kind") == "token") & (pl.col("control") == "none") & (pl.col("fall") > 0))
    return [] if alone.is_empty() else sorted(alone.filter(pl.col("fall") >= pl.col("fall").max() / 2)["position"].to_list())


def _frames(prompt: Prompt, salience: Salience, config: LayerSalienceConfig, cancels: pl.DataFrame) -> dict[str, pl.DataFrame]:
    counted = set(salience.counted)
    cells = salience.frame.with_columns(counted=pl.col("position").is_in(list(counted)))
    n = len(prompt)
    effective = [
        (layer, row, float(salience.effective[place, row]))
        for place, layer in enumerate(salience.layers)
        for row in range(n)
        if not np.isnan(salience.effective[place, row])
    ]
    keys = blamed(cancels)
    total = salience.last.sum(2)
    carried = salience.last[:, :, keys].sum(2) / np.where(total > 0, total, 1.0) if keys else np.zeros_like(total)
    places = [(place, layer) for place, layer in enumerate(salience.layers)]
    under = salience.under(config.threshold)
    alone = cancels.filter((pl.col("kind") == "token") & (pl.col("control") == "none"))
    effect = {row["position"]: row for row in alone.iter_rows(named=True)}
    kinds = token_kinds(prompt.text, prompt.offsets)
    attended = salience.mean[:, -1].mean(0)
    looked_at = cells.filter(pl.col("position") > 0)
    maps = looked_at.select(
        pl.lit("attention received").alias("map"),
        "layer",
        "position",
        pl.col("relative").alias("value"),
        pl.lit("of the uniform share").alias("unit"),
    )
    twin = looked_at.filter(pl.col("weighted").is_not_null()).select(
        pl.lit("value-weighted attention received").alias("map"),
        "layer",
        "position",
        pl.col("weighted").alias("value"),
        pl.lit("of the uniform share").alias("unit"),
    )
    return {
        "cells": cells,
        "layers": pl.DataFrame(
            {
                "layer": list(salience.layers),
                "sink": salience.sink.tolist(),
                "own": salience.own.tolist(),
                "others": salience.others.tolist(),
            },
            schema_overrides={"layer": pl.Int64},
        ),
        "rows": pl.DataFrame(effective, schema={"layer": pl.Int64, "row": pl.Int64, "effective": pl.Float64}, orient="row"),
        "carry": pl.DataFrame(
            [(layer, head, float(carried[place, head])) for place, layer in places for head in range(total.shape[1])],
            schema={"layer": pl.Int64, "head": pl.Int64, "share": pl.Float64},
            orient="row",
        ),
        "tokens": pl.DataFrame(
            {
                "position": list(range(n)),
                "token_id": prompt.ids,
                "token": prompt.tokens,
                "region": prompt.regions.per_token(),
                "char_start": [a for a, _ in prompt.offsets],
                "char_end": [b for _, b in prompt.offsets],
                "influence": [None] * n,
                "attention": attended.tolist(),
            },
            schema_overrides={"influence": pl.Float64},
        ),
        "salience": pl.DataFrame(
            [
                (
                    j,
                    prompt.tokens[j],
                    kinds[j],
                    float(np.mean(salience.relative[:, j])),
                    bound(np.mean(salience.weighted[:, j])),
                    float(under[:, j].mean()) if j in counted else None,
                    effect[j]["kl"] if j in effect else None,
                    effect[j]["fall"] if j in effect else None,
                    j in keys if j in effect else None,
                )
                for j in range(n - 1)
            ],
            schema={
                "position": pl.Int64,
                "token": pl.String,
                "kind": pl.String,
                "relative": pl.Float64,
                "weighted": pl.Float64,
                "under": pl.Float64,
                "kl": pl.Float64,
                "fall": pl.Float64,
                "blamed": pl.Boolean,
            },
            orient="row",
        ),
        "maps": pl.concat([maps, twin]),
    }
