"""MEMTRACE on the demo model: a fact is worth something, everything adds up, and the model is left alone."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
import torch

from symbolic_residue.instrument import verify
from symbolic_residue.shells import MemtraceConfig, MemtraceShell

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def shell(demo: Any) -> MemtraceShell:
    verify(demo)
    return MemtraceShell(loaded=demo, config=MemtraceConfig.quick(top_heads=3))


def test_a_fact_is_worth_something_and_its_heads_are_tested(shell: MemtraceShell) -> None:
    ids = torch.tensor([[1, 504, 1629, 314, 260]])
    with torch.no_grad():
        before = shell.loaded.model(ids).logits
    item = next(i for i in shell.items() if i.id == "adversarial-04")
    assert item.split == "calibration"
    findings = shell.analyze_residue(shell.run_item(item))
    with torch.no_grad():
        assert torch.equal(shell.loaded.model(ids).logits, before)
    memory = findings.residue.frames["curves"].filter(pl.col("curve") == "memory")
    far = memory.filter((pl.col("series") == item.padding) & (pl.col("x") == 40)).row(0, named=True)
    assert far["low"] > 1
    assert far["n"] == 8
    assert abs(findings.tables()["dla_check"]["error"][0]) < 1e-3
    assert len(findings.tests) == 3
    hidden = findings.frames["curves"].filter((pl.col("curve") == "ANCHOR and INHIBIT") & (pl.col("x") == 0))
    effect = dict(zip(hidden["series"], hidden["value"], strict=True))
    assert effect["fact"] < -1 < effect["control, padding"]


def test_a_digit_is_scored_behind_its_space(shell: MemtraceShell) -> None:
    text = "The bus to the mill has the number 7. The bus to the mill has the number"
    residue = shell.run(text, answer=" 7", foils=[" 8", " 9"])
    field = residue.asked.fields[0]
    decode = shell.tokenizer.decode
    assert (decode(field.before), decode([field.token])) == (" ", "7")
    assert [decode([f]) for f in field.foils] == ["8", "9"]
    assert residue.asked.token_type == "number"
