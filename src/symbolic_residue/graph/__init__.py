"""Attribution graphs of a decoder on a prompt: what produced the answer, through which neurons, and sums that add up."""

from symbolic_residue.graph._attribute import attribute, attribute_prompt, choose_units
from symbolic_residue.graph._baselines import gradients_at, mixed_at, PairScores, ScoreName, SCORES
from symbolic_residue.graph._carried import graph_heads, GraphHeads, influential_edges, Look
from symbolic_residue.graph._circuit import attribute_circuit, Circuit, load_circuit, save_circuit
from symbolic_residue.graph._columns import Columns, Rows, unit_rows, unit_values, Units
from symbolic_residue.graph._contexts import activating_contexts, Contexts
from symbolic_residue.graph._diff import attribute_pair, Difference, difference
from symbolic_residue.graph._error_nodes import error_influence
from symbolic_residue.graph._failure_targets import (
    Collapse,
    Contrast,
    failure_contrast,
    failure_named,
    FAILURES,
    FailureTarget,
    fixed_failures,
    Refusal,
    Repeat,
    repeated,
    Silence,
)
from symbolic_residue.graph._faithfulness import (
    compare_scores,
    curve_numbers,
    Faithfulness,
    faithfulness,
    graph_faithfulness,
    log_counts,
)
from symbolic_residue.graph._feature_scores import FeatureScores
from symbolic_residue.graph._features import FeatureUnits, with_dictionary
from symbolic_residue.graph._file import load_graph, save_graph
from symbolic_residue.graph._freeze import freeze
from symbolic_residue.graph._ghosts import Ghosts, ghosts
from symbolic_residue.graph._graph import Check, Graph, Pruned, TargetInfo
from symbolic_residue.graph._group_labels import Example, GroupLabel, Hint, label_supernodes
from symbolic_residue.graph._groups_file import load_supernodes, save_supernodes
from symbolic_residue.graph._heads import head_loadings, HeadLoadings, strongest_edges
from symbolic_residue.graph._heads_file import load_heads, save_heads
from symbolic_residue.graph._interventions import Change, Hold, intervene, intervention_agreement, predicted_change
from symbolic_residue.graph._kept import KeepUnits, PairRun, ranks, run_pair
from symbolic_residue.graph._kept_features import Errors, FeaturePairRun, run_feature_pair
from symbolic_residue.graph._labels import promoted_tokens
from symbolic_residue.graph._local import LocalLayer, LocalModel
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
from symbolic_residue.graph._scores import graph_scores, Scores
from symbolic_residue.graph._supernodes import Supernodes, supernodes
from symbolic_residue.graph._sweep import direct_edges, work
from symbolic_residue.graph._targets import AskedTarget, Direction, Feature, Neuron, read_targets, Target, target_rows
from symbolic_residue.graph._units import LayerUnits

__all__ = [
    "FAILURES",
    "SCORES",
    "AskedTarget",
    "Change",
    "Check",
    "Circuit",
    "Collapse",
    "Columns",
    "Contexts",
    "Contrast",
    "Difference",
    "Direction",
    "Errors",
    "Example",
    "FailureTarget",
    "Faithfulness",
    "Feature",
    "FeaturePairRun",
    "FeatureScores",
    "FeatureUnits",
    "Ghosts",
    "Graph",
    "GraphHeads",
    "GroupLabel",
    "HeadLoadings",
    "Hint",
    "Hold",
    "KeepUnits",
    "LayerUnits",
    "LocalLayer",
    "LocalModel",
    "Look",
    "Neuron",
    "NeuronpediaGraph",
    "NeuronpediaLink",
    "NeuronpediaNode",
    "PairRun",
    "PairScores",
    "Pruned",
    "QKAttribution",
    "Refusal",
    "Relevance",
    "Repeat",
    "Rows",
    "Rule",
    "ScoreName",
    "Scores",
    "Silence",
    "Supernodes",
    "Target",
    "TargetInfo",
    "TokenPair",
    "Units",
    "activating_contexts",
    "attribute",
    "attribute_circuit",
    "attribute_pair",
    "attribute_prompt",
    "choose_units",
    "compare_scores",
    "curve_numbers",
    "difference",
    "direct_edges",
    "error_influence",
    "failure_contrast",
    "failure_named",
    "faithfulness",
    "fixed_failures",
    "freeze",
    "ghosts",
    "gradients_at",
    "graph_faithfulness",
    "graph_heads",
    "graph_scores",
    "head_loadings",
    "influential_edges",
    "intervene",
    "intervention_agreement",
    "label_supernodes",
    "load_circuit",
    "load_graph",
    "load_heads",
    "load_supernodes",
    "log_counts",
    "mixed_at",
    "predicted_change",
    "promoted_tokens",
    "qk_attribution",
    "ranks",
    "read_neuronpedia",
    "read_targets",
    "relevance",
    "repeated",
    "run_feature_pair",
    "run_pair",
    "save_circuit",
    "save_graph",
    "save_heads",
    "save_supernodes",
    "strongest_edges",
    "supernodes",
    "target_rows",
    "to_neuronpedia",
    "token_pair",
    "unit_rows",
    "unit_values",
    "validate_neuronpedia",
    "validate_pairs",
    "with_dictionary",
    "work",
    "write_neuronpedia",
]
