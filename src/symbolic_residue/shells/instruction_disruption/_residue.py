"""The residue of INSTRUCTION-DISRUPTION: what was asked, and every table observed."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from symbolic_residue.prompts._instructions import Instruction, Plain
from symbolic_residue.shells._residue import ShellResidue
from symbolic_residue.shells.instruction_disruption._config import InstructionDisruptionConfig

__all__ = ["Asked", "InstructionDisruptionResidue", "Task"]


class Task(BaseModel):
    """A question, with the plain answer to it where one is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    plain: Plain | None = None


class Asked(BaseModel):
    """What one run was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_text: str
    """The two instructions and the first question, a line each."""
    a: Instruction
    b: Instruction
    control: Instruction
    """Compatible with ``a``; takes ``b``'s place in the control."""
    relation: Literal["compatible", "contradictory", "unknown"]
    """Of ``a`` and ``b``."""
    joint: bool
    """Whether the examples of both instructions follow both (else each follows its own alone)."""
    tasks: list[Task]
    seed: int
    """Of the random heads and all resampling."""


class InstructionDisruptionResidue(ShellResidue[Asked, InstructionDisruptionConfig]):
    """Everything observed on one pair of instructions.

    Own tables: ``preference`` (log-odds of ``a``'s against ``b``'s continuation, nats, by condition and hidden span), ``mass`` (attention by layer and answer
    token), ``vectors`` (the distilled directions).
    """

    shell: ClassVar[str] = "instruction-disruption"
    asked_type: ClassVar[type[BaseModel]] = Asked
    config_type: ClassVar[type[InstructionDisruptionConfig]] = InstructionDisruptionConfig
    own: ClassVar[frozenset[str]] = frozenset({"preference", "mass", "vectors"})
