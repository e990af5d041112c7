"""Segmentation of rendered chats, by templates that behave as the families' do."""

from __future__ import annotations

import pytest
from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st

from symbolic_residue.errors import TemplateError
from symbolic_residue.prompts import segment_chat

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Is it yes?"}
REPLY = {"role": "assistant", "content": "No."}
AGAIN = {"role": "user", "content": "And now?"}


def said(tokenizer, messages) -> list[tuple[str, str]]:
    """The pieces as (region, text); every call checks that they make up the rendering."""
    pieces, rendered = segment_chat(tokenizer, messages)
    text = "".join(piece.text for piece in pieces)
    generate = messages[-1]["role"] != "assistant"
    assert rendered == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    assert text == rendered if generate else rendered.startswith(text)
    return [(piece.region, piece.text) for piece in pieces]


def test_tags(tokenizer) -> None:
    assert said(tokenizer("tags"), [SYSTEM, USER, REPLY, AGAIN]) == [
        ("special", "<|open|>system\n"),
        ("system", "Be brief."),
        ("special", "<|close|>\n<|open|>user\n"),
        ("user", "Is it yes?"),
        ("special", "<|close|>\n<|open|>assistant\n"),
        ("answer", "No."),
        ("special", "<|close|>\n<|open|>user\n"),
        ("user", "And now?"),
        ("special", "<|close|>\n"),
        ("assistant_header", "<|open|>assistant\n"),
    ]


def test_no_system_text_is_made_up_where_the_template_has_none(tokenizer) -> None:
    assert [region for region, _ in said(tokenizer("tags"), [USER])] == ["special", "user", "special", "assistant_header"]


def test_default_system_text_is_system_and_its_tags_are_special(tokenizer) -> None:
    assert said(tokenizer("default"), [USER])[:4] == [
        ("special", "<|open|>system\n"),
        ("system", "You are a helper."),
        ("special", "<|close|>\n<|open|>user\n"),
        ("user", "Is it yes?"),
    ]
    assert said(tokenizer("default"), [SYSTEM, USER]) == said(tokenizer("tags"), [SYSTEM, USER])
    assert ("system", "You are a helper.") in said(tokenizer("default"), [USER, REPLY])


def test_inst_template_folds_the_system_text_and_opens_the_turn_by_its_closing_tag(tokenizer) -> None:
    assert said(tokenizer("inst"), [SYSTEM, {"role": "user", "content": " Is it yes?\n"}]) == [
        ("special", "<bos>[INST] <<S>>\n"),
        ("system", "Be brief."),
        ("special", "\n<</S>>\n\n"),
        ("user", " Is it yes?"),  # the template strips the joined text: the left of the user's content is inside
        ("assistant_header", " [/INST]"),
    ]
    assert said(tokenizer("inst"), [{"role": "user", "content": " Is it yes?\n"}])[1] == ("user", "Is it yes?")
    assert said(tokenizer("inst"), [USER, REPLY, AGAIN])[-4:] == [
        ("answer", "No."),
        ("special", " <eos><bos>[INST] "),
        ("user", "And now?"),
        ("assistant_header", " [/INST]"),
    ]


def test_fold_template_keeps_the_folded_text_in_region_system(tokenizer) -> None:
    messages = [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "\n Is it yes? "}]
    assert said(tokenizer("fold"), messages) == [
        ("special", "<bos><|open|>user\n"),
        ("system", "Be brief."),
        ("special", "\n\n"),
        ("user", "Is it yes?"),
        ("special", "<|close|>\n"),
        ("assistant_header", "<|open|>model\n"),
    ]
    with pytest.raises(TemplateError, match="turns must alternate"):
        segment_chat(tokenizer("fold"), [USER, AGAIN])


def test_a_refused_system_turn_is_reported_and_nothing_else_is_system(tokenizer) -> None:
    with pytest.raises(TemplateError, match="no system turn here"):
        segment_chat(tokenizer("strict"), [SYSTEM, USER])
    assert {region for region, _ in said(tokenizer("strict"), [USER])} == {"special", "user", "assistant_header"}


def test_a_system_text_placed_after_earlier_turns(tokenizer) -> None:
    assert said(tokenizer("late"), [SYSTEM, USER, REPLY, AGAIN]) == [
        ("special", "<bos>[INST]"),
        ("user", "Is it yes?"),
        ("special", "[/INST]"),
        ("answer", "No."),
        ("special", "<eos>[INST]"),
        ("system", "Be brief."),
        ("special", "\n\n"),
        ("user", "And now?"),
        ("assistant_header", "[/INST]"),
    ]


