"""Rows of texts in files, written batch by batch, so that a pass that was stopped goes on where it was.

1. The folder holds ``rows.json`` (whose rows these are: model, texts, settings), one ``.npy`` a point, and ``done.jsonl``: a line a batch, with its texts and
   the checksum of their rows.
2. ``rows.json`` comes first: flushed to the disk (fsync), then moved into place, then the folder is flushed. Rows can never be taken for those of others.
3. The space of all rows is reserved before anything runs, and rows are written to their place in the file, never through a map: a full disk is then an
   error, where a map would end the process.
4. A batch's line is appended after its rows; neither is flushed. What a process has written outlives it, however it is killed. A power cut can lose it: the
   checksum tells, and those texts are run again. When all texts are done, rows and lines are flushed once, and a finished folder outlives a power cut too.
5. Every checksum is verified whenever the folder is opened (one reading of the rows, a few kilobytes at a time).
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from symbolic_residue.errors import RunDamagedError, RunExistsError, WriteError

__all__ = ["RowFiles", "read_rows"]

HEAD, DONE, LOCK = "rows.json", "done.jsonl", ".lock"
FORMAT = 1

_WHY = {
    errno.ENOSPC: ("The disk is full.", "Free some space and go on: what was written before is kept."),
    errno.EDQUOT: ("The disk quota is used up.", "Free some space and go on: what was written before is kept."),
    errno.EFBIG: ("The file would be larger than allowed.", "Choose another file system, or fewer layers."),
    errno.EACCES: ("There is no permission to write there.", "Choose another folder."),
    errno.EROFS: ("The file system is read-only.", "Choose another folder."),
    errno.ENOTDIR: ("A part of the path is a file, not a folder.", "Choose another folder."),
    errno.EEXIST: ("A file of that name is there, not a folder.", "Choose another folder."),
}


@contextmanager
def _typed(path: Path) -> Iterator[None]:
    """Failures of the file system as ``WriteError``."""
    try:
        yield
    except OSError as error:
        why, todo = _WHY.get(error.errno or 0, (f"{error.strerror or error}.", "Choose another folder."))
        raise WriteError(f"{path} cannot be written.", why=why, todo=todo) from error


def read_rows(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The record and the rows of a finished folder, by name and mapped for reading; nothing is written.

    Raises:
        RunDamagedError: there is none, texts are missing, or rows are not those that were written.
    """
    head = _read_head(folder)
    todo = "Collect again: what is whole is kept."
    if head is None:
        raise RunDamagedError(f"There are no collected rows in {folder}.", todo="Collect first.")
    try:
        n, names = int(head["settings"]["number of texts"]), list(head["names"])
        rows = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        batches = list(_lines(folder / DONE))
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise RunDamagedError(f"The rows in {folder} cannot be read.", why=str(error), todo=todo) from error
    done = np.zeros(n, dtype=bool)
    if all(len(array) == n for array in rows.values()):
        for texts, crc in batches:
            if max(texts, default=0) < n and _checksum(rows.values(), texts) == crc:
                done[texts] = True
    if not done.all():
        raise RunDamagedError(f"{int(done.sum())} of {n} texts are whole in {folder}.", todo=todo)
    return head, rows


def _checksum(arrays: Iterable[NDArray[Any]], texts: Sequence[int]) -> int:
    crc = 0
    for array in arrays:
        for text in texts:
            crc = zlib.crc32(np.ascontiguousarray(array[text]).data.cast("B"), crc)
    return crc


