"""Instructions that a program verifies: every kind's own examples pass, contradictory pairs have no common answer, and words are read as what they say."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.prompts._instructions import (
    blends,
    Instruction,
    joint,
    KINDS,
    make_instruction,
    MARKS,
    PLAIN,
    read_instruction,
    relation,
    TASKS,
)

ALL = [make_instruction(kind, value) for kind, entry in KINDS.items() for value in (entry.values[:2] or ("",))]
BY_NAME = {f"{i.kind}:{i.value}": i for i in ALL}
WITNESSES = [a.follow(p.answer, p) for a in ALL for p in PLAIN]
WITNESSES += [b.follow(a.follow(p.answer, p), p) for a in ALL for b in ALL for p in PLAIN[:2]]


def test_there_are_many_kinds_each_with_two_wordings() -> None:
    assert len(KINDS) >= 25
    for kind, entry in KINDS.items():
        assert len(set(entry.wordings)) == 2, kind
        assert ("{}" in entry.wordings[0]) == ("{}" in entry.wordings[1]) == bool(entry.values), kind


@pytest.mark.parametrize("instruction", ALL, ids=list(BY_NAME))
def test_examples_follow_their_instruction_and_the_plain_answer_mostly_does_not(instruction: Instruction) -> None:
    for plain in (*PLAIN, *TASKS):
        assert instruction.check(instruction.follow(plain.answer, plain))
    follows_anyway = {"short", "avoid", "no-list", "no-digits"}
    if instruction.kind not in follows_anyway and instruction.value != "English":
        assert not any(instruction.check(plain.answer) for plain in PLAIN)
    for empty in ("", "  \n", "...", "?!", "[]", "{}"):
        assert not instruction.check(empty)


def test_no_answer_follows_a_contradictory_pair_and_one_follows_a_compatible_pair() -> None:
    counts = {"contradictory": 0, "compatible": 0, "unknown": 0}
    for one, two in product(ALL, ALL):
        found = relation(one, two)
        assert found == relation(two, one)
        counts[found] += 1
        if found == "contradictory":
            both = [w for w in WITNESSES if one.check(w) and two.check(w)]
            assert not both, (one.text, two.text, both[:2])
        if found == "compatible":
            assert any(one.check(w) and two.check(w) for w in WITNESSES), (one.text, two.text)
            assert joint(one, two, PLAIN[0]) is not None or one == two
    assert counts["contradictory"] > 100
    assert counts["compatible"] > 100


@given(st.text(max_size=60))
def test_no_text_at_all_follows_a_contradictory_pair(text: str) -> None:
    for a, b in (
        ("uppercase:", "lowercase:"), ("say-yes:", "say-no:"), ("short:", "long:"), ("digits:", "no-digits:"), ("contain:old", "avoid:old"),
        ("start:Indeed", "start:Well"), ("numbered:", "bullets:"), ("quoted:", "brackets:"), ("language:French", "language:English"),
        ("json:", "code:"), ("question:", "exclaim:"), ("hash:", "stars:"),
    ):  # fmt: skip
        assert not (BY_NAME[a].check(text) and BY_NAME[b].check(text))


CASES = [
    ("uppercase", "", "THE SKY IS BLUE", "The sky is BLUE"),
    ("language", "French", "Le ciel est bleu.", "The sky is blue."),
    ("language", "German", "Der Himmel ist blau.", "El cielo es azul."),
    ("one-word", "", "Blue.", "Sky blue."),
    ("start", "Well", "Well, it is blue.", "It is well and blue."),
    ("end", "sir", "It is blue, sir.", "Sir, it is blue."),
    ("contain", "old", "An old, blue sky.", "A bold sky."),
    ("avoid", "old", "A bold sky.", "The Old sky."),
    ("numbered", "", "1) Sky", "In 1. place"),
    ("json", "", '{"a": 1}', "[1, 2]"),
    ("json", "", '{"sky": "is bl', "{sky}"),
    ("code", "", 'print("blue")', "I print blue."),
    ("quoted", "", '"It is blue".', 'It is "blue"'),
    ("only", "stone", "Stone.", "A stone."),
    ("short", "", "one two three four five six", "one two three four five six seven"),
]


@pytest.mark.parametrize(("kind", "value", "good", "bad"), CASES)
def test_checks(kind: str, value: str, good: str, bad: str) -> None:
    instruction = make_instruction(kind, value)
    assert instruction.check(good)
    assert not instruction.check(bad)


def test_blends_are_parts_that_follow_either() -> None:
    upper, french = make_instruction("uppercase"), make_instruction("language", "French")
    english = make_instruction("language", "English")
    assert blends(french, english, "Le chat est grand and the cat is big")
    assert not blends(french, english, "Le chat est grand et il dort")
    assert not blends(french, english, "The cat is big and it sleeps")
    assert not blends(upper, french, "LE CHAT EST GRAND")  # follows both: no blend
    assert blends(make_instruction("exclaim"), make_instruction("question"), "Cats drink milk! Do they not?")
    assert "avoid" not in MARKS
    assert not blends(make_instruction("contain", "old"), make_instruction("avoid", "old"), "The cat is an old one")


def test_words_of_a_user_are_read_as_what_they_ask() -> None:
    for instruction in ALL:
        for wording in (0, 1):
            text = make_instruction(instruction.kind, instruction.value, wording=wording).text
            found = read_instruction(text)
            assert (found.kind, found.value) == (instruction.kind, instruction.value), text
    own = read_instruction("please reply only in FRENCH, in French")
    assert (own.kind, own.value) == ("language", "French")
    named = read_instruction("start=Ahoy: Greet as a sailor would.")
    assert (named.kind, named.value, named.text) == ("start", "Ahoy", "Greet as a sailor would.")


def test_what_cannot_be_verified_is_refused() -> None:
    with pytest.raises(PromptError, match="No program here can verify"):
        read_instruction("Be charming.")
    with pytest.raises(ConfigError, match="no kind"):
        make_instruction("charm")
    for kind, value in (("start", ""), ("uppercase", "x"), ("language", "Latin"), ("start", "two words")):
        with pytest.raises(ConfigError, match="cannot be used"):
            make_instruction(kind, value)
