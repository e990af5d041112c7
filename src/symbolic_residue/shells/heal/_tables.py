"""What healing returns: its two tables and one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.shells.heal._rule import bounds
from symbolic_residue.stats import bootstrap_mean, wilson

__all__ = ["Healing", "SideEffects", "heals_frame", "rules_frame", "summarise"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Healing:
    """What the menu did.

    Attributes:
        heals: a row for each failure and kind: the smallest entry that restores it (table ``heals``).
        rules: a row for each kind: the entry chosen on the search set, tested on held-out failures (table ``heal_rules``).
        right: ids of given items that the model answers rightly, and that are no failures.
        summary: in one sentence.
    """

    heals: pl.DataFrame = field(repr=False)
    rules: pl.DataFrame = field(repr=False)
    right: tuple[str, ...]
    summary: str

    def tables(self) -> dict[str, pl.DataFrame]:
        """``heals`` and ``heal_rules``."""
        return {"heals": self.heals, "heal_rules": self.rules}

    def tensors(self) -> dict[str, Tensor]:
        """None."""
        return {}


@dataclass(frozen=True)
class SideEffects:
    """What every entry does to unrelated prompts.

    Attributes:
        kl: ``[entry, prompt]``: KL divergence of the unedited from the edited next-token distribution, nats.
        changed: ``[entry, prompt]``: 1 where the most probable token is another one.
    """

    kl: Array
    changed: Array

    def size(self, entry: int) -> float:
        """Mean KL (nats): what all kinds share as a measure of size."""
        return float(self.kl[entry].mean())

    def columns(self, entry: int, seed: int) -> dict[str, Any]:
        """``side_…`` of both tables: mean KL with its bootstrap interval, share changed with Wilson's, both over prompts."""
        kl = bootstrap_mean(self.kl[entry], seed=seed)
        low, high = bounds(kl, 0.0)
        share = wilson(int(self.changed[entry].sum()), self.changed.shape[1])
        return {
            "side_kl": kl.value,
            "side_low": low,
            "side_high": high,
            "side_n": kl.n,
            "side_changed": share.value,
            "side_changed_low": share.low,
            "side_changed_high": share.high,
        }


def heals_frame(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Table ``heals``; ``smallest`` marks, of each failure, the restoring entry of the least side effect."""
    least: dict[str, float] = {}
    for row in rows:
        if row["restored"]:
            least[row["failure"]] = min(row["side_kl"], least.get(row["failure"], np.inf))
    marked, taken = [], set()
    for row in rows:
        first = row["restored"] and row["side_kl"] == least[row["failure"]] and row["failure"] not in taken
        if first:
            taken.add(row["failure"])
        marked.append({**row, "smallest": bool(first)})
    return pl.DataFrame(marked, schema=_HEALS)


def rules_frame(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Table ``heal_rules``."""
    return pl.DataFrame([{name: row.get(name) for name in _RULES} for row in rows], schema=_RULES)


def summarise(rows: Sequence[dict[str, Any]], n_search: int, n_test: int, n_right: int) -> str:
    """The outcome in one sentence."""
    good = [row for row in rows if row["outcome"] == "heals"]
    told = f"{n_search} failures to search on, {n_test} held out" + (f" ({n_right} items were answered rightly)" if n_right else "")
    if good:
        best = min(good, key=lambda row: row["side_kl"])
        return (
            f"{best['kind'].capitalize()} ({best['place']}, dose {best['dose']:g}) restores {best['restored']} of {best['n']} held-out failures "
            f"[{best['low']:.0%}, {best['high']:.0%}], its random twins {best['control_rate']:.0%} of them, at a side effect of {best['side_kl']:.3f} "
            f"nats: {told}."
        )
    open_ = [row for row in rows if row["outcome"] == "undecided" and row.get("rate") is not None]
    if open_:
        best = max(open_, key=lambda row: row["rate"] - row["control_rate"])
        told += (
            f". Undecided: {best['kind']} ({best['place']}, dose {best['dose']:g}), {best['restored']} of {best['n']} "
            f"[{best['low']:.0%}, {best['high']:.0%}] beside {best['control_rate']:.0%} by random twins"
        )
    return f"No edit of the menu is shown to heal: {told}."


_SIDE = {
    **dict.fromkeys(("side_kl", "side_low", "side_high"), pl.Float64),
    "side_n": pl.Int64,
    **dict.fromkeys(("side_changed", "side_changed_low", "side_changed_high"), pl.Float64),
}
_HEALS = {
    **dict.fromkeys(("failure", "kind", "place"), pl.String),
    "dose": pl.Float64,
    **dict.fromkeys(("restored", "twin_restored", "smallest"), pl.Boolean),
    "measure": pl.String,
    **dict.fromkeys(("before", "after", "limit"), pl.Float64),
    "prompts": pl.Int64,
    **_SIDE,
    **dict.fromkeys(("entries", "entries_restoring"), pl.Int64),
}
_RULES = {
    **dict.fromkeys(("kind", "place"), pl.String),
    "dose": pl.Float64,
    **dict.fromkeys(("search_restored", "search_n", "restored", "n", "frames"), pl.Int64),
    **dict.fromkeys(("rate", "low", "high", "control_rate", "control_low", "control_high"), pl.Float64),
    "control_n": pl.Int64,
    **dict.fromkeys(("p", "p_adjusted", "gain", "gain_low", "gain_high"), pl.Float64),
    "measure": pl.String,
    **_SIDE,
    "outcome": pl.String,
}
