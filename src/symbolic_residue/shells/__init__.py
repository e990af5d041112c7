"""Shells: controlled failure probes, one question each."""

from symbolic_residue.shells._base import Progress, quiet, Result, ShellBase
from symbolic_residue.shells._config import ShellConfig, ShellCriteria
from symbolic_residue.shells._confirm import confirm_heads, HeadConfirmation, HeadTest, PairRuns
from symbolic_residue.shells._findings import Findings
from symbolic_residue.shells._residue import ShellResidue
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
    "Findings",
    "HeadConfirmation",
    "HeadTest",
    "PairRuns",
    "Progress",
    "Result",
    "ShellBase",
    "ShellConfig",
    "ShellCriteria",
    "ShellResidue",
    "ValueCollapseConfig",
    "ValueCollapseFindings",
    "ValueCollapseResidue",
    "ValueCollapseShell",
    "Verdict",
    "confirm_heads",
    "judge",
    "quiet",
    "verdict_frame",
]
