"""The head that was planted is named, by intervention, and no other; in the twin where it says nothing, nothing is named."""

from __future__ import annotations

import polars as pl
import pytest

from symbolic_residue.shells import InstructionDisruptionFindings

from . import cases_instruction as instruction
from . import cases_memtrace as memtrace


def effects(found: InstructionDisruptionFindings) -> dict[str, float]:
    return {e.name: e.effect.value for e in found.effects if e.order == "both"}


@pytest.mark.parametrize(("rule", "sign"), [("later", -1), ("earlier", 1)])
def test_the_head_that_lets_one_instruction_win_is_named(rule: instruction.Rule, sign: int) -> None:
    """The quantity is the later word against the earlier: without the head that lets the later one win it falls, without its mirror image it rises."""
    found = instruction.findings(rule=rule)
    assert found.heads is not None
    assert found.heads.tested.confirmed == [instruction.HEAD]
    test = found.heads.tested.tests[0]
    assert sign * test.ablation > 5
    assert abs(test.ablation) > 1000 * found.heads.tested.random_effect
    named = found.tables()["heads"].filter("confirmed")
    assert named.select("layer", "head").rows() == [instruction.HEAD]
    assert named["role"].to_list() == ["promotes" if sign < 0 else "inhibits"]


def test_the_instruction_that_decides_is_named_and_the_one_that_is_masked_out_is_not() -> None:
    """The head looks at Indeed before Well, in either order: each is followed alone, and together only Indeed; hiding Indeed gives Well."""
    found = instruction.findings(rule="first named")
    assert instruction.answers(found, "ab") == instruction.answers(found, "ba") == {"Indeed"}
    assert found.responsible == ["a"]
    assert effects(found)["a"] < -10
    assert abs(effects(found)["b"]) < 0.2
    assert "only a 100%, only b 0%" in found.summary
    assert "hiding a moves the preference away from it" in found.summary
    # What decides here is no matter of order.
    assert found.verdict("priority inversion").outcome == "undecided"
    assert found.verdict("partial execution").outcome == "fires"


def test_an_instruction_that_the_model_cannot_see_is_named_before_anything_is_judged() -> None:
    """The head's keys leave Well out altogether."""
    made = instruction.shell("later")
    residue = made.run(instructions=[instruction.A, instruction.make_instruction("start", "Clearly")], control=instruction.CONTROL)
    found = made.analyze_residue(residue)
    assert all(v.note.startswith("Not judged: b alone must be followed") for v in found.verdicts)
    assert all(v.outcome == "undecided" for v in found.verdicts)
    assert found.responsible == ["a"]
    assert found.failed is None


@pytest.mark.parametrize(("two", "working"), [(instruction.B, False), (instruction.EASY, True)])
def test_nothing_is_named_where_nothing_decides(two: object, working: bool) -> None:
    """The head is silent; or it speaks, and the two instructions ask for one and the same word. Effects are then rounding, and steady."""
    found = instruction.findings(two, rule="later", working=working)
    assert found.heads is not None
    assert found.heads.tested.confirmed == []
    assert found.responsible == []
    assert max(abs(x) for x in effects(found).values()) < 0.01
    assert "hiding" not in found.summary


def test_memtrace_names_the_head_that_fetches_the_fact_and_not_where_it_is_scaled_to_0() -> None:
    found = memtrace.findings()
    assert found.retrieval_heads == [memtrace.HEAD]
    assert found.tests[0].ablation < -5
    silent = memtrace.findings({"working": False})
    assert silent.retrieval_heads == []
    assert "nothing to lose" in silent.verdict("recall decay").note
    assert silent.tables()["heads"].filter(pl.col("confirmed").fill_null(False)).is_empty()
