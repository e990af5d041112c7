"""What MEMTRACE must find: the head that carries a fact, that nothing is lost in padding without values, and what is lost among similar facts."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from symbolic_residue.errors import PromptError, SpanError
from symbolic_residue.shells import MemtraceConfig, MemtraceFindings, MemtraceShell

from .planted import FACT, HEAD, planted, QUESTION

CONFIG = MemtraceConfig.make(distances=(0, 8, 30), paddings=("natural",), draws=8, top_heads=3, random_heads=8)


def findings(working: bool = True, **options: Any) -> tuple[MemtraceFindings, list[str]]:
    model, tokenizer, words = planted(working)
    assert len(words) >= 5
    shell = MemtraceShell(model, tokenizer, CONFIG)
    given: dict[str, Any] = {"answer": words[0], "foils": words[1:]} | options
    return shell.analyze_residue(shell.run(FACT.format(words[0]) + QUESTION, fact=FACT.format(words[0]), **given)), words


@pytest.fixture(scope="module")
def kept() -> MemtraceFindings:
    return findings()[0]


def test_the_planted_head_is_named_and_no_other(kept: MemtraceFindings) -> None:
    assert kept.retrieval_heads == [HEAD]
    first = kept.tests[0]
    assert (first.layer, first.head) == HEAD
    assert first.ablation < -1
    scores = kept.residue.frames["head_scores"].filter((pl.col("layer") == HEAD[0]) & (pl.col("head") == HEAD[1]))
    row = {r["score"]: r for r in scores.iter_rows(named=True)}
    assert row["attention to the answer"]["value"] > 0.9
    assert row["attention to the answer"]["control"] < 0.01
    assert row["retrieval"]["low"] > 1 > row["retrieval"]["control_high"]
    assert row["value trace"]["value"] > 1 > abs(row["value trace"]["control"])
    assert row["attention to the answer"]["n"] == 8


def test_the_same_head_is_not_named_where_it_says_nothing() -> None:
    found, _ = findings(working=False)
    assert HEAD not in found.retrieval_heads
    decay = found.verdict("recall decay")
    assert decay.outcome == "undecided"
    assert "nothing to lose" in decay.note


def test_nothing_is_lost_where_the_padding_holds_no_values(kept: MemtraceFindings) -> None:
    decay = kept.verdict("recall decay")
    assert decay.outcome == "absent"
    assert 0 <= decay.value.value < 0.3
    assert kept.verdict("hallucinated reconstruction").outcome == "absent"
    assert kept.verdict("partial recall").outcome == "undecided"
    assert kept.verdict("priority collision").outcome == "undecided"
    assert "is kept" in kept.summary


def test_hiding_the_fact_takes_the_answer_away_and_hiding_padding_does_not(kept: MemtraceFindings) -> None:
    dose = kept.frames["curves"].filter((pl.col("curve") == "ANCHOR and INHIBIT") & (pl.col("x") == 0))
    effect = dict(zip(dose["series"], dose["value"], strict=True))
    assert effect["fact"] < -1
    assert abs(effect["control, padding"]) < 0.2


def test_similar_facts_plant_decay_and_reconstruction() -> None:
    _, _, words = planted()
    others = [f"the {thing} is{words[1]}." for thing in ("gate", "door", "road", "cup", "hat", "hill")]
    lost, _ = findings(distractors=others, padding="adversarial")
    decay = lost.verdict("recall decay")
    assert decay.outcome == "fires"
    assert decay.value.low > 1
    assert decay.control_value.value < decay.criterion  # the same padding without the fact
    assert (
        lost.verdict("hallucinated reconstruction").value.value
        > 10 * lost.verdict("hallucinated reconstruction").control_value.value
    )
    assert "is lost" in lost.summary


def test_padding_before_the_fact_is_no_distance() -> None:
    null, _ = findings(place="before")
    assert null.verdict("recall decay").outcome == "absent"
    assert not [v.mode for v in null.verdicts if v.outcome == "fires"]


def test_a_nearer_rival_and_the_exchange_are_told_apart() -> None:
    """The planted head knows values, not things: with the values exchanged as well, the exchanged text is the first one over again."""
    model, tokenizer, words = planted()
    shell = MemtraceShell(model, tokenizer, CONFIG)

    def run(one: str, two: str) -> Any:
        fact, rival = FACT.format(one), f"the gate is{two}."
        given: dict[str, Any] = {"answer": one, "foils": [two, *words[2:]], "rival": rival, "rival_answer": two}
        return shell.run(f"{fact} {rival}{QUESTION}", fact=fact, **given)

    residue, turned = run(words[0], words[1]), run(words[1], words[0])
    assert set(residue.asked.sides) == {"fact", "control", "swapped"}
    assert residue.asked.sides["swapped"].opening == f"the gate is{words[1]}."
    assert residue.asked.sides["swapped"].closing == f" {FACT.format(words[0])}{QUESTION}"
    here, there = shell.verdicts(residue)[3], shell.verdicts(turned)[3]
    assert "nearer" in here.quantity
    assert here.value.n == here.control_value.n == 8
    assert here.value.value == pytest.approx(-there.control_value.value, abs=0.5)
    assert here.control_value.value == pytest.approx(-there.value.value, abs=0.5)
    loser = min((here, there), key=lambda v: v.value.value)
    assert loser.value.value < 0
    assert loser.outcome == "undecided"  # it loses in either order, so nearness is not to blame


def test_partial_recall_is_seen_where_one_field_is_carried_and_one_is_not() -> None:
    """The second field asks behind a word that the head does not answer to."""
    model, tokenizer, words = planted()
    shell = MemtraceShell(model, tokenizer, CONFIG)
    fact = f"the mill is{words[0]} and the gate has{words[1]}."
    residue = shell.run(
        fact + QUESTION,
        fact=fact,
        answer=[words[0], f" and the gate has{words[1]}"],
        foils=[[words[2], words[3]], [f" and the gate has{words[3]}", f" and the gate has{words[4]}"]],
    )
    assert [f.token for f in residue.asked.fields] == [tokenizer.encode(words[0])[0], tokenizer.encode(words[1])[0]]
    assert tokenizer.decode(residue.asked.fields[1].before) == " and the gate has"
    partial = shell.verdicts(residue)[2]
    assert partial.value.value > 0.2
    assert 0 <= partial.value.low <= partial.value.high <= 1


def test_the_fact_of_a_text_alone_is_found_and_judged() -> None:
    """Only the planted head tells the model which word was stated: with it the sentence, its word and the head are found, without it the text is refused."""
    model, tokenizer, words = planted()
    shell = MemtraceShell(model, tokenizer, CONFIG)
    word = words[0]
    text = f"Ben came home in the evening. {FACT.format(word)} Anna put the book under the table.{QUESTION}"
    asked = shell.asks(text)
    assert asked["fact"] == FACT.format(word)
    assert asked["answer"] == [word]
    assert text.endswith(asked["question"])
    residue = shell.run(text)
    assert (residue.asked.fact, residue.asked.fields[0].text) == (asked["fact"], word)
    assert HEAD in shell.analyze_residue(residue).retrieval_heads
    silent, tokenizer, _ = planted(working=False)
    with pytest.raises(SpanError):
        MemtraceShell(silent, tokenizer, CONFIG).asks(text)
    with pytest.raises(SpanError, match="No sentence stands before"):
        shell.asks("the mill is")
    with pytest.raises(PromptError):
        shell.asks(" ")


def test_two_shells_name_the_planted_head_together() -> None:
    """MEMTRACE and VALUE-COLLAPSE on one plain text: the head that carries the fact leads in both. Among eight heads it cannot be beyond chance, and is not said
    to be."""
    from symbolic_residue.models import wrap
    from symbolic_residue.shells import ShellIntegrator, ValueCollapseConfig, ValueCollapseShell

    model, tokenizer, words = planted()
    loaded = wrap(model, tokenizer)
    other = ValueCollapseShell(loaded=loaded, config=ValueCollapseConfig.quick(top_heads=2))
    joint = ShellIntegrator({"memtrace": MemtraceShell(loaded=loaded, config=CONFIG), "value-collapse": other})
    text = f"Ben came home in the evening. {FACT.format(words[0])}{QUESTION}"
    results = joint.run_all(text, asked={"value-collapse": {"candidates": words[:2]}})
    assert set(results.findings) == {"memtrace", "value-collapse"}
    found = joint.integrated_attribution(results)
    row = found.overlap.filter(pl.col("level") == "leading head").row(0, named=True)
    assert row["shared_units"] == "1.2"
    assert row["units"] == 8
    assert row["q"] is None
    assert "share" not in found.summary
