"""``residue models``: what the commands print, and that errors pass through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from symbolic_residue.cli._models import models_app
from symbolic_residue.errors import OfflineError, UnknownModelError

run = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_empty_list_says_what_to_do(cache: Path) -> None:
    result = run.invoke(models_app, ["list"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "residue models fetch demo" in result.stdout
    assert json.loads(run.invoke(models_app, ["list", "--json"], catch_exceptions=False).stdout) == []


def test_fetch_list_and_show(publish: Callable[..., str], gguf_bytes: bytes, cache: Path) -> None:
    ref = publish({"tiny.gguf": gguf_bytes})
    fetched = json.loads(run.invoke(models_app, ["fetch", ref, "--json"], catch_exceptions=False).stdout)
    assert fetched["ref"] == ref
    assert Path(fetched["folder"]).parent == cache / "models"
    assert fetched["folder"] in run.invoke(models_app, ["fetch", ref], catch_exceptions=False).stdout.replace("\n", "")

    (listed,) = json.loads(run.invoke(models_app, ["list", "--json"], catch_exceptions=False).stdout)
    assert (listed["ref"], listed["model_type"], listed["licence"]) == (ref, "llama", "Apache-2.0")
    table = run.invoke(models_app, ["list"], catch_exceptions=False).stdout
    assert "residue-tiny-model" in table
    assert "Apache-2.0" in table

    shown = json.loads(run.invoke(models_app, ["show", ref, "--json"], catch_exceptions=False).stdout)
    assert shown["parts"]["layers"] == 2
    assert shown["parts"]["key-value heads"] == 2
    assert shown["provenance"]["weights_sha256"] == listed["weights_sha256"]
    text = run.invoke(models_app, ["show", ref], catch_exceptions=False).stdout
    assert "Q4_1 dequantised to float32" in text
    assert shown["provenance"]["weights_sha256"] in text


def test_errors_pass_through(cache: Path) -> None:
    with pytest.raises(UnknownModelError):
        run.invoke(models_app, ["fetch", "pypi:thing==1"], catch_exceptions=False)
    with pytest.raises(OfflineError):  # show never fetches
        run.invoke(models_app, ["show", "demo"], catch_exceptions=False)
