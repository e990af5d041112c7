"""Shells: controlled failure probes, one question each."""

from symbolic_residue.shells._base import Progress, quiet, Result, ShellBase
from symbolic_residue.shells._config import ShellConfig, ShellCriteria
from symbolic_residue.shells._confirm import confirm_heads, HeadConfirmation, HeadTest, PairRuns
from symbolic_residue.shells._findings import Findings
from symbolic_residue.shells._registry import config_class, make_shell, shell_class, ShellEntry, SHELLS
from symbolic_residue.shells._residue import ShellResidue
from symbolic_residue.shells._verdict import judge, Verdict, verdict_frame
from symbolic_residue.shells.across import (
    attention_disruption,
    attention_metrics,
    AttentionDisruption,
    ghost_units,
    GhostUnits,
    IntegratedAttribution,
    IntegratedRun,
    MetaConfig,
    MetaFindings,
    MetaResidue,
    MetaShell,
    null_attribution,
    NullAttribution,
    ShellIntegrator,
)
from symbolic_residue.shells.instruction_disruption import (
    conflict_predicts_failure,
    InstructionDisruptionConfig,
    InstructionDisruptionFindings,
    InstructionDisruptionResidue,
    InstructionDisruptionShell,
)
from symbolic_residue.shells.layer_salience import (
    LayerSalienceConfig,
    LayerSalienceFindings,
    LayerSalienceResidue,
    LayerSalienceShell,
)
from symbolic_residue.shells.memtrace import MemtraceConfig, MemtraceFindings, MemtraceResidue, MemtraceShell
from symbolic_residue.shells.signatures import (
    Component,
    COMPONENTS,
    read_signature,
    read_signatures,
    Signature,
    signature,
    signature_matrix,
    signatures,
)
from symbolic_residue.shells.value_collapse import (
    Criteria,
    ValueCollapseConfig,
    ValueCollapseFindings,
    ValueCollapseResidue,
    ValueCollapseShell,
)

__all__ = [
    "COMPONENTS",
    "SHELLS",
    "AttentionDisruption",
    "Component",
    "Criteria",
    "Findings",
    "GhostUnits",
    "HeadConfirmation",
    "HeadTest",
    "InstructionDisruptionConfig",
    "InstructionDisruptionFindings",
    "InstructionDisruptionResidue",
    "InstructionDisruptionShell",
    "IntegratedAttribution",
    "IntegratedRun",
    "LayerSalienceConfig",
    "LayerSalienceFindings",
    "LayerSalienceResidue",
    "LayerSalienceShell",
    "MemtraceConfig",
    "MemtraceFindings",
    "MemtraceResidue",
    "MemtraceShell",
    "MetaConfig",
    "MetaFindings",
    "MetaResidue",
    "MetaShell",
    "NullAttribution",
    "PairRuns",
    "Progress",
    "Result",
    "ShellBase",
    "ShellConfig",
    "ShellCriteria",
    "ShellEntry",
    "ShellIntegrator",
    "ShellResidue",
    "Signature",
    "ValueCollapseConfig",
    "ValueCollapseFindings",
    "ValueCollapseResidue",
    "ValueCollapseShell",
    "Verdict",
    "attention_disruption",
    "attention_metrics",
    "config_class",
    "confirm_heads",
    "conflict_predicts_failure",
    "ghost_units",
    "judge",
    "make_shell",
    "null_attribution",
    "quiet",
    "read_signature",
    "read_signatures",
    "shell_class",
    "signature",
    "signature_matrix",
    "signatures",
    "verdict_frame",
]
