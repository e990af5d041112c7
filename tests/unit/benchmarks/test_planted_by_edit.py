"""Failures planted by edit: on tiny models that are known to do without the edit what the shell asks, the verdict fires with it, and afterwards the model is as it was."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from shells.planted import cases_instruction, cases_layer_salience, cases_memtrace, cases_temporal, cases_value_collapse

from symbolic_residue.prompts import MemoryItem
from symbolic_residue.shells import config_class, InstructionDisruptionShell, SHELLS, ValueCollapseShell

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def edits() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    return importlib.import_module("planted_by_edit")


def outcomes(shell: Any, residue: Any) -> dict[str, str]:
    return {v.mode: v.outcome for v in shell.verdicts(residue)}


def with_and_without(shell: Any, make: Any, item: Any, run: Any, mode: str) -> tuple[str, str]:
    """Outcomes without and with the edit; afterwards the model has no hooks and says what it said."""
    model, ids = shell.loaded.model, torch.tensor([[5, 9, 11, 40]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
    first = outcomes(shell, run())[mode]
    with make(shell, item):
        second = outcomes(shell, run())[mode]
    assert outcomes(shell, run())[mode] == first
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return first, second


def test_a_hidden_fact_decays_and_a_raised_answer_is_reconstructed(edits: ModuleType) -> None:
    colours, shell = cases_memtrace.COLOURS, cases_memtrace.shell()
    fact, other = (cases_memtrace.FACT.format(c) for c in colours[:2])
    item = MemoryItem(
        id="one", kind="natural", split="calibration", fact=fact, control=other, question=cases_memtrace.QUESTION, answers=(colours[0],),
        foils=(colours[1:],), padding="natural", place="between", token_type="word",
    )  # fmt: skip
    run = lambda: shell.run_item(item)  # noqa: E731
    assert with_and_without(shell, edits.fact_hidden, item, run, "recall decay") == ("absent", "fires")
    assert with_and_without(shell, edits.wrong_raised, item, run, "hallucinated reconstruction") == ("absent", "fires")


@pytest.mark.parametrize(("which", "mode"), [("both", "nullification"), ("first", "priority inversion")])
def test_a_block_that_is_hidden_is_not_followed(edits: ModuleType, which: str, mode: str) -> None:
    config = cases_instruction.CONFIG.model_copy(update={"top_heads": 0})
    shell = InstructionDisruptionShell(loaded=cases_instruction.shell("earlier").loaded, config=config)
    run = lambda: shell.run(instructions=[cases_instruction.A, cases_instruction.B], control=cases_instruction.CONTROL)  # noqa: E731
    assert with_and_without(shell, edits._block_hidden(which), None, run, mode) == ("absent", "fires")


@pytest.mark.parametrize("mode", ["salience collapse", "bottleneck"])
def test_layers_that_see_little_collapse_and_narrow(edits: ModuleType, mode: str) -> None:
    shell = cases_layer_salience.magnet(())
    item = SimpleNamespace(text=cases_layer_salience.WITHOUT)
    edit = edits._looked(lambda layer, n: layer >= 1, lambda key: key == 3)
    assert with_and_without(shell, edit, item, lambda: shell.run(item.text), mode) == ("absent", "fires")


@pytest.mark.parametrize(("relation", "mode"), [("order", "ordering reversal"), ("cause", "causal confusion")])
def test_a_wrong_word_that_is_raised_reverses_the_pair(edits: ModuleType, relation: str, mode: str) -> None:
    shell = cases_temporal.echoing()
    pair = cases_temporal.EventPair(first="Mara fed the cat", second="Mara locked the door", relation=relation, echo="right")  # type: ignore[arg-type]
    item = SimpleNamespace(pair=pair.model_dump())
    assert with_and_without(shell, edits.wrong_word, item, lambda: shell.run(pair=pair), mode) == ("absent", "fires")


@pytest.mark.parametrize(
    ("leaders", "mode"), [((0, 1, 0, 1, 0), "oscillation"), ((0, 0, 1, 1, 1), "value collapse"), (None, "flatness")]
)
def test_candidates_that_are_led_by_the_hand(
    edits: ModuleType, leaders: tuple[int, ...] | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edits, "LEVEL", 16.0)  # the tiny model's lens reaches no farther
    made = cases_value_collapse.model((0.0,) * 5)
    shell = ValueCollapseShell(made.model, made.tokenizer, cases_value_collapse.CONFIG)
    item = SimpleNamespace(prompt=cases_value_collapse.WITHOUT, control=None)
    edit = edits.level if leaders is None else edits._led(leaders)
    assert with_and_without(shell, edit, item, lambda: edits.with_two(shell, item), mode) == ("absent", "fires")


def test_every_mode_but_one_has_an_edit(edits: ModuleType) -> None:
    for name in SHELLS:
        modes = set(config_class(name)().criteria.thresholds)  # type: ignore[attr-defined]
        planted = {mode for edit in edits.EDITS[name] for mode in edit.planted}
        assert modes - planted == ({"blended execution"} if name == "instruction-disruption" else set())
