"""What a claim is, what it is measured with, and how its numbers are kept.

1. A claim states its test in words before it runs: what is measured, on which items, what n counts; and its rule: which intervals decide. ``stated`` says what was known when
   it was written.
2. ``measure`` gets a :class:`Bench` and returns :class:`Measured`: numbers with intervals, and numbers that stand beside.
3. What was measured is kept as JSON with the test and the rule that it was made by; :func:`read` refuses it once either has been reworded.
4. Words and verdicts are made from the kept numbers alone (``said`` is a template), so that the page can say nothing that the numbers do not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from claims._rule import decide, Outcome, Rule
from symbolic_residue.shells import verdict_frame
from symbolic_residue.stats import Estimate

__all__ = ["KEPT", "SIGNS", "Bench", "Claim", "Kept", "Measured", "keep", "read", "words"]

KEPT = Path(__file__).with_name("kept")
SIGNS: dict[Outcome, str] = {"supported": "✓ supported", "contradicted": "✗ contradicted", "undecided": "? undecided"}


@dataclass
class Bench:
    """What claims are tested with.

    Attributes:
        loaded: the opened model.
        residues: gives, for a shell's name, the shell and the (item, residue) of its whole benchmark; called once a shell.
    """

    loaded: Any
    residues: Callable[[str], tuple[Any, list[tuple[Any, Any]]]]
    kept: dict[str, Any] = field(default_factory=dict)
    """What several claims of a shell share, so that it is measured once."""

    def of(self, shell: str) -> tuple[Any, list[tuple[Any, Any]]]:
        """The shell, and (item, residue) of every item of its benchmark (both splits, suite options)."""
        return self.once(f"residues of {shell}", lambda: self.residues(shell))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made at the first call."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

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
        numbers: those that decide, and others with an interval.
        beside: counts and values that stand beside.
        units: what was measured of each unit (a text, a fact, an item), a row each.
    """

    numbers: dict[str, Estimate]
    beside: dict[str, float | int | str] = field(default_factory=dict)
    units: list[list[Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """One published statement.

    Attributes:
        id: short and unique: ``memtrace-power-law``.
        statement: the statement, in our words.
        test: what is measured, on what, and what n counts.
        rule: which intervals decide.
        said: the outcome's words, a template over the numbers (shown with their intervals) and what stands beside.
        measure: makes the test.
        stated: what was known when the test was written.
        afterwards: what the verdict hangs on, written when the numbers were known.
    """

    id: str
    statement: str
    test: str
    rule: Rule
    said: str
    measure: Callable[[Bench], Measured]
    stated: str = "Before any of its numbers was seen."
    afterwards: str = ""


@dataclass(frozen=True)
class Kept:
    """What is kept of one claim.

    Attributes:
        test, rule: by which it was measured.
        numbers, beside, units: as in :class:`Measured`.
        refused: why it could not be measured; empty where it was.
        date, machine, seconds: when, on what, for how long.
    """

    test: str
    rule: str
    numbers: dict[str, Estimate]
    beside: dict[str, float | int | str]
    refused: str
    date: str
    machine: str
    seconds: float
    units: list[list[Any]] = field(default_factory=list)


class _Shown:
    """A number that a template's ``{share:.2f}`` shows with its interval."""

    def __init__(self, estimate: Estimate) -> None:
        self.value, self.n = estimate.value, estimate.n
        self._estimate = estimate

    def __format__(self, spec: str) -> str:
        e = self._estimate
        interval = f" [{e.low:{spec}}, {e.high:{spec}}]" if e.has_interval else f" (no interval: {e.method})"
        return f"{e.value:{spec}}{interval}"


def words(claim: Claim, kept: Kept) -> str:
    """The outcome's words from the kept numbers."""
    if kept.refused:
        return f"not measured: {kept.refused}"
    if any(bound.number not in kept.numbers for bound in (*claim.rule.supported, *claim.rule.contradicted)):
        return "too little was measured: " + ", ".join(f"{name} {value}" for name, value in kept.beside.items())
    text = claim.said.format(**{name: _Shown(e) for name, e in kept.numbers.items()}, **kept.beside)
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text)


def outcome(claim: Claim, kept: Kept) -> Outcome:
    """The verdict from the kept numbers."""
    return decide(claim.rule, kept.numbers)


def keep(folder: Path, shell: str, found: Mapping[str, Kept]) -> None:
    """Write what was measured of a shell's claims."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, one in found.items():
        row = asdict(one)
        units = row.pop("units")
        for number in row["numbers"].values():
            for side in ("value", "low", "high"):
                number[side] = None if math.isnan(number[side]) else number[side]
        # A unit a line, so that the file can be read and compared.
        lines = ",\n  ".join(json.dumps(unit, ensure_ascii=False) for unit in units)
        body = json.dumps(row, ensure_ascii=False, indent=1)[:-2]
        parts.append(f'{json.dumps(name)}: {body},\n "units": [{lines}]\n}}')
    (folder / f"{shell}.json").write_text("{\n" + ",\n".join(parts) + "\n}\n", "utf-8")


def read(folder: Path, shell: str, claims: list[Claim]) -> dict[str, Kept]:
    """What is kept of these claims, by id; what was measured by another test or rule is left out."""
    file = folder / f"{shell}.json"
    rows = json.loads(file.read_text("utf-8")) if file.exists() else {}
    found = {}
    for claim in claims:
        row = rows.get(claim.id)
        if row is None or row["test"] != claim.test or row["rule"] != str(claim.rule):
            continue
        numbers = {
            name: Estimate(**{k: math.nan if v is None else v for k, v in number.items()})
            for name, number in row["numbers"].items()
        }
        found[claim.id] = Kept(**row | {"numbers": numbers})
    return found
