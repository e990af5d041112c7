"""What the report reads: the manifest and the tables of a run folder, cut into items.

1. Every table that the store knows is read; those without rows are left out, and their sections say "not measured in this run".
2. The items to show in full are the first ``limit`` finished ones, those that hold all prompts of the run together before the others; the overview and
   the failures are of all.
3. The store has checked columns and types, so nothing downstream guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from symbolic_residue.store import RunFolder, TABLES

__all__ = ["FULL_ITEMS", "Run", "load_run"]

FULL_ITEMS = 30
"""How many items get sections of their own."""


@dataclass(frozen=True)
class Run:
    """A run folder as the report sees it.

    Attributes:
        folder: the open run folder.
        manifest: its manifest as plain dicts.
        tables: the tables that have rows, whole.
        shown: ids of the items with sections of their own.
        parts: table name → item id → the rows of that item, shown items only.
    """

    folder: RunFolder
    manifest: dict[str, Any]
    tables: dict[str, pl.DataFrame]
    shown: tuple[str, ...]
    parts: dict[str, dict[str, pl.DataFrame]]

    def of(self, table: str, item: str) -> pl.DataFrame | None:
        """The rows of ``table`` for a shown item, or ``None`` where there are none."""
        return self.parts.get(table, {}).get(item)

    def rows(self, table: str, item: str) -> list[dict[str, Any]]:
        """The same as dicts, with NaN as ``None`` (to the store both mean "not measured"); an empty list where there are none."""
        frame = self.of(table, item)
        return [] if frame is None else frame.fill_nan(None).to_dicts()


def load_run(path: Path | str, *, limit: int = FULL_ITEMS) -> Run:
    """Read a run folder, whatever its status.

    Raises:
        StoreError: the folder is no run. RunDamagedError: its manifest or a table cannot be read.
    """
    folder = RunFolder.open(path)
    tables = {name: frame for name in TABLES if not (frame := folder.table(name)).is_empty()}
    across = tables.get("across")
    pooled = set() if across is None else set(across.filter("pooled")["item"])
    done = folder.done_items()
    shown = tuple([*(item for item in done if item in pooled), *(item for item in done if item not in pooled)][:limit])
    parts = {name: _split(frame, shown) for name, frame in tables.items()}
    return Run(folder, folder.manifest.model_dump(mode="json"), tables, shown, parts)


def _split(frame: pl.DataFrame, items: tuple[str, ...]) -> dict[str, pl.DataFrame]:
    mine = frame.filter(pl.col("item").is_in(items))
    return {str(key[0]): part for key, part in mine.partition_by("item", as_dict=True, maintain_order=True).items()}
