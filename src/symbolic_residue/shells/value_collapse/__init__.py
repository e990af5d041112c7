"""VALUE-COLLAPSE: can the model decide between competing next tokens?"""

from symbolic_residue.shells.value_collapse._attribute import Attribution
from symbolic_residue.shells.value_collapse._config import Criteria, ValueCollapseConfig
from symbolic_residue.shells.value_collapse._findings import ValueCollapseFindings
from symbolic_residue.shells.value_collapse._operations import Isolation
from symbolic_residue.shells.value_collapse._refine import Refinement
from symbolic_residue.shells.value_collapse._residue import ValueCollapseResidue
from symbolic_residue.shells.value_collapse._shell import ValueCollapseShell

__all__ = [
    "Attribution",
    "Criteria",
    "Isolation",
    "Refinement",
    "ValueCollapseConfig",
    "ValueCollapseFindings",
    "ValueCollapseResidue",
    "ValueCollapseShell",
]
