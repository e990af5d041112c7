"""One prompt and its variants through the model: distributions, candidates, refinements, and the numbers that verdicts are made of.

1. Every prompt runs once: the prompt itself first, since its candidates are protected in the variants (``Read``), then the variants, beside it from there on
   (in pieces that bound memory). All is read at the last row; of the prompt itself also attention there, and the residual stream of its last positions.
2. Candidates are the smallest set of tokens that holds ``mass`` of the prompt's own next-token distribution, or those given.
3. Per variant: log-odds of the two best candidates, entropy over the candidates, the probability they hold together, and per refiner the
   returns and the leader's loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.instrument import AttentionRead, Instrument, Trace
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import depth_logits, dla_reads, lens_reads
from symbolic_residue.shells._rows import LastRows
from symbolic_residue.shells.value_collapse._config import ValueCollapseConfig
from symbolic_residue.shells.value_collapse._refine import (
    count_returns,
    leader_loss,
    refine_layers,
    refine_rollout,
    refine_soft,
    Refinement,
)
from symbolic_residue.stats import entropy
from symbolic_residue.types import Point

__all__ = ["Observation", "Read", "choose_candidates", "measure", "next_token", "observe", "read_prompt"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Observation:
    """What the model did on a prompt (variant 0) and its variants.

    Attributes:
        probability: ``[variant, vocab]`` next-token distribution.
        logits: ``[variant, candidate]`` of the candidates.
        candidates: token ids.
        refinements: by refiner.
    """

    probability: Array
    logits: Array
    candidates: list[int]
    refinements: dict[str, Refinement]

    @property
    def candidate_probability(self) -> Array:
        """``[variant, candidate]``."""
        return self.probability[:, self.candidates]


def choose_candidates(probability: Array, config: ValueCollapseConfig) -> list[int]:
    """The smallest set (at least two, at most ``max_candidates``) that holds ``mass`` of one distribution ``[vocab]``, best first."""
    order = np.argsort(-probability, kind="stable")[: config.max_candidates]
    held = np.cumsum(probability[order])
    enough = np.flatnonzero(held >= config.mass)
    size = max(2, int(enough[0]) + 1) if len(enough) else len(order)
    return order[:size].tolist()


@dataclass(frozen=True)
class Read:
    """The prompt itself, run once.

    Attributes:
        row: its last row, with what was read there.
        lens: a trace of its last positions at the lens's points, and of the last row's attention.
    """

    row: LastRows
    lens: Trace


def read_prompt(instrument: Instrument, prompt: Prompt, positions: int) -> Read:
    """The prompt's one run; the lens shows at most the last ``positions``."""
    before, early = min(len(prompt), positions) - 1, dict[Point, Tensor]()

    def keep(point: Point, tensor: Tensor) -> None:
        early[point] = tensor[:, -before:].clone()

    row = LastRows(instrument, [prompt], reads=lens_reads() if before else (), on_read=keep)
    stats = ("mass", "entropy", "distance", "max", "argmax")
    attention = AttentionRead(stats=stats, regions=prompt.regions, rows=(-1,), weights=True, split_self=True)
    last = row.plain((*lens_reads(), *dla_reads(instrument.parts)), attention=attention)[0]
    lens = Trace({point: torch.cat([tensor, last[point]], 1) for point, tensor in early.items()} or dict(last.tensors))
    lens.attention = last.attention
    return Read(row, lens)


def next_token(rows: LastRows) -> Array:
    """``[prompt, vocab]``: the next-token distributions."""
    return np.concatenate([torch.softmax(trace["logits"][:, -1].double(), -1).cpu().numpy() for trace in rows.plain()])


def observe(
    instrument: Instrument,
    prompts: Sequence[Prompt],
    config: ValueCollapseConfig,
    candidates: list[int] | None = None,
    *,
    rows: LastRows | None = None,
) -> Observation:
    """Run a prompt and its variants.

    Args:
        prompts: the prompt first, then its variants.
        candidates: token ids; None chooses them from the prompt's distribution.
        rows: the prompts' last rows, where they are cached already.
    """
    layers = "layers" in config.refiners or config.verdict_refiner == "layers"
    rows = rows or LastRows(instrument, prompts)
    probability, logits, depth_p, depth_l1 = [], [], [], []
    for trace in rows.plain(lens_reads() if layers else ()):
        p = torch.softmax(trace["logits"][:, -1].double(), -1)
        probability.append(p.cpu().numpy())
        if candidates is None:
            candidates = choose_candidates(probability[0][0], config)
        logits.append(trace["logits"][:, -1, candidates].double().cpu().numpy())
        if layers:
            by_depth, changes = _over_depth(instrument, trace, candidates)
            depth_p.append(by_depth)
            depth_l1.append(changes)
    assert candidates is not None
    refinements: dict[str, Refinement] = {}
    if layers:
        refinements["layers"] = refine_layers(
            np.concatenate(depth_p), np.concatenate(depth_l1), config.readable_mass, config.tolerance
        )
    for name, refine in (("soft", refine_soft), ("rollout", refine_rollout)):
        if name in config.refiners or config.verdict_refiner == name:
            refinements[name] = refine(instrument, rows, candidates, config.steps, config.tolerance)
    return Observation(np.concatenate(probability), np.concatenate(logits), candidates, refinements)


def _over_depth(instrument: Instrument, trace: Trace, candidates: list[int]) -> tuple[Array, Array]:
    """The lens at the last row: ln P of the candidates ``[prompt, depth, candidate]``, and its L1 change ``[prompt, depth]`` (NaN first)."""
    by_depth, changes = [], [np.full(len(trace["logits"]), np.nan)]
    before: Tensor | None = None
    for logits in depth_logits(trace, instrument.parts):
        now = torch.softmax(logits.double(), -1)
        by_depth += list(torch.log(now[..., candidates].clamp_min(1e-300)).cpu().numpy())
        joined = now if before is None else torch.cat([before, now])
        changes += list((joined[1:] - joined[:-1]).abs_().sum(-1).cpu().numpy())
        before = now[-1:]
    return np.stack(by_depth, 1), np.stack(changes, 1)


def measure(observation: Observation, side: str) -> pl.DataFrame:
    """The numbers per variant, long: ``side, variant, quantity, value``."""
    rows: list[tuple[str, int, str, float]] = []
    for v, p in enumerate(observation.candidate_probability):
        best = np.sort(p)[::-1]
        rows.append((side, v, "log_odds", float(np.log(max(best[0], 1e-300)) - np.log(max(best[1], 1e-300)))))
        held = float(p.sum())
        rows.append((side, v, "entropy", float(entropy(p / held)) if held > 0 else 0.0))
        rows.append((side, v, "held", held))
        rows.append((side, v, "top", float(observation.probability[v].max())))
        for name, refinement in observation.refinements.items():
            share = refinement.trace(v)
            rows.append((side, v, f"steps.{name}", float(len(share))))
            rows.append((side, v, f"returns.{name}", float(count_returns(share))))
            rows.append((side, v, f"leader_loss.{name}", leader_loss(share)))
    return pl.DataFrame(rows, schema=["side", "variant", "quantity", "value"], orient="row")
