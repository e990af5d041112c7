"""Tensors and settings from files, nothing of which is passed over: what is left when a reader is done is refused.

No pickle: safetensors (mapped, not copied), npz with ``allow_pickle=False``, JSON, and YAML through the safe loader.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from symbolic_residue.errors import DamagedFileError, DictionaryError, WriteError

__all__ = ["Settings", "Tensors", "read_json", "read_tensors", "read_yaml", "write_json", "write_tensors"]


class Tensors:
    """Named tensors of one file (or of several that belong together)."""

    def __init__(self, named: Mapping[str, Tensor], path: Path) -> None:
        self._left, self.path = dict(named), path

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str) -> Tensor:
        """A tensor that must be there.

        Raises:
            DictionaryError: it is not.
        """
        if name not in self._left:
            raise DictionaryError(f"{self.path} lacks {name!r}.", why=f"It holds {', '.join(sorted(self._left)) or 'nothing'}.")
        return self._left.pop(name)

    def maybe(self, name: str) -> Tensor | None:
        """A tensor that may be there."""
        return self._left.pop(name, None)

    def finish(self) -> None:
        """Nothing is left.

        Raises:
            DictionaryError: tensors that no rule of the format names.
        """
        if self._left:
            raise DictionaryError(
                f"{self.path} holds {', '.join(map(repr, sorted(self._left)))}, which this format does not have.",
                why="Leaving it out would make another dictionary of it.",
            )


class Settings:
    """A config's entries: those that say what is computed are taken one by one, the others must be known to change nothing."""

    def __init__(self, entries: Mapping[str, Any], path: Path) -> None:
        self._left, self.path = dict(entries), path

    def take(self, name: str, default: Any = None) -> Any:
        """An entry, or the default."""
        return self._left.pop(name, default)

    def need(self, name: str, kind: type) -> Any:
        """An entry of a type.

        Raises:
            DictionaryError: it is missing, or something else.
        """
        value = self._left.pop(name, None)
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise DictionaryError(f"{self.path} says {name} = {value!r}; it must be a {kind.__name__}.")
        return value

    def must(self, name: str, *allowed: Any) -> None:
        """An entry that may only have these values (or be missing).

        Raises:
            DictionaryError: another value.
        """
        value = self._left.pop(name, allowed[0])
        if not any(value == one and type(value) is type(one) for one in allowed):
            raise DictionaryError(
                f"{self.path} says {name} = {value!r}, which this version does not compute.",
                todo=f"It reads {name} of {' or '.join(map(repr, allowed))}.",
            )

    def finish(self, harmless: Iterable[str] = ()) -> None:
        """Nothing is left but what is known to change nothing.

        Raises:
            DictionaryError: entries that are not known.
        """
        unknown = sorted(set(map(str, self._left)) - set(harmless))
        if unknown:
            raise DictionaryError(
                f"{self.path} has entries that are not known: {', '.join(unknown)}.",
                why="They may change what the features compute.",
                todo="Where you know that they do not, take them out of a copy of the file.",
            )


def read_tensors(path: Path) -> Tensors:
    """Of a safetensors or npz file.

    Raises:
        DictionaryError: no such file.
        DamagedFileError: truncated, or something else.
    """
    if not path.is_file():
        raise DictionaryError(f"There is no file {path}.")
    if path.suffix == ".npz":
        import numpy as np

        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return Tensors({name: torch.from_numpy(arrays[name]) for name in arrays.files}, path)
        except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise DamagedFileError(f"{path} cannot be read as npz.", why=str(error), todo="Get the file again.") from error
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return Tensors(load_file(path), path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read as safetensors.", why=str(error), todo="Get the file again.") from error


def read_json(path: Path) -> Settings:
    """Of a JSON object.

    Raises:
        DamagedFileError: unreadable, or no object.
    """
    try:
        return _settings(json.loads(path.read_text("utf-8")), path)
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} cannot be read as JSON.", why=str(error)) from error


def read_yaml(path: Path) -> Settings:
    """Of a YAML mapping.

    Raises:
        DamagedFileError: unreadable, or no mapping.
    """
    import yaml

    try:
        return _settings(yaml.safe_load(path.read_text("utf-8")), path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DamagedFileError(f"{path} cannot be read as YAML.", why=str(error)) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """A safetensors file, whole or not at all: written beside its place and moved into it.

    Raises:
        WriteError: the disk is full, or another failure of the file system; what was there before is still there.
    """
    from safetensors.torch import save_file

    _whole(path, lambda part: save_file({name: one.contiguous() for name, one in tensors.items()}, part, dict(about or {}) or None))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One JSON object, whole or not at all.

    Raises:
        WriteError: as :func:`write_tensors`.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    _whole(path, lambda part: part.write_text(text, "utf-8"))


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    from safetensors import SafetensorError

    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink()
        raise WriteError(f"{path} cannot be written.", why=str(error), todo="Free some space, or choose another folder.") from error


def _settings(entries: Any, path: Path) -> Settings:
    if not isinstance(entries, dict):
        raise DamagedFileError(f"{path} holds {type(entries).__name__}, no table of entries.")
    return Settings(entries, path)
