"""Does a chosen edit heal? Its rate on held-out failures beside its random twins', in steps that a simulation can repeat.

1. The unit is a *frame*: failures made alike hang together, so a frame's share of restored failures is one number, and n counts frames. Rate = mean
   over frames, with Wilson's interval at that rate for n = frames (plain Wilson where every failure is a frame of its own).
2. Exact sign-flip test over frames of restored − the twins' share of draws, two-sided; Holm over the kinds of the menu.
3. It *heals* where the rate's whole interval is above the twins' rate and the adjusted p ≤ 0.05; *does not heal* where the interval is at or below
   it, or nothing was restored; else *undecided*. With f frames no p is below 2 / 2^f: k kinds need 2k / 2^f ≤ 0.05, five kinds eight frames.
4. *Gain*: the measure under the edit minus that under its twins, mean with bootstrap interval over frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from symbolic_residue.stats import bound, cluster_bootstrap, cluster_sign_flip, Estimate, holm

__all__ = ["ALPHA", "bounds", "judge_rules", "rate_over_frames", "rule_columns"]

Array = NDArray[np.float64]
ALPHA = 0.05


def rate_over_frames(values: Array, frames: Sequence[str]) -> Estimate:
    """Mean over frames of each one's mean of ``values [failure]`` in [0, 1], with Wilson's interval at that rate; n = frames."""
    each = [float(np.mean([v for v, f in zip(values, frames, strict=True) if f == frame])) for frame in dict.fromkeys(frames)]
    n, p, z = len(each), float(np.mean(each)), float(norm.ppf(0.975))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n, 0.95, "Wilson at the mean rate")


def rule_columns(
    hits: Sequence[float],
    twins: Sequence[Sequence[float]],
    frames: Sequence[str],
    *,
    gains: Sequence[float] | None = None,
    within: tuple[float, float] = (-math.inf, math.inf),
    seed: int = 0,
) -> dict[str, Any]:
    """Columns of a tested rule.

    Args:
        hits: ``[failure]``: 1 where the answer is restored.
        twins: ``[failure][draw]``: the same for each random twin.
        frames: of each failure.
        gains: ``[failure]``: measure under the edit − mean under its twins; ``within`` the range that it cannot leave.
        seed: of flips and resampling.
    """
    hit, twin = np.asarray(hits, np.float64), np.array([float(np.mean(t)) for t in twins], np.float64)
    rate, control = rate_over_frames(hit, frames), rate_over_frames(twin, frames)
    row: dict[str, Any] = {"restored": int(hit.sum()), "n": len(hit), "frames": rate.n}
    row |= {"rate": rate.value, "low": rate.low, "high": rate.high}
    row |= {"control_rate": control.value, "control_low": control.low, "control_high": control.high}
    row["control_n"] = sum(map(len, twins))
    if rate.n > 1:
        row["p"] = float(cluster_sign_flip(hit - twin, list(frames), seed=seed))
    if gains is not None:
        gain = cluster_bootstrap(np.asarray(gains, float), list(frames), seed=seed)
        row["gain"] = gain.value
        row["gain_low"], row["gain_high"] = bounds(gain, *within)
    return row


def judge_rules(rows: Sequence[dict[str, Any]]) -> None:
    """Put ``p_adjusted`` (Holm over ``rows``, the kinds) and ``outcome`` into each."""
    adjusted = holm([1.0 if row.get("p") is None else row["p"] for row in rows]) if rows else []
    for row, p in zip(rows, adjusted, strict=True):
        row["p_adjusted"] = None if row.get("p") is None else float(p)
        row["outcome"] = _outcome(row)


def _outcome(row: dict[str, Any]) -> str:
    if not row["search_restored"]:
        return "not healed"
    if row.get("rate") is None:
        return "undecided"
    if row["low"] > row["control_rate"] and row["p_adjusted"] is not None and row["p_adjusted"] <= ALPHA:
        return "heals"
    return "does not heal" if row["high"] <= row["control_rate"] or row["restored"] == 0 else "undecided"


def bounds(estimate: Estimate, least: float = -math.inf, most: float = math.inf) -> tuple[float | None, float | None]:
    """The interval cut to the quantity's range; None where there is none."""
    return bound(estimate.low, least, most), bound(estimate.high, least, most)
