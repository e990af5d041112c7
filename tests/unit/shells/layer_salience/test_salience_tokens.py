"""The light tagger: words that it must get right, and what holds for every text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symbolic_residue.shells.layer_salience import token_kinds
from symbolic_residue.shells.layer_salience._tokens import KINDS


def kinds(text: str) -> dict[str, str]:
    offsets, at = [], 0
    for word in text.split(" "):
        stop = at + len(word) + 1
        offsets.append((max(0, at - 1), min(stop - 1, len(text))))
        at = stop
    return dict(zip(text.split(" "), token_kinds(text, offsets), strict=True))


@pytest.mark.parametrize(
    ("text", "word", "kind"),
    [
        ("Yesterday Marta bought three red apples", "Marta", "named entity"),
        ("Yesterday Marta bought three red apples", "three", "number"),
        ("Yesterday Marta bought three red apples", "apples", "noun"),
        ("Yesterday Marta bought three red apples", "red", "other"),
        ("The boat left the harbour at 9.30 sharp", "The", "function word"),
        ("The boat left the harbour at 9.30 sharp", "boat", "noun"),
        ("The boat left the harbour at 9.30 sharp", "left", "other"),
        ("The boat left the harbour at 9.30 sharp", "9.30", "number"),
        ("In Egypt the river is wide", "Egypt", "named entity"),
        ("In Egypt the river is wide", "In", "function word"),
        ("He spoke . Then Ben left", "Then", "function word"),
        ("He spoke . Then Ben left", ".", "punctuation"),
        ("Anna Berg wrote to Anna", "Anna", "named entity"),
        ("I saw great darkness", "I", "function word"),
        ("I saw great darkness", "darkness", "noun"),
        ("They can't see", "can't", "function word"),
    ],
)
def test_words(text: str, word: str, kind: str) -> None:
    assert kinds(text)[word] == kind


def test_every_piece_of_a_word_has_its_kind_and_white_space_is_punctuation() -> None:
    text = "See Mar\n\nket"
    assert token_kinds(text, [(0, 3), (3, 5), (5, 7), (7, 9), (9, 12)])[1:4] == ["named entity", "named entity", "punctuation"]
    assert token_kinds("a €", [(0, 1), (1, 3), (3, 3), (3, 3)]) == ["function word", "punctuation", "punctuation", "punctuation"]


@given(st.text(max_size=60), st.integers(1, 6))
def test_every_token_of_every_text_has_one_of_the_kinds(text: str, size: int) -> None:
    offsets = [(i, min(i + size, len(text))) for i in range(0, len(text), size)]
    found = token_kinds(text, offsets)
    assert len(found) == len(offsets)
    assert set(found) <= set(KINDS)
