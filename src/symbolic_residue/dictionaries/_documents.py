"""Documents to train on and to measure with: where they come from, and which are held out.

1. A folder of ``.txt`` files (anywhere below), a document each; one ``.txt`` file; or JSON lines with ``text`` (and other entries, or not). ``python-docs`` is
   what every Python brings along: the topics of its own documentation (``pydoc_data.topics``), in the words of the version that runs.
2. Whether a document is held out depends on its text alone: on the first 8 hexadecimal digits of its SHA-256. Order, other documents and seeds change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from symbolic_residue.dictionaries._train import text_sha256
from symbolic_residue.errors import ConfigError, CorpusError

__all__ = ["hold_out", "read_documents"]


def read_documents(source: Path | str) -> list[str]:
    """The documents of a source, in its order.

    Args:
        source: a folder, a ``.txt`` or ``.jsonl`` file, or ``python-docs``.

    Raises:
        CorpusError: there is none, or a document that cannot be used; the file and the line are named.
    """
    if str(source) == "python-docs":
        import pydoc_data.topics

        return [text for _, text in sorted(pydoc_data.topics.topics.items())]
    path = Path(source)
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        if not files:
            raise CorpusError(
                f"There are no .txt files in {path}.", todo="Give a folder of them, a .txt or .jsonl file, or python-docs."
            )
        return [_document(file) for file in files]
    if not path.is_file():
        raise CorpusError(
            f"There are no texts at {path}.", todo="Give a folder of .txt files, a .txt or .jsonl file, or python-docs."
        )
    if path.suffix == ".txt":
        return [_document(path)]
    if path.suffix != ".jsonl":
        raise CorpusError(
            f"{path} is neither .txt nor .jsonl.", todo="Give a folder of .txt files, a .txt or .jsonl file, or python-docs."
        )
    found = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{path}, line {number}: no JSON.", why=str(error)) from error
        text = entry.get("text") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise CorpusError(f"{path}, line {number}: no text.", todo='Write one object a line, as in {"text": "…"}.')
        found.append(text)
    if not found:
        raise CorpusError(f"{path} is empty.")
    return found


def hold_out(texts: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """Documents to train on, and those that are held out: about ``share`` of them, by their text alone.

    Raises:
        ConfigError: a share below 0 or not below 1.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"A share of {share} cannot be held out.", todo="Give a number from 0 to below 1.")
    kept: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        kept[int(text_sha256(text)[:8], 16) < share * 2**32].append(text)
    return kept


def _document(path: Path) -> str:
    text = _text(path)
    if not text.strip():
        raise CorpusError(f"{path} is empty.", todo="Take it out.")
    return text


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise CorpusError(f"{path} cannot be read.", why=str(error.strerror)) from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8: byte {error.start}.", todo="Save it as UTF-8.") from error
