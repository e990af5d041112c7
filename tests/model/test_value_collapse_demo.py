"""VALUE-COLLAPSE on the demo model: a planted conflict fires, its control does not, and everything adds up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from symbolic_residue.diagnose import diagnose_item
from symbolic_residue.instrument import verify
from symbolic_residue.prompts import benchmark, PromptItem
from symbolic_residue.report import render_report
from symbolic_residue.shells import ValueCollapseShell
from symbolic_residue.store import RunFolder, validate

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def shell(demo: Any) -> ValueCollapseShell:
    verify(demo)
    return ValueCollapseShell(loaded=demo)


def test_a_planted_conflict_and_its_control(shell: ValueCollapseShell, tmp_path: Path) -> None:
    item = next(i for i in benchmark("value-ambiguity") if i.id == "votes-06")
    assert item.split == "held-out"
    ids = torch.tensor([[1, 504, 1629, 314, 260]])
    with torch.no_grad():
        before = shell.loaded.model(ids).logits
    planted = diagnose_item(shell, PromptItem(id="planted", prompt=item.prompt, control=item.control))
    settled = diagnose_item(shell, PromptItem(id="settled", prompt=item.control))
    with torch.no_grad():
        assert torch.equal(shell.loaded.model(ids).logits, before)
    assert planted.findings is not None
    assert settled.findings is not None
    assert planted.findings.verdict("flatness").outcome == "fires"
    assert settled.findings.verdict("flatness").outcome == "absent"
    attribution = planted.findings.attribution
    assert abs(attribution.error).max() < 1e-3
    # Some head moves the choice further than random heads do; whether that is specific to it is for the verdict to say, not for this test.
    assert max(abs(t.ablation) for t in attribution.tests) > attribution.random_effect
    assert all(t.confirmed is not None for t in attribution.tests)

    with RunFolder.create(tmp_path / "run", kind="diagnose", command="test", provenance={}, config={}) as run:
        for result in (planted, settled):
            run.write_item(result.item, result.tables, result.tensors)
    assert validate(tmp_path / "run") == []
    page = render_report(tmp_path / "run").read_text("utf-8")
    assert "Torn between" in page
