"""A verdict: one number beside its control, its intervals, its n and its criterion.

1. The number's interval is compared with the criterion: wholly past it, the verdict *fires*; wholly short of it, it is *absent*; else *undecided*.
2. A failure that its own control shows as well is not attributed: *fires* becomes *undecided*, and the note says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from symbolic_residue.stats import bound, decide, Estimate, Outcome

__all__ = ["Verdict", "judge", "verdict_frame"]

Direction = Literal["above", "below"]


@dataclass(frozen=True)
class Verdict:
    """One failure mode's verdict.

    Attributes:
        mode: the failure mode.
        outcome: fires, absent or undecided.
        quantity: what was measured, in words; ``unit`` its unit.
        value: the estimate on the prompt; ``control_value`` the same on the control, described by ``control``.
        criterion: the threshold; the verdict fires on the side ``direction``.
        criterion_source: where the threshold comes from.
        note: what else one should know.
    """

    shell: str
    mode: str
    outcome: Outcome
    quantity: str
    unit: str
    value: Estimate
    control: str
    control_value: Estimate
    criterion: float
    direction: Direction
    criterion_source: str
    note: str = ""


def judge(
    shell: str,
    mode: str,
    *,
    quantity: str,
    unit: str,
    value: Estimate,
    control: str,
    control_value: Estimate,
    criterion: float,
    direction: Direction,
    criterion_source: str,
    control_must_be_clear: bool = True,
    note: str = "",
) -> Verdict:
    """The verdict on one quantity.

    Args:
        control_must_be_clear: whether a control that is itself past the criterion takes a firing verdict back.
        note: put before any note of this function.
    """
    outcome = decide(value, criterion, direction)
    notes = [note] if note else []
    if not value.has_interval:
        notes.append(f"No interval: {value.method}.")
    if control_must_be_clear and outcome == "fires" and decide(control_value, criterion, direction) == "fires":
        outcome = "undecided"
        notes.append("The control is past the criterion too, so the failure is not this prompt's.")
    return Verdict(
        shell, mode, outcome, quantity, unit, value, control, control_value, criterion, direction, criterion_source, " ".join(notes)
    )


def verdict_frame(verdicts: Sequence[Verdict]) -> pl.DataFrame:
    """Verdicts as the ``verdicts`` table (without its ``item`` column); bounds that do not exist are null."""
    return pl.DataFrame(
        [
            {
                "shell": v.shell,
                "mode": v.mode,
                "outcome": v.outcome,
                "quantity": v.quantity,
                "unit": v.unit,
                "value": v.value.value,
                "low": bound(v.value.low),
                "high": bound(v.value.high),
                "n": v.value.n,
                "control": v.control,
                "control_value": v.control_value.value,
                "control_low": bound(v.control_value.low),
                "control_high": bound(v.control_value.high),
                "control_n": v.control_value.n,
                "criterion": v.criterion,
                "direction": v.direction,
                "criterion_source": v.criterion_source,
                "note": v.note,
            }
            for v in verdicts
        ],
        schema={
            **dict.fromkeys(("shell", "mode", "outcome", "quantity", "unit"), pl.String),
            **dict.fromkeys(("value", "low", "high"), pl.Float64),
            "n": pl.Int64,
            "control": pl.String,
            **dict.fromkeys(("control_value", "control_low", "control_high"), pl.Float64),
            "control_n": pl.Int64,
            "criterion": pl.Float64,
            **dict.fromkeys(("direction", "criterion_source", "note"), pl.String),
        },
    )
