"""What the report of a contrast reads: the tables of its stages without ``item``, and the words of its configuration.

1. The long tables of single rows and single examples (``contrast_records``, ``contrast_causal``) are only counted: everything shown is pooled.
2. The *main pair* is the tuned model and its base: the first reference of kind ``base`` or ``model`` in the configuration, else the one called ``base``,
   else the first with a verdict. Everything else stands beside it. The headline is offset −1, layers, both segmentations.
3. A configuration may lack anything (records that others made have hardly any): what it does not say is left out.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from symbolic_residue.figures import interval_text, number
from symbolic_residue.store import RunFolder, TABLES

__all__ = ["HEADLINE", "KIND", "ContrastRun", "grid", "load_contrast", "measured"]

KIND = "contrast"
HEADLINE = -1
"""The offset of the headline: the row that emits the behaviour."""

_COUNTED = ("contrast_records", "contrast_causal")


@dataclass(frozen=True)
class ContrastRun:
    """A run of kind ``contrast``.

    Attributes:
        folder: the open run folder.
        manifest: as plain dicts.
        tables: name → the table without ``item``, NaN as null; tables without rows are left out.
        items: the table ``items``.
        sizes: name → (rows, columns) of every table that has rows.
    """

    folder: RunFolder
    manifest: dict[str, Any]
    tables: dict[str, pl.DataFrame]
    items: pl.DataFrame
    sizes: dict[str, tuple[int, list[str]]]

    @property
    def config(self) -> dict[str, Any]:
        """Of the manifest."""
        return self.manifest["config"]

    def rows(self, table: str, **wanted: Any) -> list[dict[str, Any]]:
        """Rows of a table in which each column has the value wanted (null: is null)."""
        frame = self.tables.get(table)
        if frame is None:
            return []
        for name, value in wanted.items():
            frame = frame.filter(pl.col(name).is_null() if value is None else pl.col(name) == value)
        return frame.to_dicts()

    def get(self, *path: str) -> Any:
        """A field of the configuration by its path; None where it is not there."""
        at: Any = self.config
        for name in path:
            at = at.get(name) if isinstance(at, dict) else None
        return at

    @property
    def behaviour(self) -> str:
        """What is looked for, by name."""
        rates = self.rows("contrast_rates")
        return str(self.get("behaviour") or (rates[0]["behaviour"] if rates else "the behaviour"))

    @property
    def spoken(self) -> str:
        """The behaviour as a reader says it: a text without its prefix."""
        return self.behaviour.removeprefix("text:") or self.behaviour

    @cached_property
    def tuned(self) -> str:
        """Name of the model that drew the answers."""
        verdicts = self.rows("contrast_verdicts")
        return str(verdicts[0]["tuned"]) if verdicts else "tuned"

    @cached_property
    def references(self) -> list[str]:
        """Names of the references with a verdict, in their order."""
        return list(dict.fromkeys(row["reference"] for row in self.rows("contrast_verdicts")))

    @cached_property
    def nulls(self) -> list[str]:
        """Names of null models: those that a verdict was compared with."""
        named = [row["tuned"] for row in self.rows("contrast_differences") if row["tuned"] != self.tuned]
        return list(dict.fromkeys(named))

    @cached_property
    def base(self) -> str | None:
        """Name of the main reference; None without any."""
        known = self.references
        configured = self.get("references")
        kinds = configured if isinstance(configured, dict) else {}
        own = [
            name for name, one in kinds.items() if isinstance(one, dict) and (one.get("base") or one.get("model")) and name in known
        ]
        others = [name for name in known if name not in self.nulls]
        return next(iter([*own, *(name for name in known if name == "base"), *others, *known]), None)

    def untrained(self, reference: str) -> bool:
        """Whether a reference is the model before training: by its kind; in records that others made, one that is no null model."""
        configured = self.get("references")
        if isinstance(configured, dict) and isinstance(configured.get(reference), dict):
            return bool(configured[reference].get("base") or configured[reference].get("model"))
        return reference not in self.nulls and reference not in (self.get("nulls") or [])

    @property
    def predicted(self) -> tuple[str | None, str]:
        """Region and direction (``up`` or ``down``) said before looking."""
        return self.get("predicted", "region"), str(self.get("predicted", "direction") or "up")

    def command(self, stage: str) -> str:
        """The command that runs a stage of this run."""
        name = shlex.quote(self.folder.path.name)
        resumed = "--resume " if stage in ("run", "preflight", "generate") else ""
        return f"residue contrast {stage} {resumed}{name}"


def load_contrast(path: Path | str | RunFolder) -> ContrastRun:
    """Read a run of kind ``contrast``, whatever its status.

    Raises:
        StoreError: the folder is no run. RunDamagedError: its manifest or a table cannot be read.
    """
    folder = path if isinstance(path, RunFolder) else RunFolder.open(path)
    manifest = folder.manifest.model_dump(mode="json")
    tables, sizes = {}, {}
    for name in TABLES:
        said = folder.manifest.tables.get(name)
        if name in _COUNTED:
            if said is not None and said.rows:
                sizes[name] = (said.rows, list(said.columns))
            continue
        frame = folder.table(name)
        if not frame.is_empty():
            tables[name] = frame.drop("item").fill_nan(None) if name != "items" else frame
            sizes[name] = (frame.height, frame.columns)
    items = tables.pop("items", None)
    return ContrastRun(folder, manifest, tables, folder.table("items") if items is None else items, sizes)


def grid(caption: str, columns: dict[str, bool], rows: list[list[str]], marked: list[bool] | None = None) -> dict[str, Any]:
    """A table to show; ``columns``: title → whether its cells are numbers; ``marked`` rows stand out."""
    return {
        "caption": caption,
        "columns": list(columns.items()),
        "rows": list(zip(rows, marked or [False] * len(rows), strict=True)),
    }


def measured(row: dict[str, Any], value: str = "value", low: str = "low", high: str = "high", *, signed: bool = True) -> str:
    """A number with its interval, or why it has none; ``—`` where it was not measured."""
    if row[value] is None:
        return "—"
    said = interval_text(row[low], row[high], row["n"], signed=signed).replace("\xa0", " ")
    return f"{number(row[value], signed=signed)} {said}"
