"""Who decides between two instructions: each one's block hidden, and heads ablated.

1. **Spans.** Effect of hiding a block = preference (for ``a``, nats) with it hidden − without, mean over both orders of a question; the interval and the
   sign-flip p are over questions. Hiding ``a`` should lower the preference for it, hiding ``b`` raise it. *Responsible* is a block whose effect goes against
   it, with its whole interval, is larger than the control's (the longest run of other tokens hidden), and goes at least a tenth of the way to the
   frames in which the other instruction stands alone (``recovered``; at least 0.1 nats where those are no farther away).
2. **Heads.** The quantity is the log-odds of the later instruction's token against the earlier one's, both orders, so that a head counts that lets the later
   (or the earlier) one win whatever it says. Heads with the largest mean direct logit attribution are mean-ablated at the last row and confirmed against
   random heads, random pairs of tokens, and over questions as clusters (``shells._confirm``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.readout import direct_logit_attribution, dla_reads
from symbolic_residue.shells._confirm import confirm_heads, draw_heads, HeadConfirmation, PairRuns
from symbolic_residue.shells.instruction_disruption._answers import SharedRows
from symbolic_residue.shells.instruction_disruption._preference import Cell
from symbolic_residue.stats import bootstrap_columns, bootstrap_mean, Estimate, sign_flip_test

__all__ = ["HeadAttribution", "SpanEffect", "attribute_heads", "later_pair", "span_effects"]

Array = NDArray[np.float64]
_NEAR = 0.1
"""Nats within which two preferences count as one."""
_LEAST = 0.1
"""Share of the way to the other instruction alone that a responsible block is worth."""
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class SpanEffect:
    """What hiding one block does to the preference for ``a``.

    Attributes:
        name: ``a``, ``b`` or ``control``; ``order`` the frames' (``both``: mean of the two); ``tokens`` hidden, mean.
        effect: nats, over questions; ``p`` its sign-flip p.
        recovered: share of the way to the other instruction alone; None where that is not 0.1 nats away or for the control.
        responsible: see the module; None for the control, and where it cannot be said.
    """

    name: str
    order: str
    tokens: float
    effect: Estimate
    p: float | None
    recovered: float | None
    responsible: bool | None


def span_effects(preference: pl.DataFrame, seed: int) -> list[SpanEffect]:
    """Effects of hiding each block: per order, and over both orders."""
    cell = preference.group_by("condition", "order", "hidden", "task").agg(pl.col("value").mean(), pl.col("tokens").mean())
    conflict = cell.filter(pl.col("condition") == "conflict")
    alone = cell.filter(pl.col("condition").str.starts_with("alone"))
    plain = conflict.filter(pl.col("hidden") == "").select("order", "task", base="value")
    out: list[SpanEffect] = []
    for order in ("ab", "ba", None):
        mine = plain if order is None else plain.filter(pl.col("order") == order)
        base = mine.group_by("task").agg(pl.col("base").mean()).sort("task")
        found: dict[str, tuple[Array, float]] = {}
        for name in ("a", "b", "control"):
            # A span that is hidden in one order only is compared with that order.
            joined = mine.join(conflict.filter(pl.col("hidden") == name), on=["order", "task"], how="inner")
            each = (
                joined.group_by("task")
                .agg((pl.col("value") - pl.col("base")).mean().alias("effect"), pl.col("tokens").mean())
                .sort("task")
            )
            if len(each):
                found[name] = (each["effect"].to_numpy(), float(each["tokens"].to_numpy().mean()))
        control = bootstrap_mean(found["control"][0], seed=seed) if "control" in found else None
        limit = max(abs(control.low), abs(control.high)) if control is not None and control.has_interval else None
        for name, (effect, tokens) in found.items():
            estimate = bootstrap_mean(effect, seed=seed)
            p = float(sign_flip_test(effect, seed=seed)) if len(effect) > 1 else None
            recovered = responsible = None
            if name != "control":
                other = alone.filter(pl.col("order") == ("b" if name == "a" else "a")).select("task", other="value")
                way = base.join(other, on="task", how="inner")
                distance = float((way["other"] - way["base"]).to_numpy().mean()) if len(way) else 0.0
                recovered = float(estimate.value / distance) if abs(distance) > _NEAR else None
                sign = -1.0 if name == "a" else 1.0
                against = estimate.below(0.0) if name == "a" else estimate.above(0.0)
                far = sign * estimate.value > _NEAR if recovered is None else recovered > _LEAST
                if estimate.has_interval and limit is not None:
                    responsible = bool(against and far and sign * estimate.value > limit)
            out.append(SpanEffect(name, order or "both", tokens, estimate, p, recovered, responsible))
    return out


@dataclass(frozen=True)
class HeadAttribution:
    """Heads that let the later instruction win.

    Attributes:
        dla: ``[prompt, layer, head]`` nats of log-odds, later against earlier; NaN where a layer has no heads.
        chosen: (layer, head), the tested ones; ``tested`` their interventions.
        value, low, high: ``[layer, head]`` mean attribution over prompts with its interval over questions.
        n: questions.
    """

    dla: Array
    chosen: list[tuple[int, int]]
    tested: HeadConfirmation
    value: Array
    low: Array
    high: Array
    n: int


def later_pair(cell: Cell) -> tuple[int, int]:
    """(the later instruction's token, the earlier one's)."""
    a, b = cell.pair
    return (b, a) if cell.frame.order == "ab" else (a, b)


def attribute_heads(
    rows: SharedRows,
    cells: Sequence[Cell],
    means: Tensor,
    *,
    top_heads: int,
    random_heads: int,
    seed: int,
    progress: Progress = lambda what, share: None,
) -> HeadAttribution:
    """Attribute and confirm; see the module.

    Args:
        rows: of the cells: conflict frames with nothing hidden.
        means: ``[layer, head, d_head]`` of unrelated prompts.
    """
    instrument = rows.instrument
    parts = instrument.parts
    pairs = [later_pair(cell) for cell in cells]
    found, first = [], 0
    for trace in rows.plain(dla_reads(parts)):
        n = trace["logits"].shape[0]
        mine = pairs[first : first + n]
        unique = list(dict.fromkeys(mine))
        first += n
        whole = direct_logit_attribution(trace, parts, unique).heads[:, :, 0].double().cpu().numpy()
        found.append(whole[[unique.index(p) for p in mine], range(n)])
    dla = np.concatenate(found)
    there = np.isin(np.arange(parts.n_layers), parts.attention_layers)
    size = np.where(there[:, None], np.abs(dla.mean(0)), -1.0)
    order = np.argsort(-size, axis=None)[: int(there.sum()) * parts.n_heads]
    chosen = [divmod(int(i), parts.n_heads) for i in order[:top_heads]]
    others = [divmod(int(i), parts.n_heads) for i in order[len(chosen) :]]
    rng = np.random.default_rng(seed)
    tasks = [str(cell.frame.task) for cell in cells]
    tested = confirm_heads(
        PairRuns(instrument, [], pairs, rows=rows),
        chosen,
        draw_heads(others, random_heads, rng),
        means=means,
        contribution=np.array([dla[:, layer, head].mean() for layer, head in chosen]),
        seed=seed,
        rng=rng,
        clusters=tasks,
        progress=progress,
    )
    flat = dla.reshape(len(dla), -1)
    value, low, high = (np.full(flat.shape[1], math.nan) for _ in range(3))
    places = np.flatnonzero(~np.isnan(flat).all(0))
    value[places], low[places], high[places] = bootstrap_columns(flat[:, places], seed=seed, clusters=tasks)
    shape = dla.shape[1:]
    return HeadAttribution(dla, chosen, tested, value.reshape(shape), low.reshape(shape), high.reshape(shape), len(set(tasks)))
