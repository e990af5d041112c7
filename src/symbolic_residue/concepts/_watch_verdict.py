"""Is a concept's mean score over generated tokens above that of neutral texts? One verdict a concept and layer ("track").

1. A text's number is its mean z over the counted tokens. A text is one sample, whatever its length; so is a prompt, however many draws of it are averaged:
   a prompt has a level of its own, as a neutral telling has.
2. Neutral texts: the means of every run of as many tokens in a row as the text has (all, where a telling has fewer), z by the other scenarios. Tellings count
   the same. Tokens that depend on each other do so in these runs too. Their sd is the unit of ``difference``.
3. One prompt: p is the rank of its standardised mean among the neutral tellings' *largest* over all tracks (standardised by the other tellings), so
   family-wise: ``p = (1 + Σ over tellings of the share of runs at least as large) / (1 + tellings)``. The verdict is about that prompt alone.
4. Several prompts: Welch's t of their means against the tellings', one-sided, Holm over tracks; 95 % interval of the difference.
5. Controls: the same permuted labelings for every track, each direction by its own reference, on the same texts. ``p_control`` = rank of the mean z
   among the *largest* of each labeling over the tracks.
6. ``above``: both p ≤ .05. ``not above``: one prompt less than ``MARGIN`` above the neutral mean; of several, the interval's upper end. Else ``undecided``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import holm, score_bounds

__all__ = ["FEWEST_TOKENS", "LEVEL", "MARGIN", "THRESHOLD", "WatchVerdict", "judge_watch", "reaches"]

Array = NDArray[np.float64]
Outcome = Literal["above", "not above", "undecided"]

THRESHOLD = 2.0
"""z from which a token is marked: about one neutral token in forty, were they normal; how many it is stands beside."""
MARGIN = 1.0
"""In sd between neutral texts: a neutral text lies as high every sixth time, so what lies lower is no sign of a concept."""
LEVEL = 0.05
"""Largest p of a verdict "above"."""
FEWEST_TOKENS = 5
"""Texts of fewer counted tokens are not judged."""


_TIE = 1e-5
"""Few scenarios have few labelings, and some draws are the concept's own: scores that differ by rounding only count as equal."""


def reaches(control: Array, z: Array) -> NDArray[np.bool_]:
    """Whether each control ``[…, control]`` is at least ``z […]``."""
    return control >= (z - _TIE * (1 + np.abs(z)))[..., None]


@dataclass(frozen=True)
class WatchVerdict:
    """One track's verdict.

    Attributes:
        outcome, reason: see the module; the reason says what decided, or what lacks.
        n, n_counts: samples, and what they are.
        mean_z: mean over the samples, in sd of neutral tokens.
        neutral_mean, neutral_low, neutral_high: of neutral texts' means: mean, and where 95 % of further ones lie.
        difference, low, high: mean minus the neutral mean, in sd between neutral texts; the interval over samples, None for one prompt.
        p: of this track alone; p_family: over all tracks; p_control: among the controls, over all tracks.
        share: of the texts' tokens with z ≥ ``THRESHOLD`` (mean over samples); neutral_share, with interval over scenarios; control_share: of the same tokens,
            mean over the controls.
        n_scenarios: neutral tellings' scenarios.
        left_out: texts that were too short.
    """

    outcome: Outcome
    reason: str
    n: int
    n_counts: str
    mean_z: float | None
    neutral_mean: float | None
    neutral_low: float | None
    neutral_high: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_family: float | None
    p_control: float | None
    share: float | None
    neutral_share: float
    neutral_share_low: float
    neutral_share_high: float
    control_share: float | None
    n_scenarios: int
    left_out: int


