"""The example of a shell of one's own: short, and it works on any model that the package knows."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build, tiny_tokenizer

from symbolic_residue.errors import ConfigError
from symbolic_residue.shells import Result, ShellBase

EXAMPLE = Path(__file__).parents[3] / "examples" / "custom_shell.py"
TEXT = "The mill stands where the river turns. The mill stands where the"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("custom_shell_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass under postponed annotations looks its module up.
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def top(model: Any, tokenizer: Any, text: str) -> float:
    return float(torch.softmax(model(input_ids=torch.tensor([tokenizer.encode(text)])).logits[0, -1].double(), -1).max())


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_it_measures_what_it_says(example: ModuleType, family: str) -> None:
    model, tokenizer = build(family), tiny_tokenizer()
    shell = example.TrailingSpaceShell(model, tokenizer)
    assert isinstance(shell, ShellBase)
    residue = shell.run(TEXT)
    assert len(residue) == 8
    assert residue[0] == pytest.approx(top(model, tokenizer, TEXT + " ") - top(model, tokenizer, TEXT), abs=1e-5)
    findings = shell.analyze_residue(residue)
    assert isinstance(findings, Result)
    row = findings.tables()["verdicts"].row(0, named=True)
    assert row["shell"] == "trailing-space"
    assert row["value"] == pytest.approx(np.mean(residue))
    assert row["n"] == 8
    assert row["low"] <= row["value"] <= row["high"]


def test_its_verdict_follows_the_residue(example: ModuleType) -> None:
    shell = example.TrailingSpaceShell(build("llama"), tiny_tokenizer())
    lost = [-0.5, -0.52, -0.48, -0.5, -0.55, -0.45, -0.51, -0.49]
    assert shell.analyze_residue(lost).verdict.outcome == "fires"
    assert shell.analyze_residue([-x for x in lost]).verdict.outcome == "absent"
    assert shell.analyze_residue([-0.5, 0.5, -0.4, 0.4, -0.5, 0.5, -0.4, 0.1]).verdict.outcome == "undecided"


def test_it_is_about_forty_lines() -> None:
    tree = ast.parse(EXAMPLE.read_text("utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert sum((node.end_lineno or 0) - node.lineno + 1 for node in classes) <= 40
    imports = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
    assert not any("._" in name for name in imports)  # public doors only


def test_a_shell_without_its_two_methods_cannot_be_made() -> None:
    class Half(ShellBase):
        name, operations = "half", ("A", "B", "C")

        def run(self, input_text: str, *, seed: int = 0) -> None:
            return None

    with pytest.raises(TypeError, match="analyze_residue"):
        Half(build("llama"), tiny_tokenizer())  # type: ignore[abstract]


def test_it_needs_one_model(example: ModuleType) -> None:
    with pytest.raises(ConfigError):
        example.TrailingSpaceShell()


# -- from the command line ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "tiny"
    build("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


def test_it_runs_from_the_command_line_and_stands_in_the_report(folder: str, tmp_path: Path) -> None:
    from symbolic_residue.cli import main
    from symbolic_residue.store import RunFolder, validate

    run = tmp_path / "run"
    assert main(["shell", "custom", f"{EXAMPLE}:TrailingSpaceShell", TEXT, "--model", folder, "--output", str(run)]) == 0
    assert validate(run) == []
    kept = RunFolder.open(run).table("verdicts").row(0, named=True)
    assert (kept["shell"], kept["mode"], kept["n"]) == ("trailing-space", "loss of confidence", 8)
    page = (run / "report.html").read_text("utf-8")
    assert "loss of confidence" in page
    assert "the prompt without the space" in page
    assert "Not measured in this run" not in page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("custom_shell.py", "names no class"),
        ("nowhere.py:Shell", "no file"),
        ("no_such_module_at_all:Shell", "cannot be imported"),
        ("json:JSONDecoder", "no shell"),
        ("symbolic_residue.shells:ShellBase", "not complete"),
    ],
)
def test_what_is_no_shell_is_refused(text: str, said: str) -> None:
    from symbolic_residue.cli._shell_custom import load_shell_class

    with pytest.raises(ConfigError, match=said):
        load_shell_class(text)


def test_an_error_in_the_users_file_is_told(tmp_path: Path) -> None:
    from symbolic_residue.cli._shell_custom import load_shell_class

    (tmp_path / "broken.py").write_text("raise RuntimeError('mine')")
    with pytest.raises(ConfigError, match="mine"):
        load_shell_class(f"{tmp_path}/broken.py:Shell")
