"""What a claim is, and how a measured number becomes "supported", "contradicted" or "undecided".

1. A claim states its test in words before it runs: what is measured, on which items, what n counts, and which values decide.
2. ``measure`` gets a :class:`Bench`: the opened model, and the residue of every benchmark item (both splits, the shell's suite options).
3. It returns :func:`compared`: the whole interval beyond ``supports`` supports, the whole interval beyond ``contradicts`` contradicts, anything else is undecided.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from symbolic_residue.shells import verdict_frame
from symbolic_residue.stats import Estimate

__all__ = ["Bench", "Claim", "Measured", "Outcome", "compared"]

Outcome = Literal["supported", "contradicted", "undecided"]


@dataclass
class Bench:
    """What claims are tested with.

    Attributes:
        loaded: the opened model.
        residues: gives, for a shell's name, the shell and the (item, residue) of its whole benchmark; called once a shell.
    """

    loaded: Any
    residues: Callable[[str], tuple[Any, list[tuple[Any, Any]]]]
    _kept: dict[str, tuple[Any, list[tuple[Any, Any]]]] = field(default_factory=dict)

    def of(self, shell: str) -> tuple[Any, list[tuple[Any, Any]]]:
        """The shell, and (item, residue) of every item of its benchmark (both splits, suite options)."""
        if shell not in self._kept:
            self._kept[shell] = self.residues(shell)
        return self._kept[shell]

    def table(self, shell: str, name: str, *, split: str | None = None) -> pl.DataFrame:
        """A table of every item (``verdicts``, or one of the residue's) with the columns ``item, null, kind, frame, split, planted`` beside; of one split or both."""
        made, pairs = self.of(shell)
        frames = []
        for item, residue in pairs:
            if split is not None and item.split != split:
                continue
            frame = verdict_frame(made.verdicts(residue)) if name == "verdicts" else residue.frames[name]
            frames.append(
                frame.with_columns(
                    item=pl.lit(item.id),
                    null=pl.lit(item.null),
                    kind=pl.lit(item.kind),
                    frame=pl.lit(item.frame or item.kind),
                    split=pl.lit(item.split),
                    planted=pl.lit(", ".join(item.modes)),
                )
            )
        return pl.concat(frames, how="vertical_relaxed")


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
