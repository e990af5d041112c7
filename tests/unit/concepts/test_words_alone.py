"""Words alone: a concept that one word gives away, one that none does, chance on shuffled labels, and the value by another way."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from symbolic_residue.concepts import BASELINE, ConceptText, Corpus, packaged_corpus, words_alone
from symbolic_residue.errors import CorpusError

FILL = ["ash", "bay", "cod", "dew", "elm", "fog", "gum", "hay", "ink", "jam", "kit", "log", "mud", "nut", "oak", "pea"]


def planted(n: int = 24) -> Corpus:
    """Random words; in every text of ``told`` stands "zinc", in none of ``plain`` and the neutral tellings."""
    rng = np.random.default_rng(1)
    texts = []
    for i in range(n):
        for concept in (BASELINE, "told", "plain"):
            words = list(rng.choice(FILL, 6, replace=False)) + ["zinc"] * (concept == "told")
            texts.append(ConceptText(concept, f"s{i}", " ".join(words)))
    return Corpus(tuple(texts))


def test_a_word_that_gives_away_is_found_and_its_absence_too():
    rows = {(row.concept, row.against): row.auc for row in words_alone(planted())}
    assert rows["told", "baseline"].value == rows["told", "others"].value == rows["plain", "others"].value == 1.0
    null = rows["plain", "baseline"]
    assert null.low < 0.5 < null.high and null.n == 24
    assert all(0 <= auc.low <= auc.value <= auc.high <= 1 and auc.low < 1 for auc in rows.values())


def test_shuffled_labels_give_chance():
    corpus = packaged_corpus()
    rng = np.random.default_rng(2)
    means = []
    for _ in range(4):
        texts = []
        for scenario in corpus.scenarios:
            group = [one for one in corpus.texts if one.scenario == scenario]
            texts += [ConceptText(group[j].concept, scenario, one.text) for one, j in zip(group, rng.permutation(13), strict=True)]
        means.append([row.auc.value for row in words_alone(Corpus(tuple(texts)))])
    assert abs(np.mean(means) - 0.5) < 0.03
    assert np.mean([row.auc.value for row in words_alone(corpus)]) > 0.7


def test_by_another_way():
    """Log odds added up in plain Python, each text against each."""
    corpus = planted(5)
    texts = list(corpus.texts)
    sets = {id(one): set(re.findall("[a-z]+", one.text)) for one in texts}
    every = set().union(*sets.values())
    aucs = []
    for scenario in corpus.scenarios:
        train = [one for one in texts if one.scenario != scenario]

        def score(words: set[str], train: list[ConceptText] = train) -> float:
            total = 0.0
            for sign, concept in ((1, "plain"), (-1, BASELINE)):
                group = [sets[id(one)] for one in train if one.concept == concept]
                for word in every:
                    share = (sum(word in words for words in group) + 0.5) / (len(group) + 1)
                    total += sign * (math.log(share) if word in words else math.log(1 - share))
            return total

        a, b = (score(sets[id(one)]) for c in ("plain", BASELINE) for one in texts if (one.scenario, one.concept) == (scenario, c))
        aucs.append(1.0 if a > b + 1e-9 else 0.0 if b > a + 1e-9 else 0.5)
    (row,) = [row for row in words_alone(corpus) if (row.concept, row.against) == ("plain", "baseline")]
    assert row.auc.value == pytest.approx(np.mean(aucs)) and row.auc.n == 5


def test_too_little_is_no_value():
    rows = words_alone(
        Corpus((ConceptText("awe", "a", "one"), ConceptText(BASELINE, "a", "two"), ConceptText("awe", None, "three")))
    )
    assert all(math.isnan(row.auc.value) and "fewer than two" in row.auc.method for row in rows)
    with pytest.raises(CorpusError, match="no scenario"):
        words_alone(Corpus((ConceptText("awe", None, "one"),)))
