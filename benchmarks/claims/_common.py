"""What a claim is, and how a measured number becomes "supported", "contradicted" or "undecided".

1. A claim states its test in words before it runs: what is measured, on which items, what n counts, and which values decide.
2. ``measure`` gets a :class:`Bench`: the opened model, and the tables of a run of every benchmark item (both splits, verdicts only, the shell's suite options).
3. It returns :func:`compared`: the whole interval beyond ``supports`` supports, the whole interval beyond ``contradicts`` contradicts, anything else is undecided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from symbolic_residue.stats import Estimate

__all__ = ["Bench", "Claim", "Measured", "Outcome", "compared"]

Outcome = Literal["supported", "contradicted", "undecided"]


@dataclass(frozen=True)
class Bench:
    """What claims are tested with.

    Attributes:
        loaded: the opened model.
        runs: the run folder of each shell's benchmark, by the shell's name.
    """

    loaded: Any
    runs: dict[str, Path]

    def table(self, shell: str, name: str, *, split: str | None = None) -> pl.DataFrame:
        """A table of the shell's run with the columns of ``shell_items`` beside (``null``, ``kind``, ``frame``, ``split`` …), of one split or both."""
        from symbolic_residue.store import RunFolder

        folder = RunFolder.open(self.runs[shell])
        items = folder.table("shell_items")
        joined = folder.table(name).join(items.rename({"shell": "of_shell"}), on="item", how="inner")
        return joined if split is None else joined.filter(pl.col("split") == split)


@dataclass(frozen=True)
class Measured:
    """What came of a claim's test.

    Attributes:
        outcome: supported, contradicted or undecided.
        numbers: what was measured, with interval, n and control, in words.
    """

    outcome: Outcome
    numbers: str


@dataclass(frozen=True)
class Claim:
    """One published statement.

    Attributes:
        id: short and unique: ``memtrace-power-law``.
        statement: the statement, in our words.
        test: stated beforehand: what is measured, on what, what n counts, and what decides.
        measure: makes the test.
    """

    id: str
    statement: str
    test: str
    measure: Callable[[Bench], Measured]


def compared(
    value: Estimate, *, above: float | None = None, below: float | None = None, otherwise: float | None = None, numbers: str
) -> Measured:
    """The outcome of one estimate.

    Args:
        value: the estimate with its interval; without an interval nothing is decided.
        above, below: exactly one: the claim says that the value is above (below) this.
        otherwise: the claim is contradicted only where the interval is wholly on the other side of this; the same threshold when left out.
        numbers: what was measured, in words.
    """
    if (above is None) == (below is None):
        raise ValueError("give exactly one of above and below")
    limit = above if above is not None else below
    assert limit is not None
    other = limit if otherwise is None else otherwise
    holds = value.above(limit) if above is not None else value.below(limit)
    fails = value.below(other) if above is not None else value.above(other)
    return Measured("supported" if holds else "contradicted" if fails else "undecided", numbers)
