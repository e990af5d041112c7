"""The run folder: one folder a run, one shard an item, a manifest that says how it went.

Layout::

    run/manifest.json                    what, how, with which versions, how far
    run/tables/NAME/00001-ITEM.parquet   one file for each table and item; read all with polars.read_parquet("run/tables/NAME")
    run/tensors/00001-ITEM.safetensors   arrays of an item, where it has any
    run/report.html  run/figures/        written later by others

How it stays true:

1. :meth:`RunFolder.create` makes the folder (an existing one is refused), takes its lock, and writes the manifest: "running".
2. :meth:`RunFolder.write_item` checks all tables of an item, then writes them, the ``items`` table last: the item counts
   as finished from that moment on. Then the manifest's counts are brought up to date.
3. Leaving the ``with`` block sets "complete"; Ctrl-C sets "interrupted", any other exception "failed", and both go on. A killed
   process leaves "running": what was finished is whole, and files of the item in work are ignored by readers.
4. ``resume=True`` opens such a folder again, if kind, config and provenance are the same; files of unfinished items are
   removed, finished ones are listed by :meth:`RunFolder.done_items`, failed ones may be written anew. :meth:`RunFolder.reopen`
   opens any run again, without the items that its caller names.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import polars as pl

from symbolic_residue.errors import ConfigError, RunExistsError, StoreError, WriteError
from symbolic_residue.store._manifest import (
    differences,
    machine,
    Manifest,
    now,
    plain,
    read_manifest,
    Status,
    TableInfo,
    versions,
)
from symbolic_residue.store._schema import conform, known, TABLES
from symbolic_residue.store._shards import (
    check_item_id,
    damaged,
    finished_items,
    Item,
    portions,
    read_shards,
    shard_files,
    shard_index,
    shard_stem,
    shards_by_index,
)
from symbolic_residue.store._write import LOCK, make_folder, parquet_bytes, PARTIAL, remove, take_lock, tensor_bytes, write_bytes

__all__ = ["RunFolder"]

_KEPT = ("manifest.json", "tables", "tensors", PARTIAL, LOCK)
"""Names that the store keeps for itself."""


class RunFolder:
    """A run folder being written (:meth:`create`) or read (:meth:`open`).

    Attributes:
        path: the folder.
        manifest: what ``manifest.json`` holds.
    """

    def __init__(self, path: Path, manifest: Manifest, items: dict[str, Item], lock: filelock.BaseFileLock | None) -> None:
        self.path, self.manifest = path, manifest
        self._items, self._lock = items, lock

    # ------------------------------------------------------------------ opening

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        kind: str,
        command: str | Sequence[str],
        provenance: Mapping[str, Any],
        config: Mapping[str, Any],
        planned: int | None = None,
        resume: bool = False,
    ) -> RunFolder:
        """Start a run in a new folder, or go on with an unfinished one. Use it as a context manager.

        Args:
            path: the folder; it must not exist, unless ``resume``.
            kind: what is run: "diagnose", "shell" …
            command: the command line, as text or as its words.
            provenance: what is measured; must be the same to resume.
            config: how it is measured; must be the same to resume.
            planned: number of items, where it is known; a run that ends with fewer is not called complete.
            resume: go on where the folder holds an unfinished run of the same kind, config and provenance.

        Raises:
            RunExistsError: the folder is there, and ``resume`` was not asked, is not possible, or is under way elsewhere.
            RunDamagedError: ``resume`` of a folder whose manifest or shards cannot be read.
            WriteError: the folder cannot be written.
            ConfigError: config or provenance that JSON cannot hold.
        """
        path = Path(path)
        manifest = Manifest(
            kind=kind,
            command=plain(command if isinstance(command, str) else shlex.join(command), "command"),
            created=now(),
            provenance=plain(provenance, "provenance"),
            config=plain(config, "config"),
            versions=versions(),
            machine=machine(),
        )
        manifest.items.planned = planned
        try:
            make_folder(path)
        except FileExistsError as error:
            if not resume:
                raise RunExistsError(
                    f"{path} is already there.",
                    why="A run never overwrites another.",
                    todo="Choose another folder, or resume the run.",
                ) from error
            if not path.is_dir():
                raise RunExistsError(f"{path} is a file.", todo="Choose another folder.") from error
        lock = take_lock(path)
        try:
            if (path / "manifest.json").exists():
                run = cls._resumed(path, manifest, lock)
            else:
                others = sorted(entry.name for entry in path.iterdir() if entry.name not in (PARTIAL, LOCK))
                if others:
                    raise RunExistsError(
                        f"{path} holds no run.", why=f"It holds {others[0]!r} and no manifest.json.", todo="Choose another folder."
                    )
                run = cls(path, manifest, {}, lock)
            run._write_manifest()
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def _resumed(cls, path: Path, fresh: Manifest, lock: filelock.BaseFileLock) -> RunFolder:
        old = read_manifest(path)
        differing = [
            difference
            for field in ("kind", "config", "provenance")
            for difference in differences(getattr(old, field), getattr(fresh, field), field)
        ]
        if differing:
            raise RunExistsError(
                f"{path} holds another run.",
                why="; ".join(differing) + ".",
                todo="Choose another folder, or use the same options.",
            )
        items = finished_items(path)
        finished = {item.index for item in items.values()}
        for shard in shard_files(path):
            if shard_index(shard) not in finished:
                remove(shard)
        for left_over in (path / PARTIAL).glob("*"):
            remove(left_over)
        old.status, old.finished, old.note = "running", None, ""
        old.versions, old.machine = fresh.versions, fresh.machine
        old.items.planned = fresh.items.planned if fresh.items.planned is not None else old.items.planned
        run = cls(path, old, items, lock)
        run._recount()
        return run

    @classmethod
    def reopen(
        cls,
        path: str | os.PathLike[str],
        *,
        config: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        drop: Callable[[str], bool] | None = None,
    ) -> RunFolder:
        """Open a run for writing again, whatever its status; the caller has judged what the changes mean.

        Args:
            path: the folder.
            config, provenance: replace the run's own.
            drop: whether the item of this id is removed, to be measured anew.

        Raises:
            StoreError, RunDamagedError: as :meth:`open`.
            RunExistsError: the run is under way elsewhere.
            WriteError: the folder cannot be written.
            ConfigError: config or provenance that JSON cannot hold.
        """
        path = Path(path)
        read_manifest(path)
        lock = take_lock(path)
        try:
            old = read_manifest(path)
            run = cls._resumed(path, old.model_copy(update={"versions": versions(), "machine": machine()}, deep=True), lock)
            for item_id in [item for item in run._items if drop is not None and drop(item)]:
                run._forget(item_id)
            run._recount()
            # The items go first: a run that is killed here has its old configuration, and fewer items.
            run.manifest.config = run.manifest.config if config is None else plain(config, "config")
            run.manifest.provenance = run.manifest.provenance if provenance is None else plain(provenance, "provenance")
            run._write_manifest()
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open a run for reading, whatever its status; what its finished items hold is there.

        Raises:
            StoreError: there is no such folder.
            RunDamagedError: no manifest, one that cannot be read or is of a newer schema, or a damaged ``items`` table.
        """
        path = Path(path)
        return cls(path, read_manifest(path), finished_items(path), None)

    # ------------------------------------------------------------------ writing

    def write_item(self, item_id: str, tables: Mapping[str, pl.DataFrame], tensors: Mapping[str, Any] | None = None) -> None:
        """Keep all that was measured of one item: after this returns it survives a crash; if it raises, nothing of it is kept.

        Args:
            item_id: any text; each only once, except to write a failed item anew.
            tables: by name, as :data:`TABLES` declares them; ``items`` with its one row must be among them. The column ``item``
                may be left out.
            tensors: torch tensors or NumPy arrays by name.

        Raises:
            StoreError: an unknown table, columns or values against the schema, an item already done, or a run not open for writing.
            ConfigError: an id that is empty or no Unicode.
            WriteError: the file system refuses.
        """
        self._check_writable()
        check_item_id(item_id)
        before = self._items.get(item_id)
        if before and before.status == "done":
            raise StoreError(f"Item {item_id!r} is already in {self.path}.", todo="Give each item an id of its own.")
        frames = {name: conform(name, frame, item_id) for name, frame in tables.items()}
        if "items" not in frames or len(frames["items"]) != 1:
            raise StoreError(f"Item {item_id!r} has no row in table 'items'.", todo="Give that table with exactly one row.")
        status = frames["items"]["status"][0]
        data = {f"tables/{name}": parquet_bytes(frame) for name, frame in frames.items()}
        if tensors:
            data["tensors"] = tensor_bytes(tensors, item_id)

        if before:
            self._forget(item_id)
        index = before.index if before else 1 + next((item.index for item in reversed(self._items.values())), 0)
        rows = dict(self.manifest.tables)
        for name, frame in frames.items():
            old = rows[name].rows if name in rows else 0
            rows[name] = TableInfo(rows=old + len(frame), columns=list(TABLES[name]))
        stem = shard_stem(index, item_id)
        try:
            for folder in sorted(data, key=lambda name: name == "tables/items"):
                ending = "safetensors" if folder == "tensors" else "parquet"
                write_bytes(self.path, f"{folder}/{stem}.{ending}", data[folder])
            self._items[item_id], self.manifest.tables = Item(index, status), rows
            if before:  # back to its place: items are kept in the order of their numbers
                self._items = dict(sorted(self._items.items(), key=lambda entry: entry[1].index))
        except BaseException:
            self._items.pop(item_id, None)
            with suppress(WriteError):
                self._remove_shards(index)
            raise
        self._write_manifest()

    def finish(self, *, note: str = "") -> None:
        """End the run: "complete", or "interrupted" where fewer items were written than planned. Nothing can be written after.

        Raises:
            StoreError: the run is not open for writing.
            WriteError: the file system refuses.
        """
        self._check_writable()
        counts = self.manifest.items
        written = counts.done + counts.failed
        if counts.planned is not None and written < counts.planned:
            self._end("interrupted", note or f"Ended after {written} of {counts.planned} items.")
        else:
            self._end("complete", note)

    def write_file(self, name: str, data: bytes | str) -> Path:
        """Put a file beside the tables (``report.html``, ``figures/a.svg``), whole or not at all, and return its path.

        Raises:
            ConfigError: a name outside the folder, or one that the store keeps for itself.
            WriteError: the file system refuses.
        """
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or parts[0] in _KEPT:
            raise ConfigError(
                f"{name!r} is no name for a file in a run folder.", todo="Use a name such as 'report.html' or 'figures/a.svg'."
            )
        write_bytes(self.path, name, data.encode("utf-8") if isinstance(data, str) else data)
        return self.path / name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is None:
            return
        if error is None:
            self.finish()
            return
        status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        note = "Interrupted by the user." if status == "interrupted" else f"{type(error).__name__}: {error}"
        try:
            self._end(status, plain(note, "note"))
        except WriteError as second:
            # The first error is the one to see; that its record could not be written is added to it.
            error.add_note(str(second))

    # ------------------------------------------------------------------ reading

    def done_items(self) -> list[str]:
        """Ids of the items that were measured, in the order of writing (failed ones are not among them)."""
        return [item_id for item_id, item in self._items.items() if item.status == "done"]

    def failed_items(self) -> list[str]:
        """Ids of the items kept with an error, in the order of writing."""
        return [item_id for item_id, item in self._items.items() if item.status == "failed"]

    def table(self, name: str, *, items: Collection[str] | None = None, where: pl.Expr | None = None) -> pl.DataFrame:
        """The table ``name`` over finished items, in the order of writing; without rows where nothing was written.

        Args:
            name: of the table.
            items: only these; default: all.
            where: keep only rows for which this holds. Items are then read a few at a time, so that little is in memory beside the rows that are kept.

        Raises:
            StoreError: there is no such table.
            RunDamagedError: a shard cannot be read or has other columns.
        """
        known(name)
        shards = self._shards(name, items)
        if where is None or not shards:
            return read_shards(shards, name)
        return pl.concat([read_shards(some, name).filter(where) for some in portions(shards)])

    def tensors(self, name: str) -> dict[str, Any]:
        """The torch tensor ``name`` of every finished item that has it, by item id.

        Raises:
            RunDamagedError: a file cannot be read.
        """
        shards = shards_by_index(self.path / "tensors")
        kept = {item_id: shards[item.index] for item_id, item in self._items.items() if item.index in shards}
        found = {item_id: _load_tensors(shard, name) for item_id, shard in kept.items()}
        return {item_id: tensors[name] for item_id, tensors in found.items() if name in tensors}

    def item_tensors(self, item_id: str) -> dict[str, Any]:
        """All torch tensors of one item, by name; empty where it has none.

        Raises:
            ConfigError: there is no such item.
            RunDamagedError: the file cannot be read.
        """
        if item_id not in self._items:
            raise ConfigError(f"There is no item {item_id!r} in {self.path}.")
        shard = shards_by_index(self.path / "tensors").get(self._items[item_id].index)
        return _load_tensors(shard) if shard else {}

    # ------------------------------------------------------------------ inside

    def _shards(self, table: str, items: Collection[str] | None = None) -> list[Path]:
        """Shards of finished items (of these only), in the order of writing."""
        found = shards_by_index(self.path / "tables" / table)
        wanted = None if items is None else {*items}
        return [
            found[item.index] for name, item in self._items.items() if item.index in found and (wanted is None or name in wanted)
        ]

    def _forget(self, item_id: str) -> None:
        """Take a failed item out of the counts and off the disk."""
        index = self._items[item_id].index
        for name, info in self.manifest.tables.items():
            shard = shards_by_index(self.path / "tables" / name).get(index)
            if shard is not None:
                info.rows -= len(read_shards([shard], name))
        del self._items[item_id]
        self._remove_shards(index)

    def _remove_shards(self, index: int) -> None:
        """Remove all files of an item, its ``items`` shard first: without that one the others count for nothing."""
        shards = [shard for shard in shard_files(self.path) if shard_index(shard) == index]
        for shard in sorted(shards, key=lambda path: path.parent.name != "items"):
            remove(shard)

    def _recount(self) -> None:
        """Rows of every table, from what is on disk."""
        self.manifest.tables = {}
        for name in TABLES:
            if shards := self._shards(name):
                rows = sum(len(read_shards(some, name)) for some in portions(shards))
                self.manifest.tables[name] = TableInfo(rows=rows, columns=list(TABLES[name]))

    def _check_writable(self) -> None:
        if self._lock is None:
            raise StoreError(f"The run {self.path} is not open for writing.", todo="Start it with RunFolder.create.")

    def _write_manifest(self) -> None:
        counts = self.manifest.items
        counts.done, counts.failed = len(self.done_items()), len(self.failed_items())
        write_bytes(self.path, "manifest.json", (self.manifest.model_dump_json(indent=2) + "\n").encode("utf-8"))

    def _end(self, status: Status, note: str) -> None:
        self.manifest.status, self.manifest.note, self.manifest.finished = status, note, now()
        try:
            self._write_manifest()
            with suppress(OSError):
                (self.path / PARTIAL).rmdir()
        finally:
            if self._lock is not None:
                self._lock.release()
            self._lock = None


def _load_tensors(path: Path, only: str | None = None) -> dict[str, Any]:
    from safetensors import safe_open, SafetensorError

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if only in (None, name)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error
