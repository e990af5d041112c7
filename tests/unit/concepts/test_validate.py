"""Every violation in a corpus where it is planted, at its file and line, and in no other place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbolic_residue.cli import main
from symbolic_residue.concepts import (
    BASELINE,
    concept_words,
    ConceptText,
    Corpus,
    Meaning,
    packaged_corpus,
    require_valid,
    validate_corpus,
    write_corpus,
)
from symbolic_residue.errors import ConfigError, CorpusError

PLACES = ("quay", "mill", "barn", "yard", "well")
CONCEPTS = ("awe", "envy")
NUMBERS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
)


def good() -> dict[tuple[str | None, str], str]:
    """Five scenarios, two concepts; ten words each, all distinct, nothing wrong."""
    texts: dict[tuple[str | None, str], str] = {}
    for place in PLACES:
        for concept in (BASELINE, *CONCEPTS):
            texts[place, concept] = f"At the {place} there was Olga with {NUMBERS[len(texts)]} brown hens."
    return texts


def corpus_of(texts: dict[tuple[str | None, str], str], **stated: tuple[str, ...]) -> Corpus:
    meanings = {name: Meaning(words=words) for name, words in stated.items()}
    return Corpus(tuple(ConceptText(c, s, text) for (s, c), text in texts.items()), meanings)


def found(texts: dict[tuple[str | None, str], str], **stated: tuple[str, ...]) -> list[tuple[str, str, str | None, str | None]]:
    return [(v.severity, v.kind, v.scenario, v.concept) for v in validate_corpus(corpus_of(texts, **stated))]


def test_nothing_is_wrong_with_a_good_one():
    assert found(good()) == [] and require_valid(corpus_of(good())) == []


Change = dict[tuple[str | None, str], str | None]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({("mill", BASELINE): None}, [("refused", "no baseline", "mill", "awe")]),
        ({("mill", "awe"): None}, [("refused", "too few texts", None, "awe")]),
        ({("mill", "awe"): " . "}, [("refused", "empty", "mill", "awe"), ("refused", "too few texts", None, "awe")]),
        (
            {("mill", "awe"): "At the  QUAY: There was Olga; with two brown hens"},
            [("refused", "duplicate", "mill", "awe"), ("warned", "people", "mill", "awe")],
        ),
        (
            {("mill", "pique"): "At the mill there was Olga with none but brown hens."},
            [("refused", "too few texts", None, "pique")],
        ),
        (
            {("mill", "awe"): "At the mill there was awesome Olga with five brown hens."},
            [("refused", "concept word", "mill", "awe")],
        ),
        (
            {("mill", BASELINE): "At the mill there was Olga with four awe-struck hens."},
            [("refused", "concept word", "mill", BASELINE)],
        ),
        (
            {("mill", "awe"): "At the mill there was Olga, envy's prey, with five hens."},
            [("warned", "concept word", "mill", "awe")],
        ),
        ({("mill", "awe"): "At the mill there was Olga whom all envy, five hens."}, [("warned", "concept word", "mill", "awe")]),
        ({("mill", "awe"): "At the mill there was Olga with five very brown young hens."}, []),
        (
            {("mill", "awe"): "At the mill there was Olga with five very, very brown young hens."},
            [("warned", "length", "mill", "awe")],
        ),
        ({("mill", "awe"): "At the mill Olga fed five brown hens."}, []),
        ({("mill", "awe"): "At the mill Olga fed five hens."}, [("warned", "length", "mill", "awe")]),
        ({("mill", "awe"): "At the mill there was a woman with five brown hens."}, [("warned", "people", "mill", "awe")]),
        ({("mill", "awe"): "At the mill there was Olga with Pim and five hens."}, [("warned", "people", "mill", "awe")]),
        ({("mill", "awe"): "Monday. In May I saw Olga's mill there with five hens."}, []),
        (
            {("mill", "awe"): "Rain fell all day. Olga went.", ("barn", "awe"): "Rain fell all day! Olga stayed."},
            [
                ("warned", "length", "mill", "awe"),
                ("warned", "length", "barn", "awe"),
                ("warned", "repeated sentence", "barn", "awe"),
            ],
        ),
        (
            {("hill", BASELINE): "Up on that hill sits somebody else by himself today."},
            [("warned", "baseline alone", "hill", BASELINE)],
        ),
    ],
)
def test_each_violation(change: Change, expected):
    texts = {key: text for key, text in {**good(), **change}.items() if text is not None}
    assert sorted(found(texts)) == sorted(expected)


def test_two_baselines():
    corpus = corpus_of(good())
    more = Corpus((*corpus.texts, ConceptText(BASELINE, "mill", "By the mill Olga kept a few more of those hens.")))
    assert [(v.severity, v.kind, v.scenario) for v in validate_corpus(more)] == [("refused", "two baselines", "mill")]


def test_unknown_concepts_are_refused_where_concepts_are_stated():
    texts = good() | {("mill", "awee"): "At the mill there was Olga with no brown hens."}
    stated = {"awe": ("awe",), "envy": ("envy",)}
    rows = [v for v in validate_corpus(corpus_of(texts, **stated)) if v.kind == "unknown concept"]
    assert [(v.severity, v.concept, v.scenario) for v in rows] == [("refused", "awee", "mill")] and "'awe'?" in rows[0].detail
    assert "unknown concept" not in [kind for _, kind, *_ in found(texts)]
    texts |= {(None, "awe"): "Somebody looked up."}
    assert [(v.severity, v.concept) for v in validate_corpus(corpus_of(texts)) if v.kind == "unknown concept"] == [
        ("warned", "envy"),
        ("warned", "awee"),
    ]


def test_a_stated_concept_without_a_text():
    assert ("refused", "too few texts", None, "pity") in found(good(), awe=("awe",), envy=("envy",), pity=())


def test_stated_people_count_even_at_the_start_of_a_sentence():
    corpus = corpus_of(good())
    stated = Corpus(corpus.texts, {}, {"mill": ("Olga", "Ruth")})
    assert [(v.kind, v.scenario, v.concept, v.detail) for v in validate_corpus(stated)] == [
        ("people", "mill", concept, "without Ruth") for concept in (BASELINE, *CONCEPTS)
    ]


def test_words_come_from_the_corpus_or_the_package_or_the_name():
    corpus = Corpus((), {"joy": Meaning(words=("gleam",)), "fear": Meaning()})
    assert concept_words(corpus, "joy") == ("gleam",)
    assert concept_words(corpus, "fear") == packaged_corpus().meanings["fear"].words and "afraid" in concept_words(corpus, "fear")
    assert concept_words(corpus, "Awe") == ("awe*",)


@given(st.sampled_from(packaged_corpus().concepts), st.data())
def test_a_listed_word_is_found_wherever_it_stands(concept, data):
    """In any packaged text, at any place, in any case: refused in its own concept's texts and in neutral ones, warned in others."""
    corpus = packaged_corpus()
    word = data.draw(st.sampled_from(corpus.meanings[concept].words))
    word = word[:-1] + "xyz" if word.endswith("*") else word
    i = data.draw(st.integers(0, len(corpus.texts) - 1))
    one = corpus.texts[i]
    words = one.text.split()
    words.insert(data.draw(st.integers(0, len(words))), data.draw(st.sampled_from([word, word.upper(), word + ","])))
    changed = ConceptText(one.concept, one.scenario, " ".join(words))
    few = [text for text in corpus.texts if text.scenario == one.scenario and text is not one]
    rows = [v for v in validate_corpus(Corpus((changed, *few), corpus.meanings)) if v.kind == "concept word"]
    assert rows and {(v.concept, v.scenario) for v in rows} == {(one.concept, one.scenario)}
    assert {v.severity for v in rows} == {"refused" if one.concept in (concept, BASELINE) else "warned"}


