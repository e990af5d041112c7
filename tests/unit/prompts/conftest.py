"""A small byte-level tokenizer, and chat templates of our own that behave as the various families' do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

SPECIALS = ("<pad>", "<bos>", "<eos>", "<|open|>", "<|close|>", "[INST]", "[/INST]")

_WORDS = ("is it yes or no ", "the answer of the user is the answer ", "you are a helpful helper ", "system user assistant model\n")

TURNS = "{% for m in messages %}{{ '<|open|>' + m['role'] + '\n' + m['content'] + '<|close|>\n' }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}{{ '<|open|>assistant\n' }}{% endif %}"
DEFAULT = "{% if messages[0]['role'] != 'system' %}{{ '<|open|>system\nYou are a helper.<|close|>\n' }}{% endif %}"

TEMPLATES: dict[str, str] = {
    # tags around every turn
    "tags": TURNS + OPEN,
    # the same, with a system text of its own where none is given
    "default": DEFAULT + TURNS + OPEN,
    # [INST] turns: the system text is folded into the first user's turn, contents are stripped, no generation prompt
    "inst": (
        "{% if messages[0]['role'] == 'system' %}{% set head = '<<S>>\n' + messages[0]['content'] + '\n<</S>>\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}"
        "{% if loop.first %}{% set content = head + m['content'] %}{% else %}{% set content = m['content'] %}{% endif %}"
        "{% if m['role'] == 'user' %}{{ '<bos>[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + content.strip() + ' <eos>' }}{% endif %}{% endfor %}"
    ),
    # strict alternation, stripped contents, system folded in front of the first user's content, 'model' for the assistant
    "fold": (
        "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{% set head = messages[0]['content'] | trim + '\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}"
        "{{ '<|open|>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' + (head if loop.first else '')"
        " + m['content'] | trim + '<|close|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|open|>model\n' }}{% endif %}"
    ),
    # refuses a system turn
    "strict": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}{{ '<bos>' }}"
        + TURNS
        + OPEN
    ),
    # the system text stands before the last user's content, after earlier turns
    "late": (
        "{{ '<bos>' }}{% set sys = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        "{% set rest = messages[1:] if sys else messages %}{% for m in rest %}{% if m['role'] == 'user' %}"
        "{% if loop.last and sys %}{{ '[INST]' + sys + '\n\n' + m['content'] + '[/INST]' }}"
        "{% else %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endif %}{% else %}{{ m['content'] + '<eos>' }}{% endif %}{% endfor %}"
    ),
    # a date line that is always written, and newlines only stripped
    "dated": (
        "{{ '<|open|>system\nToday is 3 May.\n\n' }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'].strip('\n') }}"
        "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{{ '<|close|>\n' }}"
        "{% for m in rest %}{{ '<|open|>' + m['role'] + '\n' + m['content'].strip('\n') + '<|close|>\n' }}{% endfor %}" + OPEN
    ),
    # an empty thought is written before the last assistant's content, and the generation prompt opens without it
    "thought": (
        "{% for m in messages %}{{ '<|open|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m['content'].split('</think>')[-1] + '<|close|>\n' }}{% endfor %}" + OPEN
    ),
    # the end-of-text token closes a conversation that asks for no answer
    "ended": TURNS + "{% if add_generation_prompt %}{{ '<|open|>assistant\n' }}{% else %}{{ '<eos>' }}{% endif %}",
    # nothing around the contents
    "bare": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    # these cannot be segmented, or cannot ask for an answer
    "lower": TURNS.replace("m['content']", "m['content'] | lower") + OPEN,
    "twice": TURNS.replace("m['content']", "m['content'] + ' ' + m['content']") + OPEN,
    "drops": "{% for m in messages if m['role'] != 'system' %}" + TURNS.split("%}", 1)[1] + OPEN,
    "length": TURNS.replace("'<|close|>\n'", "('<|close|>\n' if m['content'] | length > 12 else '<|close|>')") + OPEN,
    "longer": TURNS.replace("'<|close|>\n'", "('<|close|>\n' if m['content'] | length > 30 else '<|close|>')") + OPEN,
    "impostor": DEFAULT + TURNS.replace("m['content']", "m['content'].replace('a helper', 'an impostor')") + OPEN,
    "rewrites": "{% if add_generation_prompt %}{{ '<bos>' }}{% endif %}" + TURNS + OPEN,
    "replaces": TURNS.replace("m['content']", "m['content'].replace('yes', 'no')") + OPEN,
    "unopened": TURNS,
    "ends": TURNS + "{% if add_generation_prompt %}{{ '<|open|>assistant\n' }}{% else %}{{ 'The end.' }}{% endif %}",
    "backwards": "{% for m in messages | reverse %}{{ '[INST]' + m['content'] }}{% endfor %}",
    "unsettled": "{% for m in (messages | reverse if messages[0]['content'][0] == '\n' else messages) %}{{ m['content'] }}{% endfor %}",
    "tail": (
        "{% for m in messages if m['role'] != 'system' %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endfor %}<|open|>"
        "{{ messages[0]['content'] if messages[0]['role'] == 'system' else 'You are a helper.' }}<|close|>\n" + OPEN
    ),
    "broken": "{{ messages[0]['content'] + 3 }}",
}


@functools.cache
def _core() -> Any:
    from tokenizers import models, pre_tokenizers, Tokenizer, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_WORDS, trainer)
    return core


@functools.cache
def make(template: str | None = None, *, trim_offsets: bool | None = None, post: str | None = None) -> Any:
    """The tokenizer; ``post`` is a post-processing pattern such as ``"<bos> $A"``; ``trim_offsets`` leaves out leading spaces."""
    from tokenizers import decoders, processors, Tokenizer
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer.from_str(_core().to_str())
    core.decoder = decoders.ByteLevel()
    if trim_offsets is not None:
        core.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    if post is not None:
        core.post_processor = processors.TemplateProcessing(
            single=post, special_tokens=[(token, SPECIALS.index(token)) for token in SPECIALS]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=list(SPECIALS[3:]),
        clean_up_tokenization_spaces=False,
    )
    if template is not None:
        fast.chat_template = TEMPLATES[template]
    return fast


@pytest.fixture(scope="session")
def tokenizer() -> Callable[..., Any]:
    """``tokenizer("tags")``: the small tokenizer with that chat template; without a name, with none."""
    return make
