"""Prompts: tokens with their regions, spans, small edits, prompt files, packaged benchmarks.

A prompt is what a model reads, token by token, with exactly one region a token: ``build_prompt``. Other things here find a
span of it (``find_span``), read prompts from a file (``read_prompts``), edit a text without changing its meaning
(``perturb``), and hand out the packaged prompt sets (``benchmark``).
"""

from __future__ import annotations

from typing import Any, TYPE_CHECKING

from symbolic_residue.prompts._chat import Message, Piece, segment_chat
from symbolic_residue.prompts._files import BadLine, ChatMessage, MatchedItem, PromptItem, PromptSet, read_prompts
from symbolic_residue.prompts._openings import COMPLIANCE_OPENINGS, REFUSAL_OPENINGS
from symbolic_residue.prompts._prompt import build_prompt, Prompt
from symbolic_residue.prompts._regions import CHAT_REGIONS, Regions, TEXT_REGIONS
from symbolic_residue.prompts._spans import find_span

if TYPE_CHECKING:
    from symbolic_residue.prompts._benchmark import benchmark, BenchmarkItem, BENCHMARKS, data_card, read_items, ShellItem
    from symbolic_residue.prompts._counterfactual import counterfactual_pairs, CounterfactualPair, PAIR_CATEGORIES, PairCategory
    from symbolic_residue.prompts._instructions import Instruction, KINDS, make_instruction, relation
    from symbolic_residue.prompts._memory import memory_items, MemoryItem
    from symbolic_residue.prompts._natural import natural_prompts, NaturalPrompt, parallel_prompts
    from symbolic_residue.prompts._padding import Padding, padding_sentences
    from symbolic_residue.prompts._perturb import perturb, Variant
    from symbolic_residue.prompts._temporal import temporal_coherence, TemporalItem

__all__ = [
    "BENCHMARKS",
    "CHAT_REGIONS",
    "COMPLIANCE_OPENINGS",
    "KINDS",
    "PAIR_CATEGORIES",
    "REFUSAL_OPENINGS",
    "TEXT_REGIONS",
    "BadLine",
    "BenchmarkItem",
    "ChatMessage",
    "CounterfactualPair",
    "Instruction",
    "MatchedItem",
    "MemoryItem",
    "Message",
    "NaturalPrompt",
    "Padding",
    "PairCategory",
    "Piece",
    "Prompt",
    "PromptItem",
    "PromptSet",
    "Regions",
    "ShellItem",
    "TemporalItem",
    "Variant",
    "benchmark",
    "build_prompt",
    "counterfactual_pairs",
    "data_card",
    "find_span",
    "make_instruction",
    "memory_items",
    "natural_prompts",
    "padding_sentences",
    "parallel_prompts",
    "perturb",
    "read_items",
    "read_prompts",
    "relation",
    "segment_chat",
    "temporal_coherence",
]

_LATER = {
    "BENCHMARKS": "_benchmark",
    "BenchmarkItem": "_benchmark",
    "CounterfactualPair": "_counterfactual",
    "PAIR_CATEGORIES": "_counterfactual",
    "PairCategory": "_counterfactual",
    "counterfactual_pairs": "_counterfactual",
    "Instruction": "_instructions",
    "KINDS": "_instructions",
    "make_instruction": "_instructions",
    "relation": "_instructions",
    "NaturalPrompt": "_natural",
    "MemoryItem": "_memory",
    "Padding": "_padding",
    "ShellItem": "_benchmark",
    "TemporalItem": "_temporal",
    "Variant": "_perturb",
    "benchmark": "_benchmark",
    "natural_prompts": "_natural",
    "parallel_prompts": "_natural",
    "memory_items": "_memory",
    "padding_sentences": "_padding",
    "data_card": "_benchmark",
    "perturb": "_perturb",
    "read_items": "_benchmark",
    "temporal_coherence": "_temporal",
}


def __getattr__(name: str) -> Any:
    # the packaged tables are read only by those who ask for them
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
