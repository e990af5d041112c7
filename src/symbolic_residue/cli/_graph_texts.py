"""Texts in which a graph's neurons are looked for: a file, or the packaged ones."""

from __future__ import annotations

import json
from pathlib import Path

from symbolic_residue.errors import PromptFileError

__all__ = ["read_texts"]


def read_texts(source: str) -> list[str]:
    """A text a line; of ``.jsonl`` (and ``.ndjson``) the field ``text`` or ``prompt`` of each line's object; ``packaged`` is the packaged corpus.

    Raises:
        PromptFileError: no such file, not UTF-8, empty, or a line that holds no text.
    """
    if source == "packaged":
        from symbolic_residue.concepts import packaged_corpus

        return [one.text for one in packaged_corpus().texts]
    path = Path(source)
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptFileError(
            f"The file of texts {path} cannot be read.", why=str(error), todo="Give a file of UTF-8 text, or packaged."
        ) from error
    numbered = [(i, line) for i, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise PromptFileError(f"The file of texts {path} is empty.", todo="Give a text a line.")
    return (
        [_text(line, i, path) for i, line in numbered] if path.suffix in (".jsonl", ".ndjson") else [line for _, line in numbered]
    )


def _text(line: str, number: int, path: Path) -> str:
    try:
        found = json.loads(line)
        text = next((found[name] for name in ("text", "prompt") if name in found), None)
    except (ValueError, TypeError):
        text = None
    if not isinstance(text, str) or not text.strip():
        raise PromptFileError(f"Line {number} of {path} holds no text.", todo='Write one object a line, as in {"text": "…"}.')
    return text
