"""MEMTRACE: does a fact stated early survive to the question?"""

from symbolic_residue.shells.memtrace._config import Criteria, MemtraceConfig
from symbolic_residue.shells.memtrace._findings import MemtraceFindings, retrieval_by_type
from symbolic_residue.shells.memtrace._fit import fit_decay
from symbolic_residue.shells.memtrace._operations import Anchoring, Recall
from symbolic_residue.shells.memtrace._question import MemtraceQuestion
from symbolic_residue.shells.memtrace._residue import MemtraceResidue
from symbolic_residue.shells.memtrace._shell import MemtraceShell

__all__ = [
    "Anchoring",
    "Criteria",
    "MemtraceConfig",
    "MemtraceFindings",
    "MemtraceQuestion",
    "MemtraceResidue",
    "MemtraceShell",
    "Recall",
    "fit_decay",
    "retrieval_by_type",
]
