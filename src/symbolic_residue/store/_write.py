"""Writing files so that each is either whole or not there.

1. The bytes go to a new file in the run's ``.partial`` folder: the same file system, but outside the tables' folders, because a
   left-over there would keep ``polars.read_parquet(folder)`` from reading the rest.
2. The file is flushed to the disk (fsync), then moved into place in one step (``os.replace``), then the folder is flushed.
3. Every failure of the file system becomes a :class:`WriteError` that says what is the matter; the partial file is removed.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock
import polars as pl

from symbolic_residue.errors import RunExistsError, StoreError, WriteError

__all__ = ["LOCK", "PARTIAL", "make_folder", "parquet_bytes", "remove", "take_lock", "tensor_bytes", "write_bytes"]

PARTIAL = ".partial"
"""Folder of files being written, inside the run folder."""

LOCK = ".lock"
"""Lock file of the process that writes the run."""

_REASONS = {
    errno.ENOSPC: ("The disk is full.", "Free some space; what was written before is whole."),
    errno.EDQUOT: ("The disk quota is used up.", "Free some space; what was written before is whole."),
    errno.EACCES: ("There is no permission to write there.", "Choose another folder."),
    errno.EPERM: ("There is no permission to write there.", "Choose another folder."),
    errno.EROFS: ("The file system is read-only.", "Choose another folder."),
    errno.ENOTDIR: ("A part of the path is a file, not a folder.", "Choose another folder."),
    errno.ENAMETOOLONG: ("The path is too long.", "Choose a shorter one."),
}


def write_bytes(root: Path, name: str, data: bytes) -> None:
    """Put ``data`` into ``root / name``, whole or not at all; an older file of that name is replaced.

    Raises:
        WriteError: the file system refuses.
    """
    target = root / name
    partial = root / PARTIAL / f"{os.getpid()}-{target.name}"
    try:
        partial.parent.mkdir(exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(target)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        _flush_folder(target.parent)
    except OSError as error:
        raise _refused(target, error) from error


def make_folder(path: Path) -> None:
    """Make the new folder ``path`` and what is missing above it.

    Raises:
        FileExistsError: something of that name is there.
        WriteError: the file system refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(path, error) from error
    try:
        path.mkdir()
    except FileExistsError:
        raise
    except OSError as error:
        raise _refused(path, error) from error


def take_lock(path: Path) -> filelock.BaseFileLock:
    """The lock of the run folder ``path``, taken; the system releases it when the process ends, however it ends.

    Raises:
        RunExistsError: another process, or another run in this one, has it.
        WriteError: the file system refuses.
    """
    lock = filelock.FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise RunExistsError(
            f"{path} is being written by another process.", todo="Wait for it, or choose another folder."
        ) from error
    except OSError as error:
        raise _refused(path, error) from error
    return lock


def remove(path: Path) -> None:
    """Remove the file ``path``, if it is there.

    Raises:
        WriteError: the file system refuses.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error) from error


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """``frame`` as a Parquet file (zstd)."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def tensor_bytes(tensors: Mapping[str, Any], item_id: str) -> bytes:
    """Torch tensors or NumPy arrays as a safetensors file whose metadata names the item.

    Raises:
        StoreError: something that is neither, or of a type that safetensors does not hold.
    """
    import torch
    from safetensors.torch import save

    kept = {}
    for name, value in tensors.items():
        try:
            tensor = value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(value.copy())
        except (AttributeError, TypeError) as error:
            raise StoreError(
                f"Tensor {name!r} is a {type(value).__name__}.", todo="Give a torch tensor or a NumPy array of numbers."
            ) from error
        # A copy of its own: safetensors refuses views that share memory.
        kept[str(name)] = tensor.to("cpu", copy=True).contiguous()
    try:
        return save(kept, metadata={"item": item_id})
    except (ValueError, KeyError, RuntimeError) as error:
        raise StoreError(f"The tensors of item {item_id!r} cannot be kept.", why=str(error)) from error


def _flush_folder(folder: Path) -> None:
    # Not every system opens folders (Windows does not); the move itself is atomic there all the same.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _refused(path: Path, error: OSError) -> WriteError:
    why, todo = _REASONS.get(error.errno or 0, (f"{error.strerror or error}.", "Choose another folder."))
    return WriteError(f"{path} cannot be written.", why=why, todo=todo)
