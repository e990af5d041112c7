"""The tables of a residue: answers and whether they follow, attention to each instruction, the lens, the vectors' geometry."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from symbolic_residue.prompts._instructions import blends, relation
from symbolic_residue.shells.instruction_disruption._answers import Answers, Reading
from symbolic_residue.shells.instruction_disruption._frames import Frame
from symbolic_residue.shells.instruction_disruption._geometry import conflict_of
from symbolic_residue.shells.instruction_disruption._residue import Asked
from symbolic_residue.stats import bootstrap_columns, bound

__all__ = ["answers_frame", "curves_frame", "geometry_frames", "lens_frame", "mass_frame"]


def answers_frame(asked: Asked, frames: Sequence[Frame], answers: Answers) -> pl.DataFrame:
    """``instruction_answers``: one row an answer. ``follows_x`` is the other one of the pair: ``b``, or the control where it takes b's place."""
    by_name = {"a": asked.a, "b": asked.b, "c": asked.control}
    rows: list[dict[str, Any]] = []
    for frame, text, ended in zip(frames, answers.texts, answers.ended, strict=True):
        other = by_name["c" if frame.condition == "control" else "b"]
        rows.append(
            {
                "condition": frame.condition,
                "order": frame.order,
                "arrangement": frame.arrangement,
                "task": frame.task,
                "question": asked.tasks[frame.task].question,
                "answer": text,
                "ended": ended,
                "follows_a": asked.a.check(text),
                "follows_b": asked.b.check(text),
                "follows_x": other.check(text),
                "blended": blends(asked.a, other, text),
            }
        )
    return pl.DataFrame(rows)


def mass_frame(frames: Sequence[Frame], reading: Reading) -> pl.DataFrame:
    """``mass``: attention on each block, by layer (mean over answer tokens, ``step`` −1) and by answer token (mean over layers, ``layer`` −1)."""
    rows = []
    for i, found in sorted(reading.mass.items()):
        frame = frames[i]
        for place, name in enumerate(frame.order):
            values = found[name]
            key = (frame.condition, frame.order, frame.arrangement, frame.task, name, place)
            rows += [(*key, layer, -1, float(v)) for layer, v in zip(reading.layers, values.mean(0), strict=True)]
            rows += [(*key, -1, step, float(v)) for step, v in enumerate(values.mean(1))]
    names = ["condition", "order", "arrangement", "task", "name", "place", "layer", "step", "mass"]
    return pl.DataFrame(rows, schema=names, orient="row")


def curves_frame(mass: pl.DataFrame, reading: Reading, frames: Sequence[Frame], seed: int) -> pl.DataFrame:
    """``curves``: attention to the earlier and the later instruction, by layer and along the answer, the compatible pair as control; and the lens.

    Intervals are over questions; a question's value is the mean over orders and arrangements.
    """
    rows: list[tuple[Any, ...]] = []
    for curve, x, unit in (("attention to instruction", "layer", "layer"), ("attention along answer", "step", "answer token")):
        part = mass.filter(pl.col(x) >= 0)
        for condition, prefix in (("conflict", ""), ("control", "control: ")):
            for place, word in enumerate(("earlier instruction", "later instruction")):
                mine = part.filter((pl.col("condition") == condition) & (pl.col("place") == place))
                wide = mine.group_by(x, "task").agg(pl.col("mass").mean()).sort(x, "task")
                groups: dict[tuple[int, ...], list[tuple[int, list[float]]]] = {}
                for (at,), found in wide.group_by(x, maintain_order=True):
                    groups.setdefault(tuple(found["task"].to_list()), []).append((int(at), found["mass"].to_list()))
                for tasks, columns in groups.items():
                    value, low, high = bootstrap_columns(np.array([c for _, c in columns]).T, seed=seed)
                    rows += [
                        (
                            curve,
                            prefix + word,
                            float(at),
                            unit,
                            float(value[i]),
                            bound(low[i]),
                            bound(high[i]),
                            len(tasks),
                            "share",
                        )
                        for i, (at, _) in enumerate(columns)
                    ]
    for i, values in reading.chosen.items():
        rows += [
            (
                "first content token",
                f"{frames[i].order[0]} first",
                float(d),
                "depth (0: embedding)",
                float(v),
                None,
                None,
                1,
                "probability",
            )
            for d, v in enumerate(values)
        ]
    names = ("curve", "series", "x", "x_unit", "value", "low", "high", "n", "unit")
    return pl.DataFrame(rows, schema=list(names), orient="row", infer_schema_length=None).with_columns(
        pl.col("low", "high").cast(pl.Float64)
    )


def lens_frame(reading: Reading, frames: Sequence[Frame], tokenizer: Any) -> pl.DataFrame | None:
    """``lens`` of the first frame shown: at the row that chose the first content token, depth by depth."""
    if not reading.depth_tokens:
        return None
    i = min(reading.depth_tokens)
    position = len(frames[i].prompt) - 1 + reading.content[i]
    return pl.DataFrame(
        [
            (depth, position, tokenizer.decode([int(token)]), p, entropy, float(reading.chosen[i][depth]))
            for depth, (token, p, entropy) in enumerate(reading.depth_tokens[i].tolist())
        ],
        schema=["layer", "position", "top_token", "top_probability", "entropy", "answer_probability"],
        orient="row",
    )


def geometry_frames(asked: Asked, vectors: Tensor, layer: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """``instruction_pairs`` (cosine and conflict of every pair) and the own table ``vectors``; ``vectors [a, b, control; d_model]`` centred."""
    _, cosines = conflict_of(vectors)
    named = {"a": asked.a, "b": asked.b, "c": asked.control}
    rows = []
    for (i, one), (j, two) in combinations(enumerate(named), 2):
        cosine = float(cosines[i, j])
        rows.append(
            {
                "one": one,
                "two": two,
                "one_text": named[one].text,
                "two_text": named[two].text,
                "relation": relation(named[one], named[two]),
                "layer": layer,
                "cosine": cosine,
                "conflict": 1 - cosine,
            }
        )
    flat = pl.DataFrame(
        {
            "name": [n for n in named for _ in range(vectors.shape[1])],
            "index": np.tile(np.arange(vectors.shape[1]), len(named)),
            "value": vectors.double().cpu().numpy().ravel(),
        }
    )
    return pl.DataFrame(rows), flat
