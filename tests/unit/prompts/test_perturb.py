"""perturb: what must stay stays, what each kind of edit does, and what it must not touch."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.prompts._perturb import perturb, perturb_messages, TAIL, VARIANT_KINDS, VariantKind
from symbolic_residue.prompts._words import FILLERS, SYNONYMS

STORY = (
    "Yesterday it rained a lot, and the river was high. Tom bought a big truck from Mr. Hill. He was happy because the price was "
    "low. The movie began at noon and she was tired. My mother usually drinks coffee. In the end the dress was"
)
WORDS = (
    "The",
    "river",
    "was",
    "red",
    "and",
    "he",
    "Big",
    "movie",
    "Tom",
    "until",
    "café",
    "日本",
    "x = 1;",
    "Mr.",
    "no",
    "a",
    "blue",
)
TEXTS = st.one_of(
    st.text(min_size=1, max_size=200),
    st.lists(
        st.tuples(st.sampled_from(WORDS), st.sampled_from((" ", " ", " ", ". ", ", ", "! ", "\n", "  ", "? "))), max_size=40
    ).map(lambda parts: "".join(word + gap for word, gap in parts)),
)


def texts_of(kind: VariantKind, text: str, **options: object) -> list[str]:
    return [v.text for v in perturb(text, n=400, **options) if v.kind == kind]  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    TEXTS,
    st.lists(st.sampled_from((" red", " blue", "river", "The", "was", ",", "日本", "a", "no")), max_size=3),
    st.integers(0, 5),
)
def test_what_must_stay_stays(text: str, protect: list[str], seed: int) -> None:
    if not text.strip():
        with pytest.raises(PromptError):
            perturb(text, seed=seed, protect=protect)
        return
    variants = perturb(text, seed=seed, protect=protect)
    assert 1 <= len(variants) <= 12
    made = [variant.text for variant in variants]
    assert len({text, *made}) == len(made) + 1
    for new in made:
        assert new[-TAIL:] == text[-TAIL:] if len(text) >= TAIL else new.endswith(text)
        for word in protect:
            assert new.count(word) == text.count(word)
    assert variants == perturb(text, seed=seed, protect=protect)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40))
def test_the_kinds_are_balanced_and_more_wanted_only_adds(n: int) -> None:
    variants = perturb(STORY, n=n, seed=3)
    assert len(variants) == n
    assert variants == perturb(STORY, n=60, seed=3)[:n]
    counts = Counter(variant.kind for variant in variants)
    available = Counter(variant.kind for variant in perturb(STORY, n=500, seed=3))
    for a in VARIANT_KINDS:
        for b in VARIANT_KINDS:
            assert counts[a] <= counts[b] + 1 or counts[b] == available[b]


def test_every_kind_applies_to_a_story_and_the_seed_matters() -> None:
    assert {variant.kind for variant in perturb(STORY)} == set(VARIANT_KINDS)
    assert perturb(STORY, seed=0) != perturb(STORY, seed=1)


def test_whitespace_changes_nothing_but_white_space() -> None:
    made = texts_of("whitespace", STORY)
    assert made
    for new in made:
        assert new.split() == STORY.split()
        assert not new[-1].isspace()


def test_punctuation_changes_no_word() -> None:
    made = texts_of("punctuation", STORY)
    assert made
    for new in made:
        assert re.findall(r"\w+", new.lower()) == re.findall(r"\w+", STORY.lower())
    assert any("a lot and the river" in new for new in made)
    assert any("noon, and she" in new for new in made)
    assert any("low; the movie" in new for new in made)
    assert not any("Mr;" in new for new in made)


def test_filler_is_added_at_the_start_of_a_sentence() -> None:
    made = texts_of("filler", STORY)
    assert len({new.index(f) for new in made for f in FILLERS if f in new}) > 2
    for new in made:
        filler = next(f for f in FILLERS if f in new)
        rest = new.replace(filler, "", 1)
        assert rest.lower() == STORY.lower()
        assert new.startswith(filler) or new[: new.index(filler)].rstrip()[-1] in ".!?"


def test_a_name_keeps_its_capital_behind_a_filler_and_a_semicolon() -> None:
    text = "Birds sing at the lake. Tom heard it and he was glad. The song was the one that Ann liked"
    made = texts_of("filler", text) + texts_of("punctuation", text)
    assert any(", Tom heard" in new for new in made)
    assert any("; Tom heard" in new for new in made)
    assert not any("tom" in new or "birds" in new for new in made)


def test_synonyms_are_whole_words_in_the_same_case() -> None:
    text = "BIG news. Perhaps the movie and the bigger automobile are big. This is what they said of the old red barn"
    made = texts_of("synonym", text)
    table = dict(SYNONYMS)
    assert any("LARGE news" in new for new in made) and any("Maybe the movie" in new for new in made)
    for new in made:
        pairs = list(zip(text.split(), new.split(), strict=True))
        assert any(a != b for a, b in pairs)
        assert "bigger" in new
        for a, b in pairs:
            assert a == b or table[a.strip(".").lower()] == b.strip(".").lower()


def test_synonyms_leave_names_and_articles_alone() -> None:
    # "an automobile" would need another article; "Big" inside a sentence is part of a name; "big-hearted" is one word
    text = "It is an automobile that Mr. Big owns, and the big-hearted man is at the wheel of it, as was said"
    assert texts_of("synonym", text) == []
    assert texts_of("synonym", "It was a quick and rapid ride that the big man had with us on the lake") != []


def test_protected_words_are_never_replaced() -> None:
    text = "The movie was big and the Movie was loved, and the films were for the one who had seen all of them"
    assert any("film " in new for new in texts_of("synonym", text))
    assert all(new.lower().count("movie") == 2 for new in texts_of("synonym", text, protect=[" movie"]))


def test_a_dropped_sentence_shares_nothing_with_the_question() -> None:
    text = "The cat sleeps. The dress is red. Birds sing. It rains. All of us are here. We ask about the dresses"
    made = texts_of("dropped", text)
    # the second shares "dress", the third is what "It" may mean, and the last two are kept
    assert sorted(made) == sorted([text.replace("The cat sleeps. ", ""), text.replace("It rains. ", "")])
    assert texts_of("dropped", text, protect=[" cats"]) == [text.replace("It rains. ", "")]
    assert texts_of("dropped", "The cat sleeps. We are here and it is") == []


def test_numbers_are_content() -> None:
    assert texts_of("dropped", "There are three. We sing. All of us are here. We count to three") == [
        "There are three. All of us are here. We count to three"
    ]


CODE = 'def f(x):\n    return x + 1  # the big movie\n\nif it is the one:\n    print("the big movie and he was")\n'


def test_code_is_only_moved_down() -> None:
    made = [variant.text for variant in perturb(CODE, n=50)]
    assert made and all(new.lstrip() == CODE for new in made)


def test_prose_around_code_is_edited_and_the_code_is_not() -> None:
    block = "```\nthe big movie was on\nand it was big\n```"
    text = f"The movie is big, and he likes it.\n{block}\nThe film was as big as the one that he had seen"
    variants = perturb(text, n=60)
    assert {"synonym", "filler"} <= {variant.kind for variant in variants}
    assert all(block in variant.text for variant in variants)


@pytest.mark.parametrize(
    "text", ["Le chat dort sur le tapis et la pluie tombe sur la ville.", "彼は昨日東京へ行きました。とても楽しかったです。", "Hi"]
)
def test_text_that_is_not_english_gets_only_white_space(text: str) -> None:
    variants = perturb(text, n=30)
    assert variants and {variant.kind for variant in variants} == {"whitespace"}


def test_the_table_is_large_and_sound() -> None:
    assert len(set(SYNONYMS)) == len(SYNONYMS) >= 120
    assert len({word for word, _ in SYNONYMS}) == len(SYNONYMS)
    assert all(a != b and a.isalpha() and b.isalpha() and a + b == (a + b).lower() for a, b in SYNONYMS)
    assert all(filler.endswith((", ", ": ")) for filler in FILLERS)


def test_refusals() -> None:
    with pytest.raises(PromptError):
        perturb(" \n")
    with pytest.raises(ConfigError):
        perturb("It is here", n=0)
    with pytest.raises(ConfigError):
        perturb("It is here", protect=" red")


def test_messages_change_in_the_last_user_turn_only() -> None:
    messages = [
        {"role": "system", "content": "The rule is big."},
        {"role": "user", "content": "The movie was big."},
        {"role": "assistant", "content": "It was."},
        {"role": "user", "content": STORY},
        {"role": "assistant", "content": "The dress is"},
    ]
    before = [dict(message) for message in messages]
    made = perturb_messages(messages, seed=4, protect=[" dress"], n=8)
    assert [(m.kind, m.messages[3]["content"]) for m in made] == [
        (v.kind, v.text) for v in perturb(STORY, seed=4, protect=[" dress"], n=8)
    ]
    assert all(m.messages[i] == messages[i] for m in made for i in (0, 1, 2, 4))
    assert messages == before


@pytest.mark.parametrize(
    "messages", [[], [{"role": "system", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": " "}]]
)
def test_messages_without_a_usable_user_turn(messages: list[dict[str, str]]) -> None:
    with pytest.raises(PromptError):
        perturb_messages(messages)
