"""Signatures from the tables that a run leaves, whichever shell made it.

Each group looks for its tables and leaves its components unmeasured where they are missing:

1. ``attention``: ``attention`` (mass by region) with ``attention_stats``; or the last row of ``readout_mass`` with ``readout_stats``.
2. ``lens``, ``output``: ``lens`` at the last position. ``output.log_odds`` needs ``candidates`` that were chosen by mass: given candidates need not be the two
   best tokens.
3. ``attribution``: ``heads`` (first target, where every head of the layers in it has a row), ``components``.
4. ``context``: ``tokens``. ``sensitivity``, ``curves``, ``maps``, ``heads`` (``head_scores``, ``heads``), ``verdict``: tables of those names.

The number of layers is taken from ``lens`` (its last depth), else from the last layer that any table names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from symbolic_residue.errors import ConfigError
from symbolic_residue.shells._base import Result
from symbolic_residue.shells.signatures._components import MODES, NATS_SCALE, squash
from symbolic_residue.shells.signatures._measure import (
    attention_values,
    attribution_values,
    context_values,
    lens_values,
    margin,
    output_values,
    spread,
)
from symbolic_residue.shells.signatures._signature import Signature

__all__ = ["signature", "signatures"]

Tables = Mapping[str, pl.DataFrame]
_USED = (
    "tokens", "attention", "attention_stats", "readout_mass", "readout_stats", "lens", "candidates", "heads", "components", "sensitivity",
    "curves", "maps", "head_scores", "verdicts",
)  # fmt: skip


def signature(source: Result | Tables, *, name: str = "") -> Signature:
    """The signature of one item.

    Args:
        source: findings of any shell, or its tables by name.
        name: of the item; taken from the tables' ``item`` column where they have one.

    Raises:
        ConfigError: tables of several items, or none that a signature is made of.
    """
    tables = dict(source) if isinstance(source, Mapping) else source.tables()
    tables = {key: frame for key, frame in tables.items() if key in _USED and len(frame)}
    if not tables:
        raise ConfigError("No table that a signature is made of.", todo=f"Give some of: {', '.join(_USED)}.")
    items = sorted({item for frame in tables.values() if "item" in frame.columns for item in frame["item"].unique()})
    if len(items) > 1:
        raise ConfigError(f"The tables hold {len(items)} items.", todo="Use signatures(tables), or filter to one item.")
    n_layers = _n_layers(tables)
    found: dict[str, float] = {}
    found |= _attention(tables, n_layers)
    found |= _lens(tables)
    found |= _attribution(tables, n_layers)
    if "tokens" in tables:
        found |= context_values(tables["tokens"].sort("position")["token_id"].to_list())
    found |= _sensitivity(tables) | _curves(tables) | _maps(tables, n_layers) | _heads(tables, n_layers) | _verdicts(tables)
    return Signature.of(name or (items[0] if items else ""), found)


def signatures(tables: Tables) -> list[Signature]:
    """The signatures of all items of a run's tables, in the order of the tables' items.

    Raises:
        ConfigError: no table with an ``item`` column that a signature is made of.
    """
    usable = {key: frame for key, frame in tables.items() if key in _USED and len(frame) and "item" in frame.columns}
    if not usable:
        raise ConfigError("No table with an item column that a signature is made of.", todo=f"Give some of: {', '.join(_USED)}.")
    items = list(dict.fromkeys(item for frame in usable.values() for item in frame["item"].unique(maintain_order=True)))
    return [signature({key: frame.filter(pl.col("item") == item) for key, frame in usable.items()}, name=item) for item in items]


def _n_layers(tables: Tables) -> int:
    if "lens" in tables:
        return max(int(tables["lens"]["layer"].max()), 1)  # type: ignore[arg-type]
    last = [int(frame["layer"].max()) for frame in tables.values() if "layer" in frame.columns]  # type: ignore[arg-type]
    return max(last, default=0) + 1


def _array(frame: pl.DataFrame, column: str) -> np.ndarray:
    return frame[column].cast(pl.Float64).fill_null(math.nan).to_numpy()


def _attention(tables: Tables, n_layers: int) -> dict[str, float]:
    mass, stats, n = tables.get("attention"), tables.get("attention_stats"), _length(tables)
    if mass is None or stats is None:
        mass, stats = tables.get("readout_mass"), tables.get("readout_stats")
        if mass is None or stats is None:
            return {}
        last = stats["row"].max()
        mass, stats = mass.filter(pl.col("row") == last), stats.filter(pl.col("row") == last)
        if n is not None and last != n - 1:  # the last row was not read
            return {}
    if n is None or "sink" not in mass["region"].to_list():
        return {}
    by = mass.group_by("layer", "head").agg(
        pl.col("mass").sum().alias("total"),
        pl.col("mass").filter(pl.col("region") == "sink").sum().alias("on_sink"),
        pl.col("mass").filter(pl.col("region") == "self").sum().alias("own"),
    )
    joined = stats.select("layer", "head", "entropy", "distance").join(by, on=["layer", "head"], how="inner").sort("layer", "head")
    if not len(joined):
        return {}
    return attention_values(
        joined["layer"].to_numpy(),
        n_layers,
        n,
        total=_array(joined, "total"),
        sink=_array(joined, "on_sink"),
        own=_array(joined, "own") if "self" in mass["region"].to_list() else None,
        entropy=_array(joined, "entropy"),
        distance=_array(joined, "distance"),
    )


def _length(tables: Tables) -> int | None:
    return len(tables["tokens"]) if "tokens" in tables else None


def _lens(tables: Tables) -> dict[str, float]:
    found: dict[str, float] = {}
    if "lens" in tables:
        lens = tables["lens"]
        lens = lens.filter(pl.col("position") == lens["position"].max()).sort("layer")
        whole = lens["layer"].to_list() == list(range(len(lens)))
        if whole:
            columns = (_array(lens, c) for c in ("top_probability", "entropy", "answer_probability"))
            found |= lens_values(lens["top_token"].to_list(), *columns)
        found |= output_values(float(lens["entropy"][-1]), float(lens["top_probability"][-1]))
    candidates = tables.get("candidates")
    if candidates is not None and len(candidates) > 1 and (candidates["source"] == "mass").all():
        best = candidates.sort("rank")["logit"]
        found["output.log_odds"] = squash(max(float(best[0] - best[1]), 0.0), NATS_SCALE)
    return found


def _attribution(tables: Tables, n_layers: int) -> dict[str, float]:
    if "heads" not in tables:
        return {}
    heads = tables["heads"]
    target = heads["target"][0]
    heads = heads.filter(pl.col("target") == target)
    if (
        len(heads) != heads["layer"].n_unique() * heads["head"].n_unique() or len(heads) < 2
    ):  # a list of chosen heads is no attribution
        return {}
    mlps = None
    if "components" in tables:
        parts = tables["components"].filter((pl.col("target") == target) & (pl.col("component") == "mlp"))
        mlps = _array(parts, "contribution") if len(parts) else None
    return attribution_values(heads["layer"].to_numpy(), _array(heads, "dla"), n_layers, mlps)


def _sensitivity(tables: Tables) -> dict[str, float]:
    if "sensitivity" not in tables:
        return {}
    frame = tables["sensitivity"].filter(pl.col("variant") > 0)
    if not len(frame):
        return {}
    divergence = min(max(float(frame["js"].median()) / math.log(2), 0.0), 1.0)  # type: ignore[arg-type]
    return {"sensitivity.divergence": divergence, "sensitivity.changed": float(frame["changed"].mean())}  # type: ignore[arg-type]


def _curves(tables: Tables) -> dict[str, float]:
    if "curves" not in tables:
        return {}
    changes: dict[bool, list[float]] = {True: [], False: []}
    for (_, series), line in tables["curves"].drop_nans("value").group_by("curve", "series", maintain_order=True):
        ends = line.sort("x")["value"]
        size = abs(ends[0]) + abs(ends[-1])
        if len(line) > 1 and size > 0:
            changes[str(series).startswith("control")].append((ends[-1] - ends[0]) / size)
    names = {False: "curves.change", True: "curves.control_change"}
    return {names[control]: float(np.mean(values)) for control, values in changes.items() if values}


def _maps(tables: Tables, n_layers: int) -> dict[str, float]:
    if "maps" not in tables:
        return {}
    depth, wide = [], []
    for _, one in tables["maps"].group_by("map", maintain_order=True):
        size = one.with_columns(pl.col("value").abs())
        total = float(size["value"].sum())
        if total > 0:
            depth.append(float((size["value"] * size["layer"]).sum()) / total)
            wide.append(spread(size.group_by("position").agg(pl.col("value").sum()).sort("position")["value"].to_numpy()))
    found: dict[str, float] = {}
    if depth:
        found["maps.spread"] = float(np.mean(wide))
        top = max(n_layers - 1, int(tables["maps"]["layer"].max()))  # type: ignore[arg-type]
        if top > 0:
            found["maps.depth"] = float(np.mean(depth)) / top
    return found


def _heads(tables: Tables, n_layers: int) -> dict[str, float]:
    found: dict[str, float] = {}
    if "head_scores" in tables:
        frame = tables["head_scores"].with_columns(
            bar=pl.coalesce("control_high", "control").fill_nan(None), low=pl.col("low").fill_nan(None)
        )
        known = frame.drop_nulls(["bar", "low"])
        if len(known):
            above = known.filter(pl.col("low") > pl.col("bar"))
            found["heads.above_control"] = len(above) / len(known)
            if len(above) and n_layers > 1:
                found["heads.depth"] = min(float(above["layer"].mean()) / (n_layers - 1), 1.0)  # type: ignore[arg-type]
    if "heads" in tables:
        tested = tables["heads"].drop_nulls("confirmed")
        if len(tested):
            found["heads.confirmed"] = float(tested["confirmed"].mean())  # type: ignore[arg-type]
    return found


def _verdicts(tables: Tables) -> dict[str, float]:
    if "verdicts" not in tables:
        return {}
    found: dict[str, float] = {}
    others: list[float] = []
    for row in tables["verdicts"].iter_rows(named=True):
        value = margin(row)
        if row["mode"] in MODES.get(row["shell"], ()):
            found[_verdict_name(row)] = value
        elif not math.isnan(value):
            others.append(value)
    if others:
        found["verdict.other"] = max(others)
    return found


def _verdict_name(row: dict[str, Any]) -> str:
    return f"verdict.{row['mode'].replace(' ', '_')}"
