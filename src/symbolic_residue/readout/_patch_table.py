"""What a patching sweep found: the table of all cells and pairs, and its summary over pairs.

1. One row a pair and cell. A fraction that cannot be given is null, with the ``reason``; a control that was not run is null with ``control_n`` 0.
2. The summary has one row a cell. Intervals resample pairs, or clusters of pairs where the pairs name clusters; one pair has none, and ``method`` says so.
3. A pair with nothing to recover is left out of the fractions (``refused`` counts them), and stays in the effects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from symbolic_residue.readout._patch_cells import CELL_KEY, NotApplicable
from symbolic_residue.stats import bootstrap_columns, max_t

__all__ = ["CELL_SCHEMA", "SCHEMA", "SUMMARY_SCHEMA", "Direction", "PatchSweep", "column_intervals"]

Direction = Literal["denoise", "noise"]

CELL_SCHEMA: dict[str, Any] = {
    "pair": pl.String,
    "cluster": pl.String,
    "direction": pl.String,
    "layer": pl.Int64,
    "component": pl.String,
    "head": pl.Int64,
    "positions": pl.String,
    "source": pl.Float64,
    "target": pl.Float64,
}
"""Columns that a sweep and a screen begin with: which cell of which pair, and the metric of the two runs without a patch."""

SCHEMA: dict[str, Any] = CELL_SCHEMA | {
    "patched": pl.Float64,
    "effect": pl.Float64,
    "recovered": pl.Float64,
    "control": pl.Float64,
    "control_effects": pl.List(pl.Float64),
    "control_n": pl.Int64,
    "reason": pl.String,
}

_ESTIMATED = ("effect", "recovered", "control", "excess")
SUMMARY_SCHEMA: dict[str, Any] = (
    {"layer": pl.Int64, "component": pl.String, "head": pl.Int64, "positions": pl.String, "n": pl.Int64, "refused": pl.Int64}
    | {f"{name}{end}": pl.Float64 for name in _ESTIMATED for end in ("", "_low", "_high")}
    | {"control_n": pl.Int64, "p_family": pl.Float64, "method": pl.String}
)


@dataclass(frozen=True, eq=False)
class PatchSweep:
    """The result of :func:`patch_sweep`.

    Attributes:
        frame: one row a pair and cell, see :meth:`table`.
        missing: ``(layer, component, reason)`` of what the model does not have.
        seed: of shuffles, and of the summary's resampling.
        floor: smallest ``|source − target|`` at which a fraction was given.
    """

    frame: pl.DataFrame
    missing: NotApplicable
    seed: int
    floor: float

    def table(self) -> pl.DataFrame:
        """One row a pair and cell.

        ``pair cluster direction layer component head positions``: the cell (``head`` null where there is none, or all together). ``source target
        patched``: the metric of the three runs. ``effect``: patched − target, metric units. ``recovered``: fraction of source − target, null with a ``reason``.
        ``control``: mean recovered of the controls; ``control_effects``: each control's effect, metric units; ``control_n``: how many.
        """
        return self.frame

    def not_applicable(self) -> pl.DataFrame:
        """``layer component reason``: what was asked for and does not exist in this model."""
        schema = {"layer": pl.Int64, "component": pl.String, "reason": pl.String}
        return pl.DataFrame(self.missing, schema=schema, orient="row")

    def tables(self) -> dict[str, pl.DataFrame]:
        """All tables by name, as other results have them."""
        return {"patches": self.frame, "patch_summary": self.summary(), "patch_not_applicable": self.not_applicable()}

    def null(self) -> pl.DataFrame:
        """Every control's recovered fraction as a row (``pair``, the cell, ``recovered``): the null distribution of the sweep."""
        fraction = pl.col("control_effects") / (pl.col("source") - pl.col("target"))
        kept = self.frame.filter(pl.col("reason").is_null() & (pl.col("control_n") > 0))
        return kept.with_columns(fraction).explode("control_effects").select("pair", *CELL_KEY, recovered="control_effects")

    def summary(self, *, level: float = 0.95, n_resamples: int = 2000) -> pl.DataFrame:
        """Means over pairs, one row a cell.

        Args:
            level: coverage of each interval by itself.
            n_resamples: of the bootstrap and of the sign flips.

        Returns:
            ``n``: pairs, or clusters of pairs, behind the fractions; ``refused``: pairs with nothing to recover. ``effect``, ``recovered``, ``control``,
            ``excess`` (recovered − control), each with ``_low`` and ``_high`` (null without an interval). ``control_n``: control runs. ``p_family``: p of
            excess ≠ 0, family-wise over the cells of the sweep; null for one pair or without controls. ``method``: how intervals were made, or why not.

        Raises:
            ConfigError: level or resamples out of range.
        """
        rows: list[dict[str, Any]] = []
        frame = self.frame.with_columns(excess=pl.col("recovered") - pl.col("control"))
        for cells, part in _by_pairs(frame):
            usable = part.filter(pl.col("reason").is_null())
            estimated: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray] | None] = {}
            matrices: dict[str, np.ndarray] = {}
            for name in _ESTIMATED:
                of = part if name == "effect" else usable
                values = of[name].to_numpy().reshape(-1, len(cells)) if len(of) and not of[name].has_nulls() else None
                clusters = _clusters(of, len(cells))
                estimated[name] = None
                if values is not None:
                    matrices[name] = values
                    estimated[name] = bootstrap_columns(
                        values, seed=self.seed, level=level, n_resamples=n_resamples, clusters=clusters
                    )
            clusters = _clusters(usable, len(cells))
            n = len(set(clusters))
            p = None
            if "excess" in matrices and n > 1:
                p = max_t(matrices["excess"], seed=self.seed, n_resamples=n_resamples, clusters=clusters)
            controls = usable["control_n"].to_numpy().reshape(-1, len(cells)).sum(0) if len(usable) else [0] * len(cells)
            for i, cell in enumerate(cells):
                row = dict(zip(CELL_KEY, cell, strict=True))
                row |= {"n": n, "refused": (len(part) - len(usable)) // len(cells), "control_n": int(controls[i])}
                for name, found in estimated.items():
                    numbers = (None, None, None) if found is None else tuple(float(column[i]) for column in found)
                    row |= {f"{name}{end}": _null(x) for end, x in zip(("", "_low", "_high"), numbers, strict=True)}
                rows.append(row | {"p_family": None if p is None else float(p[i]), "method": _method(n, clusters)})
        return pl.DataFrame(rows, schema=SUMMARY_SCHEMA, orient="row").sort("layer", maintain_order=True)


def column_intervals(frame: pl.DataFrame, value: str, *, seed: int, level: float = 0.95) -> pl.DataFrame:
    """Mean of one column over pairs by cell: ``layer component head positions mean low high n``."""
    rows = []
    for cells, part in _by_pairs(frame):
        clusters = _clusters(part, len(cells))
        found = bootstrap_columns(part[value].to_numpy().reshape(-1, len(cells)), seed=seed, level=level, clusters=clusters)
        for i, cell in enumerate(cells):
            rows.append([*cell, *(_null(float(column[i])) for column in found), len(set(clusters))])
    schema = {name: SUMMARY_SCHEMA[name] for name in CELL_KEY} | {
        "mean": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "n": pl.Int64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def _by_pairs(frame: pl.DataFrame) -> list[tuple[list[tuple[Any, ...]], pl.DataFrame]]:
    """Cells that were measured on the same pairs, with their rows ordered by pair, then cell: ``[pair · cell]``."""
    keyed = frame.with_columns(pl.struct(CELL_KEY).alias("_cell"))
    pairs = keyed.group_by("_cell", maintain_order=True).agg(pl.col("pair").sort().alias("_pairs"))
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell, names in pairs.iter_rows():
        groups.setdefault(tuple(names), []).append(cell)
    out = []
    for cells in groups.values():
        order = pl.DataFrame(
            [[*cell.values(), i] for i, cell in enumerate(cells)],
            schema={name: SUMMARY_SCHEMA[name] for name in CELL_KEY} | {"_order": pl.Int64},
            orient="row",
        )
        part = frame.join(order, on=CELL_KEY, how="inner", nulls_equal=True).sort("pair", "_order")
        out.append(([tuple(cell.values()) for cell in cells], part))
    return out


def _clusters(part: pl.DataFrame, n_cells: int) -> list[str]:
    """The cluster of each pair, ``[pair]``."""
    return part["cluster"].to_list()[::n_cells]


def _null(x: float | None) -> float | None:
    return None if x is None or x != x else x


def _method(n: int, clusters: list[str]) -> str:
    unit = "cluster" if n < len(clusters) else "pair"
    if n == 0:
        return "none: no pair has anything to recover"
    if n == 1:
        return f"none: one {unit} has no spread"
    return f"bootstrap over {n} {unit}s (t where these are too few)"