class Letters:
    """A tokenizer: a token a character."""

    model_max_length = 10**30

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


def test_texts_longer_than_the_context():
    texts = good()
    lengths = {key: len(text) for key, text in texts.items()}
    most = sorted(lengths.values())[-3]
    rows = validate_corpus(corpus_of(texts), tokenizer=Letters(), context=most)
    longer = {key for key, n in lengths.items() if n > most}
    assert (
        longer
        and {(v.scenario, v.concept) for v in rows} == longer
        and {(v.severity, v.kind) for v in rows} == {("refused", "too long")}
    )
    assert validate_corpus(corpus_of(texts), tokenizer=Letters(), context=max(lengths.values())) == []
    with pytest.raises(ConfigError, match="context="):
        validate_corpus(corpus_of(texts), tokenizer=Letters())


def test_a_refused_corpus_is_not_used():
    texts = good()
    del texts["mill", BASELINE]
    with pytest.raises(CorpusError, match="no baseline"):
        require_valid(corpus_of(texts))
    texts = good() | {("mill", "awe"): "At the mill Olga fed five hens."}
    assert [v.kind for v in require_valid(corpus_of(texts))] == ["length"]


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A folder with a fault of every kind that needs files."""
    root = write_corpus(corpus_of(good()), tmp_path / "bad")
    (root / "paired/mill/awe.txt").write_bytes("\nAt the mill there was Olga,\n\xe9".encode("latin-1"))
    (root / "paired/barn/envy.txt").write_text("")
    (root / "paired/well/envy.txt").write_text("\n\nAt the well there was Olga, dark with\nenvy of brown hens.\n")
    (root / "paired/notes.md").write_text("x")
    (root / "paired/yard/old.bak").write_text("x")
    return root


EXPECTED = [
    ("refused", "not UTF-8", "paired/mill/awe.txt", 3),
    ("refused", "empty", "paired/barn/envy.txt", 1),
    ("refused", "too few texts", "paired/barn/awe.txt", 1),
    ("refused", "too few texts", "paired/barn/envy.txt", 1),
    ("refused", "concept word", "paired/well/envy.txt", 3),
    ("warned", "stray file", "paired/notes.md", 0),
    ("warned", "stray file", "paired/yard/old.bak", 0),
]


def test_files_and_lines_are_named(bad):
    rows = validate_corpus(bad)
    assert sorted((v.severity, v.kind, v.file, v.line) for v in rows) == sorted(EXPECTED)
    assert [v.severity for v in rows] == sorted(v.severity for v in rows)


def test_lines_of_a_jsonl_file_are_named(tmp_path):
    lines = [json.dumps({"concept": c, "scenario": s, "text": text}) for (s, c), text in good().items()]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:3], "{", *lines[3:], lines[4].replace("mill", "moor"), lines[5]]) + "\n")
    rows = [(v.severity, v.kind, v.line) for v in validate_corpus(tmp_path / "a.jsonl") if v.severity == "refused"]
    assert rows == [("refused", "bad line", 4), ("refused", "duplicate", 18), ("refused", "no baseline", 17)]


def test_command(bad, tmp_path, capsys):
    assert main(["concepts", "validate"]) == 0
    out = capsys.readouterr().out
    assert "Nothing is wrong" in out and "312 texts, 24 scenarios" in out and "vulnerability" in out
    assert main(["concepts", "validate", "--words-alone", "--json"]) == 0
    joy = json.loads(capsys.readouterr().out)["concepts"][1]["words_others"]
    assert joy["scenarios"] == 24 and 0.5 < joy["low"] < joy["auc"] < joy["high"] <= 1
    assert main(["concepts", "validate", "--words-alone"]) == 0 and f"{joy['auc']:.2f} [" in capsys.readouterr().out
    assert main(["concepts", "validate", str(bad), "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert sorted((v["severity"], v["kind"], v["file"], v["line"]) for v in told["violations"]) == sorted(EXPECTED)
    assert told["refused"] == 5 and told["warned"] == 2 and [row["texts"] for row in told["concepts"]] == [5, 4, 5]
    assert main(["concepts", "validate", str(bad)]) == 2
    assert "5 refused, 2 warned." in capsys.readouterr().out
    warned = write_corpus(corpus_of(good() | {("mill", "awe"): "At the mill Olga fed five hens."}), tmp_path / "w.jsonl")
    assert main(["concepts", "validate", str(warned)]) == 1
    assert "w.jsonl:5" in capsys.readouterr().out
    assert main(["concepts", "validate", "--card"]) == 0 and "## Limits" in capsys.readouterr().out
    assert main(["concepts", "validate", str(tmp_path / "none")]) == 2 and "There is no corpus" in capsys.readouterr().err


def test_long_lists_are_cut_and_say_so(tmp_path, capsys):
    texts = {("s", BASELINE): "Nothing much."} | {(None, f"c{i}"): f"Text {i} alone." for i in range(60)}
    path = write_corpus(corpus_of(texts), tmp_path / "many.jsonl")
    assert main(["concepts", "validate", str(path)]) == 2
    assert "11 more: --all." in capsys.readouterr().out
    assert main(["concepts", "validate", str(path), "--all"]) == 2
    assert "more: --all" not in capsys.readouterr().out
