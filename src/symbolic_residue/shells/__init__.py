"""Shells: controlled failure probes, one question each."""

from symbolic_residue.shells._base import Progress, quiet, Result, ShellBase
from symbolic_residue.shells._config import ShellConfig, ShellCriteria
from symbolic_residue.shells._confirm import confirm_heads, HeadConfirmation, HeadTest, PairRuns
from symbolic_residue.shells._findings import Findings
from symbolic_residue.shells._registry import config_class, make_shell, shell_class, ShellEntry, SHELLS
from symbolic_residue.shells._residue import ShellResidue
from symbolic_residue.shells._verdict import judge, Verdict, verdict_frame
from symbolic_residue.shells.across import IntegratedAttribution, IntegratedRun, ShellIntegrator
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
from symbolic_residue.shells.temporal_inference import (
    EventPair,
    TemporalInferenceConfig,
    TemporalInferenceFindings,
    TemporalInferenceResidue,
    TemporalInferenceShell,
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
    "Component",
    "Criteria",
    "EventPair",
    "Findings",
    "HeadConfirmation",
    "HeadTest",
    "IntegratedAttribution",
    "IntegratedRun",
    "MemtraceConfig",
    "MemtraceFindings",
    "MemtraceResidue",
    "MemtraceShell",
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
    "TemporalInferenceConfig",
    "TemporalInferenceFindings",
    "TemporalInferenceResidue",
    "TemporalInferenceShell",
    "ValueCollapseConfig",
    "ValueCollapseFindings",
    "ValueCollapseResidue",
    "ValueCollapseShell",
    "Verdict",
    "config_class",
    "confirm_heads",
    "judge",
    "make_shell",
    "quiet",
    "read_signature",
    "read_signatures",
    "shell_class",
    "signature",
    "signature_matrix",
    "signatures",
    "verdict_frame",
]
