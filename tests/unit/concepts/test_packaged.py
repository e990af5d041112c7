"""The packaged corpus: its design, counted anew, and nothing that the validator or a direct look finds wrong."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from symbolic_residue.concepts import (
    BASELINE,
    Corpus,
    corpus_card,
    packaged_corpus,
    read_corpus,
    validate_corpus,
    write_corpus,
)

BASIC = ("joy", "sadness", "anger", "fear", "disgust", "surprise")
RELATIONAL = ("recognition", "trust", "vulnerability", "belonging", "gratitude", "betrayal")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return packaged_corpus()


def test_every_concept_is_told_in_every_scenario(corpus):
    assert corpus.families == {"basic": BASIC, "relational": RELATIONAL}
    assert len(corpus.scenarios) == 24 and set(corpus.people) == set(corpus.scenarios)
    cells = [(one.scenario, one.concept) for one in corpus.texts]
    assert cells == [(scenario, concept) for scenario in corpus.scenarios for concept in (BASELINE, *BASIC, *RELATIONAL)]
    assert all(len(corpus.pairs(concept)) == 24 for concept in corpus.concepts)
    assert all(meaning.meaning and len(meaning.words) >= 8 for meaning in corpus.meanings.values())


def test_the_validator_finds_nothing(corpus):
    assert validate_corpus(corpus) == []


def test_lengths(corpus):
    words = {(one.scenario, one.concept): len(one.text.split()) for one in corpus.texts}
    assert all(35 <= n <= 60 for n in words.values())
    assert all(abs(n / words[scenario, BASELINE] - 1) <= 0.2 for (scenario, _), n in words.items())
    neutral = sum(words[scenario, BASELINE] for scenario in corpus.scenarios)
    for concept in corpus.concepts:
        assert abs(sum(words[scenario, concept] for scenario in corpus.scenarios) / neutral - 1) <= 0.03


def test_no_concept_is_named(corpus):
    """By plain search for the beginnings of the concepts' names, whatever the lists say."""
    roots = r"joy|sad(?!dle)|ang(?:er|r)|fear|afraid|disgust|surpris|recogni|trust|vulnerab|belong|gratitu|grateful|thank|betray"
    found = [
        (one.scenario, one.concept, m.group())
        for one in corpus.texts
        for m in re.finditer(rf"\b(?:{roots})\w*", one.text, re.IGNORECASE)
    ]
    assert found == []


def test_everyone_is_there(corpus):
    for one in corpus.texts:
        assert one.scenario is not None
        assert all(re.search(rf"\b{who}\b", one.text) for who in corpus.people[one.scenario]), one


def test_every_text_ends_alike_and_nothing_is_used_twice(corpus):
    assert all(re.search(r"[a-z]\.$", one.text) and not re.search(r"[\"“”\n]|  ", one.text) for one in corpus.texts)
    sentences: dict[str, int] = defaultdict(int)
    runs: dict[str, set[str | None]] = defaultdict(set)
    for one in corpus.texts:
        for sentence in re.split(r"(?<=[.!?])\s+", one.text.lower()):
            if len(sentence.split()) >= 4:
                sentences[sentence] += one.concept != BASELINE
        words = re.findall(r"[a-z']+", one.text.lower())
        for i in range(len(words) - 6):
            runs[" ".join(words[i : i + 7])].add(one.scenario)
    assert [run for run, where in runs.items() if len(where) > 1] == []
    # Within a scenario a telling may begin or go on as its neutral telling does.
    scenes: dict[str, set[str | None]] = defaultdict(set)
    for one in corpus.texts:
        for sentence in re.split(r"(?<=[.!?])\s+", one.text.lower()):
            if len(sentence.split()) >= 4:
                scenes[sentence].add(one.scenario)
    assert all(len(where) == 1 for where in scenes.values())


@pytest.mark.parametrize("name", ["kept", "kept.jsonl"])
def test_it_survives_both_layouts(corpus, tmp_path, name):
    path = write_corpus(corpus, tmp_path / name)
    back = read_corpus(path)
    assert back.sha256 == corpus.sha256 and back.meanings == corpus.meanings and back.people == corpus.people
    assert validate_corpus(path) == []


def test_the_card_says_what_is_so(corpus):
    card = corpus_card()
    assert f"{len(corpus.scenarios)} scenarios" in card and f"= {len(corpus.texts)} texts" in card
    for family, concepts in corpus.families.items():
        assert f"| {family} | {', '.join(concepts)} |" in card

    def texts_with(word: str, concept: str) -> int:
        return sum(bool(re.search(rf"\b{word}\b", one.text, re.IGNORECASE)) for one in corpus.positives(concept))

    assert (
        texts_with("name", "recognition") == 12 and texts_with("said", "vulnerability") == 10 and texts_with("kicked", "anger") == 5
    )
    assert sum(texts_with("kicked", concept) for concept in (BASELINE, *corpus.concepts)) == 5
