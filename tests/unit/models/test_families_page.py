"""The committed page of families says what a fresh run of its checks says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from family_checks import CHECKS, status
from tiny_models import ALL

PAGE = (Path(__file__).parents[3] / "docs" / "families.md").read_text(encoding="utf-8")
NOTES = dict(re.findall(r"^(\d+)\. (.*)$", PAGE, re.MULTILINE))
ROWS = {cells[1].strip(): cells for line in PAGE.splitlines() if len(cells := line.split("|")) == len(CHECKS) + 5}


def committed(name: str, check: str) -> str:
    """The page's cell, with its note in full."""
    cell = ROWS[name][4 + list(CHECKS).index(check)].strip()
    return NOTES[cell.strip("[]")] if cell.startswith("[") else cell


def test_every_tiny_model_has_its_row() -> None:
    assert set(ROWS) - {"model", "---"} == set(ALL)
    assert set(NOTES) == {str(i + 1) for i in range(len(NOTES))}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", ALL)
def test_the_page_says_what_the_check_says(name: str, check: str) -> None:
    """Regenerate with docs/make_families.py when this fails for a good reason."""
    assert status(name, check).text == committed(name, check)
