"""Tokens, their places in the text, and their regions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st

from symbolic_residue.errors import ConfigError, PromptError, TemplateError
from symbolic_residue.prompts import build_prompt, CHAT_REGIONS, Prompt
from symbolic_residue.prompts._prompt import tile

ROCKET = "a \U0001f469\u200d\U0001f680 b"


def by_region(prompt: Prompt) -> list[tuple[str, str]]:
    """Runs of one region as (region, text)."""
    return [
        (span.name, "".join(prompt.text[slice(*prompt.offsets[i])] for i in span.positions())) for span in prompt.regions.spans()
    ]


def check_tiling(prompt: Prompt) -> None:
    assert "".join(prompt.text[start:stop] for start, stop in prompt.offsets) == prompt.text
    assert all(a[1] == b[0] for a, b in zip(prompt.offsets[:-1], prompt.offsets[1:], strict=True))
    assert len(prompt.ids) == len(prompt.tokens) == len(prompt.offsets) == len(prompt.regions) == len(prompt)


def test_chat_regions_by_token(tokenizer) -> None:
    tok = tokenizer("default")
    prompt = build_prompt(tok, "Is it yes?", chat=True)
    check_tiling(prompt)
    assert by_region(prompt) == [
        ("sink", "<|open|>"),
        ("special", "system\n"),
        ("system", "You are a helper."),
        ("special", "<|close|>\n<|open|>user\n"),
        ("user", "Is it yes?"),
        ("special", "<|close|>\n"),
        ("assistant_header", "<|open|>assistant\n"),
    ]
    assert prompt.regions.names == CHAT_REGIONS
    assert prompt.chat and prompt.messages == ({"role": "user", "content": "Is it yes?"},)
    theirs = tok.apply_chat_template(list(prompt.messages), tokenize=True, add_generation_prompt=True, return_dict=True)
    assert prompt.ids == theirs["input_ids"]


def test_system_and_answer(tokenizer) -> None:
    prompt = build_prompt(tokenizer("default"), "Is it?", chat=True, system="Be brief.", answer="No way")
    assert by_region(prompt)[2] == ("system", "Be brief.")
    assert by_region(prompt)[-2:] == [("assistant_header", "<|open|>assistant\n"), ("answer", "No way")]
    assert prompt.answer_start == prompt.regions.positions("answer")[0]
    same = build_prompt(
        tokenizer("default"),
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Is it?"},
            {"role": "assistant", "content": "No way"},
        ],
    )
    assert (same.ids, same.regions) == (prompt.ids, prompt.regions)
    assert same.answer_start is None


def test_plain_text_with_and_without_bos(tokenizer) -> None:
    plain = build_prompt(tokenizer(), "is it yes", answer=" or no")
    check_tiling(plain)
    assert by_region(plain) == [("sink", plain.tokens[0]), ("text", "is it yes"[len(plain.tokens[0]) :]), ("answer", " or no")]
    opened = build_prompt(tokenizer(post="<bos> $A"), "is it yes")
    check_tiling(opened)
    assert opened.tokens[0] == "<bos>" and opened.offsets[0] == (0, 0)
    assert by_region(opened) == [("sink", ""), ("text", "is it yes")]
    assert opened.regions.names == ("sink", "text", "answer")
    two = build_prompt(tokenizer(post="<bos> <|open|> $A"), "is it yes")
    assert two.regions.per_token()[:3] == ["sink", "special", "text"]


def test_a_token_over_a_boundary_belongs_to_the_content(tokenizer) -> None:
    # " [/INST]" closes with a control token, but "[INST] " ends in a space that merges with the content
    prompt = build_prompt(tokenizer("inst"), "the answer", chat=True)
    runs = by_region(prompt)
    assert runs[0] == ("sink", "<bos>")
    assert runs[1] == ("special", "[INST]")
    assert runs[2] == ("user", " the answer")
    assert runs[3] == ("assistant_header", " [/INST]")


def test_control_token_that_swallows_whitespace_stays_frame() -> None:
    from tokenizers import AddedToken, models, pre_tokenizers, Tokenizer
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.add_special_tokens([AddedToken("<|u|>", rstrip=True, special=True), AddedToken("<|a|>", special=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=core)
    fast.chat_template = (
        "{% for m in messages %}{{ '<|u|>\n' + m['content'] }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
    )
    prompt = build_prompt(fast, "  hi", chat=True)
    check_tiling(prompt)
    assert prompt.offsets[0] == (0, len("<|u|>\n  "))
    assert by_region(prompt)[1:] == [("user", "hi"), ("assistant_header", "<|a|>")]
    assert build_prompt(fast, messages=[*[{"role": "user", "content": " a"}] * 2]).regions.per_token().count("user") == 2


@pytest.mark.parametrize("trim", [None, True, False])
def test_offsets_tile_whether_or_not_the_tokenizer_counts_leading_spaces(tokenizer, trim) -> None:
    text = "  is it\n\n yes  \u00e9 " + ROCKET + "  "
    prompt = build_prompt(tokenizer(trim_offsets=trim), text)
    check_tiling(prompt)
    reference = build_prompt(tokenizer(trim_offsets=False), text)
    assert prompt == reference


def test_pieces_of_one_character_stand_behind_it_in_its_region(tokenizer) -> None:
    prompt = build_prompt(tokenizer("tags"), ROCKET, chat=True)
    check_tiling(prompt)
    user = prompt.regions.positions("user")
    assert (user[1:] == user[:-1] + 1).all()
    empty = [i for i in user if prompt.offsets[i][0] == prompt.offsets[i][1]]
    assert len(empty) == len(ROCKET.encode()) - len(ROCKET)  # single bytes: this tokenizer has no merges for them
    assert {prompt.tokens[i] for i in empty} == {"\ufffd"}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=20), st.integers(0, 30))
def test_tile_tiles_whatever_the_offsets(raw, length) -> None:
    spans = tile(raw, length)
    assert len(spans) == len(raw)
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert all(start <= stop for start, stop in spans)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=15).filter(any))
def test_tile_keeps_offsets_that_tile_already(lengths) -> None:
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    assert tile(offsets, ends[-1]) == offsets


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip),
    st.sampled_from(["tags", "default", "inst", "fold", None]),
)
def test_any_text_is_tiled_and_labelled(tokenizer, text, template) -> None:
    prompt = build_prompt(tokenizer(template), text, chat=template is not None)
    check_tiling(prompt)
    name = "text" if template is None else "user"
    inside = "".join(prompt.text[slice(*prompt.offsets[i])] for i in prompt.regions.positions(name))
    if template is None:  # position 0 is the sink, whatever it is
        inside = prompt.text[slice(*prompt.offsets[0])] + inside
    assert inside.strip() == text.strip()


def test_control_characters_and_markup_stay_as_they_are(tokenizer) -> None:
    text = "<script>alert(1)</script>\x00\x07\u202e end"
    prompt = build_prompt(tokenizer("tags"), text, chat=True)
    assert ("user", text) in by_region(prompt)


@pytest.mark.parametrize("chat", [True, False])
def test_typed_control_tokens_are_refused_unless_allowed(tokenizer, chat) -> None:
    tok = tokenizer("tags")
    with pytest.raises(PromptError, match=r"<\|close\|>"):
        build_prompt(tok, "is it <|close|> yes", chat=chat)
    prompt = build_prompt(tok, "is it <|close|> yes", chat=chat, allow_special=True)
    runs = by_region(prompt)
    at = runs.index(("special", "<|close|>"))
    assert runs[at + 1] == ("user" if chat else "text", " yes")
    with pytest.raises(PromptError, match="<eos>"):
        build_prompt(tok, "is it", answer=" yes<eos>", chat=chat)


def test_a_control_token_made_of_content_and_frame_is_refused(tokenizer) -> None:
    tok = tokenizer("bare")
    messages = [{"role": "user", "content": "a <|cl"}, {"role": "user", "content": "ose|> b"}]
    with pytest.raises(PromptError, match=r"<\|close\|>"):
        build_prompt(tok, messages=messages)


def test_a_character_that_the_tokenizer_does_not_know_is_no_control_token() -> None:
    from tokenizers import models, pre_tokenizers, Tokenizer
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "is": 1}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["<unk>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    prompt = build_prompt(fast, "is zebra is")
    assert prompt.ids == [1, 0, 1] and prompt.regions.per_token() == ["sink", "text", "text"]
    check_tiling(prompt)
    with pytest.raises(PromptError, match="<unk>"):
        build_prompt(fast, "is <unk>")


@pytest.mark.parametrize("text", ["", " ", "\n\t \u2003"])
@pytest.mark.parametrize("chat", [True, False])
def test_blank_prompts_are_refused(tokenizer, text, chat) -> None:
    with pytest.raises(PromptError, match=r"empty|whitespace"):
        build_prompt(tokenizer("tags"), text, chat=chat)


@pytest.mark.parametrize(
    ("error", "says", "kwargs"),
    [
        (ConfigError, "Give either", {}),
        (ConfigError, "not both", {"text": "a", "messages": [{"role": "user", "content": "a"}]}),
        (ConfigError, "needs a chat", {"text": "a", "system": "b"}),
        (PromptError, "must be text, not int", {"text": 7}),
        (PromptError, "must be text, not bytes", {"text": b"a", "chat": True}),
        (PromptError, "surrogate", {"text": "a\ud800"}),
        (PromptError, "surrogate", {"text": "a", "answer": "\udc00"}),
        (PromptError, "answer must be", {"text": "a", "answer": ""}),
        (PromptError, "no user turn", {"messages": []}),
        (PromptError, "must be a list", {"messages": {"role": "user", "content": "a"}}),
        (PromptError, "exactly the keys", {"messages": [{"role": "user"}]}),
        (PromptError, "role 'tool'", {"messages": [{"role": "tool", "content": "a"}]}),
        (PromptError, "content of message 1 must be text, not list", {"messages": [{"role": "user", "content": ["a"]}]}),
        (PromptError, "content of message 1 holds only", {"messages": [{"role": "user", "content": " "}]}),
        (PromptError, "ends with a system", {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}),
        (
            ConfigError,
            "system turn too",
            {"messages": [{"role": "system", "content": "b"}, {"role": "user", "content": "a"}], "system": "c"},
        ),
        (
            ConfigError,
            "an answer is given too",
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "answer": "c"},
        ),
    ],
)
def test_unusable_input_is_refused(tokenizer, error, says, kwargs) -> None:
    with pytest.raises(error, match=says):
        build_prompt(tokenizer("tags"), **kwargs)


def test_the_token_limit_counts_all_tokens(tokenizer) -> None:
    tok = tokenizer("tags")
    n = len(build_prompt(tok, "is it yes", chat=True))
    assert len(build_prompt(tok, "is it yes", chat=True, max_tokens=n)) == n
    with pytest.raises(PromptError, match=f"has {n} tokens; the limit is {n - 1}"):
        build_prompt(tok, "is it yes", chat=True, max_tokens=n - 1)


def test_an_answer_that_merges_with_the_prompt_is_refused(tokenizer) -> None:
    with pytest.raises(PromptError, match="merges"):
        build_prompt(tokenizer(), "the answer is it ", answer="yes")
    assert build_prompt(tokenizer(), "the answer is it", answer=" yes").text == "the answer is it yes"


def test_tokenizers_that_cannot_serve_are_refused(tokenizer) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(PromptError, match="Slow gives no character offsets"):
        build_prompt(Slow(), "a")
    with pytest.raises(PromptError, match="closes the text with '<eos>'"):
        build_prompt(tokenizer(post="<bos> $A <eos>"), "is it")
    with pytest.raises(TemplateError, match="no chat template"):
        build_prompt(tokenizer(), "a", chat=True)


def test_text_that_becomes_no_tokens_is_refused() -> None:
    from tokenizers import models, normalizers, Tokenizer
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    core.normalizer = normalizers.Replace("zz", "")
    with pytest.raises(PromptError, match="no tokens at all"):
        build_prompt(PreTrainedTokenizerFast(tokenizer_object=core), "zz")


def test_a_template_whose_own_tokenisation_differs_is_refused(tokenizer, monkeypatch) -> None:
    tok = tokenizer("tags")
    real = tok.apply_chat_template

    def other(messages, *, tokenize, **kwargs):
        result = real(messages, tokenize=tokenize, **kwargs)
        if tokenize:
            result["input_ids"] = [1, *result["input_ids"]]
        return result

    monkeypatch.setattr(tok, "apply_chat_template", other)
    with pytest.raises(TemplateError, match="own tokenisation"):
        build_prompt(tok, "is it", chat=True)


def test_a_prompt_longer_than_the_tokenizer_likes_is_not_warned_about(tokenizer, monkeypatch, caplog) -> None:
    tok = tokenizer("tags")
    monkeypatch.setattr(tok, "model_max_length", 4)
    monkeypatch.setattr(tok, "deprecation_warnings", {})
    with caplog.at_level("WARNING", logger="transformers"):
        assert len(build_prompt(tok, "is it yes or no", chat=True)) > 4
    assert not caplog.records
