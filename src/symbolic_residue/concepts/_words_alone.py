"""How well words alone tell a concept: the control for every readout of a model.

1. A text is the set of its words, in lower case; order and counts are lost, and no model is used.
2. For each scenario, naive Bayes (Bernoulli, ½ added to each count) is fitted on all *other* scenarios: log odds of a word being there under the concept,
   against the neutral tellings or against the other concepts.
3. Within the scenario left out, AUC = the share of (telling under the concept, other telling) pairs in which the former has the higher score, ties ½.
4. Mean over scenarios, which are the sample. Interval: Wilson's for a share of as many independent answers; an AUC within one scenario varies no more than
   a yes or no with the same mean, so the interval is on the wide side, and it never leaves [0, 1].

A readout of hidden states that is no better than this has shown no more than that the texts use different words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._corpus import BASELINE, Corpus
from symbolic_residue.concepts._word_scorer import log_odds, Rival, word_table
from symbolic_residue.errors import CorpusError
from symbolic_residue.stats import Estimate, score_bounds

__all__ = ["WordsAlone", "words_alone"]


@dataclass(frozen=True, slots=True)
class WordsAlone:
    """Held-out AUC of one concept by its words; ``auc.n`` counts scenarios."""

    concept: str
    against: Rival
    auc: Estimate


def words_alone(corpus: Corpus, level: float = 0.95) -> list[WordsAlone]:
    """Held-out AUC of every concept by words alone, against neutral tellings and against the other concepts of the same scenario.

    Args:
        corpus: texts outside any scenario are left out.
        level: of the intervals.

    Returns:
        Two rows a concept, in the corpus's order. Fewer than two scenarios that can be compared: no value (NaN), and ``method`` says so.

    Raises:
        CorpusError: no scenario holds a telling.
    """
    texts = [one for one in corpus.texts if one.scenario is not None]
    if not texts:
        raise CorpusError("The corpus has no scenario.", why="Words are compared within a scenario that was left out.")
    x = word_table([one.text for one in texts])[0]
    labels = np.array([one.concept for one in texts])
    scenarios = np.array([one.scenario for one in texts])
    rows = []
    for concept in corpus.concepts:
        mine = labels == concept
        for against, other in (("baseline", labels == BASELINE), ("others", ~mine & (labels != BASELINE))):
            rows.append(WordsAlone(concept, against, _held_out(x, mine, other, scenarios, level)))  # type: ignore[arg-type]
    return rows


def _held_out(
    x: NDArray[np.float64], mine: NDArray[np.bool_], other: NDArray[np.bool_], scenarios: NDArray[np.str_], level: float
) -> Estimate:
    """Mean over scenarios of the AUC within the one left out; ``x [text, word]``."""
    found = []
    for scenario in dict.fromkeys(scenarios.tolist()):
        here = scenarios == scenario
        if not ((here & mine).any() and (here & other).any() and (~here & mine).any() and (~here & other).any()):
            continue
        direction = log_odds(x[~here & mine]) - log_odds(x[~here & other])
        gap = (x[here & mine] @ direction)[:, None] - (x[here & other] @ direction)[None, :]
        gap[np.abs(gap) < 1e-9] = 0.0
        found.append(float((0.5 + 0.5 * np.sign(gap)).mean()))
    n = len(found)
    if n < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), n, level, "No value: fewer than two scenarios hold both.")
    mean = float(np.mean(found))
    return Estimate(mean, *score_bounds(mean, n, level), n, level, "Wilson over scenarios")
