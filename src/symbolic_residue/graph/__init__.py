"""Attribution graphs of a decoder on a prompt: what produced the answer, through which neurons, and sums that add up."""

from symbolic_residue.graph._attribute import attribute, attribute_prompt
from symbolic_residue.graph._columns import Columns, Rows, unit_rows, Units
from symbolic_residue.graph._diff import attribute_pair, Difference, difference
from symbolic_residue.graph._file import load_graph, save_graph
from symbolic_residue.graph._ghosts import Ghosts, ghosts
from symbolic_residue.graph._graph import Check, Graph, Pruned, TargetInfo
from symbolic_residue.graph._heads import head_loadings, HeadLoadings, strongest_edges
from symbolic_residue.graph._labels import promoted_tokens
from symbolic_residue.graph._local import freeze, LocalLayer, LocalModel
from symbolic_residue.graph._mlp import Rule
from symbolic_residue.graph._neuronpedia import to_neuronpedia, write_neuronpedia
from symbolic_residue.graph._neuronpedia_schema import (
    NeuronpediaGraph,
    NeuronpediaLink,
    NeuronpediaNode,
    read_neuronpedia,
    validate_neuronpedia,
)
from symbolic_residue.graph._pairs import token_pair, TokenPair, validate_pairs
from symbolic_residue.graph._qk import qk_attribution, QKAttribution
from symbolic_residue.graph._relevance import Relevance, relevance
from symbolic_residue.graph._supernodes import Supernodes, supernodes
from symbolic_residue.graph._sweep import direct_edges, work
from symbolic_residue.graph._targets import AskedTarget, Direction, Neuron, read_targets, Target, target_rows

__all__ = [
    "AskedTarget",
    "Check",
    "Columns",
    "Difference",
    "Direction",
    "Ghosts",
    "Graph",
    "HeadLoadings",
    "LocalLayer",
    "LocalModel",
    "Neuron",
    "NeuronpediaGraph",
    "NeuronpediaLink",
    "NeuronpediaNode",
    "Pruned",
    "QKAttribution",
    "Relevance",
    "Rows",
    "Rule",
    "Supernodes",
    "Target",
    "TargetInfo",
    "TokenPair",
    "Units",
    "attribute",
    "attribute_pair",
    "attribute_prompt",
    "difference",
    "direct_edges",
    "freeze",
    "ghosts",
    "head_loadings",
    "load_graph",
    "promoted_tokens",
    "qk_attribution",
    "read_neuronpedia",
    "read_targets",
    "relevance",
    "save_graph",
    "strongest_edges",
    "supernodes",
    "target_rows",
    "to_neuronpedia",
    "token_pair",
    "unit_rows",
    "validate_neuronpedia",
    "validate_pairs",
    "work",
    "write_neuronpedia",
]
