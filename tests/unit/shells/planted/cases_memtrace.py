"""MEMTRACE: a head that fetches values; what it forgets is set by hand.

Behind "is" head 1.2 looks at colours, behind "has" head 1.1 at metals, and raises each one's own logit in proportion to its share of the attention. *Similar facts* in the
padding take their share (decay; with a strong push, a wrong answer said for certain; with metals only, one field of two). *Short sight*: the score falls with distance until the
fact is out of reach (decay), and of two facts the nearer one is seen (collision). Padding without values takes nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from symbolic_residue.prompts._padding import NATURAL, REPETITIVE
from symbolic_residue.shells import MemtraceConfig, MemtraceFindings, MemtraceShell

from .builder import Planted, word_tokenizer
from .registry import plants

SHELL = "memtrace"
HEAD = (1, 2)
COLOURS, METALS = (" crimson", " teal", " ochre", " mauve"), (" zinc", " brass", " pewter", " nickel")
THINGS = ("gate", "door", "road", "cup", "hat", "hill")
FACT, QUESTION = "the mill is{}.", "\nAs was said, the mill is"
BOTH = "the mill is{} and the gate has{}."
CONFIG = MemtraceConfig.quick(distances=(0, 8, 48), top_heads=1, random_heads=6, strengths=(0.0,))


@cache
def tokenizer() -> Any:
    words = [
        *NATURAL,
        *REPETITIVE,
        QUESTION,
        *COLOURS,
        *METALS,
        "the mill is. and the gate has.",
        *(f" the {t} is." for t in THINGS),
    ]
    return word_tokenizer(words)


@cache
def shell(*, push: float = 8.0, short_sighted: bool = False, working: bool = True) -> MemtraceShell:
    """The planted model in a shell.

    Args:
        push: logit of a value that has all the attention.
        short_sighted: the score falls with the cosine of the distance, to nothing at about 50 tokens.
        working: whether head 1.2 says anything.
    """
    made = Planted(tokenizer())
    pair, strength = (3, 14.0) if short_sighted else (7, 12.0)
    for k, (asking, head, values, on) in enumerate(((" is", HEAD, COLOURS, working), (" has", (1, 1), METALS, True))):
        made.mark([asking], 1 + k)
        made.mark(values, 3 + k)
        made.attend(*head, key=3 + k, query=1 + k, at=(4.0, 4.0), strength=strength, pair=pair)
        for i, word in enumerate(values):
            made.mark([word], 6 + 4 * k + i)
            made.say(word, 20 + 4 * k + i)
        made.copy(*head, [(6 + 4 * k + i, 20 + 4 * k + i, push / 4 if on else 0.0) for i in range(4)])
    return MemtraceShell(made.model, made.tokenizer, CONFIG)


def findings(model: dict[str, Any] | None = None, **asked: Any) -> MemtraceFindings:
    """One colour asked for."""
    made, fact = shell(**(model or {})), FACT.format(COLOURS[0])
    given: dict[str, Any] = {"fact": fact, "answer": COLOURS[0], "foils": COLOURS[1:]} | asked
    text = given.pop("text", fact)
    return made.analyze_residue(made.run(text + QUESTION, **given))


SIMILAR = {"distractors": [f"the {t} is{COLOURS[1]}." for t in THINGS], "padding": "adversarial"}


@plants(SHELL, "present", "recall decay")
def similar_facts_take_their_share() -> MemtraceFindings:
    found = findings(**SIMILAR)
    assert found.verdict("recall decay").control_value.value < 0.5
    return found


@plants(SHELL, "present", "recall decay")
def the_fact_is_out_of_reach() -> MemtraceFindings:
    found = findings({"short_sighted": True})
    assert "at 8 tokens" in found.verdict("recall decay").note or "at 0 tokens" in found.verdict("recall decay").note
    assert set(found.retrieval_heads) <= {HEAD}
    return found


@plants(SHELL, "absent", "recall decay", "hallucinated reconstruction")
def padding_without_values_takes_nothing() -> MemtraceFindings:
    found = findings()
    assert found.retrieval_heads == [HEAD]
    return found


@plants(SHELL, "absent", "recall decay")
def padding_before_the_fact_is_no_distance_to_short_sight() -> MemtraceFindings:
    return findings({"short_sighted": True}, place="before")


@plants(SHELL, "present", "hallucinated reconstruction")
def similar_facts_and_a_strong_push() -> MemtraceFindings:
    found = findings({"push": 16.0}, **SIMILAR)
    verdict = found.verdict("hallucinated reconstruction")
    assert verdict.value.value > 0.9
    assert verdict.control_value.value < 0.1
    return found


@plants(SHELL, "absent", "hallucinated reconstruction")
def a_strong_push_alone() -> MemtraceFindings:
    return findings({"push": 16.0})


def two_fields(**asked: Any) -> MemtraceFindings:
    made, fact = shell(push=12.0), BOTH.format(COLOURS[0], METALS[0])
    said = [f" and the gate has{metal}" for metal in METALS]
    return made.analyze_residue(
        made.run(fact + QUESTION, fact=fact, answer=[COLOURS[0], said[0]], foils=[list(COLOURS[1:]), said[1:]], **asked)
    )


@plants(SHELL, "present", "partial recall")
def similar_facts_about_one_field_of_two() -> MemtraceFindings:
    found = two_fields(distractors=[f"the {t} has{METALS[1]}." for t in THINGS], padding="adversarial")
    note = found.verdict("partial recall").note
    assert "crimson 1.00" in note
    assert "zinc 0.0" in note
    return found


@plants(SHELL, "absent", "partial recall")
def both_fields_are_kept_in_padding_without_values() -> MemtraceFindings:
    return two_fields()


def two_facts(text: str, **asked: Any) -> MemtraceFindings:
    rival = FACT.format(COLOURS[1]).replace("mill", "gate")
    given = {"rival": rival, "rival_answer": COLOURS[1]} | asked
    return findings({"short_sighted": True}, text=text.format(fact=FACT.format(COLOURS[0]), rival=rival), **given)


@plants(SHELL, "present", "priority collision")
def the_nearer_fact_is_seen() -> MemtraceFindings:
    found = two_facts("{fact} {rival}")
    assert "nearer" in found.verdict("priority collision").quantity
    assert found.verdict("priority collision").control_value.value > 1.0
    return found


@plants(SHELL, "absent", "priority collision")
def the_nearer_fact_is_the_right_one() -> MemtraceFindings:
    return two_facts("{rival} {fact}", place="before")
