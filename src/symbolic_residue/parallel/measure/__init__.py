"""One tree of tokens measured under arms that differ in one thing each, and what the prompts answer together."""

from symbolic_residue.parallel.measure._arms import arrange, Arranged, Sight
from symbolic_residue.parallel.measure._config import MeasureConfig
from symbolic_residue.parallel.measure._forms import collapse, Competition, competition, FORMS, log_ratios
from symbolic_residue.parallel.measure._null import false_rates, relabelled
from symbolic_residue.parallel.measure._prompt import measure_prompt
from symbolic_residue.parallel.measure._replay import EditsOf, replay, Seen
from symbolic_residue.parallel.measure._verdicts import HEADLINE, QUESTIONS, verdicts

__all__ = [
    "FORMS",
    "HEADLINE",
    "QUESTIONS",
    "Arranged",
    "Competition",
    "EditsOf",
    "MeasureConfig",
    "Seen",
    "Sight",
    "arrange",
    "collapse",
    "competition",
    "false_rates",
    "log_ratios",
    "measure_prompt",
    "relabelled",
    "replay",
    "verdicts",
]