def judge_watch(
    neutral: Sequence[Array],
    texts: Sequence[Sequence[Array]],
    control_means: Sequence[Sequence[Array]],
    control_shares: Sequence[Sequence[Array]],
) -> list[WatchVerdict]:
    """Verdicts of all tracks.

    Args:
        neutral: of each scenario ``[token, track]``: z by the other scenarios.
        texts: of each prompt and draw ``[token, track]``: z of the counted generated tokens.
        control_means: as ``texts``: ``[track, control]``, mean z of the controls over the same tokens.
        control_shares: as ``texts``: ``[track]``, mean over controls of the share of tokens with z ≥ ``THRESHOLD``.

    Raises:
        ConfigError: neutral tellings of fewer than three scenarios, or no text.
    """
    if len(neutral) < 3 or not texts:
        raise ConfigError("Nothing can be judged.", why=f"There are {len(neutral)} neutral scenarios and {len(texts)} prompts.")
    n_tracks = neutral[0].shape[1]
    kept = [[i for i, z in enumerate(draws) if len(z) >= FEWEST_TOKENS] for draws in texts]
    left_out = sum(len(draws) for draws in texts) - sum(map(len, kept))
    prompts = [i for i, draws in enumerate(kept) if draws]
    flat = [(i, j) for i in prompts for j in kept[i]]
    groups = [[(i, j) for j in kept[i]] for i in prompts]
    shares = np.stack([(z >= THRESHOLD).mean(0) for z in neutral])
    of_neutral = [(float(p), *score_bounds(float(p), len(neutral), 0.95)) for p in shares.mean(0)]
    if not groups:
        reason = f"No text has {FEWEST_TOKENS} or more tokens that count."
        return [
            WatchVerdict(
                "undecided", reason, 0, "texts", None, None, None, None, None, None, None, None, None, None, None, *of_neutral[t], None, len(neutral), left_out
            )
            for t in range(n_tracks)
        ]  # fmt: skip

    def over(values: Sequence[Sequence[Array]], reduce: bool = False) -> Array:
        """Mean over the draws of each sample, ``[sample, …]``."""
        return np.stack([np.mean([values[i][j].mean(0) if reduce else values[i][j] for i, j in g], axis=0) for g in groups])

    means = over(texts, reduce=True)
    share = np.stack([np.mean([(texts[i][j] >= THRESHOLD).mean(0) for i, j in g], axis=0) for g in groups]).mean(0)
    controls, control_share = over(control_means).mean(0), over(control_shares).mean(0)
    length = int(np.median([len(texts[i][j]) for i, j in flat]))
    runs = [_run_means(z, length) for z in neutral]
    centre, sd = _spread(runs)
    mean = means.mean(0)
    p_control = (1 + reaches(controls.max(0), mean).sum(1)) / (1 + controls.shape[1])
    difference = (mean - centre) / sd
    n, s = len(groups), len(neutral)
    half = float(sps.t.ppf(0.975, s - 1)) * math.sqrt(1 + 1 / s)
    if n == 1:
        p, family = _rank(runs, mean)
        low = high = np.full(n_tracks, np.nan)
        counts = "text" if len(flat) == 1 else f"prompt ({len(flat)} draws averaged)"
    else:
        p, low, high = _welch(means, np.stack([r.mean(0) for r in runs]), sd)
        family = holm(p)
        counts = "prompts"
    verdicts = []
    for t in range(n_tracks):
        top = difference[t] if n == 1 else high[t]
        if family[t] <= LEVEL and p_control[t] <= LEVEL:
            outcome, reason = "above", "Above neutral texts, and above directions of permuted labels on the same texts."
        elif top < MARGIN:
            what = "It lies" if n == 1 else "The interval lies"
            outcome, reason = "not above", f"{what} less than {MARGIN:g} sd above neutral texts."
        elif family[t] <= LEVEL:
            outcome = "undecided"
            reason = "Directions of permuted labels rise as much: the texts differ from neutral tellings in general."
        elif n == 1 and 1 / (1 + s) > LEVEL:
            outcome, reason = "undecided", f"{s} neutral scenarios cannot show a smaller p than {1 / (1 + s):.2f}."
        else:
            where = "It lies" if n == 1 else "The interval reaches"
            outcome, reason = "undecided", f"{where} {MARGIN:g} sd or more above neutral texts, and p is above {LEVEL:g}."
        verdicts.append(
            WatchVerdict(
                outcome, reason, n, counts, float(mean[t]), float(centre[t]), float(centre[t] - half * sd[t]), float(centre[t] + half * sd[t]),
                float(difference[t]), None if n == 1 else float(low[t]), None if n == 1 else float(high[t]), float(p[t]), float(family[t]),
                float(p_control[t]), float(share[t]), *of_neutral[t], float(control_share[t]), s, left_out,
            )
        )  # fmt: skip
    return verdicts


def _run_means(z: Array, length: int) -> Array:
    """Means of every run of ``length`` tokens in a row, ``[run, track]``; of all tokens where there are fewer."""
    k = min(length, len(z))
    sums = np.concatenate([np.zeros((1, z.shape[1])), np.cumsum(z, axis=0)])
    return (sums[k:] - sums[:-k]) / k


def _spread(runs: Sequence[Array]) -> tuple[Array, Array]:
    """Mean and sd ``[track]`` of a run of a telling; tellings weigh the same."""
    centre = np.mean([r.mean(0) for r in runs], axis=0)
    square = np.mean([((r - centre) ** 2).mean(0) for r in runs], axis=0)
    return centre, np.sqrt(square * len(runs) / (len(runs) - 1))


def _rank(runs: Sequence[Array], mean: Array) -> tuple[Array, Array]:
    """p of one text in each track ``[track]``, by itself and among the largest of all tracks."""
    standardised = []
    for s, own in enumerate(runs):
        centre, sd = _spread([r for i, r in enumerate(runs) if i != s])
        standardised.append((own - centre) / sd)
    centre, sd = _spread(runs)
    t = (mean - centre) / sd
    alone = np.mean([(z >= t).mean(0) for z in standardised], axis=0)
    largest = np.mean([(z.max(1)[:, None] >= t[None, :]).mean(0) for z in standardised], axis=0)
    n = len(runs)
    return (1 + n * alone) / (1 + n), (1 + n * largest) / (1 + n)


def _welch(means: Array, tellings: Array, sd: Array) -> tuple[Array, Array, Array]:
    """One-sided p, and the 95 % interval of the difference in units of ``sd``, each ``[track]``."""
    n, s = len(means), len(tellings)
    a, b = means.var(0, ddof=1) / n, tellings.var(0, ddof=1) / s
    se = np.sqrt(a + b)
    df = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (s - 1))
    gap = means.mean(0) - tellings.mean(0)
    half = sps.t.ppf(0.975, df) * se
    return sps.t.sf(gap / se, df), (gap - half) / sd, (gap + half) / sd
