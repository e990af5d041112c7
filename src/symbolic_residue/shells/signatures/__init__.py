"""Signatures of runs and prompts: one vector of named components each, and the maps made of them."""

from symbolic_residue.shells.signatures._alignment import alignment_matrix, AlignmentMatrix
from symbolic_residue.shells.signatures._axes import read_shell, shell_signature, ShellSignature
from symbolic_residue.shells.signatures._components import Component, component_names, COMPONENTS, READABLE_GROUPS
from symbolic_residue.shells.signatures._prompts import shell_prompts, ShellPrompts
from symbolic_residue.shells.signatures._read import read_signature, read_signatures
from symbolic_residue.shells.signatures._signature import Signature, signature_matrix
from symbolic_residue.shells.signatures._similarity import failure_similarity, generalization_map, SimilarityMap
from symbolic_residue.shells.signatures._tables import signature, signatures
from symbolic_residue.shells.signatures._trace_map import trace_map, TraceMap

__all__ = [
    "COMPONENTS",
    "READABLE_GROUPS",
    "AlignmentMatrix",
    "Component",
    "ShellPrompts",
    "ShellSignature",
    "Signature",
    "SimilarityMap",
    "TraceMap",
    "alignment_matrix",
    "component_names",
    "failure_similarity",
    "generalization_map",
    "read_shell",
    "read_signature",
    "read_signatures",
    "shell_prompts",
    "shell_signature",
    "signature",
    "signature_matrix",
    "signatures",
    "trace_map",
]
