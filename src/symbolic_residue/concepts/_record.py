"""Results of a folder of directions, as JSON that says which directions they are of.

1. Every file holds ``format``, the model with its hashes, the corpus's hash and the sha256 of ``readout.safetensors`` beside its content.
2. It is written beside its place and moved into it, so that a reader finds all of it or the one before.
3. A file that was made of other directions than the folder's is refused; so is one that cannot be read.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from symbolic_residue.errors import RunDamagedError, WriteError

__all__ = ["read_json", "read_record", "write_json", "write_record"]

_FORMAT = 1
_OF = ("model", "weights_sha256", "adapter_sha256", "corpus_sha256", "tensors_sha256")


def write_record(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """Write a result of the directions in a folder; returns the file.

    Args:
        folder: with ``readout.json``.
        name: of the file in it, such as ``quality.json``; folders on the way are made.
        content: plain data without NaN; entries that say whose it is are added.

    Raises:
        RunDamagedError: the folder has no readable ``readout.json``.
        WriteError: it cannot be written.
    """
    return write_json(Path(folder) / name, {"format": _FORMAT, "of": _whose(Path(folder))} | content)


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """Read a result back; None where there is none.

    Raises:
        RunDamagedError: it cannot be read, or belongs to other directions than the folder's.
    """
    path = Path(folder) / name
    if not path.exists():
        return None
    content = read_json(path)
    if content.get("format") != _FORMAT:
        raise RunDamagedError(f"{path} has format {content.get('format')!r}; this version reads {_FORMAT}.")
    mine = _whose(Path(folder))
    if odd := [key for key in _OF if (content.get("of") or {}).get(key) != mine[key]]:
        raise RunDamagedError(
            f"{path} belongs to other directions than those in {folder}.",
            why=f"{', '.join(odd)} differ.",
            todo="Remove it and make it again, or use another folder.",
        )
    return content


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """One JSON object, whole or not at all.

    Raises:
        WriteError: it cannot be written.
    """
    data = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise WriteError(f"{path} cannot be written.", why=str(error)) from error
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RunDamagedError: it is missing, cut short, or no object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunDamagedError(f"{path} cannot be read.", why=str(error)) from error
    if not isinstance(content, dict):
        raise RunDamagedError(f"{path} holds no JSON object.")
    return content


def _whose(folder: Path) -> dict[str, Any]:
    record = read_json(folder / "readout.json")
    return {key: record.get(key) for key in _OF}
