"""Words of a text as evidence of a concept: naive Bayes on a corpus, and the words that give a concept away. No model is used.

1. A text is the set of its words, in lower case. Naive Bayes (Bernoulli, ½ added to each count): log odds of a word being there under the concept,
   against the neutral tellings or against the other concepts.
2. The score of a new text is the sum of its known words' log odds, in nats. What every text has in common (words that are absent everywhere, the
   classes' shares) is left out: scores are compared with each other, not with 0. Words that the corpus does not have count nothing.
3. ``listed``: whether a text holds a word of the list that gives the concept away. No text of the packaged corpus does, so this and the first are
   told apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args, Literal

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._corpus import BASELINE, Corpus
from symbolic_residue.concepts._validate import concept_words
from symbolic_residue.errors import ConfigError, CorpusError
from symbolic_residue.stats import Estimate, t_interval

__all__ = ["Rival", "WordScorer", "log_odds", "word_table", "words_scale"]

Array = NDArray[np.float64]
Rival = Literal["baseline", "others"]
_WORD = re.compile(r"[^\W\d_]+")


def word_table(texts: Sequence[str]) -> tuple[Array, dict[str, int]]:
    """Which words stand in which texts, ``[text, word]`` of 0 and 1, and the words' columns."""
    sets = [set(_WORD.findall(text.lower())) for text in texts]
    place = {word: i for i, word in enumerate(sorted(set().union(*sets)))}
    x = np.zeros((len(texts), len(place)))
    for row, words in enumerate(sets):
        x[row, [place[word] for word in words]] = 1.0
    return x, place


def log_odds(x: Array) -> Array:
    """Of each word being there, ``[text, word] -> [word]``, half a text added to each count."""
    share = (x.sum(0) + 0.5) / (len(x) + 1)
    return np.log(share / (1 - share))


@dataclass(frozen=True, eq=False)
class WordScorer:
    """Scores of new texts by words alone; made by :meth:`fit`.

    Attributes:
        place: word → column.
        weights: (concept, against) → log odds of each word, ``[word]``, nats.
        listed_words: concept → words that give it away; ``joy*`` is every word that begins so.
    """

    place: Mapping[str, int]
    weights: Mapping[tuple[str, str], Array]
    listed_words: Mapping[str, tuple[str, ...]]

    @classmethod
    def fit(cls, corpus: Corpus) -> WordScorer:
        """From all texts of a corpus.

        Raises:
            CorpusError: it has no texts.
        """
        if not corpus.texts:
            raise CorpusError("The corpus has no text.", why="Words are counted in texts.")
        x, place = word_table([one.text for one in corpus.texts])
        labels = np.array([one.concept for one in corpus.texts])
        weights = {}
        for concept in corpus.concepts:
            mine = labels == concept
            for against, other in (("baseline", labels == BASELINE), ("others", ~mine & (labels != BASELINE))):
                if mine.any() and other.any():
                    weights[concept, against] = log_odds(x[mine]) - log_odds(x[other])
        return cls(place, weights, {name: concept_words(corpus, name) for name in corpus.concepts})

    def scores(self, texts: Sequence[str], concept: str, against: Rival = "others") -> Array:
        """``[text]``: summed log odds of the known words, nats.

        Raises:
            ConfigError: a concept or rival that the corpus does not have.
        """
        if against not in get_args(Rival) or (concept, against) not in self.weights:
            known = ", ".join(sorted({name for name, _ in self.weights}))
            raise ConfigError(f"Words cannot tell {concept!r} against {against!r} here.", todo=f"Concepts: {known or 'none'}.")
        weights = self.weights[concept, against]
        return np.array([sum(float(weights[i]) for i in self._columns(text)) for text in texts], dtype=np.float64)

    def known(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """``[text]``: different words of each that the corpus has."""
        return np.array([len(self._columns(text)) for text in texts], dtype=np.int64)

    def listed(self, texts: Sequence[str], concept: str) -> NDArray[np.bool_]:
        """``[text]``: whether it holds a word that gives the concept away.

        Raises:
            ConfigError: a concept that the corpus does not have.
        """
        if concept not in self.listed_words:
            raise ConfigError(f"There is no list of words for {concept!r}.", todo=f"Concepts: {', '.join(self.listed_words)}.")
        patterns = self.listed_words[concept]
        whole = {p.lower() for p in patterns if not p.endswith("*")}
        begin = tuple(p[:-1].lower() for p in patterns if p.endswith("*"))
        return np.array(
            [any(w in whole or (bool(begin) and w.startswith(begin)) for w in _WORD.findall(text.lower())) for text in texts],
            dtype=bool,
        )

    def _columns(self, text: str) -> list[int]:
        return sorted(self.place[word] for word in set(_WORD.findall(text.lower())) if word in self.place)


def words_scale(corpus: Corpus, concept: str, rival: Rival, n_words: int) -> Estimate:
    """How far a text of the concept stands above the neutral telling of its event, on scenarios left out of the counts: what the score could show at its best.

    Args:
        corpus: with scenarios.
        concept, rival: as for :meth:`WordScorer.scores`.
        n_words: texts are cut to their first so many words, as long as what is compared with them.

    Returns:
        Mean over scenarios, nats, with a t interval; NaN where fewer than two can be had.
    """
    texts = [one for one in corpus.texts if one.scenario is not None]
    x, place = word_table([one.text for one in texts])
    labels, scenarios = np.array([one.concept for one in texts]), np.array([one.scenario for one in texts])
    mine = labels == concept
    other = (labels == BASELINE) if rival == "baseline" else ~mine & (labels != BASELINE)
    found = []
    for scenario in dict.fromkeys(scenarios.tolist()):
        here = scenarios == scenario
        told, plain = np.flatnonzero(here & mine), np.flatnonzero(here & (labels == BASELINE))
        if not (len(told) and len(plain) and (~here & mine).any() and (~here & other).any()):
            continue
        weights = log_odds(x[~here & mine]) - log_odds(x[~here & other])
        mean = [
            np.mean([sum(weights[place[w]] for w in set(_WORD.findall(texts[i].text.lower())[:n_words])) for i in some])
            for some in (told, plain)
        ]
        found.append(float(mean[0] - mean[1]))
    if len(found) < 2:
        return Estimate(float("nan"), float("nan"), float("nan"), len(found), 0.95, "none: fewer than two scenarios")
    return t_interval(found)
