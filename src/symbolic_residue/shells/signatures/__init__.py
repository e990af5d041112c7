"""Signatures of runs and prompts: one vector of named components each, and the maps made of them."""

from symbolic_residue.shells.signatures._components import Component, component_names, COMPONENTS, READABLE_GROUPS
from symbolic_residue.shells.signatures._read import read_signature, read_signatures
from symbolic_residue.shells.signatures._signature import Signature, signature_matrix
from symbolic_residue.shells.signatures._tables import signature, signatures

__all__ = [
    "COMPONENTS",
    "READABLE_GROUPS",
    "Component",
    "Signature",
    "component_names",
    "read_signature",
    "read_signatures",
    "signature",
    "signature_matrix",
    "signatures",
]
