"""What a shell found: verdicts, tables, one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TYPE_CHECKING, TypeVar

import polars as pl

from symbolic_residue.errors import ConfigError
from symbolic_residue.shells._residue import ShellResidue
from symbolic_residue.shells._verdict import Verdict, verdict_frame

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Findings", "listed", "quoted", "short", "state_of"]

ResidueT = TypeVar("ResidueT", bound=ShellResidue)


@dataclass(frozen=True)
class Findings(Generic[ResidueT]):
    """What a shell found in a residue.

    Attributes:
        residue: what it was found in.
        verdicts: one for each failure mode, in the shell's order.
        frames: tables of the analysis; they stand before the residue's of the same name.
        summary: the verdict in one sentence that can be quoted.
    """

    residue: ResidueT
    verdicts: list[Verdict]
    frames: dict[str, pl.DataFrame] = field(repr=False)
    summary: str = ""

    def verdict(self, mode: str) -> Verdict:
        """The verdict on one failure mode.

        Raises:
            ConfigError: the shell has no such mode.
        """
        for verdict in self.verdicts:
            if verdict.mode == mode:
                return verdict
        raise ConfigError(
            f"{self.residue.shell} has no failure mode {mode!r}.", todo=f"Use one of: {', '.join(v.mode for v in self.verdicts)}."
        )

    def tables(self) -> dict[str, pl.DataFrame]:
        """All tables for a run folder, without their ``item`` column."""
        return {"verdicts": verdict_frame(self.verdicts), **self.residue.shown(), **self.frames}

    def tensors(self) -> dict[str, Tensor]:
        """Arrays for a run folder."""
        return {}

    def _repr_html_(self) -> str:
        from symbolic_residue.figures import verdict_cards_html

        return verdict_cards_html(verdict_frame(self.verdicts))


def state_of(verdicts: Sequence[Verdict]) -> str:
    """Which modes fire and which are undecided, as the end of a summary: ``recall decay fires; partial recall undecided``."""
    fired = [v.mode for v in verdicts if v.outcome == "fires"]
    undecided = [v.mode for v in verdicts if v.outcome == "undecided"]
    parts = []
    if fired:
        parts.append(f"{listed(fired)} {'fires' if len(fired) == 1 else 'fire'}")
    if undecided:
        parts.append(f"{listed(undecided)} undecided")
    return "; ".join(parts) or "no failure mode fires"


def quoted(token: str) -> str:
    """A token in quotation marks."""
    return f"“{token}”"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def short(text: str, limit: int = 160) -> str:
    """White space joined, and cut at ``limit`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
