"""Shards: one file an item, named by number and id, and how they are read back.

1. ``00001-ITEM``: the number makes the name unique and keeps the order; of the id, only what every file system takes is kept.
   Shards are found again by their number alone; the full id stands inside.
2. Many shards are read in one go; where that fails, one by one, to say which is damaged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from symbolic_residue.errors import ConfigError, RunDamagedError
from symbolic_residue.store._schema import TABLES, with_added

__all__ = [
    "Item",
    "check_item_id",
    "damaged",
    "finished_items",
    "portions",
    "read_shard",
    "read_shards",
    "shard_files",
    "shard_index",
    "shard_stem",
    "shards_by_index",
]


_PORTION = 2**20
"""Bytes of Parquet that are read at once; in memory they may be fifty times as many."""


@dataclass(slots=True)
class Item:
    """A finished item: the number of its shards, and "done" or "failed"."""

    index: int
    status: str


def check_item_id(item_id: str) -> str:
    """``item_id`` if it can name an item.

    Raises:
        ConfigError: it is no text, empty, or no valid Unicode.
    """
    if not isinstance(item_id, str) or not item_id:
        raise ConfigError(f"{item_id!r} is no item id.", todo="Give a text that is not empty.")
    try:
        item_id.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"The item id {item_id!r} is no valid Unicode.", todo="Give another id.") from error
    return item_id


def shard_stem(index: int, item_id: str) -> str:
    """File name, without ending, of the shards of an item: ``00001-ITEM``.

    The number makes it unique and keeps the order; of the id, only what every file system takes is kept, at most 60 characters.
    The full id stands in the tables.
    """
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", item_id).strip("._-")[:60]
    return f"{index:05d}-{slug or 'item'}"


def shard_index(path: Path) -> int:
    """The number in a shard's name; -1 where it has none."""
    number = path.name.partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else -1


def shards_by_index(folder: Path) -> dict[int, Path]:
    """The shards in a folder by number, in that order."""
    return {shard_index(path): path for path in sorted(folder.glob("*-*"), key=shard_index)}


def read_shards(shards: Sequence[Path], name: str) -> pl.DataFrame:
    """All rows of ``shards`` of the table ``name``, in their order; a frame without rows where there are none.

    Raises:
        RunDamagedError: one cannot be read, or has other columns than the table.
    """
    schema = pl.Schema(TABLES[name])
    if not shards:
        return pl.DataFrame(schema=schema)
    try:
        # No wildcards: a folder may be called run[1].
        frame = pl.read_parquet(list(shards), glob=False)
        if frame.schema == schema:
            return frame
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        pass
    # Some shard is damaged, of an earlier version, or has other columns: one by one.
    parts = []
    for shard in shards:
        parts.append(with_added(name, read_shard(shard)))
        if parts[-1].schema != schema:
            raise RunDamagedError(
                f"{shard} has other columns than its table.", todo="See what is wrong with: residue runs validate RUN"
            )
    return pl.concat(parts)


def portions(shards: Sequence[Path]) -> Iterator[list[Path]]:
    """The shards in their order, as many at once as together are small, so that reading a large table needs little memory and one of many items little time."""
    some: list[Path] = []
    size = 0
    for shard in shards:
        own = shard.stat().st_size if shard.exists() else 0
        if some and size + own > _PORTION:
            yield some
            some, size = [], 0
        some.append(shard)
        size += own
    if some:
        yield some


def read_shard(path: Path) -> pl.DataFrame:
    """One Parquet file.

    Raises:
        RunDamagedError: it cannot be read.
    """
    try:
        return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: BaseException) -> RunDamagedError:
    """The error to raise for a file that cannot be read."""
    return RunDamagedError(f"{path} cannot be read.", why=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def finished_items(path: Path) -> dict[str, Item]:
    """Items of the run folder ``path`` whose ``items`` shard is there, by id, in the order of their numbers.

    Raises:
        RunDamagedError: a shard cannot be read, has other columns, or has not one row.
    """
    shards = shards_by_index(path / "tables" / "items")
    frame = read_shards(list(shards.values()), "items")
    if len(frame) != len(shards) or frame["item"].n_unique() != len(frame):
        raise RunDamagedError(
            f"{path / 'tables' / 'items'} does not hold one row a file.",
            todo=f"See what is wrong with: residue runs validate {path}",
        )
    rows = zip(frame["item"], frame["status"], shards, strict=True)
    return {item_id: Item(index, status) for item_id, status, index in rows}


def shard_files(path: Path) -> list[Path]:
    """All shards of tables and tensors in the run folder ``path``."""
    return [*path.glob("tables/*/*"), *path.glob("tensors/*")]
