"""Shares of yes-or-no answers that hang together: how many independent answers they are worth.

1. Answers to one question are alike, so that n answers to k questions say less of other questions than n independent ones. The *design effect* is the
   cluster-robust variance of the share (whole questions are the units) over that of n independent answers; ``n / design effect`` is what n is worth.
2. The design effect is itself estimated from k questions: the worth is multiplied by ``(t[n − 1] / t[k − 1])²``, Student's quantiles at the level
   (Korn & Graubard 1998, Survey Methodology 24).
3. It is never taken to be more than n, nor less than ``n² / Σ nᵢ²`` (k, where questions have as many answers): as if all answers to a question were one.
   Where all answers are alike (0 or n hits) or there is one question, nothing is seen of how they hang together, and this least worth is taken.
4. The interval is Wilson's with that worth in place of n. One answer a question: exactly Wilson's.
5. Measured (8,000 draws each; 5, 8, 12, 20, 32 questions of 2, 4, 8 or mixed answers; shares .05, .2, .5; correlation within a question 0 to .95): 95 % cover
   95.6 % on average and 87 % at worst (rare hits that sit in few questions); n independent answers cover 82 % and 36 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats._estimate import check_level, cluster_sums, Estimate, finite_array, score_bounds
from symbolic_residue.stats._units import robust_se

__all__ = ["clustered_wilson", "effective_n"]

Labels = Sequence[Any] | NDArray[Any]


def effective_n(answers: ArrayLike, clusters: Labels, *, level: float = 0.95) -> float:
    """How many independent answers ``answers [n]`` (0 or 1) of whole clusters are worth: between 1 and n.

    Raises:
        ConfigError: answers empty or other than 0 and 1, labels that do not match, ``level`` not in (0, 1).
    """
    level = check_level(level)
    x = _answers(answers)
    sums, sizes, _ = cluster_sums(x, clusters)
    n, k, p = len(x), len(sizes), float(x.mean())
    least = float(n**2 / (sizes**2).sum())
    if k < 2 or k == n or not 0 < p < 1:
        return least
    robust = float(robust_se(sums[:, None], sizes)[0]) ** 2
    if robust <= 0:
        return float(n)  # every cluster has the same share
    tail = (1 + level) / 2
    worth = p * (1 - p) / robust * float(sps.t.ppf(tail, n - 1) / sps.t.ppf(tail, k - 1)) ** 2
    return min(max(worth, least), float(n))


def clustered_wilson(answers: ArrayLike, clusters: Labels, *, level: float = 0.95) -> Estimate:
    """The share of hits among ``answers [n]`` (0 or 1), with Wilson's interval for :func:`effective_n` answers.

    Args:
        answers: 0 or 1, or false and true.
        clusters: the label of each answer's cluster (its question), ``[n]``.
        level: nominal coverage, over questions like these.

    Returns:
        The estimate, with ``n`` the number of clusters. It never leaves [0, 1].

    Raises:
        ConfigError: answers empty or other than 0 and 1, labels that do not match, ``level`` not in (0, 1).
    """
    worth = effective_n(answers, clusters, level=level)
    x = _answers(answers)
    p = float(x.mean())
    k = len(np.unique(np.asarray(clusters)))
    return Estimate(p, *score_bounds(p, worth, check_level(level)), k, level, f"Wilson, {len(x)} answers worth {worth:.1f}")


def _answers(answers: ArrayLike) -> NDArray[np.float64]:
    x = finite_array(answers, "answers")
    if not np.isin(x, (0.0, 1.0)).all():
        raise ConfigError("An answer is neither 0 nor 1.", todo="Give one 0 or 1 for each answer.")
    return x
