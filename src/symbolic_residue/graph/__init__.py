"""Attribution graphs of a decoder on a prompt: what produced the answer, through which neurons, and sums that add up."""

from symbolic_residue.graph._columns import Columns, Rows, unit_rows, Units
from symbolic_residue.graph._local import freeze, LocalLayer, LocalModel
from symbolic_residue.graph._mlp import Rule
from symbolic_residue.graph._relevance import Relevance, relevance
from symbolic_residue.graph._sweep import direct_edges, work

__all__ = [
    "Columns",
    "LocalLayer",
    "LocalModel",
    "Relevance",
    "Rows",
    "Rule",
    "Units",
    "direct_edges",
    "freeze",
    "relevance",
    "unit_rows",
    "work",
]
