"""Runs of the same items compared: two models, or two revisions of one.

1. The first run is the base; every other run is compared with it. The runs must be of one kind and one configuration, and have the same items
   with the same prompts, else the comparison is refused and says what differs. ``common`` drops items that are not done in every run.
2. For each shell and failure mode, the *value* of the verdict is compared item by item: difference = other − base, its mean with a bootstrap
   interval over items, p by sign flips over items.
3. The *outcome* is compared by McNemar's exact test over the items where both runs say fires or absent; items undecided in either run are counted,
   not used. The difference of the shares has Newcombe's interval for paired data.
4. Items of a benchmark are *planted* (made to show this mode), *null* (made to show none) or *other*; the three are rows of their own, never pooled.
5. By default the unit is the item, and the inference is to other items of the same patterns. With ``frames``, items of one sentence pattern are
   one unit: they are flipped and resampled together, and the inference is to other patterns.
6. p values are adjusted by Holm's method, values and outcomes apart, over the rows that could show anything (Tarone): ``n`` units allow no sign-flip p under
   2 ^ (1 − n), and ``d`` items that changed their outcome no McNemar p under 2 ^ (1 − d). A difference is *shown* where the adjusted p is at most 0.05. The
   other rows have no adjusted p and say how many units they would need.

What is compared is how two runs differ on these items. Why they differ (weights, dtype, adapter) is in ``differs``, taken from their provenance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from symbolic_residue.errors import ConfigError
from symbolic_residue.stats import (
    bootstrap_mean,
    cluster_bootstrap,
    cluster_sign_flip,
    Estimate,
    holm,
    mcnemar,
    paired_difference,
    sign_flip_test,
)
from symbolic_residue.store import RunFolder

__all__ = ["Comparison", "compare_runs"]

_LEVEL = 0.05
_SAID = 4
_KEY = ["shell", "mode"]
_SIDES = ("planted", "null", "other", "all")
_TESTED = ("mean_base", "mean_other", "difference", "low", "high", "p", "p_adjusted", "effect", "effect_low", "effect_high")
_RATES = ("rate_base", "rate_other", "rate_difference", "rate_low", "rate_high", "outcome_p", "outcome_p_adjusted")
_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("base", "other", "shell", "mode", "side", "quantity", "unit"), pl.String),
    "n": pl.Int64,
    "units": pl.Int64,
    **dict.fromkeys(_TESTED, pl.Float64),
    **dict.fromkeys(("n_decided", "n_undecided", "only_base", "only_other"), pl.Int64),
    **dict.fromkeys(_RATES, pl.Float64),
    "shown": pl.String,
    "note": pl.String,
}


@dataclass(frozen=True)
class Comparison:
    """Runs compared with the first of them.

    Attributes:
        runs: ``name, path, model, status`` of each, the base first.
        frame: one row for each other run, shell, mode and side (see the module); ``shown`` says what was shown:
            ``value higher``, ``fires less often``, or nothing.
        differs: for each other run, what its provenance has other than the base's.
        items: ids of the items compared.
        left_out: ids left out because they are not done in every run.
        frames: number of sentence patterns, where items of one pattern were one unit.
        needed: units with which any row could show a difference, were all rows tested.
    """

    runs: list[dict[str, str]]
    frame: pl.DataFrame
    differs: dict[str, list[str]]
    items: list[str]
    left_out: list[str] = field(default_factory=list)
    frames: int | None = None
    needed: int = 0

    @property
    def unable(self) -> pl.DataFrame:
        """Rows with too few units to show anything of their value: those whose note says how many they need."""
        return self.frame.filter(pl.col("note") != "")

    @property
    def summary(self) -> str:
        """What was shown, in one sentence a run."""
        return " ".join(self._sentence(run["name"]) for run in self.runs[1:])

    def _sentence(self, other: str) -> str:
        rows = self.frame.filter(pl.col("other") == other)
        shown = rows.filter(pl.col("shown") != "")
        units = f"{len(self.items)} items" + (f" of {self.frames} sentence patterns" if self.frames is not None else "")
        head = f"{other} against {self.runs[0]['name']} on {units}: "
        if shown.is_empty():
            return f"{head}no difference is shown in {len(rows)} rows (Holm, {_LEVEL:g})."
        told = "; ".join(f"{_where(row)} {row['shown']}" for row in shown.iter_rows(named=True))
        return f"{head}{told}; nothing is shown in the other {len(rows) - len(shown)} rows (Holm, {_LEVEL:g})."

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; what could not be had is null."""
        return {
            "runs": self.runs,
            "differs": self.differs,
            "items": self.items,
            "left_out": self.left_out,
            "frames": self.frames,
            "needed": self.needed,
            "summary": self.summary,
            "modes": self.frame.fill_nan(None).to_dicts(),
        }


