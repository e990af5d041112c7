"""Findings of INSTRUCTION-DISRUPTION: verdicts, who decides, and the tables of a run folder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TYPE_CHECKING

import numpy as np
import polars as pl

from symbolic_residue.shells._findings import Findings, quoted, state_of
from symbolic_residue.shells._verdict import Verdict
from symbolic_residue.shells.instruction_disruption._attribute import HeadAttribution, SpanEffect
from symbolic_residue.shells.instruction_disruption._judge import followed_alone, share_over_tasks
from symbolic_residue.shells.instruction_disruption._residue import InstructionDisruptionResidue
from symbolic_residue.stats import bound

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["InstructionDisruptionFindings", "effects_frame", "heads_frame", "rates_frame", "summarise"]

TARGET = "later − earlier instruction"


@dataclass(frozen=True)
class InstructionDisruptionFindings(Findings[InstructionDisruptionResidue]):
    """What INSTRUCTION-DISRUPTION found on one pair.

    Attributes:
        effects: what hiding each block does; empty without interventions, or where the two continuations never differ.
        heads: who lets the later instruction win; None likewise.
        conflict: geometric conflict of the two instructions (1 − cosine of the centred vectors).
    """

    effects: list[SpanEffect] = field(kw_only=True)
    heads: HeadAttribution | None = field(repr=False, kw_only=True)
    conflict: float = field(kw_only=True)

    @property
    def failed(self) -> bool | None:
        """Whether most answers to the pair did not follow both; None where an instruction alone is not followed, so nothing can be said."""
        if any(v.outcome == "undecided" and v.note.startswith("Not judged") for v in self.verdicts):
            return None
        answers = self.residue.frames["instruction_answers"].filter(pl.col("condition") == "conflict")
        return share_over_tasks(answers, ~(pl.col("follows_a") & pl.col("follows_x"))).value > 0.5

    @property
    def responsible(self) -> list[str]:
        """Names of the blocks that decide, over both orders."""
        return [e.name for e in self.effects if e.order == "both" and e.responsible]

    def tensors(self) -> dict[str, Tensor]:
        """``dla_heads [prompt, layer, head]``, where attributed."""
        import torch

        return {} if self.heads is None else {"dla_heads": torch.tensor(self.heads.dla)}


def summarise(residue: InstructionDisruptionResidue, verdicts: list[Verdict], effects: list[SpanEffect], conflict: float) -> str:
    """One sentence that can be quoted."""
    asked, answers = residue.asked, residue.frames["instruction_answers"]
    a, b = quoted(asked.a.text), quoted(asked.b.text)
    alone = followed_alone(answers)
    if any(v.note.startswith("Not judged") for v in verdicts):
        state = " and ".join(f"{name} {e.value:.0%}" for name, e in alone.items())
        return f"{a} (a) and {b} (b): not judged, alone they are followed in {state} of the answers; geometric conflict {conflict:.2f}."
    pair = answers.filter(pl.col("condition") == "conflict")
    parts = []
    for words, flag in (
        ("both followed", pl.col("follows_a") & pl.col("follows_x")),
        ("only a", pl.col("follows_a") & ~pl.col("follows_x")),
        ("only b", ~pl.col("follows_a") & pl.col("follows_x")),
    ):
        parts.append(f"{words} {share_over_tasks(pair, flag).value:.0%}")
    who = [e.name for e in effects if e.order == "both" and e.responsible]
    decides = f"; hiding {' or '.join(who)} moves the preference away from it" if who else ""
    return f"{a} (a) with {b} (b): {', '.join(parts)} of the answers; {state_of(verdicts)}{decides}; geometric conflict {conflict:.2f}."


def rates_frame(residue: InstructionDisruptionResidue) -> pl.DataFrame:
    """Rows of ``instruction_rates``: shares of answers by condition, with Wilson intervals over questions."""
    answers = residue.frames["instruction_answers"]
    a, x = pl.col("follows_a"), pl.col("follows_x")
    rows: list[dict[str, Any]] = []
    for (condition, order, arrangement), part in answers.group_by("condition", "order", "arrangement", maintain_order=True):
        flags: dict[str, pl.Expr] = {"empty": pl.col("answer") == ""}
        if str(condition).startswith("alone"):
            flags["followed"] = pl.col(f"follows_{order}")
        else:
            other = "b" if condition == "conflict" else "c"
            flags |= {"both": a & x, "only a": a & ~x, f"only {other}": ~a & x, "neither": ~a & ~x, "blended": pl.col("blended")}
        for name, flag in flags.items():
            e = share_over_tasks(part, flag)
            rows.append(
                {
                    "condition": condition,
                    "order": order,
                    "arrangement": arrangement,
                    "outcome": name,
                    "share": e.value,
                    "low": e.low,
                    "high": e.high,
                    "n": e.n,
                }
            )
    return pl.DataFrame(rows)


def effects_frame(effects: list[SpanEffect]) -> pl.DataFrame:
    """Rows of ``instruction_effects``."""
    return pl.DataFrame(
        [
            {
                "hidden": e.name,
                "order": e.order,
                "tokens": e.tokens,
                "value": e.effect.value,
                "low": bound(e.effect.low),
                "high": bound(e.effect.high),
                "n": e.effect.n,
                "unit": "nats toward a",
                "p": e.p,
                "recovered": e.recovered,
                "responsible": e.responsible,
            }
            for e in effects
        ],
        schema_overrides={
            **dict.fromkeys(("low", "high", "p", "recovered"), pl.Float64),
            "responsible": pl.Boolean,
        },
    )


def heads_frame(heads: HeadAttribution) -> pl.DataFrame:
    """Rows of ``heads``: every head's attribution, and the tested ones' interventions."""
    tests = {(t.layer, t.head): t for t in heads.tested.tests}
    limit = heads.tested.random_effect
    rows = []
    for layer, head in np.argwhere(~np.isnan(heads.value)).tolist():
        test = tests.get((layer, head))
        rows.append(
            {
                "layer": layer,
                "head": head,
                "target": TARGET,
                "dla": float(heads.value[layer, head]),
                "dla_low": bound(heads.low[layer, head]),
                "dla_high": bound(heads.high[layer, head]),
                "n": heads.n,
                "ablation": test.ablation if test else None,
                "ablation_low": bound(test.low) if test else None,
                "ablation_high": bound(test.high) if test else None,
                "control_ablation": limit if test and math.isfinite(limit) else None,
                "control_n": heads.tested.random_n if test else None,
                "p": test.p if test else None,
                "q": test.q if test else None,
                "specificity_p": test.specificity if test else None,
                "patch_recovered": None,
                "patch_control": None,
                "role": "promotes" if heads.value[layer, head] >= 0 else "inhibits",
                "confirmed": test.confirmed if test else None,
            }
        )
    floats = ("dla_low", "dla_high", "ablation", "ablation_low", "ablation_high", "control_ablation", "p", "q", "specificity_p")
    overrides: dict[str, Any] = dict.fromkeys((*floats, "patch_recovered", "patch_control"), pl.Float64)
    return pl.DataFrame(rows, schema_overrides={**overrides, "control_n": pl.Int64, "confirmed": pl.Boolean})
