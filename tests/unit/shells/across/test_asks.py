"""``asks``: which question of each shell a plain text holds, and why it holds none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import PromptError, SpanError
from symbolic_residue.models import wrap
from symbolic_residue.prompts import build_prompt
from symbolic_residue.prompts._instructions import relation
from symbolic_residue.shells import config_class, make_shell, ShellIntegrator, SHELLS
from symbolic_residue.shells.instruction_disruption._ask import find_instructions
from symbolic_residue.shells.memtrace._find import find_stated, LEAST

ORDERS = "Anna came home. Answer in French. The short man slept in the bus. Please answer in German. What is ice?"


@pytest.fixture(scope="module")
def loaded() -> Any:
    return wrap(build("llama"), tiny_tokenizer())


def test_two_orders_and_the_question_are_found_among_sentences() -> None:
    found, question = find_instructions(ORDERS)
    assert [i.text for i in found] == ["Answer in French.", "Please answer in German."]  # a short man is no order to be short
    assert [i.value for i in found] == ["French", "German"]
    assert question == "What is ice?"
    lines, none = find_instructions("uppercase: SHOUT.\nstart=Ahoy: Greet as a sailor would.")
    assert [i.kind for i in lines] == ["uppercase", "start"]
    assert none is None


def test_of_three_orders_the_pair_that_contradicts_itself_is_taken() -> None:
    found, _ = find_instructions("Answer in capital letters. End your answer with the word sir. Write everything in lower case.")
    assert [i.kind for i in found] == ["uppercase", "lowercase"]
    assert relation(*found) == "contradictory"
    first, _ = find_instructions("Answer in capital letters. End your answer with the word sir. Answer with a question.")
    assert [i.kind for i in first] == ["uppercase", "end"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The mill stands where the river turns. It is", "0 of the text's sentences are instructions"),
        ("Answer in French. The mill is red.", "1 of the text's sentences is an instruction"),
        ("Answer in French. Give a warm welcome. The mill is", "cannot be verified by a program, such as 'Give a warm welcome.'"),
        ("A short word in French in capital letters. A digit with quotes.", "0 of the text's"),
    ],
)
def test_a_text_without_two_orders_is_left_out_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(PromptError) as refused:
        find_instructions(text)
    assert said in str(refused.value)


def test_the_shells_take_what_they_ask(loaded: Any) -> None:
    """The arguments go into ``run`` as they are."""
    shell = make_shell(
        "instruction-disruption", loaded, config_class("instruction-disruption").quick(top_heads=0, examples=0, tasks=6)
    )
    joint = ShellIntegrator(
        {"one": shell, "two": make_shell("value-collapse", loaded, config_class("value-collapse").quick(top_heads=0))}
    )
    findings = joint.run_one("one", ORDERS)
    assert findings.residue.asked.a.text == "Answer in French."
    assert findings.residue.asked.b.text == "Please answer in German."
    assert "What is ice?" in findings.residue.asked.tasks[0].question
    for name in SHELLS:
        if name not in ("memtrace", "instruction-disruption", "temporal-inference"):
            assert make_shell(name, loaded, config_class(name).quick()).asks("A text.") == {}


def test_the_shift_is_as_long_as_a_short_text_allows(loaded: Any) -> None:
    config = config_class("temporal-inference").quick()
    shell = make_shell("temporal-inference", loaded, config)
    word = " mill"
    assert len(build_prompt(loaded.tokenizer, word * 7)) == 7 * len(build_prompt(loaded.tokenizer, word))
    least = config.context + config.horizon + 1 + config.stride * (config.places - 1)
    each = len(build_prompt(loaded.tokenizer, word))
    text = word * (-(-(least + 6) // each))
    room = len(build_prompt(loaded.tokenizer, text)) - least
    assert 4 <= room < 15
    assert shell.asks(text) == {"shift_distance": room}
    residue = shell.run(text, **shell.asks(text))
    assert residue.asked.distance == room
    assert shell.asks(word * 200) == {"shift_distance": 15}
    with pytest.raises(PromptError, match="a shift of 4 needs"):
        shell.asks(word * 5)


def test_the_fact_is_the_sentence_that_raises_its_word_most(loaded: Any) -> None:
    """Against plain forwards of each sentence with the question, over all words that may be the answer."""
    pieces = ["Anna put the red book under the table. ", "Ben came home in the evening. ", "The miller keeps the key. "]
    question = "Please write the answer in one"
    tokenizer = loaded.tokenizer

    def row(text: str) -> torch.Tensor:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            return loaded.model(ids).logits[0, -1].double().log_softmax(-1)

    words = [["Anna", "put", "red", "book", "table"], ["Ben", "came", "home", "evening"], ["miller", "keeps", "key"]]
    base, gains = row(question), {}
    for piece, mine in zip(pieces, words, strict=True):
        for word in mine:
            first = tokenizer(f"{question} {word}", add_special_tokens=False)["input_ids"]
            token = first[len(tokenizer(question, add_special_tokens=False)["input_ids"])]
            here = row(piece + question)
            if here[token] - base[token] >= LEAST and here[token].exp() >= 0.01:
                gains[piece.strip(), word] = float(here[token].exp() - base[token].exp())
    from symbolic_residue.instrument import Instrument

    if gains:
        found = find_stated(Instrument(loaded), tokenizer, "".join(pieces) + question)
        best = max(gains, key=lambda key: gains[key])
        assert found.fact == best[0]
        assert gains[found.fact, found.answer.strip()] == pytest.approx(gains[best])
        assert found.question == question
        assert found.gain >= LEAST
    else:
        with pytest.raises(SpanError, match="states what its end asks for"):
            find_stated(Instrument(loaded), tokenizer, "".join(pieces) + question)