def compare_runs(
    paths: Sequence[Path | str], *, frames: bool | Mapping[str, str] = False, common: bool = False, seed: int = 0
) -> Comparison:
    """Compare run folders with the first of them.

    Args:
        paths: two or more run folders.
        frames: whether items of one sentence pattern are one unit; the patterns are those of the run's benchmark, or given by item id.
        common: compare the items that are done in every run, instead of refusing runs whose items differ.
        seed: of resampling and flips.

    Raises:
        ConfigError: fewer than two runs, one folder twice, runs of another kind, configuration or other items, no verdicts, an item without a pattern.
        StoreError: a folder that is no run. RunDamagedError: one that cannot be read.
    """
    if len(paths) < 2:
        raise ConfigError("A comparison needs two runs or more.", todo="Name the base first, then the others.")
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ConfigError("One run is named twice.", why="A run does not differ from itself.")
    folders = [RunFolder.open(path) for path in paths]
    names = _names([Path(path) for path in paths])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        _must_match(names[0], folders[0], name, folder)
    items, left_out = _items(names, folders, common)
    verdicts = [_verdicts(name, folder, items) for name, folder in zip(names, folders, strict=True)]
    about = folders[0].table("shell_items")
    labels = _labels(frames, about, items) if frames else None
    rows: list[dict[str, Any]] = []
    for name, table in zip(names[1:], verdicts[1:], strict=True):
        rows += _rows(names[0], verdicts[0], name, table, about, labels, seed)
    return Comparison(
        [_facts(name, folder) for name, folder in zip(names, folders, strict=True)],
        pl.DataFrame(_adjusted(rows), schema=_SCHEMA),
        {
            name: _differences(folders[0].manifest.provenance, folder.manifest.provenance, "")
            for name, folder in zip(names[1:], folders[1:], strict=True)
        },
        items,
        left_out,
        None if labels is None else len(set(labels.values())),
        _needed(rows),
    )


# -- what may be compared ------------------------------------------------------------------------------------------------------


def _names(paths: Sequence[Path]) -> list[str]:
    """Folder names; whole paths where two folders are named alike."""
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _facts(name: str, folder: RunFolder) -> dict[str, str]:
    manifest = folder.manifest
    return {
        "name": name,
        "path": str(folder.path),
        "model": str(manifest.provenance.get("model") or "model not recorded"),
        "status": manifest.status,
    }


def _must_match(base: str, first: RunFolder, name: str, other: RunFolder) -> None:
    # How many items a run was asked for is no other measure: the items themselves are compared below.
    found = [
        d
        for key in ("kind", "config")
        for d in _differences(getattr(first.manifest, key), getattr(other.manifest, key), key)
        if not d.startswith("config.items_each:")
    ]
    if found:
        raise ConfigError(
            f"{name} was measured otherwise than {base}.",
            why=f"{'; '.join(found[:_SAID])}{'; …' if len(found) > _SAID else ''}.",
            todo="Run both with the same command and options.",
        )


def _differences(base: Any, other: Any, where: str) -> list[str]:
    """What differs between two JSON values, by place, the base's value first."""
    if isinstance(base, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*base, *other])
        return [d for key in keys for d in _differences(base.get(key), other.get(key), f"{where}.{key}".lstrip("."))]
    return [] if base == other else [f"{where}: {base!r} → {other!r}"]


def _items(names: Sequence[str], folders: Sequence[RunFolder], common: bool) -> tuple[list[str], list[str]]:
    done = [folder.done_items() for folder in folders]
    shared = [item for item in done[0] if all(item in other for other in done[1:])]
    every = list(dict.fromkeys(item for one in done for item in one))
    left_out = [item for item in every if item not in set(shared)]
    if left_out and not common:
        lacking = next(name for name, one in zip(names, done, strict=True) if left_out[0] not in one)
        raise ConfigError(
            f"The runs have different items: {lacking} lacks {left_out[0]!r}.",
            why=f"{len(left_out)} of {len(every)} items are not done in every run.",
            todo="Compare the common ones with --common, or run the missing ones.",
        )
    if not shared:
        raise ConfigError("The runs have no finished item in common.")
    prompts = [dict(folder.table("items").select("item", "prompt").iter_rows()) for folder in folders]
    for name, one in zip(names[1:], prompts[1:], strict=True):
        other = [item for item in shared if one[item] != prompts[0][item]]
        if other:
            raise ConfigError(
                f"Item {other[0]!r} is another prompt in {name} than in {names[0]}.",
                why=f"{len(other)} of {len(shared)} prompts differ.",
            )
    return shared, left_out


