"""The four verdicts of TEMPORAL-INFERENCE from a residue's tables.

1. **drift**: at the asked shift, mean coherence of the second half of the continuation minus that of the first; n = places in this text.
2. **discontinuity break**: where the best step in the curve of coherence against distance stands, the fall between the two
   distances beside it; n = places. It is undecided unless the step describes the
   curve better than every smooth curve by the margin, and absent where a smooth one is better or the fall is spread out (``_changepoint``).
3. **ordering reversal**, **causal confusion**: mean preference for the right order, or direction, over wordings (``_pairs``); n = wordings.

Controls: for 1 and 2 the same shifts in the reference text of the genre; for 3 the same question after stories that give no order. What was not asked is
undecided, without a value.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.shells._verdict import judge, Verdict
from symbolic_residue.shells.temporal_inference._changepoint import Change, change_point, FEWEST
from symbolic_residue.shells.temporal_inference._residue import TemporalInferenceResidue
from symbolic_residue.stats import bootstrap_mean, Estimate

__all__ = ["VERDICTS", "break_of", "drift_of", "preference", "verdicts"]

VERDICTS = ("drift", "discontinuity break", "ordering reversal", "causal confusion")
SHELL = "temporal-inference"
_SHARE = 0.5
"""A step's fall lies between two neighbouring distances, at least by this share of the curve's range."""

Array = NDArray[np.float64]


def _asked_curve(residue: TemporalInferenceResidue, side: str) -> pl.DataFrame:
    a = residue.asked
    frame = residue.frames["shifts"].filter(pl.col("side") == side)
    return frame.filter((pl.col("mode") == a.mode) & (pl.col("direction") == a.direction))


def drift_of(residue: TemporalInferenceResidue, side: str) -> Array:
    """``[place]``: coherence of the second half of the horizon minus that of the first, at the asked shift (nats a token)."""
    half = residue.config.horizon // 2
    frame = _asked_curve(residue, side).filter(pl.col("distance") == residue.asked.distance)
    matrix = frame.sort("place", "token")["coherence"].to_numpy().reshape(-1, residue.config.horizon)
    return matrix[:, -half:].mean(1) - matrix[:, :half].mean(1)


def _by_distance(residue: TemporalInferenceResidue, side: str) -> tuple[Array, Array]:
    """Distances ``[distance]`` and coherence ``[place, distance]`` in the window."""
    frame = _asked_curve(residue, side).filter(pl.col("token") < residue.config.window)
    mean = frame.group_by("distance", "place").agg(pl.col("coherence").mean()).sort("place", "distance")
    distances = mean["distance"].unique().sort().to_numpy().astype(float)
    return distances, mean["coherence"].to_numpy().reshape(-1, len(distances))


def break_of(residue: TemporalInferenceResidue, side: str) -> tuple[Change | None, Array]:
    """The best step of the mean curve, and its size at every place ``[place]``; None with too few distances."""
    distances, matrix = _by_distance(residue, side)
    if len(distances) < FEWEST:
        return None, np.zeros(0)
    change = change_point(distances, matrix.mean(0))
    return change, matrix[:, change.split] - matrix[:, change.split - 1]


def preference(residue: TemporalInferenceResidue, side: str, gap: int = 0) -> Array:
    """``[wording]``: log-odds of the right over the wrong word, mean of the two orders (nats)."""
    frame = residue.frames["preferences"].filter((pl.col("side") == side) & (pl.col("gap") == gap))
    return frame.group_by("wording").agg(pl.col("log_odds").mean()).sort("wording")["log_odds"].to_numpy()


def verdicts(residue: TemporalInferenceResidue) -> list[Verdict]:
    """The four verdicts, in the order of :data:`VERDICTS`."""
    asked = residue.asked
    text = asked.text is not None
    relation = asked.pair.relation if asked.pair is not None else None
    return [
        _drift(residue) if text else _not_asked(residue, "drift"),
        _break(residue) if text else _not_asked(residue, "discontinuity break"),
        _pair(residue, "ordering reversal") if relation == "order" else _not_asked(residue, "ordering reversal"),
        _pair(residue, "causal confusion") if relation == "cause" else _not_asked(residue, "causal confusion"),
    ]


_WORDS = {
    "drift": ("coherence of the continuation's second half minus its first", "nats a token", "drift", "a text to shift"),
    "discontinuity break": ("fall of coherence between two neighbouring distances", "nats a token", "fall", "a text to shift"),
    "ordering reversal": ("log-odds of the right over the wrong order", "nats", "order", "a pair of events (relation order)"),
    "causal confusion": ("log-odds of the right over the wrong direction", "nats", "cause", "a pair of events (relation cause)"),
}


def _make(residue: TemporalInferenceResidue, mode: str, value: Estimate, control: Estimate, what: str, note: str = "") -> Verdict:
    quantity, unit, criterion, _ = _WORDS[mode]
    criteria = residue.config.criteria
    return judge(
        SHELL,
        mode,
        quantity=quantity,
        unit=unit,
        value=value,
        control=what,
        control_value=control,
        criterion=getattr(criteria, criterion),
        direction="below",
        criterion_source=criteria.source,
        note=note,
    )


def _not_asked(residue: TemporalInferenceResidue, mode: str) -> Verdict:
    none = Estimate(math.nan, math.nan, math.nan, 0, method="not asked")
    return replace(_make(residue, mode, none, none, "none"), note=f"Not asked: it needs {_WORDS[mode][3]}.")


def _drift(residue: TemporalInferenceResidue) -> Verdict:
    a, seed = residue.asked, residue.asked.seed
    value, control = bootstrap_mean(drift_of(residue, "text"), seed=seed), bootstrap_mean(drift_of(residue, "reference"), seed=seed)
    note = f"Shift of {a.distance} tokens {a.direction} ({a.mode}); n = places in this text, {residue.config.stride} tokens apart."
    return _make(residue, "drift", value, control, f"the same shift in another {a.genre} text", note)


def _break(residue: TemporalInferenceResidue) -> Verdict:
    a, seed, margin = residue.asked, residue.asked.seed, residue.config.criteria.margin
    change, sizes = break_of(residue, "text")
    other, other_sizes = break_of(residue, "reference")
    if change is None:
        none = Estimate(math.nan, math.nan, math.nan, 0, method="too few distances")
        verdict = _make(residue, "discontinuity break", none, none, "none")
        return replace(verdict, note=f"Fewer than {FEWEST} distances fit this text: a step cannot be told from a slope.")
    control = (
        bootstrap_mean(other_sizes, seed=seed) if other is not None else Estimate(math.nan, math.nan, math.nan, 0, method="none")
    )
    note = (
        f"Between {change.before:g} and {change.after:g} tokens; AICc of the step better than that of the best smooth curve by {change.gain:.1f} "
        f"(needs {margin:g}); {change.share:.0%} of the range falls between these two distances (needs {_SHARE:.0%})."
    )
    what = f"the best step under the same shifts in another {a.genre} text"
    verdict = _make(residue, "discontinuity break", bootstrap_mean(sizes, seed=seed), control, what, note)
    if verdict.outcome != "absent" and (change.gain <= 0 or change.share < _SHARE):
        return replace(verdict, outcome="absent", note=f"{verdict.note} Coherence falls, but along a slope.")
    if verdict.outcome == "fires" and change.gain < margin:
        return replace(verdict, outcome="undecided", note=f"{verdict.note} Step and slope fit about as well.")
    return verdict


def _pair(residue: TemporalInferenceResidue, mode: str) -> Verdict:
    seed = residue.asked.seed
    value, control = (bootstrap_mean(preference(residue, side), seed=seed) for side in ("pair", "neutral"))
    return _make(
        residue,
        mode,
        value,
        control,
        "the same question after stories that give no order",
        "n = wordings, each asked in both orders.",
    )
