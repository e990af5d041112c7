"""What the report of a measurement of token trees reads.

1. Verdicts, layers, head classes and curves are those of the item ``all prompts``; of the prompts' own tables only the small ones are read. The long ones
   (``parallel_arms``, ``parallel_competition``, ``parallel_tokens``) are counted: everything shown is over prompts.
2. A run that was stopped has no verdicts yet; its page says so and shows which prompts are done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from symbolic_residue.store import RunFolder, TABLES

__all__ = ["MEASURE_KIND", "TOGETHER", "MeasureRun", "load_measure"]

MEASURE_KIND = "parallel-measure"
TOGETHER = "all prompts"
"""The item that holds the verdicts."""

_OF_ALL = ("parallel_verdicts", "parallel_layers", "parallel_heads", "curves")
_OF_PROMPTS = ("parallel_intra", "parallel_trace", "parallel_published", "parallel_trees")


@dataclass(frozen=True)
class MeasureRun:
    """A run of kind ``parallel-measure``.

    Attributes:
        folder: the open run folder.
        manifest: as plain dicts.
        together: table → the rows of ``all prompts``, without ``item``.
        prompts: table → the rows of the prompts.
        items: the table ``items``.
        sizes: table → (rows, columns).
    """

    folder: RunFolder
    manifest: dict[str, Any]
    together: dict[str, pl.DataFrame]
    prompts: dict[str, pl.DataFrame]
    items: pl.DataFrame
    sizes: dict[str, tuple[int, list[str]]]

    def rows(self, table: str, **wanted: Any) -> list[dict[str, Any]]:
        """Rows of ``all prompts`` in which each column has the value wanted, NaN as None."""
        frame = self.together.get(table)
        if frame is None:
            return []
        for name, value in wanted.items():
            frame = frame.filter(pl.col(name) == value)
        return frame.fill_nan(None).to_dicts()


def load_measure(folder: RunFolder) -> MeasureRun:
    """Read the run, whatever its status.

    Raises:
        RunDamagedError: a table cannot be read.
    """
    together, prompts = {}, {}
    for name in (*_OF_ALL, *_OF_PROMPTS):
        frame = folder.table(name)
        mine = frame.filter(item=TOGETHER) if name in _OF_ALL else frame.filter(pl.col("item") != TOGETHER)
        if not mine.is_empty():
            (together if name in _OF_ALL else prompts)[name] = mine.drop("item") if name in _OF_ALL else mine
    said = folder.manifest.tables
    sizes = {name: (said[name].rows, list(said[name].columns)) for name in TABLES if name in said and said[name].rows}
    return MeasureRun(folder, folder.manifest.model_dump(mode="json"), together, prompts, folder.table("items"), sizes)
