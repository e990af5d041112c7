"""Shared fixtures. ``tests/unit`` goes on the path so that tests can say ``from tiny_models import build``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads only wait for each other
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent / "unit"))


@pytest.fixture(scope="session")
def demo() -> Any:
    """The demo model, loaded once a session; fetched first where the cache lacks it.

    Without it the tests that ask for it fail (they do not pass unseen), unless ``RESIDUE_NO_DEMO=1`` says to skip them.
    """
    from symbolic_residue.errors import ResidueError
    from symbolic_residue.models import load_model

    if os.environ.get("RESIDUE_NO_DEMO") == "1":
        pytest.skip("RESIDUE_NO_DEMO=1: the demo model is left out on request")
    try:
        return load_model("demo")
    except ResidueError as error:
        pytest.fail(f"The demo model cannot be had. Run `make demo` first, or set RESIDUE_NO_DEMO=1. {error}", pytrace=False)
