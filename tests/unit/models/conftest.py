"""Fixtures of the models' tests: a cache of its own for every test, tiny folders, a tiny wheel in a folder instead of an index."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model cache and an empty hub cache."""
    import huggingface_hub.constants

    root = tmp_path / "cache"
    monkeypatch.setenv("RESIDUE_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return root


@pytest.fixture(scope="session")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The tiny GGUF file."""
    from wheels import write_gguf

    path = tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf"
    write_gguf(path)
    return path.read_bytes()


@pytest.fixture
def publish(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``publish(files, ...)`` makes a wheel where pip finds it (and finds nothing else) and gives its reference."""
    from wheels import build_wheel, NAME, VERSION

    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def make(files: dict[str, bytes], *, false_record: bool = False) -> str:
        _, sha256 = build_wheel(index, files, false_record=false_record)
        return f"pypi:{NAME}=={VERSION}#sha256={sha256}"

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tiny llama and its tokenizer, as ``save_pretrained`` writes them."""
    from tiny_models import build, tiny_tokenizer

    path = tmp_path / "model"
    build("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
