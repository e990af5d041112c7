"""INSTRUCTION-DISRUPTION: one head carries an instruction's word from its block to the answer; how it treats two of them is set by hand.

The instructions are "Begin your answer with the word Indeed." and "… Well.". Head 1.2 looks, from the colon of "Answer:", at those words and raises the word itself. With
one instruction the answer is its word, then the end. With both the head's score decides: the *later* word wins (priority inversion), the *earlier* one (priority holds), *both* share
the attention, and then half a push is not enough against a constant preference for another word or for the end (nullification), or each word is said in turn
(blended).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

from symbolic_residue.prompts._instructions import make_instruction, PLAIN, TASKS
from symbolic_residue.shells import InstructionDisruptionConfig, InstructionDisruptionFindings, InstructionDisruptionShell
from symbolic_residue.shells.instruction_disruption._geometry import NEUTRAL, OPENING

from .builder import Planted, word_tokenizer
from .registry import plants

SHELL = "instruction-disruption"
HEAD = (1, 2)
A, B = make_instruction("start", "Indeed"), make_instruction("start", "Well")
EASY, CONTROL = make_instruction("no-digits"), make_instruction("no-list")
"""Followed by whatever this model says."""
WORDS, OTHER, END = (" Indeed", " Well"), " stone", 2
CONFIG = InstructionDisruptionConfig.quick(tasks=8, examples=1, max_new_tokens=4, top_heads=2, random_heads=6, references=6)
Rule = Literal["later", "earlier", "first named", "shared"]


@cache
def tokenizer() -> Any:
    lines = [p.question for p in (*PLAIN, *TASKS)] + [p.answer for p in (*PLAIN, *TASKS)] + list(NEUTRAL)
    lines += [i.text for i in (A, B, EASY, CONTROL)] + [
        "Question: Answer: Rule 1: 2: Where the rules differ, rule 1 holds.",
        OPENING,
        *WORDS,
        OTHER,
    ]
    return word_tokenizer(lines)


@cache
def shell(
    rule: Rule, *, rest: float = 1.0, rest_word: str | int = OTHER, again: bool = False, working: bool = True
) -> InstructionDisruptionShell:
    """The planted model in a shell.

    Args:
        rule: which word the head looks at where there are two.
        rest: the constant logit of ``rest_word``; a word that the head looks at alone has 10.
        again: after a word, the head speaks once more, that word left out.
        working: whether the head says anything.
    """
    made = Planted(tokenizer())
    made.mark([":"], 1)
    made.mark(WORDS, 2)
    if rule == "first named":
        made.mark(WORDS[1:], 2, 3.0)
    strength, pair, phase = {"later": (40.0, 4, 0.0), "earlier": (40.0, 4, math.pi / 2)}.get(rule, (24.0, 7, 0.0))
    made.attend(*HEAD, key=2, query=1, at=(4.0, 4.0), strength=strength, pair=pair, phase=phase)
    for i, word in enumerate(WORDS):
        made.mark([word], 4 + i)
        made.say(word, 8 + i)
    made.copy(*HEAD, [(4 + i, 8 + i, 2.5 if working else 0.0) for i in range(2)])
    made.say(rest_word, 0, rest)
    made.mark([*WORDS, OTHER], 3)
    made.say(END, 3, 0.75 if again else 4.0)
    if again:
        made.mark(WORDS, 1)
        for i, word in enumerate(WORDS):
            made.mark([word], 8 + i, -8.0)
    return InstructionDisruptionShell(made.model, made.tokenizer, CONFIG)


def findings(two: Any = B, **model: Any) -> InstructionDisruptionFindings:
    made = shell(**model)
    return made.analyze_residue(made.run(instructions=[A, two], control=CONTROL))


def answers(found: InstructionDisruptionFindings, order: str) -> set[str]:
    frame = found.residue.frames["instruction_answers"].filter(condition="conflict", order=order)
    return set(frame["answer"])


@plants(SHELL, "present", "partial execution", "priority inversion")
def the_later_instruction_wins() -> InstructionDisruptionFindings:
    found = findings(rule="later")
    assert (answers(found, "ab"), answers(found, "ba")) == ({"Well"}, {"Indeed"})
    assert found.verdict("nullification").outcome == "absent"
    assert found.verdict("blended execution").outcome == "absent"
    return found


@plants(SHELL, "absent", "priority inversion", "nullification")
def the_earlier_instruction_wins() -> InstructionDisruptionFindings:
    found = findings(rule="earlier")
    assert (answers(found, "ab"), answers(found, "ba")) == ({"Indeed"}, {"Well"})
    assert found.verdict("partial execution").outcome == "fires"
    return found


@plants(SHELL, "present", "nullification")
def half_a_push_each_and_another_word_is_said() -> InstructionDisruptionFindings:
    found = findings(rule="shared", rest=7.5)
    assert answers(found, "ab") == {"stone"}
    return found


@plants(SHELL, "present", "nullification")
def half_a_push_each_and_nothing_is_said() -> InstructionDisruptionFindings:
    found = findings(rule="shared", rest=7.5, rest_word=END)
    assert answers(found, "ab") == answers(found, "ba") == {""}
    return found


@plants(SHELL, "present", "blended execution")
def each_word_is_said_in_turn() -> InstructionDisruptionFindings:
    found = findings(rule="shared", again=True)
    assert answers(found, "ab") | answers(found, "ba") <= {"Indeed Well Indeed Well", "Well Indeed Well Indeed"}
    assert found.verdict("nullification").outcome == "absent"
    return found


@plants(SHELL, "absent", "nullification", "partial execution", "blended execution", "priority inversion")
def an_instruction_and_one_that_every_answer_follows() -> InstructionDisruptionFindings:
    found = findings(EASY, rule="later")
    assert answers(found, "ab") == {"Indeed"}
    return found


@plants(SHELL, "absent", "blended execution")
def a_model_that_speaks_again_with_one_instruction_has_nothing_to_add() -> InstructionDisruptionFindings:
    return findings(EASY, rule="shared", again=True)
