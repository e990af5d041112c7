"""Every code block of README and docs runs, on the demo model, as a reader would run it.

1. A page's ``python`` and ``bash`` blocks run in their order in one temporary folder; its ``python`` blocks share one namespace.
2. ``bash`` lines are ``residue`` commands, run through the command line's own entry, except the set-up commands named in ``SET_UP``. CONTRIBUTING's are
   all set-up.
3. ``text`` blocks are output or layout, ``jsonl`` blocks are read as prompt files. A block of any other kind fails the test, so none is passed over.
4. What the pages say of the Makefile, of the tables and of other files is held against those.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from symbolic_residue.cli import main

pytestmark = pytest.mark.model

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md"]
TABLES_ONLY = ("families.md", "calibration.md", "claims.md", "contrast-study.md")
"""Pages that a script writes and that hold no code."""
SET_UP = re.compile(r"git clone |make \w|pip install |\.venv/bin/pytest ")
"""Commands that are not run here: they set up, or run this very test."""

_FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,})(?P<kind>[^\n`]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    kind: str
    body: str
    line: int


def blocks(text: str) -> list[Block]:
    found = [Block(m["kind"].strip(), m["body"], text.count("\n", 0, m.start()) + 1) for m in _FENCE.finditer(text)]
    fences = len(re.findall(r"^\s*(?:`{3}|~{3})", text, re.MULTILINE))
    assert fences == 2 * len(found), "a fence that is indented, nested or never closed"
    return found


def commands(block: Block) -> list[list[str]]:
    lines = [line.split(" # ")[0].strip().removeprefix("$ ") for line in block.body.replace("\\\n", " ").splitlines()]
    found = []
    for line in filter(None, lines):
        if SET_UP.match(line):
            continue
        words = shlex.split(line)
        assert words[0] == "residue", f"neither a residue command nor set-up: {line}"
        found.append(words[1:])
    return found


def make_pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs" / "make_pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs(page: Path, demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    ran: Counter[str] = Counter()
    todo = blocks(page.read_text("utf-8"))
    for block in todo:
        where = f"{page.name}:{block.line}"
        if block.kind == "python":
            # A failing line is shown with its place in the page.
            code = compile("\n" * block.line + block.body, str(page), "exec")
            exec(code, namespace)
        elif block.kind in ("bash", "console"):
            for words in commands(block):
                code = main(words)
                assert code == 0, f"{where}: residue {shlex.join(words)} ended with {code}: {capsys.readouterr().err}"
        elif block.kind == "jsonl":
            from symbolic_residue.prompts import read_prompts

            Path("page.jsonl").write_text(block.body, "utf-8")
            found = read_prompts("page.jsonl")
            assert found.items and not found.bad, where
        else:
            assert block.kind == "text", f"{where}: a block of kind {block.kind!r}"
        ran[block.kind] += 1
    assert ran.total() == len(todo)
    assert ran["python"] >= 2 or page.name in TABLES_ONLY


def test_contributing_holds_set_up_only() -> None:
    found = blocks((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert [block.kind for block in found] == ["bash"] * len(found) != []
    assert [commands(block) for block in found] == [[]] * len(found)


def test_commands_that_are_no_set_up_are_not_passed_over() -> None:
    with pytest.raises(AssertionError, match="neither"):
        commands(Block("bash", "curl example.org\n", 1))
    with pytest.raises(AssertionError, match="fence"):
        blocks("```python\nprint(1)\n")


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_links_and_make_targets_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE))
    assert named <= targets
    assert page != ROOT / "README.md" or {"demo", "test", "bench", "screenshot"} <= named
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}, link


def test_what_make_demo_runs_is_what_the_page_shows() -> None:
    pictures = make_pictures()
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert pictures.EXAMPLES.removeprefix("residue ") in makefile
    marked = [m["command"] for m in pictures.MARK.finditer((ROOT / "README.md").read_text("utf-8"))]
    assert marked == [pictures.EXAMPLES, pictures.SUITE]
    for mark in pictures.MARK.finditer((ROOT / "README.md").read_text("utf-8")):
        shown = blocks(mark[0])
        assert [block.kind for block in shown] == ["text"]
        assert "report: " in shown[0].body


def test_shells_of_the_readme_are_those_of_the_package() -> None:
    from symbolic_residue.shells import config_class, shell_class, SHELLS

    page = (ROOT / "README.md").read_text("utf-8")
    for name, entry in SHELLS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| [`{name}`](")]
        asks, operations, failures = (cell.strip() for cell in row.split("|")[2:5])
        assert asks == entry.question
        assert operations == " ".join(shell_class(name).operations)
        assert failures.split(", ") == list(type(config_class(name)().criteria).thresholds)  # type: ignore[attr-defined]


def test_tables_of_the_page_are_those_of_the_store() -> None:
    page = (ROOT / "docs" / "run-folder.md").read_text("utf-8")
    assert f"<!-- tables -->\n{make_pictures().schema_table()}\n<!-- /tables -->" in page


def test_families_and_exit_codes_of_the_readme() -> None:
    from symbolic_residue.models import FAMILIES

    text = (ROOT / "README.md").read_text("utf-8")
    assert f"{len(FAMILIES)} architectures are in the family table" in text
    page = (ROOT / "docs" / "families.md").read_text("utf-8")
    assert "✗" not in page
    for family in FAMILIES:
        assert f"`{family}`" in page, f"docs/families.md lacks {family}"


def test_defaults_of_the_page_are_those_of_the_configuration() -> None:
    from symbolic_residue.shells import ValueCollapseConfig

    page = (ROOT / "docs" / "value-collapse.md").read_text("utf-8")
    said = {name: float(number) for name, number in re.findall(r"`(\w+)` \(([\d.]+)\)", page)}
    assert len(said) >= 9
    config = ValueCollapseConfig()
    assert said == {name: getattr(config, name) for name in said}


def test_refreshing_fills_only_between_the_marks() -> None:
    pictures = make_pictures()
    page = "a\n<!-- output: residue x -->\nold\n<!-- /output -->\nb\n"
    filled = pictures.refresh(page, {"residue x": "new \\1"})
    assert filled == "a\n<!-- output: residue x -->\n```text\nnew \\1\n```\n<!-- /output -->\nb\n"
    assert pictures.refresh(filled, {"residue x": "new \\1"}) == filled


def test_pictures_are_small_and_all_shown() -> None:
    pictures = sorted((ROOT / "docs" / "pictures").glob("*"))
    shown = "".join(page.read_text("utf-8") for page in PAGES)
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < 400_000
        assert picture.read_bytes()[:4] == b"\x89PNG"
        assert f"pictures/{picture.name})" in shown


def test_no_page_names_a_place_outside_the_project() -> None:
    here = {os.sep + name for name in ("work", "tmp", "root", "home")}
    for page in ALL_PAGES:
        assert not [place for place in here if re.search(re.escape(place) + r"\b", page.read_text("utf-8"))], page.name
