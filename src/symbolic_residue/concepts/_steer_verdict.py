"""Arms of steering compared: effect, excess over the controls, the judged dose, the verdict (the rules are in ``_steer_check``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import bootstrap_mean, Estimate, t_interval

__all__ = [
    "MEASURES",
    "MOST_DAMAGE",
    "Arm",
    "Comparison",
    "Kind",
    "SteeringVerdict",
    "blocked_by",
    "compare",
    "judged_dose",
    "rise",
    "slope",
]

Array = NDArray[np.float64]
MOST_DAMAGE = 1.0
"""Nats a token."""
ALPHA = 0.05
HALF = 0.5
"""Of what the corpus's own texts of the concept show by the same measure: a push that does less than half of that is small."""
MEASURES = ("words", "words_baseline", "listed", "later")
SteeringVerdict = Literal["steers", "not", "undecided"]
Kind = Literal["unsteered", "direction", "random", "other concept", "heads", "other heads"]


@dataclass(frozen=True, eq=False)
class Arm:
    """Texts under one push, one value an opening (samples averaged).

    Attributes:
        kind, name, dose: which.
        values: measure → ``[opening]``; see the module.
        nll: ``[opening]``, nats a token; NaN where no token came.
        repetition, empty: ``[opening]`` shares.
        known: ``[opening]``: words that the corpus has.
        texts: ``[opening][sample]``.
    """

    kind: Kind
    name: str
    dose: float
    values: Mapping[str, Array]
    nll: Array
    repetition: Array
    empty: Array
    known: Array
    texts: list[list[str]]


@dataclass(frozen=True, eq=False)
class Comparison:
    """One arm against the unpushed texts and against its controls, by one measure; intervals over openings."""

    measure: str
    arm: str
    against: str
    effect: Estimate
    control: Estimate
    """Effect of the controls, their mean."""
    excess: Estimate
    controls: tuple[float, ...]
    """Effect of each control."""
    p: float
    sd: float
    """Of the unpushed texts over openings."""
    scale: float
    """What the corpus's own texts of the concept show by this measure, beyond neutral tellings; NaN where that is not known."""
    verdict: SteeringVerdict
    why: str


def judged_dose(rises: Mapping[float, float]) -> tuple[float, bool, str]:
    """The dose that is judged, whether its text is whole, and why.

    Args:
        rises: dose → rise of the NLL, nats a token (NaN: no token came).

    Raises:
        ConfigError: no positive dose.
    """
    positive = sorted(dose for dose in rises if dose > 0)
    if not positive:
        raise ConfigError(
            "No positive dose was run.", why="The verdict is on pushing towards the concept.", todo="Give one above 0."
        )
    fine = [dose for dose in positive if rises[dose] <= MOST_DAMAGE]
    if fine:
        return (
            fine[-1],
            True,
            f"the largest dose at which the NLL rises by at most {MOST_DAMAGE:g} nat a token ({rises[fine[-1]]:+.2f})",
        )
    return positive[0], False, f"the smallest: at every dose the NLL rises by more than {MOST_DAMAGE:g} nat a token"


def compare(
    measure: str,
    arm: Arm,
    plain: Arm,
    controls: Sequence[Arm],
    against: str,
    seed: int = 0,
    *,
    scale: float = math.nan,
    blocked: str | None = None,
) -> Comparison:
    """One arm against the unpushed texts and its controls.

    Args:
        measure: one of ``MEASURES``.
        arm, plain: as named.
        controls: three or more.
        against: what they are called.
        seed: of the bootstrap.
        scale: of the measure, see ``Comparison``; without it there is no verdict ``not``.
        blocked: why there can be no verdict, or None.
    """
    value, base = arm.values[measure], plain.values[measure]
    rest = np.stack([one.values[measure] for one in controls])
    there = np.isfinite(value) & np.isfinite(base) & np.isfinite(rest).all(0)
    span = (-1.0, 1.0) if measure == "listed" else (-np.inf, np.inf)
    value, base, rest = value[there], base[there], rest[:, there]
    if len(value) < 2:
        nothing = Estimate(
            float("nan"), float("nan"), float("nan"), len(value), 0.95, "none: fewer than two openings were continued in every arm"
        )
        return Comparison(
            measure, arm.name, against, nothing, nothing, nothing, (), 1.0, float("nan"), scale, "undecided", nothing.method
        )
    effect, control, excess = (_mean(x, seed, span) for x in (value - base, rest.mean(0) - base, value - rest.mean(0)))
    means, r = rest.mean(1), len(rest)
    spread = float(means.std(ddof=1)) * np.sqrt(1 + 1 / r)
    gap = float(value.mean() - means.mean())
    p = float(sps.t.sf(gap / spread, r - 1)) if spread > 0 else (1 / (r + 1) if gap > 0 else 1.0)
    sd = float(base.std(ddof=1))
    shown = f"excess {excess.value:+.2f} [{excess.low:+.2f}, {excess.high:+.2f}], p {p:.3f}; the corpus's own texts: {scale:+.2f}"
    verdict: SteeringVerdict
    if blocked is not None:
        verdict, why = "undecided", blocked
    elif excess.above(0) and p <= ALPHA:
        verdict, why = "steers", f"More than the {against} do: {shown}."
    elif scale > 0 and excess.below(HALF * scale):
        verdict, why = "not", f"Less than half of what texts of the concept show, beyond what the {against} do: {shown}."
    else:
        verdict, why = "undecided", f"Neither beyond the {against} nor surely small: {shown}."
    return Comparison(
        measure, arm.name, against, effect, control, excess, tuple((means - base.mean()).tolist()), p, sd, scale, verdict, why
    )


def _mean(values: Array, seed: int, span: tuple[float, float]) -> Estimate:
    one = bootstrap_mean(values, seed=seed)
    low, high = (max(span[0], one.low), min(span[1], one.high)) if one.has_interval else (one.low, one.high)
    return Estimate(one.value, low, high, one.n, one.level, one.method + " over openings" if one.has_interval else one.method)


def rise(arm: Arm, plain: Arm) -> float:
    """Of the NLL over the unpushed texts, nats a token; NaN where no token came."""
    there = np.isfinite(arm.nll) & np.isfinite(plain.nll)
    return float((arm.nll - plain.nll)[there].mean()) if there.any() else float("nan")


def slope(plain: Arm, dosed: Sequence[Arm]) -> Estimate:
    """Least squares of ``words`` on the dose within each opening; mean over openings."""
    doses = np.array([0.0, *(arm.dose for arm in dosed)])
    table = np.stack([plain.values["words"], *(arm.values["words"] for arm in dosed)])
    centred = doses - doses.mean()
    return t_interval(centred @ table / (centred @ centred))


def blocked_by(auc: Estimate | None, scale: Estimate, whole: bool) -> str | None:
    """Why there can be no verdict by words, or None.

    Args:
        auc: of words alone on scenarios left out.
        scale: of the corpus's own texts, as long as those written.
        whole: whether the text is whole.
    """
    if auc is None or not auc.above(0.5):
        shown = "" if auc is None or not auc.has_interval else f" (AUC {auc.value:.2f} [{auc.low:.2f}, {auc.high:.2f}])"
        return f"Words alone do not tell this concept on scenarios left out{shown}: its words cannot be scored."
    if not scale.above(0):
        shown = "" if not scale.has_interval else f" ({scale.value:+.2f} [{scale.low:+.2f}, {scale.high:+.2f}] nats)"
        return f"In so few words not even the corpus's own texts of this concept score above their neutral tellings{shown}: a push could not be seen."
    return None if whole else "The text is broken at every dose."
