from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st

from symbolic_residue.errors import PromptFileError
from symbolic_residue.prompts import build_prompt, PromptItem, read_prompts

GOOD = '{"id": "a", "prompt": "Is it yes?"}'


@pytest.fixture
def write(tmp_path: Path):
    def write(*lines: str | bytes) -> Path:
        path = tmp_path / "prompts.jsonl"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
        return path

    return write


def test_all_keys(write, tokenizer) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    read = read_prompts(
        write(
            json.dumps({"id": "a", "prompt": "p", "candidates": [" yes", " no"], "control": "c", "tags": ["t"]}),
            json.dumps({"messages": messages}),
            json.dumps({"id": 7, "prompt": "p"}),
        )
    )
    first, second, third = read.items
    assert first == PromptItem(id="a", prompt="p", candidates=(" yes", " no"), control="c", tags=("t",))
    assert second.id == "line-00002" and second.prompt is None and list(second.messages or ()) == messages
    assert third.id == "7"
    assert read.bad == []
    assert build_prompt(tokenizer("tags"), messages=second.messages).regions.counts()["system"] == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "no JSON: .* at column 2"),
        ("[1]", "a JSON object is needed, not list"),
        ("null", "not NoneType"),
        ('{"prompt": "p", "prompt": "q"}', "the key 'prompt' is given twice"),
        ('{"prompt": "p", "promt": "q", "x": 1}', "unknown key 'promt'; unknown key 'x'"),
        ('{"id": "b"}', "exactly one of 'prompt' and 'messages'"),
        ('{"prompt": "p", "messages": [{"role": "user", "content": "u"}]}', "exactly one of"),
        ('{"prompt": "  "}', "'prompt': must not be empty"),
        ('{"prompt": 3}', "'prompt': "),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ('{"messages": []}', "needs a user turn"),
        ('{"messages": [{"role": "tool", "content": "u"}]}', "'messages.0.role': "),
        ('{"messages": [{"role": "user"}]}', "'messages.0.content': Field required"),
        ('{"messages": [{"role": "user", "content": "u", "name": "n"}]}', "unknown key 'messages.0.name'"),
        ('{"prompt": "p", "candidates": ["a"]}', "'candidates': needs at least two"),
        ('{"prompt": "p", "candidates": ["a", "a"]}', "'candidates': needs at least two"),
        ('{"prompt": "p", "id": true}', "'id': "),
        ('{"prompt": "p", "id": ""}', "'id': must not be empty"),
        ('{"prompt": "p", "id": "a"}', "the id 'a' is already used on line 1"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_bad_lines_are_named_and_the_others_stay(write, line, reason) -> None:
    read = read_prompts(write(GOOD, "", line, '{"id": "z", "prompt": "q"}'))
    assert [item.id for item in read.items] == ["a", "z"]
    (bad,) = read.bad
    assert (bad.number, bad.text) == (3, line)
    import re

    assert re.search(reason, bad.reason)
    assert "\n" not in bad.reason


def test_an_id_that_a_later_default_would_repeat_is_bad(write) -> None:
    read = read_prompts(write('{"id": "line-00002", "prompt": "p"}', '{"prompt": "q"}'))
    assert [item.prompt for item in read.items] == ["p"] and read.bad[0].number == 2


def test_the_id_of_a_bad_line_stays_free(write) -> None:
    read = read_prompts(write('{"id": "a", "prompt": ""}', GOOD))
    assert [item.id for item in read.items] == ["a"] and len(read.bad) == 1


def test_line_ends_and_byte_order_mark(write) -> None:
    read = read_prompts(write(b"\xef\xbb\xbf" + GOOD.encode() + b"\r", '{"prompt": "one\u2028two\u0085three"}', ""))
    assert [item.prompt for item in read.items] == ["Is it yes?", "one\u2028two\u0085three"]


def test_files_that_cannot_be_used(write, tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="no prompt file"):
        read_prompts(tmp_path / "nothing.jsonl")
    with pytest.raises(PromptFileError, match="is a folder"):
        read_prompts(tmp_path)
    for empty in ((), ("", "  ", "")):
        with pytest.raises(PromptFileError, match="is empty"):
            read_prompts(write(*empty))
    with pytest.raises(PromptFileError, match="not UTF-8: line 2, byte"):
        read_prompts(write(GOOD, b'{"prompt": "\xff"}'))
    with pytest.raises(PromptFileError, match=r"No line .* can be used") as caught:
        read_prompts(write("{", "[]"))
    assert "line 1: no JSON" in caught.value.why and "line 2: a JSON object" in caught.value.why


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_any_prompts_come_back(write, texts) -> None:
    for ascii_only in (True, False):
        read = read_prompts(write(*(json.dumps({"prompt": text}, ensure_ascii=ascii_only) for text in texts)))
        assert [item.prompt for item in read.items] == texts and not read.bad


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n")))
def test_any_line_is_an_item_or_a_bad_line_or_blank(write, line) -> None:
    read = read_prompts(write(GOOD, line))
    assert len(read.items) + len(read.bad) == 1 + bool(line.strip())
