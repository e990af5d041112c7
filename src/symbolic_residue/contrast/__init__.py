"""Contrast: did training change where the model looks, and does it matter?"""

from symbolic_residue.contrast._adapters import adapter_norms, random_adapter, restrict_adapter
from symbolic_residue.contrast._behaviour import (
    Behaviour,
    CallableBehaviour,
    EndOfText,
    Hit,
    make_behaviour,
    RefusalBehaviour,
    RegexBehaviour,
    TextBehaviour,
    TokenBehaviour,
)
from symbolic_residue.contrast._deltas import deltas, LAGS, missing
from symbolic_residue.contrast._dense import dense_deltas
from symbolic_residue.contrast._examples import (
    check_example,
    Condition,
    condition_prompt,
    event_character,
    Example,
    generate_examples,
    Question,
    Sampling,
    score_answer,
)
from symbolic_residue.contrast._gates import Gates, gates
from symbolic_residue.contrast._heads import select_heads
from symbolic_residue.contrast._options import Options
from symbolic_residue.contrast._published import DEFECTS
from symbolic_residue.contrast._read import read_examples, Reading, REGIONS, to_records
from symbolic_residue.contrast._records import (
    check_deltas,
    check_records,
    CONTROLS,
    DELTAS,
    EVENT,
    read_records,
    RECORDS,
    TRAJECTORY,
)
from symbolic_residue.contrast._rows import choose_rows, end_rows, rare_tokens, Row, Rows, stable_seed
from symbolic_residue.contrast._segment import BUCKETS, find_sinks, segment, SEGMENTATIONS
from symbolic_residue.contrast._stack import DenseDeltas
from symbolic_residue.contrast._training import diff_of_diffs, DiffOfDiffs, peak_shift
from symbolic_residue.contrast._verdict import OUTCOMES, verdict

__all__ = [
    "BUCKETS",
    "CONTROLS",
    "DEFECTS",
    "DELTAS",
    "EVENT",
    "LAGS",
    "OUTCOMES",
    "RECORDS",
    "REGIONS",
    "SEGMENTATIONS",
    "TRAJECTORY",
    "Behaviour",
    "CallableBehaviour",
    "Condition",
    "DenseDeltas",
    "DiffOfDiffs",
    "EndOfText",
    "Example",
    "Gates",
    "Hit",
    "Options",
    "Question",
    "Reading",
    "RefusalBehaviour",
    "RegexBehaviour",
    "Row",
    "Rows",
    "Sampling",
    "TextBehaviour",
    "TokenBehaviour",
    "adapter_norms",
    "check_deltas",
    "check_example",
    "check_records",
    "choose_rows",
    "condition_prompt",
    "deltas",
    "dense_deltas",
    "diff_of_diffs",
    "end_rows",
    "event_character",
    "find_sinks",
    "gates",
    "generate_examples",
    "make_behaviour",
    "missing",
    "peak_shift",
    "random_adapter",
    "rare_tokens",
    "read_examples",
    "read_records",
    "restrict_adapter",
    "score_answer",
    "segment",
    "select_heads",
    "stable_seed",
    "to_records",
    "verdict",
]
