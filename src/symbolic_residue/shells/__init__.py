"""Shells: controlled failure probes, one question each."""

from symbolic_residue.shells._base import Result, ShellBase
from symbolic_residue.shells._verdict import judge, Verdict, verdict_frame
from symbolic_residue.shells.value_collapse import (
    Criteria,
    ValueCollapseConfig,
    ValueCollapseFindings,
    ValueCollapseResidue,
    ValueCollapseShell,
)

__all__ = [
    "Criteria",
    "Result",
    "ShellBase",
    "ValueCollapseConfig",
    "ValueCollapseFindings",
    "ValueCollapseResidue",
    "ValueCollapseShell",
    "Verdict",
    "judge",
    "verdict_frame",
]
