"""One prompt and its variants through the model: distributions, candidates, refinements, and the numbers that verdicts are made of.

1. All variants go through one instrumented forward (in pieces that bound memory), read at the last row.
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

from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import lens_logits, lens_reads
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

__all__ = ["Observation", "choose_candidates", "measure", "next_token", "observe"]

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


def next_token(rows: LastRows) -> Array:
    """``[prompt, vocab]``: the next-token distributions."""
    return np.concatenate([torch.softmax(trace["logits"][:, -1].double(), -1).cpu().numpy() for trace in rows.run()])


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
    probability, logits, depth_p, depth_l1 = [], [], [], []
    for trace in (rows or LastRows(instrument, prompts)).run(reads=lens_reads() if layers else ()):
        p = torch.softmax(trace["logits"][:, -1].double(), -1)
        probability.append(p.cpu().numpy())
        if candidates is None:
            candidates = choose_candidates(probability[0][0], config)
        logits.append(trace["logits"][:, -1, candidates].double().cpu().numpy())
        if not layers:
            continue
        by_depth, changes, before = [], [], None
        for depth in range(instrument.parts.n_layers + 1):
            resid = trace["resid_pre.0"] if depth == 0 else trace[f"resid_post.{depth - 1}"]
            now = torch.softmax(lens_logits(instrument.parts, resid[:, -1]).double(), -1)
            by_depth.append(torch.log(now[:, candidates].clamp_min(1e-300)).cpu().numpy())
            changes.append(np.full(len(now), np.nan) if before is None else (now - before).abs().sum(-1).cpu().numpy())
            before = now
        depth_p.append(np.stack(by_depth, 1))
        depth_l1.append(np.stack(changes, 1))
    assert candidates is not None
    refinements: dict[str, Refinement] = {}
    if layers:
        refinements["layers"] = refine_layers(
            np.concatenate(depth_p), np.concatenate(depth_l1), config.readable_mass, config.tolerance
        )
    whole = collate(prompts)
    for name, refine in (("soft", refine_soft), ("rollout", refine_rollout)):
        if name in config.refiners or config.verdict_refiner == name:
            refinements[name] = refine(instrument, whole, candidates, config.steps, config.tolerance)
    return Observation(np.concatenate(probability), np.concatenate(logits), candidates, refinements)


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