def test_text_that_is_always_written_stays_frame_and_newlines_alone_are_stripped(tokenizer) -> None:
    pieces = said(tokenizer("dated"), [{"role": "user", "content": "\n Is it? \n\n"}])
    assert pieces[:2] == [("special", "<|open|>system\nToday is 3 May.\n\n<|close|>\n<|open|>user\n"), ("user", " Is it? ")]


def test_a_conversation_that_ends_with_the_assistant_is_left_open(tokenizer) -> None:
    assert said(tokenizer("tags"), [USER, REPLY])[-3:] == [
        ("special", "<|close|>\n"),
        ("assistant_header", "<|open|>assistant\n"),
        ("answer", "No."),
    ]
    assert said(tokenizer("inst"), [USER, REPLY])[-2:] == [("assistant_header", " [/INST] "), ("answer", "No.")]
    assert said(tokenizer("thought"), [USER, REPLY])[-2:] == [
        ("assistant_header", "<|open|>assistant\n<think>\n\n</think>\n\n"),
        ("answer", "No."),
    ]


def test_an_end_of_text_token_that_closes_a_conversation_is_no_part_of_the_users_turn(tokenizer) -> None:
    for messages in ([USER], [SYSTEM, USER, REPLY, AGAIN], [USER, REPLY]):
        assert said(tokenizer("ended"), messages) == said(tokenizer("tags"), messages)


def test_a_template_without_frame(tokenizer) -> None:
    assert said(tokenizer("bare"), [SYSTEM, USER]) == [("system", "Be brief."), ("user", "Is it yes?")]


@pytest.mark.parametrize(
    ("name", "messages", "says"),
    [
        ("lower", [USER], "changes or drops the content of message 1"),
        ("twice", [USER], "writes 2 times the content of message 1"),
        ("drops", [SYSTEM, USER], r"changes or drops the content of message 1 \(system\)"),
        ("length", [USER], "depends on the contents"),
        ("longer", [USER], "whitespace around a content changes the text around it"),
        ("impostor", [USER], "'You are a helper.' where a system turn would stand, but not as that turn"),
        ("rewrites", [USER], "generation prompt changes the text before it"),
        ("late", [SYSTEM, USER, REPLY], r"changes or drops the content of message 1 \(system\)"),
        ("replaces", [USER], "at character 19 it writes 'no"),
        ("thought", [{"role": "user", "content": "a</think>b"}], "changes this content or looks into it"),
        ("unopened", [USER], "no generation prompt"),
        ("ends", [USER], r"ends in '<\|close\|>\\nThe end.'"),
        ("ends", [USER, REPLY], r"ends in '<\|close\|>\\nThe end.'"),
        ("backwards", [USER], "does not write the assistant's content last"),
        ("backwards", [USER, REPLY], "does not write the last message last"),
        ("unsettled", [USER, REPLY], "the order of the contents depends on the contents"),
        ("tail", [USER], "a default system text where the assistant's turn opens"),
        ("broken", [USER], "refuses this conversation"),
        (None, [USER], "no chat template"),
    ],
)
def test_what_cannot_be_segmented_is_refused_with_what_differs(tokenizer, name, messages, says) -> None:
    with pytest.raises(TemplateError, match=says) as caught:
        segment_chat(tokenizer(name), messages)
    assert caught.value.todo


def test_the_templates_that_replace_words_are_fine_with_other_words(tokenizer) -> None:
    assert ("user", "Is it no?") in said(tokenizer("replaces"), [{"role": "user", "content": "Is it no?"}])


def test_contents_that_look_like_the_probes_markers_or_like_the_frame(tokenizer) -> None:
    for content in ("RqW0xa0Z", "rqw0x rqw1x RQW2X", "user\n", "You are a helper.", "{{ messages }}", "{% raw %}"):
        assert ("user", content) in said(tokenizer("default"), [{"role": "user", "content": content}])


words = st.text(min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["tags", "default", "inst", "fold", "late", "dated", "bare"]),
    words,
    st.lists(st.tuples(words, words), max_size=2),
    words,
    st.booleans(),
)
def test_contents_come_back_whatever_they_are(tokenizer, name, system, turns, last, with_system) -> None:
    messages = [{"role": "system", "content": system}] if with_system else []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    messages.append({"role": "user", "content": last})
    pieces = said(tokenizer(name), messages)
    kinds = {"system": "system", "user": "user", "answer": "assistant"}
    for region, role in kinds.items():
        texts = [text for r, text in pieces if r == region]
        contents = [m["content"] for m in messages if m["role"] == role]
        if role == "system" and not with_system and name == "default":
            contents = ["You are a helper."]
        assert [text.strip() for text in texts] == [content.strip() for content in contents]
