from __future__ import annotations

import pytest
from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st

from symbolic_residue.errors import ConfigError, SpanError
from symbolic_residue.prompts import build_prompt, find_span
from symbolic_residue.types import Span

TEXT = "The mill is red. The door is red too; the \U0001f680 is Yellow."


@pytest.fixture
def prompt(tokenizer):
    return build_prompt(tokenizer(), TEXT)


def words(prompt, span: Span) -> str:
    return "".join(prompt.text[slice(*prompt.offsets[i])] for i in span.positions())


def test_text_is_widened_to_whole_tokens(prompt) -> None:
    span = find_span(prompt, text="mill")
    assert "mill" in words(prompt, span) and words(prompt, span).strip() == "mill"
    assert find_span(prompt, text="ill", name="fact").name == "fact"


def test_a_character_of_several_tokens_is_taken_whole(prompt) -> None:
    span = find_span(prompt, text="\U0001f680")
    assert len(span) == 4 or words(prompt, span) == " \U0001f680"
    following = find_span(prompt, text=" is Yellow")
    assert span.stop == following.start  # the later bytes belong to the rocket alone


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(TEXT) - 1), st.integers(1, 20))
def test_the_span_is_the_smallest_that_holds_the_match(prompt, start, length) -> None:
    wanted = TEXT[start : start + length]
    starts = [i for i in range(len(TEXT)) if TEXT.startswith(wanted, i)]
    found = TEXT.find(wanted)
    span = find_span(prompt, text=wanted, occurrence=0)
    assert starts[0] == found
    covered = words(prompt, span)
    assert wanted in covered
    first, last = prompt.offsets[span.start], prompt.offsets[span.stop - 1]
    assert first[0] <= found < first[1]
    assert last[0] < found + len(wanted) <= last[1] or last[0] == last[1]


def test_several_matches_need_an_occurrence(prompt) -> None:
    with pytest.raises(SpanError, match=r"2 times: \[0\] at character 12: .*\[1\] at character 29") as caught:
        find_span(prompt, text="red")
    assert "occurrence" in caught.value.todo
    first, second = find_span(prompt, text="red", occurrence=0), find_span(prompt, text="red", occurrence=1)
    assert first.stop <= second.start
    assert find_span(prompt, text="red", occurrence=-1) == second
    for wrong in (2, -3):
        with pytest.raises(SpanError, match="no occurrence"):
            find_span(prompt, text="red", occurrence=wrong)


def test_regex(prompt) -> None:
    assert words(prompt, find_span(prompt, regex=r"[Dd]oor \w+")).strip() == "door is"
    with pytest.raises(SpanError, match="no regular expression"):
        find_span(prompt, regex="(")
    with pytest.raises(SpanError, match="does not hold"):
        find_span(prompt, regex="x*")  # matches of no characters do not count


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("yellow", "It holds 'Yellow'"),
        ("the  door", "The nearest is 'The door'"),
        ("red\ntoo", "'red too'"),
        ("mlil", "nearest is 'mill'"),
    ],
)
def test_no_match_names_the_nearest(prompt, text, hint) -> None:
    with pytest.raises(SpanError, match="does not hold") as caught:
        find_span(prompt, text=text)
    assert hint in caught.value.why


def test_no_match_and_nothing_near(prompt) -> None:
    with pytest.raises(SpanError) as caught:
        find_span(prompt, text="qqqqqqqq")
    assert caught.value.why == ""
    with pytest.raises(SpanError, match="empty text"):
        find_span(prompt, text="")


def test_index(prompt) -> None:
    n = len(prompt)
    assert find_span(prompt, index=0) == Span(0, 1, "span")
    assert find_span(prompt, index=-1) == Span(n - 1, n, "span")
    assert find_span(prompt, index=(2, 5)) == Span(2, 5, "span")
    assert find_span(prompt, index=(-3, -1)) == Span(n - 3, n - 1, "span")
    assert find_span(prompt, index=(-3, None)) == Span(n - 3, n, "span")
    for wrong in (n, -n - 1, (2, 2), (3, 2), (0, n + 1), (-n - 1, 2)):
        with pytest.raises(SpanError, match="no span of a prompt"):
            find_span(prompt, index=wrong)


def test_exactly_one_way_to_find(prompt) -> None:
    for kwargs in ({}, {"text": "red", "index": 0}, {"text": "red", "regex": "red"}, {"index": 0, "occurrence": 0}):
        with pytest.raises(ConfigError):
            find_span(prompt, **kwargs)


def test_a_found_span_can_be_carved_out_of_the_regions(tokenizer) -> None:
    prompt = build_prompt(tokenizer("tags"), TEXT, chat=True)
    span = find_span(prompt, text="The mill is red.", name="fact")
    carved = prompt.regions.with_span(span.name, span.start, span.stop)
    assert carved.counts()["fact"] == len(span)
    assert carved.counts()["user"] == prompt.regions.counts()["user"] - len(span)
