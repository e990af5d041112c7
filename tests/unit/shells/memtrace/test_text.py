"""Texts cut into fact, padding and question; answers scored where they differ."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError, SpanError
from symbolic_residue.shells import MemtraceConfig, MemtraceShell
from symbolic_residue.shells.memtrace._ask import ask
from symbolic_residue.shells.memtrace._residue import Asked
from symbolic_residue.shells.memtrace._text import (
    find_fact,
    find_question,
    passage,
    REGIONS,
    scored_fields,
    sentences,
    token_type_of,
)

FACT, RIVAL, QUESTION = "The mill is red.", "The gate is old.", " The mill is"


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bos"])
def shell(request: pytest.FixtureRequest) -> MemtraceShell:
    return MemtraceShell(build("llama"), tiny_tokenizer(bos=request.param))


def asked(shell: MemtraceShell, text: str, distances: tuple[int, ...], **options: Any) -> Asked:
    given: dict[str, Any] = {
        "fact": FACT,
        "question": None,
        "answers": [" red"],
        "foils": [[" one", " two"]],
        "control": None,
        "rival": None,
        "rival_answer": None,
        "distractors": [],
        "paddings": ["natural"],
        "place": "between",
        "token_type": None,
        "chat": False,
        "seed": 0,
    }
    config = MemtraceConfig.make(distances=distances, draws=3)
    return ask(shell.instrument, shell.tokenizer, config, text, **(given | options))


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="ab .!?\n", max_size=40))
def test_sentences_joined_are_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text


def test_the_question_is_the_last_sentence_with_the_question_before_it() -> None:
    assert find_question("A is b. C is d. A is") == "A is"
    assert find_question("A is b. What is A? A is") == "What is A? A is"
    assert find_question("A is b.\nA is") == "A is"
    assert find_question("What costs 3.5 now") == "What costs 3.5 now"


def test_the_fact_is_the_first_sentence_that_mentions_the_answer_as_a_word() -> None:
    assert find_fact("He is tired. The mill is red. The gate is red.", " red") == "The mill is red."
    with pytest.raises(SpanError):
        find_fact("He is tired.", " red")


@pytest.mark.parametrize(("answer", "kind"), [(" 7", "number"), (" Anna", "name"), (" red", "word"), (" No7", "number")])
def test_types(answer: str, kind: str) -> None:
    assert token_type_of(answer) == kind


@settings(max_examples=25, deadline=None)
@given(distance=st.integers(0, 30), place=st.sampled_from(["between", "before"]), rival=st.booleans())
def test_every_distance_holds_exactly_its_padding(shell: MemtraceShell, distance: int, place: str, rival: bool) -> None:
    text = f"{FACT} {RIVAL}{QUESTION}" if rival else FACT + QUESTION
    options: dict[str, Any] = {"rival": RIVAL, "rival_answer": " old"} if rival else {}
    what = asked(shell, text, (0, 31), place=place, **options)
    for side in what.sides:
        one = passage(shell.tokenizer, what, side)
        without, ids = one.ids("natural", 1, 0), one.ids("natural", 1, distance)
        assert len(ids) == len(without) + distance
        assert ids[: len(one.head)] == one.head
        assert ids[len(ids) - len(one.tail) :] == one.tail
        regions = one.regions(distance)
        assert len(regions) == len(ids)
        counts = regions.counts()
        assert set(counts) <= set(REGIONS)
        assert counts["sink"] == 1
        assert counts["padding"] == distance - (distance > 0 and not one.head)
        said = shell.tokenizer.decode(one.tail[len(one.tail) - one.question :])
        assert said.strip() == "The mill is" + (" " if what.fields[0].before else "").strip()
        if side == "fact":
            shown = shell.tokenizer.decode([ids[p] for p in one.at(one.fact, distance)])
            assert shown.strip() == FACT
            assert one.answer is not None
            assert ids[one.at([one.answer], distance)[0]] == what.fields[0].token
        if side == "control":
            assert "red" not in shell.tokenizer.decode(ids)


def test_the_row_before_the_answer_is_scored() -> None:
    tokenizer = tiny_tokenizer()
    prompt = "The answer is"
    for answer, foils in ((" red", [" one"]), (" the gate", [" the mill"]), (" xa", [" xb", " xc"])):
        field = scored_fields(tokenizer, prompt, [answer], [foils], chat=False)[0]
        ids = tokenizer.encode(prompt + answer)
        assert [*tokenizer.encode(prompt), *field.before, field.token, *field.after] == ids
        for foil, token in zip(foils, field.foils, strict=True):
            other = tokenizer.encode(prompt + foil)
            assert other[len(tokenizer.encode(prompt)) + len(field.before)] == token
            assert (
                other[: len(tokenizer.encode(prompt)) + len(field.before)]
                == ids[: len(tokenizer.encode(prompt)) + len(field.before)]
            )


def test_foils_that_begin_like_the_answer_are_left_out_but_for_the_first() -> None:
    tokenizer = tiny_tokenizer()
    field = scored_fields(tokenizer, "The answer is", [" xa"], [[" yb", " xc"]], chat=False)[0]
    assert len(field.foils) == 1
    with pytest.raises(ConfigError, match="begins like"):
        scored_fields(tokenizer, "The answer is", [" xa"], [[" xc", " yb"]], chat=False)


def test_padding_texts_of_a_prompt_with_a_gap_begin_with_its_sentences(shell: MemtraceShell) -> None:
    gap = " Ben came home. Anna put the book under the table. The river turns."
    what = asked(shell, FACT + gap + QUESTION, (0, 60))
    streams = what.streams["natural"]
    assert streams[0].startswith(gap)
    assert what.distance == what.gap > 0
    assert len({s[: len(gap)] for s in streams}) == len(streams) == 3
    for stream in streams:
        assert sorted(sentences(stream[: len(gap)].strip() + " ")) == sorted(sentences(gap.strip() + " "))
