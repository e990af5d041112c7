"""Concepts: which directions, and which heads, carry a concept?"""

from symbolic_residue.concepts._ablate import ablate_heads
from symbolic_residue.concepts._ablate_verdict import Ablation, LayerLoss
from symbolic_residue.concepts._causal import check_concepts, read_causal
from symbolic_residue.concepts._collect import collect, open_pooled, Pooled, skipped_layers, SkippedLayer
from symbolic_residue.concepts._corpus import BASELINE, ConceptText, Corpus, Meaning, Pair
from symbolic_residue.concepts._design import Against, Design, draw_labels, make_design
from symbolic_residue.concepts._directions import Directions, find_directions
from symbolic_residue.concepts._estimators import Estimator, fit, scenario_differences
from symbolic_residue.concepts._families import compare_families, family_difference
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
from symbolic_residue.concepts._overlap import head_overlap
from symbolic_residue.concepts._packaged import corpus_card, packaged_corpus, steering_openings
from symbolic_residue.concepts._pool import pooled_positions, Pooling, POOLINGS
from symbolic_residue.concepts._quality import MIN_POSITIVES, quality_report
from symbolic_residue.concepts._read import Fault, read_corpus, scan_corpus, write_corpus
from symbolic_residue.concepts._readout_file import load_directions, save_directions
from symbolic_residue.concepts._readout_model import ReadoutModel
from symbolic_residue.concepts._record import read_record, write_record
from symbolic_residue.concepts._steer import direction_push, Push, random_push, reread, Sampling, steer, Written
from symbolic_residue.concepts._steer_check import check_steering, SteeringCheck
from symbolic_residue.concepts._steer_prompt import steer_prompt
from symbolic_residue.concepts._steer_verdict import Arm, Comparison
from symbolic_residue.concepts._study import ConceptRun, open_concept_run, prepare_training, train_concepts, Training
from symbolic_residue.concepts._study_heads import judge_run_heads
from symbolic_residue.concepts._study_quality import report_concepts
from symbolic_residue.concepts._through_norm import ablated_through_norm, head_importance, NormAblation
from symbolic_residue.concepts._validate import concept_words, require_valid, validate_corpus, Violation
from symbolic_residue.concepts._watch import choose_tracks, Track, watch, WatchedText, WatchedToken, Watcher
from symbolic_residue.concepts._watch_record import watch_record
from symbolic_residue.concepts._watch_reference import LayerReference, watch_reference
from symbolic_residue.concepts._watch_verdict import judge_watch, WatchVerdict
from symbolic_residue.concepts._watch_verdict import THRESHOLD as WATCH_THRESHOLD
from symbolic_residue.concepts._word_scorer import WordScorer
from symbolic_residue.concepts._words_alone import words_alone, WordsAlone

__all__ = [
    "BASELINE",
    "MIN_POSITIVES",
    "POOLINGS",
    "WATCH_THRESHOLD",
    "Ablation",
    "Against",
    "Arm",
    "Comparison",
    "ConceptRun",
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
    "LayerLoss",
    "LayerRead",
    "LayerReference",
    "Meaning",
    "NormAblation",
    "NullValue",
    "Pair",
    "Pooled",
    "Pooling",
    "Push",
    "ReadoutModel",
    "Sampling",
    "SkippedLayer",
    "SteeringCheck",
    "Track",
    "Training",
    "Violation",
    "WatchVerdict",
    "WatchedText",
    "WatchedToken",
    "Watcher",
    "WordScorer",
    "WordsAlone",
    "Written",
    "ablate_heads",
    "ablated_through_norm",
    "check_concepts",
    "check_steering",
    "choose_tracks",
    "collect",
    "compare_families",
    "concept_words",
    "corpus_card",
    "decompose_heads",
    "decompose_layer",
    "direction_push",
    "draw_labels",
    "family_difference",
    "few_heads",
    "find_directions",
    "fit",
    "head_importance",
    "head_overlap",
    "head_verdict",
    "held_out_scores",
    "judge_heads",
    "judge_run_heads",
    "judge_watch",
    "load_directions",
    "make_design",
    "open_concept_run",
    "open_pooled",
    "output_weights",
    "packaged_corpus",
    "per_head_block",
    "pooled_positions",
    "prepare_training",
    "quality_report",
    "random_push",
    "read_causal",
    "read_corpus",
    "read_heads",
    "read_record",
    "report_concepts",
    "require_valid",
    "reread",
    "residual_read",
    "save_directions",
    "scan_corpus",
    "scenario_differences",
    "skipped_layers",
    "steer",
    "steer_prompt",
    "steering_openings",
    "train_concepts",
    "validate_corpus",
    "verdict_block",
    "watch",
    "watch_record",
    "watch_reference",
    "words_alone",
    "write_corpus",
    "write_record",
]
