"""Findings of MEMTRACE: verdicts, retrieval heads, what would change it, and heads by the type of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from symbolic_residue.errors import ConfigError
from symbolic_residue.shells._confirm import HeadTest
from symbolic_residue.shells._findings import Findings, quoted, state_of
from symbolic_residue.shells._verdict import Verdict
from symbolic_residue.shells.memtrace._attribute import DOSE, Interventions
from symbolic_residue.shells.memtrace._curves import memory, peak
from symbolic_residue.shells.memtrace._residue import MemtraceResidue
from symbolic_residue.shells.memtrace._tables import ATTENTION, RETRIEVAL
from symbolic_residue.stats import bootstrap_mean, bound

__all__ = ["MemtraceFindings", "changes", "retrieval_by_type", "summarise"]


@dataclass(frozen=True)
class MemtraceFindings(Findings[MemtraceResidue]):
    """What MEMTRACE found on one fact.

    Attributes:
        tests: interventions on the heads with the largest retrieval, in that order.
    """

    tests: list[HeadTest] = field(repr=False, kw_only=True)

    @property
    def retrieval_heads(self) -> list[tuple[int, int]]:
        """(layer, head) of those confirmed."""
        return [(t.layer, t.head) for t in self.tests if t.confirmed]


def summarise(residue: MemtraceResidue, verdicts: list[Verdict]) -> str:
    """One sentence that can be quoted."""
    asked, measures = residue.asked, residue.frames["measures"]
    decay = verdicts[0]
    answer = quoted("".join(f.text for f in asked.fields).strip())
    (best, near), far = peak(measures, asked), memory(measures, asked.paddings[0], asked.distance)
    before = f"{near.mean():.1f} nats after {best} tokens and " if best != asked.distance else ""
    kept = f"stating it is worth {before}{far.mean():.1f} nats after {asked.distance} tokens"
    if decay.outcome == "fires":
        head = f"The fact behind {answer} is lost: {kept}"
    elif decay.outcome == "absent":
        head = f"The fact behind {answer} is kept: {kept}"
    else:
        head = f"Whether the fact behind {answer} is kept is open: {kept}"
    return f"{head}; {state_of(verdicts)}."


def changes(residue: MemtraceResidue, found: Interventions | None) -> pl.DataFrame:
    """The table ``changes``: what would change the answer at the judged distance."""
    asked, measures, criteria = residue.asked, residue.frames["measures"], residue.config.criteria
    kind = asked.paddings[0]
    rows: list[tuple[str, str, float | None, str, str]] = []
    best, there = peak(measures, asked)
    near = float(there.mean())
    lost = [d for d in asked.distances if d > best and near - float(memory(measures, kind, d).mean()) > criteria.decay]
    rows.append(
        (
            "distance",
            "The shortest distance at which the criterion of recall decay is passed (mean over draws)",
            float(lost[0]) if lost else None,
            f"memory {near:.2f} nats at {best} tokens" if lost else "none of the distances measured",
            "tokens",
        )
    )
    far = float(memory(measures, kind, asked.distance).mean())
    rows.append(("control", "State the fact at this distance, or do not", far, "change of ln P(answer)", "nats"))
    if found is not None:
        for row in found.dose.filter((pl.col("curve") == DOSE) & (pl.col("series") == "fact")).iter_rows(named=True):
            rows.append(
                (
                    "anchor",
                    f"Multiply the odds of the fact's keys by {row['x']:g}",
                    row["value"],
                    "log-odds answer over foil",
                    "nats",
                )
            )
        for test in sorted(found.found.tests, key=lambda t: -abs(t.ablation))[:3]:
            said = "" if test.confirmed else " (not confirmed)"
            rows.append(
                (
                    "head",
                    f"Mean-ablate head {test.layer}.{test.head} at the last row{said}",
                    test.ablation,
                    "log-odds answer over foil",
                    "nats",
                )
            )
    return pl.DataFrame(
        [(i + 1, *row) for i, row in enumerate(rows)],
        schema={
            "rank": pl.Int64,
            "kind": pl.String,
            "description": pl.String,
            "needed": pl.Float64,
            "effect": pl.String,
            "unit": pl.String,
        },
        orient="row",
    )


def retrieval_by_type(findings: Sequence[MemtraceFindings], *, seed: int = 0) -> pl.DataFrame:
    """Heads by the type of the answer (name, number, word), over several facts.

    Args:
        findings: of different facts; ``n`` counts facts.
        seed: of the bootstrap over facts.

    Returns:
        ``token_type, layer, head, retrieval, low, high, attention, n, tested, confirmed``: retrieval beyond its control (nats) with its interval over facts,
        mean attention to the answer's token, and in how many facts the head was tested and confirmed.

    Raises:
        ConfigError: no findings.
    """
    if not findings:
        raise ConfigError("There are no findings to sort by type.")
    rows: list[dict[str, Any]] = []
    for kind in sorted({f.residue.asked.token_type for f in findings}):
        mine = [f for f in findings if f.residue.asked.token_type == kind]
        scores = [f.residue.frames["head_scores"].sort("layer", "head") for f in mine]
        retrieval = [s.filter(pl.col("score") == RETRIEVAL) for s in scores]
        beyond = np.stack([(s["value"] - s["control"].fill_null(0.0)).to_numpy() for s in retrieval])
        attention = np.stack([s.filter(pl.col("score") == ATTENTION)["value"].to_numpy() for s in scores])
        for i, (layer, head) in enumerate(zip(retrieval[0]["layer"], retrieval[0]["head"], strict=True)):
            tests = [t for f in mine for t in f.tests if (t.layer, t.head) == (layer, head)]
            found = bootstrap_mean(beyond[:, i], seed=seed)
            rows.append(
                {
                    "token_type": kind,
                    "layer": layer,
                    "head": head,
                    "retrieval": found.value,
                    "low": bound(found.low),
                    "high": bound(found.high),
                    "attention": float(attention[:, i].mean()),
                    "n": len(mine),
                    "tested": len(tests),
                    "confirmed": sum(bool(t.confirmed) for t in tests),
                }
            )
    return pl.DataFrame(rows, schema_overrides={"low": pl.Float64, "high": pl.Float64}).sort(
        "token_type", "retrieval", descending=[False, True]
    )
