"""What a concept is compared with: its positives, its negatives, and which of them stand in one scenario.

1. Positives are the concept's texts. Negatives are the neutral tellings (``baseline``), the other concepts' texts (``others``), or both (``all``).
2. Where a scenario holds both, the design is paired: the estimate is the mean over scenarios of (mean positive − mean negative), every scenario counting
   the same, and texts without a partner in their scenario are left out and counted. Without any such scenario all texts form one stratum.
3. Null: labels are permuted within each scenario, which keeps topic and number of texts. Draws are with replacement; ``smallest_p`` is the smallest p value
   that all distinct labelings together could give, so a design of few scenarios says itself that it cannot reach a level.
4. Folds for held-out scores are scenarios; where texts have none, each fold takes as many positives as negatives where it can, since a fold of one class
   alone would push its own class's mean away from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args, Literal

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._corpus import BASELINE
from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import generator

__all__ = ["Against", "Design", "draw_labels", "make_design"]

Against = Literal["baseline", "others", "all"]
_FOLDS = 10
_BLOCK = 2**19
"""Random numbers drawn at a time; they come in the same order whatever it is."""


@dataclass(frozen=True, eq=False)
class Design:
    """One concept's comparison.

    Attributes:
        concept: its name.
        against: what the negatives are.
        rows: ``[n]``: the texts used, by their number in the corpus.
        positive: ``[n]`` bool.
        stratum: ``[n]``: within which labels may be exchanged; scenarios where paired, else 0.
        fold: ``[n]``: what is held out together, and what counts as one unit in intervals.
        paired: whether differences are taken within scenarios.
        left_out: texts of the concept or its negatives without a partner in their scenario.
    """

    concept: str
    against: Against
    rows: NDArray[np.intp]
    positive: NDArray[np.bool_]
    stratum: NDArray[np.intp]
    fold: NDArray[np.intp]
    paired: bool
    left_out: int

    @property
    def n_pos(self) -> int:
        """Positives used."""
        return int(self.positive.sum())

    @property
    def n_neg(self) -> int:
        """Negatives used."""
        return len(self.positive) - self.n_pos

    @property
    def n_strata(self) -> int:
        """Scenarios where paired, else 1."""
        return int(self.stratum.max()) + 1

    @property
    def n_folds(self) -> int:
        """Units that can be held out."""
        return int(self.fold.max()) + 1

    def weights(self, positive: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """``w`` with ``w @ x`` the difference of means (paired: the mean of the scenarios' differences), for these labels.

        Args:
            positive: ``[n]`` or ``[draw, n]``, as many positives in each stratum as in the design; None is the design's own.

        Returns:
            The same shape; the positive part sums to 1 and the negative part to −1.
        """
        labels = self.positive if positive is None else positive
        n_pos, n_neg = (
            np.bincount(self.stratum, weights=part, minlength=self.n_strata) for part in (self.positive, ~self.positive)
        )
        return np.where(labels, 1 / (self.n_strata * n_pos[self.stratum]), -1 / (self.n_strata * n_neg[self.stratum]))

    @property
    def smallest_p(self) -> float:
        """One over the number of distinct labelings: no test by permutation can show a smaller p value than that."""
        log_count = 0.0
        for s in range(self.n_strata):
            here = self.stratum == s
            k, p = int(here.sum()), int(self.positive[here].sum())
            log_count += math.lgamma(k + 1) - math.lgamma(p + 1) - math.lgamma(k - p + 1)
        return min(1.0, math.exp(-log_count))

    def without(self, fold: int) -> Design:
        """The same without one fold: what a direction is fitted on when that fold is held out.

        Raises:
            ConfigError: nothing of a class is left.
        """
        keep = self.fold != fold
        positive, strata = self.positive[keep], np.unique(self.stratum[keep], return_inverse=True)[1]
        if positive.all() or not positive.any():
            raise ConfigError(f"Without one fold {self.concept!r} has no positives or no negatives left.", todo="Give more texts.")
        folds = np.unique(self.fold[keep], return_inverse=True)[1]
        return Design(self.concept, self.against, self.rows[keep], positive, strata, folds, self.paired, self.left_out)

    def only(self, folds: Sequence[int]) -> Design:
        """The same with some folds only.

        Raises:
            ConfigError: nothing of a class is left.
        """
        keep = np.isin(self.fold, list(folds))
        positive = self.positive[keep]
        if positive.all() or not positive.any():
            raise ConfigError(f"In a part of its texts {self.concept!r} has no positives or no negatives.", todo="Give more texts.")
        strata, fold = (np.unique(part[keep], return_inverse=True)[1] for part in (self.stratum, self.fold))
        return Design(self.concept, self.against, self.rows[keep], positive, strata, fold, self.paired, self.left_out)


def make_design(labels: Sequence[str], scenarios: Sequence[str | None], concept: str, against: Against = "baseline") -> Design:
    """The comparison of one concept.

    Args:
        labels: the concept of each text; ``baseline`` for the neutral telling.
        scenarios: the scenario of each text, or None.
        concept: which concept.
        against: ``baseline``, ``others`` or ``all``.

    Raises:
        ConfigError: lists of different lengths, an unknown choice, no such concept, or no negatives.
    """
    if len(labels) != len(scenarios):
        raise ConfigError(f"There are {len(labels)} labels and {len(scenarios)} scenarios.", todo="Give one of each a text.")
    if against not in get_args(Against):
        raise ConfigError(f"{against!r} is no choice of negatives.", todo=f"Use one of: {', '.join(get_args(Against))}.")
    is_positive = np.array([label == concept for label in labels], dtype=bool)
    neutral = np.array([label == BASELINE for label in labels], dtype=bool)
    is_negative = {"baseline": neutral, "others": ~neutral & ~is_positive, "all": ~is_positive}[against]
    if concept == BASELINE or not is_positive.any():
        known = ", ".join(sorted(set(labels) - {BASELINE})[:12])
        raise ConfigError(f"There are no texts of a concept {concept!r}.", todo=f"Concepts here: {known or 'none'}.")
    if not is_negative.any():
        raise ConfigError(
            f"There are no negatives ({against}) for {concept!r}.",
            todo="Give neutral tellings under the label 'baseline', or compare with against='others'.",
        )
    names = np.array(["" if s is None else f"={s}" for s in scenarios])
    shared = sorted((set(names[is_positive]) & set(names[is_negative])) - {""})
    used = is_positive | is_negative
    if shared:
        rows = np.flatnonzero(used & np.isin(names, shared))
        stratum = np.unique(names[rows], return_inverse=True)[1].astype(np.intp)
        fold = stratum
    else:
        rows = np.flatnonzero(used)
        stratum = np.zeros(len(rows), dtype=np.intp)
        fold = _folds(is_positive[rows], names[rows])
    return Design(concept, against, rows, is_positive[rows], stratum, fold, bool(shared), int(used.sum()) - len(rows))


def _folds(positive: NDArray[np.bool_], names: NDArray[np.str_]) -> NDArray[np.intp]:
    if (names != "").all():
        return np.unique(names, return_inverse=True)[1].astype(np.intp)
    k = max(1, min(_FOLDS, int(positive.sum()), int((~positive).sum())))
    fold = np.zeros(len(positive), dtype=np.intp)
    for part in (positive, ~positive):
        fold[part] = np.arange(int(part.sum())) % k
    return fold


def draw_labels(design: Design, n_draws: int, seed: int) -> NDArray[np.bool_]:
    """Labels permuted within strata, ``[draw, n]``; each stratum keeps its number of positives.

    Raises:
        ConfigError: fewer than 1 draw, or a seed that is no integer of 0 or more.
    """
    if n_draws < 1:
        raise ConfigError(f"{n_draws} draws are none.", todo="Ask for 1000 or more.")
    rng = generator(seed)
    drawn = np.zeros((n_draws, len(design.positive)), dtype=bool)
    for s in range(design.n_strata):
        here = np.flatnonzero(design.stratum == s)
        n_pos = int(design.positive[here].sum())
        some = max(1, _BLOCK // len(here))
        for start in range(0, n_draws, some):
            at = slice(start, min(start + some, n_draws))
            ranks = rng.random((at.stop - start, len(here))).argsort(axis=1).argsort(axis=1)
            drawn[at, here] = ranks < n_pos
    return drawn
