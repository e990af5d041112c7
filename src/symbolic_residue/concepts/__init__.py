"""Concepts: which directions, and which heads, carry a concept?"""

from symbolic_residue.concepts._collect import collect, Pooled, skipped_layers, SkippedLayer
from symbolic_residue.concepts._corpus import BASELINE, ConceptText, Corpus, Meaning, Pair
from symbolic_residue.concepts._design import Against, Design, draw_labels, make_design
from symbolic_residue.concepts._directions import Directions, find_directions, ReadoutModel
from symbolic_residue.concepts._estimators import Estimator, fit, scenario_differences
from symbolic_residue.concepts._head_readout import HeadReadout, LayerRead, read_heads, residual_read
from symbolic_residue.concepts._head_verdict import few_heads, head_verdict, HeadVerdict, judge_heads, verdict_block
from symbolic_residue.concepts._heads import (
    decompose_heads,
    decompose_layer,
    HeadDecomposition,
    LayerHeads,
    NullValue,
    output_weights,
)
from symbolic_residue.concepts._heads_block import per_head_block
from symbolic_residue.concepts._held_out import held_out_scores
from symbolic_residue.concepts._packaged import corpus_card, packaged_corpus
from symbolic_residue.concepts._pool import pooled_positions, Pooling, POOLINGS
from symbolic_residue.concepts._quality import MIN_POSITIVES, quality_report
from symbolic_residue.concepts._read import Fault, read_corpus, scan_corpus, write_corpus
from symbolic_residue.concepts._readout_file import load_directions, save_directions
from symbolic_residue.concepts._validate import concept_words, require_valid, validate_corpus, Violation
from symbolic_residue.concepts._words_alone import words_alone, WordsAlone

__all__ = [
    "BASELINE",
    "MIN_POSITIVES",
    "POOLINGS",
    "Against",
    "ConceptText",
    "Corpus",
    "Design",
    "Directions",
    "Estimator",
    "Fault",
    "HeadDecomposition",
    "HeadReadout",
    "HeadVerdict",
    "LayerHeads",
    "LayerRead",
    "Meaning",
    "NullValue",
    "Pair",
    "Pooled",
    "Pooling",
    "ReadoutModel",
    "SkippedLayer",
    "Violation",
    "WordsAlone",
    "collect",
    "concept_words",
    "corpus_card",
    "decompose_heads",
    "decompose_layer",
    "draw_labels",
    "few_heads",
    "find_directions",
    "fit",
    "head_verdict",
    "held_out_scores",
    "judge_heads",
    "load_directions",
    "make_design",
    "output_weights",
    "packaged_corpus",
    "per_head_block",
    "pooled_positions",
    "quality_report",
    "read_corpus",
    "read_heads",
    "require_valid",
    "residual_read",
    "save_directions",
    "scan_corpus",
    "scenario_differences",
    "skipped_layers",
    "validate_corpus",
    "verdict_block",
    "words_alone",
    "write_corpus",
]
