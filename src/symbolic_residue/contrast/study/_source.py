"""The records of one condition, a model at a time and single heads apart from means over heads, read when they are asked for.

A study with single heads has tens of millions of records; of these an analysis holds one model's at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from symbolic_residue.contrast.study._study import Folder

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """Where the records of one condition are.

    Attributes:
        models: names of those that may have records, in order.
        read: records of a model, of single heads (true) or means over heads (false); without rows where there are none.
    """

    models: Sequence[str]
    read: Callable[[str, bool], pl.DataFrame]

    @classmethod
    def of_table(cls, records: pl.DataFrame) -> Source:
        """A table of one condition that is in memory already."""
        single = pl.col("head").is_not_null()
        return cls(
            records["model"].unique(maintain_order=True).to_list(),
            lambda model, heads: records.filter((pl.col("model") == model) & (single if heads else ~single)),
        )

    @classmethod
    def of_folder(cls, folder: Folder, items: dict[str, Sequence[str]]) -> Source:
        """A run's items, by model."""
        single = pl.col("head").is_not_null()
        return cls(
            list(items),
            lambda model, heads: folder.table("contrast_records", items=items[model], where=single if heads else ~single).drop(
                "item"
            ),
        )

    def means(self, model: str) -> pl.DataFrame:
        """Means over heads of a model; made from its single heads where it has these only."""
        found = self.read(model, False)
        if not found.is_empty():
            return found
        heads = self.read(model, True)
        key = [name for name in heads.columns if name not in ("head", "mass")]
        return (
            heads.group_by(key, maintain_order=True)
            .agg(pl.col("mass").mean())
            .with_columns(head=pl.lit(None, pl.Int32))
            .select(heads.columns)
        )

    def heads(self, model: str) -> pl.DataFrame:
        """Single heads of a model."""
        return self.read(model, True)
