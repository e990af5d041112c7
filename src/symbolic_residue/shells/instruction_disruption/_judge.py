"""The four verdicts of INSTRUCTION-DISRUPTION from a residue's answers.

Every number is a share of answers. The unit is one question: its share is the mean over orders and arrangements, and the interval is Wilson's with the mean
share at n = questions, so that two orders of one question are no further evidence; it never leaves [0, 1].

1. **nullification**: the answer follows neither instruction, or says nothing.
2. **partial execution**: it follows exactly one. On a contradictory pair nothing better is possible; the verdict says that one was dropped.
3. **blended execution**: a part of it follows the one and the part beside it the other.
4. **priority inversion**: it follows only the instruction of lower stated priority (the second in the user's turn, the user's against the system's).

Controls: the same shares where ``b`` is replaced by an instruction compatible with ``a``; for blended execution the answers to each instruction alone.
A pair is judged only where each instruction alone is followed in at least the criterion's share of answers; otherwise all four are undecided and say so.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
from scipy.stats import norm

from symbolic_residue.shells._verdict import judge, Verdict
from symbolic_residue.shells.instruction_disruption._residue import InstructionDisruptionResidue
from symbolic_residue.stats import Estimate

__all__ = ["MODES", "followed_alone", "share", "share_over_tasks", "verdicts"]

MODES = ("nullification", "partial execution", "blended execution", "priority inversion")
SHELL = "instruction-disruption"
LEVEL = 0.95


def share(mean: float, n: int, level: float = LEVEL) -> Estimate:
    """A mean share over ``n`` units with Wilson's interval at that share (wider than that of the units' means: they lie in [0, 1])."""
    if n < 1:
        return Estimate(float("nan"), math.nan, math.nan, 0, level, "no answers")
    z = float(norm.ppf((1 + level) / 2))
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(
        mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)), n, level, "Wilson at the mean share"
    )


def share_over_tasks(answers: pl.DataFrame, flag: pl.Expr) -> Estimate:
    """Share of answers with ``flag``: the mean over questions of each one's own share."""
    if answers.is_empty():
        return share(0.0, 0)
    each = answers.group_by("task").agg(flag.cast(pl.Float64).mean().alias("x"))["x"].to_numpy()
    return share(float(np.mean(each)), len(each))


def followed_alone(answers: pl.DataFrame) -> dict[str, Estimate]:
    """Share of answers to each instruction alone that follow it."""
    return {
        name: share_over_tasks(answers.filter(pl.col("condition") == f"alone {name}"), pl.col(f"follows_{name}"))
        for name in ("a", "b")
    }


def verdicts(residue: InstructionDisruptionResidue) -> list[Verdict]:
    """The four verdicts, in the order of :data:`MODES`."""
    criteria, answers = residue.config.criteria, residue.frames["instruction_answers"]
    conflict = answers.filter(pl.col("condition") == "conflict")
    control = answers.filter(pl.col("condition") == "control")
    alone = answers.filter(pl.col("condition").str.starts_with("alone"))
    # "x" is the other one of the pair: b in the conflict, the compatible one in the control.
    a, x = pl.col("follows_a"), pl.col("follows_x")
    first_is_a = pl.col("order").str.starts_with("a")
    lower_alone = pl.when(first_is_a).then(x & ~a).otherwise(a & ~x)
    made: list[tuple[str, str, pl.Expr, pl.DataFrame, str, float]] = [
        ("nullification", "answers that follow neither instruction", ~a & ~x, control, "", criteria.nullification),
        ("partial execution", "answers that follow exactly one instruction", a != x, control, "", criteria.partial),
        (
            "blended execution",
            "answers in which one part follows the one and another part the other",
            pl.col("blended"),
            alone,
            "the same in the answers to each instruction alone",
            criteria.blended,
        ),
        (
            "priority inversion",
            "answers that follow only the instruction of lower priority",
            lower_alone,
            control,
            "",
            criteria.inversion,
        ),
    ]
    followed = followed_alone(answers)
    weak = [name for name, e in followed.items() if e.value < criteria.followed]
    said = "Alone, " + " and ".join(f"{name} is followed in {e.value:.0%} of {e.n} questions" for name, e in followed.items()) + "."
    out = []
    for mode, quantity, flag, against, words, criterion in made:
        note = said
        if mode == "partial execution" and residue.asked.relation == "contradictory":
            note = f"{said} No answer can follow both: firing means that one was dropped, not that more was possible."
        verdict = judge(
            SHELL,
            mode,
            quantity=quantity,
            unit="share",
            value=share_over_tasks(conflict, flag),
            control=words or f"the same with “{residue.asked.control.text}”, which agrees with a, in b's place",
            control_value=share_over_tasks(against, flag),
            criterion=criterion,
            direction="above",
            criterion_source=criteria.source,
            note=note,
        )
        if weak:
            why = f"Not judged: {' and '.join(weak)} alone must be followed in {criteria.followed:.0%} of the answers."
            value = replace(verdict.value, low=math.nan, high=math.nan, method="none: the instructions alone are not followed")
            verdict = replace(verdict, outcome="undecided", value=value, note=f"{why} {said}")
        out.append(verdict)
    return out
