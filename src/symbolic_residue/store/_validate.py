"""Checks of a run folder, file by file; what is wrong is listed, not raised.

1. The manifest: there, readable, of this schema.
2. Every folder under ``tables`` is a declared table; every shard is readable and has its columns, types and allowed values.
3. Every shard belongs to a finished item (one row of ``items``), and its rows name that item. Files of an unfinished item
   are wrong in a run that ended, and expected in one that was killed.
4. Every safetensors file opens, and names its item.
5. The manifest's counts of items and rows agree with the files; in a run that is "running" they may lag behind by an item.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from symbolic_residue.errors import RunDamagedError, StoreError
from symbolic_residue.store._manifest import Manifest, read_manifest
from symbolic_residue.store._schema import ADDED, content_problems, TABLES, with_added
from symbolic_residue.store._shards import read_shard, shard_index

__all__ = ["Problem", "validate"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and in which file (relative to the run folder)."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def validate(path: str | os.PathLike[str]) -> list[Problem]:
    """All that is wrong with the run folder ``path``; an empty list where it is sound.

    Raises:
        StoreError: there is no such folder.
    """
    root = Path(path)
    try:
        manifest = read_manifest(root)
    except RunDamagedError as error:
        return [Problem("manifest.json", str(error))]
    problems: list[Problem] = []
    items, statuses, rows = _check_items(root, problems)
    for folder in sorted((root / "tables").glob("*")):
        if folder.name not in TABLES:
            problems.append(Problem(f"tables/{folder.name}", "no table of this name is declared"))
        elif folder.name != "items":
            _check_table(root, folder.name, items, manifest, problems, rows)
    _check_tensors(root, items, manifest, problems)
    _check_counts(manifest, statuses, rows, problems)
    return problems


def _check_items(root: Path, problems: list[Problem]) -> tuple[dict[int, str], list[str], dict[str, int]]:
    """Finished items by shard number, their statuses, and the row count of table ``items``."""
    items: dict[int, str] = {}
    statuses: list[str] = []
    for shard in _shards(root / "tables" / "items"):
        where = shard.relative_to(root).as_posix()
        frame = _load(shard, "items", where, problems)
        if frame is None:
            continue
        if len(frame) != 1:
            problems.append(Problem(where, f"holds {len(frame)} rows instead of one"))
            continue
        item = frame["item"][0]
        if item in items.values():
            problems.append(Problem(where, f"item {item!r} is there twice"))
        items[shard_index(shard)] = item
        statuses.append(frame["status"][0])
    return items, statuses, {"items": len(items)} if items else {}


def _check_table(
    root: Path, name: str, items: dict[int, str], manifest: Manifest, problems: list[Problem], rows: dict[str, int]
) -> None:
    for shard in _shards(root / "tables" / name):
        where = shard.relative_to(root).as_posix()
        item = items.get(shard_index(shard))
        if item is None:
            if manifest.status != "running":
                problems.append(Problem(where, "belongs to no finished item"))
            continue
        frame = _load(shard, name, where, problems)
        if frame is None:
            continue
        if not (frame["item"] == item).all():
            problems.append(Problem(where, f"holds rows of another item than {item!r}"))
        rows[name] = rows.get(name, 0) + len(frame)


def _check_tensors(root: Path, items: dict[int, str], manifest: Manifest, problems: list[Problem]) -> None:
    for shard in _shards(root / "tensors"):
        where = shard.relative_to(root).as_posix()
        item = items.get(shard_index(shard))
        if item is None:
            if manifest.status != "running":
                problems.append(Problem(where, "belongs to no finished item"))
            continue
        from safetensors import safe_open, SafetensorError

        try:
            with safe_open(shard, framework="numpy") as file:
                named = (file.metadata() or {}).get("item")
        except (SafetensorError, OSError) as error:
            problems.append(Problem(where, f"cannot be read ({error})"))
            continue
        if named != item:
            problems.append(Problem(where, f"holds tensors of item {named!r}, not {item!r}"))


def _check_counts(manifest: Manifest, statuses: list[str], rows: dict[str, int], problems: list[Problem]) -> None:
    running = manifest.status == "running"
    for status, said in (("done", manifest.items.done), ("failed", manifest.items.failed)):
        found = statuses.count(status)
        if found != said and not running:
            problems.append(Problem("manifest.json", f"says {said} items {status}, the folder holds {found}"))
    lag = len(statuses) - manifest.items.done - manifest.items.failed
    if running and lag not in (0, 1):
        problems.append(Problem("manifest.json", f"says {len(statuses) - lag} items, the folder holds {len(statuses)}"))
    planned = manifest.items.planned
    if manifest.status == "complete" and planned is not None and len(statuses) < planned:
        problems.append(Problem("manifest.json", f"says complete, but {len(statuses)} of {planned} planned items are there"))
    for name in sorted({*rows, *manifest.tables}):
        info = manifest.tables.get(name)
        said, found = info.rows if info else 0, rows.get(name, 0)
        if said != found and not (running and lag == 1 and found > said):
            problems.append(Problem("manifest.json", f"says {said} rows in table {name!r}, the folder holds {found}"))
        if info and name in TABLES and info.columns not in (list(TABLES[name]), _before(name)):
            problems.append(Problem("manifest.json", f"names other columns of table {name!r} than are declared"))


def _before(name: str) -> list[str]:
    """Columns of the table in runs of earlier versions."""
    return [column for column in TABLES[name] if column not in ADDED.get(name, ())]


def _load(shard: Path, name: str, where: str, problems: list[Problem]) -> pl.DataFrame | None:
    """The shard, or None if it is so wrong that nothing more can be said; its problems are added."""
    if shard.suffix != ".parquet" or shard_index(shard) < 0:
        problems.append(Problem(where, "is no shard"))
        return None
    try:
        frame = read_shard(shard)
    except StoreError as error:
        problems.append(Problem(where, error.why or error.what))
        return None
    schema = TABLES[name]
    frame = with_added(name, frame)
    wrong = [f"lacks column {column!r}" for column in schema if column not in frame.columns]
    wrong += [f"has the unknown column {column!r}" for column in frame.columns if column not in schema]
    wrong += [
        f"column {column!r} is {frame.schema[column]} instead of {dtype}"
        for column, dtype in schema.items()
        if column in frame.columns and frame.schema[column] != dtype
    ]
    if not wrong and frame.columns != list(schema):
        wrong.append("has its columns in another order")
    if wrong:
        problems.extend(Problem(where, what) for what in wrong)
        return None
    problems.extend(Problem(where, what) for what in content_problems(name, frame))
    return frame


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"), key=lambda path: (shard_index(path), path.name))
