"""Regions and spans with the demo model's own tokenizer and chat template."""

from __future__ import annotations

import pytest

from symbolic_residue.errors import PromptError
from symbolic_residue.prompts import build_prompt, find_span, parallel_prompts

pytestmark = pytest.mark.model

DEFAULT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def runs(prompt) -> list[tuple[str, str]]:
    return [
        (span.name, "".join(prompt.text[slice(*prompt.offsets[i])] for i in span.positions())) for span in prompt.regions.spans()
    ]


def test_default_system_text_and_generation_prompt(demo) -> None:
    prompt = build_prompt(demo.tokenizer, "Yes or no?", chat=True)
    assert runs(prompt) == [
        ("sink", "<|im_start|>"),
        ("special", "system\n"),
        ("system", DEFAULT),
        ("special", "<|im_end|>\n<|im_start|>user\n"),
        ("user", "Yes or no?"),
        ("special", "<|im_end|>\n"),
        ("assistant_header", "<|im_start|>assistant\n"),
    ]
    theirs = demo.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Yes or no?"}], tokenize=True, add_generation_prompt=True, return_dict=True
    )
    assert prompt.ids == list(theirs["input_ids"])


def test_own_system_text_earlier_turns_and_an_open_answer(demo) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Yes or no?"},
        {"role": "assistant", "content": "Well"},
    ]
    prompt = build_prompt(demo.tokenizer, messages=messages, system="Be brief.")
    assert DEFAULT not in prompt.text
    assert [text for name, text in runs(prompt) if name in ("system", "user", "answer")] == [
        "Be brief.",
        "Hi",
        "Hello.",
        "Yes or no?",
        "Well",
    ]
    same = build_prompt(demo.tokenizer, messages=messages[:-1], system="Be brief.", answer="Well")
    assert (same.ids, same.regions) == (prompt.ids, prompt.regions)


@pytest.mark.parametrize("chat", [True, False])
def test_offsets_tile_texts_of_many_kinds(demo, chat) -> None:
    text = "  Caf\u00e9 \U0001f469\u200d\U0001f680\n\n\tdef f(x):  return x\u3002\u4e2d\u6587 <script> \x00 e\u0301 "
    prompt = build_prompt(demo.tokenizer, text, chat=chat)
    assert "".join(prompt.text[start:stop] for start, stop in prompt.offsets) == prompt.text
    assert demo.tokenizer.decode(prompt.ids, clean_up_tokenization_spaces=False) == prompt.text
    if chat:
        assert ("user", "\n" + text) in runs(prompt)  # the header's newline and the leading space are one token


def test_plain_text_has_no_bos_and_the_first_word_is_the_sink(demo) -> None:
    prompt = build_prompt(demo.tokenizer, "The capital of France is", answer=" Paris")
    assert runs(prompt) == [("sink", "The"), ("text", " capital of France is"), ("answer", " Paris")]
    span = find_span(prompt, text="France")
    assert prompt.tokens[span.start : span.stop] == [" France"]


def test_typed_control_tokens_are_refused(demo) -> None:
    with pytest.raises(PromptError, match="<repo_name>"):
        build_prompt(demo.tokenizer, "a <repo_name> b", chat=True)


def test_parallel_prompts_are_short(demo) -> None:
    """8 to 40 tokens: a tree of thirty steps is most of its sequence."""
    lengths = {p.id: len(build_prompt(demo.tokenizer, p.prompt).ids) for p in parallel_prompts()}
    assert all(8 <= n <= 40 for n in lengths.values()), {k: n for k, n in lengths.items() if not 8 <= n <= 40}
