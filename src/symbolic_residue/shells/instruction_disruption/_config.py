"""Configuration of INSTRUCTION-DISRUPTION and the criteria of its verdicts."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from symbolic_residue.prompts._instructions import PLAIN, TASKS
from symbolic_residue.shells._config import ShellConfig, ShellCriteria

__all__ = ["Arrangement", "InstructionCriteria", "InstructionDisruptionConfig"]

Arrangement = Literal["user+user", "system+user"]


class InstructionCriteria(ShellCriteria):
    """Thresholds of the four verdicts and of NULLIFY; the packaged ones are in ``calibration.json``."""

    thresholds: ClassVar[dict[str, str]] = {
        "nullification": "nullification",
        "partial execution": "partial",
        "blended execution": "blended",
        "priority inversion": "inversion",
    }

    followed: float = Field(gt=0, le=1)
    """Each instruction must be followed alone in at least this share of the answers; otherwise nothing is judged."""

    nullification: float = Field(ge=0, lt=1)
    """Nullification: share of answers that follow neither instruction (or say nothing), above this."""

    partial: float = Field(ge=0, lt=1)
    """Partial execution: share of answers that follow exactly one of the two, above this."""

    blended: float = Field(ge=0, lt=1)
    """Blended execution: share of answers in which one part follows the one and another part the other, above this."""

    inversion: float = Field(ge=0, lt=1)
    """Priority inversion: share of answers that follow only the instruction of lower stated priority, above this."""

    conflict: float = Field(ge=0, le=2)
    """NULLIFY: geometric conflict (mean pairwise 1 − cosine) above which nothing is spliced."""


class InstructionDisruptionConfig(ShellConfig):
    """Options of INSTRUCTION-DISRUPTION. All are checked; unknown names are refused."""

    arrangements: tuple[Arrangement, ...] = Field(default=("user+user", "system+user"), min_length=1)
    """Where the two instructions stand: both in the user's turn (a sentence then gives the first one priority), or one in the system's (which has it)."""

    frame: Literal["auto", "chat", "plain"] = "auto"
    """``chat`` renders the chat template, ``plain`` writes text alone; ``auto`` is the chat where the tokenizer has a template."""

    tasks: int = Field(default=8, ge=6, le=len(TASKS))
    """Questions asked in every frame; the intervals' n counts them."""

    examples: int = Field(default=2, ge=0, le=len(PLAIN) // 2)
    """Worked examples shown with each instruction; 0 gives its words alone, which only larger models follow."""

    both_control_orders: bool = True
    """Ask the compatible control in both orders; otherwise with the first instruction first."""

    both_hidden_orders: bool = True
    """Hide each block in both orders of every question; otherwise in one order, by turns."""

    max_new_tokens: int = Field(default=24, ge=1, le=512)
    """The longest answer; it ends earlier at a line's end."""

    layer: int | None = Field(default=None, ge=0)
    """DISTILL: the layer after which the residual is read; None is the last but one."""

    top_heads: int = Field(default=12, ge=0, le=128)
    """Heads (largest direct logit attribution, either sign) that are ablated; with 0 there are no interventions, and no instruction is hidden either."""

    random_heads: int = Field(default=40, ge=1, le=256)
    """Other heads, drawn at random, ablated as the control."""

    references: int = Field(default=24, ge=2, le=24)
    """Neutral instructions that vectors are centred on and heads' means come from."""

    criteria: InstructionCriteria = Field(default_factory=InstructionCriteria.calibrated)
    """Thresholds of the verdicts."""

    @classmethod
    def quick(cls, **options: Any) -> Self:
        """One arrangement in plain text, six questions, answers of at most 10 tokens, three heads."""
        short: dict[str, Any] = {
            "arrangements": ("user+user",),
            "frame": "plain",
            "tasks": 6,
            "both_control_orders": False,
            "both_hidden_orders": False,
            "max_new_tokens": 10,
            "top_heads": 3,
            "random_heads": 9,
            "references": 12,
        }
        return cls.make(**(short | options))