def _verdicts(name: str, folder: RunFolder, items: Sequence[str]) -> pl.DataFrame:
    table = folder.table("verdicts").filter(pl.col("item").is_in(list(items)))
    if table.is_empty():
        raise ConfigError(f"{name} has no verdicts to compare.", todo="Name runs of a shell, a suite, or a diagnosis.")
    return table.with_columns(pl.col("value").fill_nan(None))


def _labels(frames: bool | Mapping[str, str], about: pl.DataFrame, items: Sequence[str]) -> dict[str, str]:
    """The sentence pattern of every item."""
    if not isinstance(frames, Mapping):
        frames = {row["item"]: f"{row['benchmark']} {row['frame']}" for row in about.iter_rows(named=True)}
    missing = [item for item in items if item not in frames]
    if missing:
        raise ConfigError(
            f"The sentence pattern of item {missing[0]!r} is not known.",
            why=f"{len(missing)} of {len(items)} items come from no packaged benchmark.",
            todo="Compare by items.",
        )
    return {item: frames[item] for item in items}


# -- the tests -----------------------------------------------------------------------------------------------------------------


def _rows(
    base: str,
    first: pl.DataFrame,
    other: str,
    second: pl.DataFrame,
    about: pl.DataFrame,
    labels: Mapping[str, str] | None,
    seed: int,
) -> list[dict[str, Any]]:
    joined = first.join(second, on=["item", *_KEY], how="full", suffix="_other", coalesce=True, maintain_order="left_right")
    made = about.select("item", "null", "planted")
    joined = joined.join(made, on="item", how="left", maintain_order="left").with_columns(
        pl.when(pl.col("null").is_null())
        .then(pl.lit("all"))
        .when(pl.col("null"))
        .then(pl.lit("null"))
        .when(pl.col("planted").str.split(", ").list.contains(pl.col("mode")))
        .then(pl.lit("planted"))
        .otherwise(pl.lit("other"))
        .alias("side")
    )
    rows = []
    for (shell, mode), group in joined.group_by(*_KEY, maintain_order=True):
        where = f"{shell} {mode}"
        if group["outcome"].null_count() or group["outcome_other"].null_count():
            raise ConfigError(f"{base} and {other} do not both judge {where} on every item.", todo="Run both with the same shells.")
        for column in ("quantity", "unit", "criterion", "direction"):
            odd = group.filter(pl.col(column) != pl.col(f"{column}_other"))
            if len(odd):
                row = odd.row(0, named=True)
                raise ConfigError(
                    f"{where} has another {column} in {other} than in {base}.",
                    why=f"{row[column]!r} and {row[f'{column}_other']!r}, on item {row['item']!r}.",
                )
        for side in _SIDES:
            pairs = group.filter(pl.col("side") == side)
            if len(pairs):
                facts = {"shell": shell, "mode": mode, "side": side, "quantity": pairs["quantity"][0], "unit": pairs["unit"][0]}
                rows.append({"base": base, "other": other} | facts | _values(pairs, labels, seed) | _outcomes(pairs, labels, seed))
    return rows


def _values(pairs: pl.DataFrame, labels: Mapping[str, str] | None, seed: int) -> dict[str, Any]:
    """Step 2: the paired difference of the verdicts' values."""
    there = pairs.filter(pl.col("value").is_not_null() & pl.col("value_other").is_not_null())
    if there.is_empty():
        return {"n": 0, "units": 0}
    a, b = there["value"].to_numpy(), there["value_other"].to_numpy()
    moved = b - a
    if labels is None:
        mean, p, units = bootstrap_mean(moved, seed=seed), float(sign_flip_test(moved, seed=seed)), len(moved)
    else:
        mine = [labels[item] for item in there["item"]]
        mean, p = cluster_bootstrap(moved, mine, seed=seed), float(cluster_sign_flip(moved, mine, seed=seed))
        units = len(set(mine))
    sd = float(np.std(moved, ddof=1)) if len(moved) > 1 else 0.0
    effect = [x / sd if sd > 0 else None for x in (mean.value, mean.low, mean.high)]
    row = dict(zip(("effect", "effect_low", "effect_high"), effect, strict=True))
    means = {"mean_base": float(a.mean()), "mean_other": float(b.mean())}
    return {"n": len(moved), "units": units, **means, "difference": mean.value, "low": mean.low, "high": mean.high, "p": p, **row}


