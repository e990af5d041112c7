"""INSTRUCTION-DISRUPTION: what does a model do with two orders at once?"""

from symbolic_residue.shells.instruction_disruption._ask import InstructionQuestion
from symbolic_residue.shells.instruction_disruption._attribute import HeadAttribution, SpanEffect
from symbolic_residue.shells.instruction_disruption._config import InstructionCriteria, InstructionDisruptionConfig
from symbolic_residue.shells.instruction_disruption._findings import InstructionDisruptionFindings
from symbolic_residue.shells.instruction_disruption._geometry import Splice
from symbolic_residue.shells.instruction_disruption._items import conflict_predicts_failure, InstructionItem
from symbolic_residue.shells.instruction_disruption._judge import followed_alone, share_over_tasks
from symbolic_residue.shells.instruction_disruption._residue import InstructionDisruptionResidue
from symbolic_residue.shells.instruction_disruption._shell import InstructionDisruptionShell

__all__ = [
    "HeadAttribution",
    "InstructionCriteria",
    "InstructionDisruptionConfig",
    "InstructionDisruptionFindings",
    "InstructionDisruptionResidue",
    "InstructionDisruptionShell",
    "InstructionItem",
    "InstructionQuestion",
    "SpanEffect",
    "Splice",
    "conflict_predicts_failure",
    "followed_alone",
    "share_over_tasks",
]
