"""The four verdicts of VALUE-COLLAPSE from a residue's measures.

Every interval is over the prompt and its meaning-preserving variants: the unit is one variant of *this* prompt, never a layer or a head.

1. **flatness**: the log-odds of the two best candidates are below the criterion *and* the entropy over the candidates is above its own; it fires only
   if both do, and is absent if either is clearly not so.
2. **oscillation**: mean returns to an earlier leader along the refinement; undecided where the traces are too short to show any.
3. **value collapse**: mean share of its mass that the first leader loses.
4. **confidence fragility**: median Jensen-Shannon divergence between the prompt's next-token distribution and its variants'; the control is the same
   between unrelated prompts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.shells._verdict import judge, Verdict
from symbolic_residue.shells.value_collapse._residue import ValueCollapseResidue
from symbolic_residue.stats import bootstrap_mean, bootstrap_median, decide

__all__ = ["MODES", "quantity", "verdicts"]

MODES = ("flatness", "oscillation", "value collapse", "confidence fragility")
SHELL = "value-collapse"
_MIN_HELD = 0.1
"""Probability that given candidates must hold together for their balance to count as indecision."""


def quantity(measures: pl.DataFrame, side: str, name: str) -> NDArray[np.float64]:
    """One measured quantity over variants, in their order."""
    return measures.filter((pl.col("side") == side) & (pl.col("quantity") == name)).sort("variant")["value"].to_numpy()


def verdicts(residue: ValueCollapseResidue) -> list[Verdict]:
    """The four verdicts, in the order of :data:`MODES`."""
    criteria, seed, measures = residue.config.criteria, residue.asked.seed, residue.frames["measures"]
    refiner = residue.config.verdict_refiner
    control = (
        "the same on the control prompt that was given"
        if residue.asked.control_kind == "given"
        else "the same with the first candidate settled beforehand"
    )

    def mean(side: str, name: str):
        return bootstrap_mean(quantity(measures, side, name), seed=seed)

    flat = judge(
        SHELL,
        "flatness",
        quantity="log-odds of the two best candidates",
        unit="nats",
        value=mean("prompt", "log_odds"),
        control=control,
        control_value=mean("control", "log_odds"),
        criterion=criteria.log_odds,
        direction="below",
        criterion_source=criteria.source,
    )
    spread = mean("prompt", "entropy")
    spread_outcome = decide(spread, criteria.entropy, "above")
    note = (
        f"Entropy over {len(residue.asked.candidates)} candidates {spread.value:.2f} nats [{spread.low:.2f}, {spread.high:.2f}], "
        f"criterion above {criteria.entropy:.2f}: {spread_outcome}. "
        f"The candidates hold {mean('prompt', 'held').value:.0%} of the probability."
    )
    outcome = flat.outcome
    if spread_outcome == "absent":
        outcome = "absent"
    elif spread_outcome == "undecided" and outcome == "fires":
        outcome = "undecided"
    held = mean("prompt", "held").value
    if residue.asked.candidate_source == "given" and held < _MIN_HELD and outcome == "fires":
        outcome, note = "undecided", f"{note} That is too little to be what the model is choosing between."
    flat = replace(flat, outcome=outcome, note=f"{note} {flat.note}".strip())

    # A count of at least two fires from 2.0 on; "above" is strict, so the criterion stands just short of the whole number.
    swings = judge(
        SHELL,
        "oscillation",
        quantity=f"returns to an earlier leader ({refiner})",
        unit="returns",
        value=mean("prompt", f"returns.{refiner}"),
        control=control,
        control_value=mean("control", f"returns.{refiner}"),
        criterion=criteria.returns - 0.5,
        direction="above",
        criterion_source=criteria.source,
    )
    collapse = judge(
        SHELL,
        "value collapse",
        quantity=f"mass lost by the first leader ({refiner})",
        unit="share",
        value=mean("prompt", f"leader_loss.{refiner}"),
        control=control,
        control_value=mean("control", f"leader_loss.{refiner}"),
        criterion=criteria.leader_loss,
        direction="above",
        criterion_source=criteria.source,
    )
    fragile = judge(
        SHELL,
        "confidence fragility",
        quantity="median Jensen-Shannon divergence under small edits",
        unit="nats",
        value=bootstrap_median(quantity(measures, "prompt", "js"), seed=seed),
        control="the same between unrelated prompts (an upper bound, not a baseline)",
        control_value=bootstrap_median(quantity(measures, "unrelated", "js"), seed=seed),
        criterion=criteria.fragility,
        direction="above",
        criterion_source=criteria.source,
        control_must_be_clear=False,
        note=f"On the control prompt: {np.median(quantity(measures, 'control', 'js')):.3f} nats.",
    )
    # A trace needs three steps to come back to a leader and two to lose one: with fewer, a zero is no measurement.
    steps = quantity(measures, "prompt", f"steps.{refiner}")
    swings, collapse = _long_enough(swings, steps, 3), _long_enough(collapse, steps, 2)
    return [flat, swings, collapse, fragile]


def _long_enough(verdict: Verdict, steps: NDArray[np.float64], need: int) -> Verdict:
    """The verdict, undecided if the traces of half the variants have fewer than ``need`` steps."""
    if verdict.outcome != "absent" or not len(steps) or np.median(steps) >= need:
        return verdict
    note = f"In half of the prompts the candidates are readable at {int(np.median(steps))} steps at most; any value other than 0 needs {need}."
    return replace(verdict, outcome="undecided", note=f"{verdict.note} {note}".strip())