def _outcomes(pairs: pl.DataFrame, labels: Mapping[str, str] | None, seed: int) -> dict[str, Any]:
    """Step 3: fires or absent, in both runs."""
    decided = pairs.filter((pl.col("outcome") != "undecided") & (pl.col("outcome_other") != "undecided"))
    counts: dict[str, Any] = {"n_decided": len(decided), "n_undecided": len(pairs) - len(decided), "only_base": 0, "only_other": 0}
    # Rates over all items, so that a mode that turned undecided does not vanish from the figure.
    rates = {
        side: sum(found == "fires" for found in pairs[column]) / len(pairs)
        for side, column in (("rate_base", "outcome"), ("rate_other", "outcome_other"))
    }
    if decided.is_empty():
        return counts | rates
    a, b = (decided["outcome"] == "fires").to_numpy(), (decided["outcome_other"] == "fires").to_numpy()
    both, only_base, only_other = int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum())
    change: Estimate
    if labels is None:
        p = mcnemar(only_base, only_other)
        change = paired_difference(both, only_base, only_other, len(a) - both - only_base - only_other)
    else:
        mine = [labels[item] for item in decided["item"]]
        step = b.astype(float) - a.astype(float)
        p, change = float(cluster_sign_flip(step, mine, seed=seed)), cluster_bootstrap(step, mine, seed=seed)
    found = {"rate_difference": change.value, "rate_low": change.low, "rate_high": change.high, "outcome_p": p}
    return counts | rates | {"only_base": only_base, "only_other": only_other} | found


def _needed(rows: Sequence[Mapping[str, Any]]) -> int:
    """Units at which the smallest sign-flip p survives Holm over all rows that have one."""
    tested = max(1, sum(row.get("p") is not None for row in rows))
    return 1 + math.ceil(math.log2(tested / _LEVEL))


def _able(least: Sequence[float]) -> list[bool]:
    """Which tests could be rejected at all: those whose smallest p is at most level / K, for the least K that leaves no more than K of them (Tarone 1990)."""
    for k in range(1, len(least) + 1):
        able = [p <= _LEVEL / k for p in least]
        if sum(able) <= k:
            return able
    return [False] * len(least)


def _adjusted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Step 6: Holm over the rows that could show anything, values and outcomes apart, and what is shown."""
    for p, adjusted, units in (
        ("p", "p_adjusted", lambda row: row["units"]),
        ("outcome_p", "outcome_p_adjusted", lambda row: row["only_base"] + row["only_other"]),
    ):
        tested = [row for row in rows if row.get(p) is not None]
        # A p below the bound can only come of sampled flips or of clusters; it shows that the row was able.
        able = _able([min(row[p], 2.0 ** (1 - units(row))) for row in tested])
        kept = [row for row, is_able in zip(tested, able, strict=True) if is_able]
        for row, value in zip(kept, holm([row[p] for row in kept]) if kept else (), strict=True):
            row[adjusted] = float(value)
    needed = _needed(rows)
    out = []
    for row in rows:
        shown = []
        if row.get("p_adjusted", 1.0) <= _LEVEL:
            shown.append("value higher" if row["difference"] > 0 else "value lower")
        if row.get("outcome_p_adjusted", 1.0) <= _LEVEL:
            shown.append("fires more often" if row["rate_difference"] > 0 else "fires less often")
        note = f"{row['units']} units: too few for a p of {_LEVEL:g} here; {needed} are enough." if "p_adjusted" not in row else ""
        filled = {key: _number(row.get(key)) for key in _SCHEMA}
        out.append(filled | {"shown": " and ".join(shown), "note": note})
    return out


def _where(row: Mapping[str, Any]) -> str:
    return f"{row['shell']} {row['mode']}" + ("" if row["side"] == "all" else f" ({row['side']} items)")


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
