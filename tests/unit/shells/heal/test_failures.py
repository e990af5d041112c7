"""What each shell says is right: the prompts its verdicts are about, the evidence by its words, and a refusal where nothing is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.diagnose import benchmark_groups, make_failures
from symbolic_residue.errors import ConfigError, NoRightAnswerError
from symbolic_residue.instrument import collate
from symbolic_residue.models import wrap
from symbolic_residue.shells import config_class, make_shell, ShellBase, SHELLS
from symbolic_residue.shells._failure import Ask, Failure
from symbolic_residue.shells.heal._menu import Cell
from symbolic_residue.shells.heal._runs import Rows, Runs
from symbolic_residue.shells.layer_salience._failures import evidence_last
from symbolic_residue.shells.temporal_inference import TemporalInferenceConfig


@pytest.fixture(scope="module")
def loaded() -> Any:
    return wrap(build("llama", max_position_embeddings=2048), tiny_tokenizer())


def shell_of(loaded: Any, name: str) -> ShellBase[Any, Any]:
    return make_shell(name, loaded, config_class(name).quick())


def item_of(shell: ShellBase[Any, Any], kind: str, split: str = "calibration") -> Any:
    return next(i for i in shell.items() if i.kind == kind and i.split == split)


def words(loaded: Any, ask: Ask, positions: tuple[int, ...]) -> str:
    return loaded.tokenizer.decode([ask.ids[p] for p in positions])


@pytest.mark.parametrize("name", SHELLS)
def test_every_mode_has_a_right_answer_or_a_reason(name: str) -> None:
    """Each failure mode of each shell is in one of the two lists, and in one only."""
    import importlib

    kind = SHELLS[name]
    shell = getattr(importlib.import_module(kind.module), kind.attribute)
    judge = importlib.import_module(f"{kind.module}._judge")
    modes = getattr(judge, "MODES", None) or judge.VERDICTS
    assert set(shell.right_answers) | set(shell.no_right_answers) == set(modes)
    assert not set(shell.right_answers) & set(shell.no_right_answers)
    for mode in shell.no_right_answers:
        with pytest.raises(NoRightAnswerError, match="no right answer"):
            shell.right_answer(mode)
    with pytest.raises(ConfigError, match="no failure mode"):
        shell.right_answer("forgetfulness")


def test_a_pair_is_asked_in_both_orders_and_measured_as_the_verdict_is(loaded: Any) -> None:
    from symbolic_residue.shells.temporal_inference._judge import preference

    shell = make_shell("temporal-inference", loaded, TemporalInferenceConfig.quick(wordings=3, top_heads=0))
    item = item_of(shell, "order")
    (failure,) = shell.failures(item, "ordering reversal")
    assert len(failure.asks) == 6
    assert {(a.answer, a.wrong) for a in failure.asks[::2]} == {(a.wrong, a.answer) for a in failure.asks[1::2]}
    for ask in failure.asks:
        assert (
            "first" in words(loaded, ask, ask.evidence).lower()
            or "began" in words(loaded, ask, ask.evidence).lower()
            or "nine" in words(loaded, ask, ask.evidence)
        )
        assert item.pair["second"] in words(loaded, ask, ask.distractor)
        assert ask.control is not None
        assert ask.control != ask.ids
        assert not set(ask.evidence) & set(ask.distractor)
    residue = shell.run_item(item)
    assert Runs(shell.instrument).unedited(failure) == pytest.approx(preference(residue, "pair").mean(), abs=1e-4)
    assert [a.ids for a in shell.failures(residue, "ordering reversal")[0].asks] == [a.ids for a in failure.asks]


def test_a_liking_for_one_word_restores_no_order(loaded: Any) -> None:
    shell = shell_of(loaded, "temporal-inference")
    (failure,) = shell.failures(item_of(shell, "order"), "ordering reversal")
    before = int(failure.asks[0].answer or 0)
    runs = Runs(shell.instrument)
    liked = [[Cell(None, (before,), 50.0)]] * len(failure.asks)
    assert runs.measure(failure, liked)[0] == pytest.approx(runs.unedited(failure), abs=1e-6)


def test_a_fact_is_asked_behind_its_padding(loaded: Any) -> None:
    shell = shell_of(loaded, "memtrace")
    item = item_of(shell, "natural")
    (failure,) = shell.failures(item, "recall decay")
    assert failure.frame == item.frame
    assert len(failure.asks) == len({a.ids for a in failure.asks}) > 1
    for ask in failure.asks:
        assert words(loaded, ask, ask.evidence).strip() == item.fact
        assert loaded.tokenizer.decode(list(ask.ids)).startswith(item.fact)
        assert ask.control is not None
        assert len(ask.control) < len(ask.ids)  # without the padding
    residue = shell.run_item(item)
    same = shell.failures(residue, "recall decay")[0]
    assert [a.ids for a in same.asks] == [a.ids for a in failure.asks]
    from symbolic_residue.shells.memtrace._observe import score

    right = score(residue.frames["measures"], "fact", residue.asked.paddings[0], residue.asked.distance, "answer")
    for ask, log_p in zip(failure.asks, right[:, 0], strict=False):
        logits = shell.instrument.run(collate([list(ask.ids)]))["logits"][0, -1].double()
        assert float(torch.log_softmax(logits, -1)[ask.answer]) == pytest.approx(log_p, abs=1e-3)


def test_fields_are_failures_of_their_own_and_a_collision_is_against_the_rival(loaded: Any) -> None:
    shell = shell_of(loaded, "memtrace")
    item = item_of(shell, "fields")
    found = shell.failures(item, "partial recall")
    assert [f.id for f in found] == [f"{item.id} field 1", f"{item.id} field 2"]
    assert found[0].asks[0].ids == found[1].asks[0].ids[: len(found[0].asks[0].ids)]
    item = item_of(shell, "collision")
    (failure,) = shell.failures(item, "priority collision")
    for ask in failure.asks:
        assert words(loaded, ask, ask.distractor).strip() == item.rival
        assert loaded.tokenizer.decode([ask.wrong]) != loaded.tokenizer.decode([ask.answer])
        assert ask.control is not None
        text = loaded.tokenizer.decode(list(ask.control))
        assert text.index(item.rival) < text.index(item.fact)
    with pytest.raises(NoRightAnswerError, match="collide"):
        shell.failures(item_of(shell, "natural"), "priority collision")


def test_the_rule_with_priority_holds_in_both_orders(loaded: Any) -> None:
    shell = shell_of(loaded, "instruction-disruption")
    item = item_of(shell, "contradictory")
    (failure,) = shell.failures(item, "partial execution")
    assert failure.steps == shell.config.max_new_tokens
    assert failure.limit == 0.5
    assert len(failure.asks) == 6
    a, b = item.a.follow("Grass is green.", _plain()), item.b.follow("Grass is green.", _plain())
    for ask, first in zip(failure.asks, [True] * 3 + [False] * 3, strict=True):
        assert ask.check is not None
        assert (ask.check(a), ask.check(b)) == (first, not first)
        assert words(loaded, ask, ask.evidence).strip().startswith((item.a if first else item.b).text)
        assert words(loaded, ask, ask.distractor).strip().startswith((item.b if first else item.a).text)
        assert ask.control is not None
        assert (item.b if first else item.a).text not in loaded.tokenizer.decode(list(ask.control))
    (both,) = shell.failures(item_of(shell, "tension"), "nullification")
    assert not any(ask.distractor for ask in both.asks)


def _plain() -> Any:
    from symbolic_residue.prompts._instructions import PLAIN

    return PLAIN[0]


def test_the_candidate_that_the_control_names_must_lead_by_the_criterion(loaded: Any) -> None:
    shell = shell_of(loaded, "value-collapse")
    item = item_of(shell, "witnesses")
    (failure,) = shell.failures(item, "flatness")
    (ask,) = failure.asks
    assert failure.limit == shell.config.criteria.log_odds
    assert set(words(loaded, ask, ask.evidence).split()) == {str(item.answer).strip()}
    assert words(loaded, ask, ask.distractor).count(next(c for c in item.candidates if c != item.answer).strip()) == 3
    with pytest.raises(NoRightAnswerError, match="names one"):
        shell.failures(item_of(shell, "null"), "flatness")


def test_evidence_is_found_and_moved_to_the_end(loaded: Any) -> None:
    shell = shell_of(loaded, "layer-salience")
    item = item_of(shell, "early")
    (failure,) = shell.failures(item, "premature deprioritization")
    (ask,) = failure.asks
    assert words(loaded, ask, ask.evidence).strip() == str(item.answer).strip()
    assert evidence_last("A cat sat. It rained. All slept. The cat", " sat") == "It rained. All slept. A cat sat. The cat"
    assert evidence_last("It rained. A cat sat. The cat", " sat") is None
    with pytest.raises(NoRightAnswerError, match="own best token"):
        shell.failures(item_of(shell, "null-open"), "premature deprioritization")


def test_what_has_no_right_answer_is_refused_by_name(loaded: Any) -> None:
    temporal = shell_of(loaded, "temporal-inference")
    with pytest.raises(NoRightAnswerError, match="drift"):
        temporal.failures(item_of(temporal, "echo"), "drift")
    with pytest.raises(NoRightAnswerError, match="relation"):
        temporal.failures(item_of(temporal, "cause"), "ordering reversal")
    with pytest.raises(NoRightAnswerError, match="neither word"):
        temporal.failures(item_of(temporal, "null-neutral-order"), "ordering reversal")
    with pytest.raises(ConfigError, match="neither an item"):
        temporal.failures("a text", "ordering reversal")
    with pytest.raises(NoRightAnswerError, match="drift"):
        benchmark_groups("temporal-inference", mode="drift")
    with pytest.raises(ConfigError, match="no shell"):
        benchmark_groups("tea-leaves")


def test_a_benchmark_is_searched_on_calibration_and_tested_on_held_out_items(loaded: Any) -> None:
    groups = benchmark_groups("temporal-coherence", 3)
    assert [g.right for g in groups] == ["the right order", "the right cause and effect"]
    for group in groups:
        assert [len(group.search), len(group.held_out)] == [3, 3]
        assert {item.split for item, _ in group.search} == {"calibration"}
        assert {item.split for item, _ in group.held_out} == {"held-out"}
        assert not any(item.null for item, _ in group.search)
    assert {g.right for g in benchmark_groups("memtrace")} == {"the stated fact", "the stated fact, not its rival"}
    shell = shell_of(loaded, "temporal-inference")
    search, held_out = make_failures(shell, groups[0])
    assert not {f.frame for f in search} & {f.frame for f in held_out}


# -- greedy answers under edits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_answer_is_made_with_the_edit_on_every_row_that_chooses_a_token(family: str) -> None:
    """Against plain forwards over the growing sequence, with the same edit on the last prompt row and all after it."""
    from symbolic_residue.instrument import HeadScale, Instrument

    instrument = Instrument(wrap(build(family), tiny_tokenizer()))
    tokenizer, steps = instrument.loaded.tokenizer, 5
    ids = tokenizer.encode("the old gate stands near the river and the")
    cells = [Cell(None), Cell(lambda b: HeadScale(1, 2, 5.0, rows=(-1,), batch=(b,))), Cell(None, (7,), 100.0)]

    def plain(edit: bool, nats: float) -> str:
        said = list(ids)
        for _ in range(steps):
            rows = tuple(range(len(ids) - 1 - len(said), 0)) if edit else ()
            edits = [HeadScale(1, 2, 5.0, rows=rows)] if edit else []
            logits = instrument.run(torch.tensor([said]), edits=edits)["logits"][0, -1].clone()
            logits[7] += nats
            said.append(int(logits.argmax()))
            text = tokenizer.decode(said[len(ids) :], clean_up_tokenization_spaces=False)
            if "\n" in text.lstrip() or said[-1] == 2:
                break
        return text.strip().split("\n")[0].strip()

    got = Rows(instrument, ids).answers(cells, tokenizer, steps)
    assert got == [plain(False, 0.0), plain(True, 0.0), plain(False, 100.0)]
    assert len(set(got)) > 1


def test_a_program_decides_by_the_share_of_answers(loaded: Any) -> None:
    from symbolic_residue.instrument import Instrument

    instrument = Instrument(loaded)
    ids = tuple(loaded.tokenizer.encode("the gate and the"))
    asks = tuple(Ask(ids, None, check=lambda text, yes=yes: yes) for yes in (True, True, False))
    failure = Failure("f", "f", asks, limit=0.5, steps=2)
    assert Runs(instrument).unedited(failure) == pytest.approx(2 / 3)
    assert failure.measure == "share of answers that follow"
    lacking = np.isnan(Runs(instrument).measure(failure, [[Cell(None), None]] * 3))
    assert lacking.tolist() == [False, True]


def test_a_custom_shell_without_right_answers_says_so(loaded: Any) -> None:
    class Mine(ShellBase[Any, Any]):
        name, operations = "mine", ("A", "B", "C")

        def run(self, input_text: str, **_: Any) -> Any: ...

        def analyze_residue(self, residue: Any, **_: Any) -> Any: ...

    with pytest.raises(NoRightAnswerError, match="does not say"):
        Mine(loaded=loaded).failures(None, "anything")