def _read_head(folder: Path) -> dict[str, Any] | None:
    """``rows.json``, or None where there is none.

    Raises:
        RunDamagedError: it cannot be read, or is of another format.
    """
    try:
        head = json.loads((folder / HEAD).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise RunDamagedError(f"{folder / HEAD} cannot be read.", why=str(error), todo="Collect anew.") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT or not isinstance(head.get("settings"), dict):
        raise RunDamagedError(f"{folder / HEAD} is of another format than {FORMAT}.", todo="Collect anew.")
    return head


class RowFiles:
    """The files of one pass, open for writing; use it in ``with``.

    Args:
        folder: where; made where it is missing.
        settings: what rows must have in common to belong together; another folder's are refused.
        about: kept beside them, not compared.
        shapes: name → shape of one text's row.
        n: texts.
        dtype: of the rows.
        anew: throw away what is there.

    Attributes:
        done: ``[n]`` bool: texts whose rows are there, by their checksum.

    Raises:
        RunExistsError: the folder holds other rows, or another process writes there.
        RunDamagedError: ``rows.json`` cannot be read.
        WriteError: the file system refuses.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        n: int,
        dtype: np.dtype[Any],
        *,
        anew: bool = False,
    ) -> None:
        self.folder, self.shapes, self.n, self.dtype = folder, dict(shapes), n, np.dtype(dtype)
        self._files: dict[str, tuple[Any, int]] = {}
        self._log: Any = None
        with _typed(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(folder / LOCK)
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout as error:
                raise RunExistsError(f"{folder} is being written by another process.", todo="Wait for it.") from error
        try:
            self._begin({**settings}, {**about}, anew)
        except BaseException:
            self.close()
            raise

    def _begin(self, settings: dict[str, Any], about: dict[str, Any], anew: bool) -> None:
        folder = self.folder
        if anew:
            with _typed(folder):
                for path in (folder / HEAD, folder / DONE, *(self.path(name) for name in self.shapes)):
                    path.unlink(missing_ok=True)
        head = _read_head(folder)
        if head is None:
            if there := [name for name in self.shapes if self.path(name).exists()]:
                raise RunExistsError(
                    f"{self.path(there[0])} is there, and nothing says whose rows it holds.",
                    todo="Choose another folder, or begin anew.",
                )
            self._write_head({"format": FORMAT, "settings": settings, **about})
        else:
            differs = sorted(k for k in {*settings, *head["settings"]} if settings.get(k) != head["settings"].get(k))
            if differs:
                raise RunExistsError(
                    f"{folder} holds rows of other settings ({', '.join(differs)}).",
                    why="Rows of different texts, models or settings must not be mixed.",
                    todo="Choose another folder, or begin anew.",
                )
        with _typed(folder):
            for name, shape in self.shapes.items():
                self._files[name] = _open(self.path(name), (self.n, *shape), self.dtype)
            cut = (folder / DONE).exists() and (folder / DONE).read_bytes()[-1:] not in (b"", b"\n")
            self._log = (folder / DONE).open("a+b", buffering=0)
            if cut:  # a line that was cut off must not swallow the next one
                _write_all(self._log, memoryview(b"\n"))
        self.done = np.zeros(self.n, dtype=bool)
        for texts, crc in _lines(folder / DONE):
            if max(texts, default=0) < self.n and self._checksum(texts) == crc:
                self.done[texts] = True

    def path(self, name: str) -> Path:
        """The file of one point's rows."""
        return self.folder / f"{name}.npy"

    def write(self, texts: Sequence[int], rows: Mapping[str, NDArray[Any]]) -> None:
        """Rows of some texts, one array ``[text, …]`` a name, and the line that says so.

        Raises:
            WriteError: the disk is full, or another failure of the file system.
        """
        crc = 0
        with _typed(self.folder):
            for name in self.shapes:
                handle, start = self._files[name]
                block = np.ascontiguousarray(rows[name], dtype=self.dtype).reshape(len(texts), -1)
                for text, row in zip(texts, block, strict=True):
                    handle.seek(start + text * row.nbytes)
                    _write_all(handle, row.data.cast("B"))
                crc = zlib.crc32(block.data.cast("B"), crc)
            line = json.dumps({"texts": [int(t) for t in texts], "crc32": crc}) + "\n"
            _write_all(self._log, memoryview(line.encode()))
        self.done[list(texts)] = True

    def finish(self) -> None:
        """Flush everything to the disk: the folder is complete.

        Raises:
            WriteError: the file system refuses.
        """
        with _typed(self.folder):
            for handle, _ in self._files.values():
                os.fsync(handle.fileno())
            os.fsync(self._log.fileno())
            _flush_folder(self.folder)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The rows by name, ``[text, …]``, mapped from their files for reading."""
        return {name: np.load(self.path(name), mmap_mode="r") for name in self.shapes}

    def close(self) -> None:
        """Close the files and let others write."""
        for handle, _ in self._files.values():
            handle.close()
        if self._log is not None:
            self._log.close()
        self._lock.release()

    def __enter__(self) -> RowFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checksum(self, texts: Sequence[int]) -> int:
        crc = 0
        for name, shape in self.shapes.items():
            handle, start = self._files[name]
            size = self.dtype.itemsize * int(np.prod(shape))
            for text in texts:
                handle.seek(start + text * size)
                crc = zlib.crc32(handle.read(size), crc)
        return crc

    def _write_head(self, head: dict[str, Any]) -> None:
        part = self.folder / f"{HEAD}.part"
        with _typed(self.folder / HEAD):
            with part.open("w", encoding="utf-8") as handle:
                json.dump(head, handle, indent=1)
                handle.flush()
                os.fsync(handle.fileno())
            part.replace(self.folder / HEAD)
            _flush_folder(self.folder)


def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, int]:
    """The file, open for reading and writing, of full size, and where its rows begin; made where it is missing or of another shape."""
    size = dtype.itemsize * int(np.prod(shape))
    with suppress(OSError, ValueError, EOFError):
        found = np.load(path, mmap_mode="r")
        if found.shape == shape and found.dtype == dtype and path.stat().st_size == found.offset + size:
            return path.open("r+b", buffering=0), int(found.offset)
    handle = path.open("w+b", buffering=0)
    np.lib.format.write_array_header_1_0(
        handle, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    start = handle.tell()
    try:
        os.posix_fallocate(handle.fileno(), start, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            handle.close()
            path.unlink(missing_ok=True)
            raise
        handle.truncate(start + size)  # no reservation on this system: a full disk is then met while writing
    return handle, start


def _lines(path: Path) -> Iterator[tuple[list[int], int]]:
    """The batches of ``done.jsonl``; a line that was cut off is none."""
    for line in path.read_bytes().splitlines():
        with suppress(ValueError, KeyError, TypeError):
            found = json.loads(line)
            yield [int(t) for t in found["texts"]], int(found["crc32"])


def _write_all(handle: Any, data: memoryview) -> None:
    while data:
        data = data[handle.write(data) :]


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
