"""What TEMPORAL-INFERENCE should get right: a pair's order, or which event is the cause.

1. One failure a pair. Its prompts are both orders of every wording, so its measure is the preference that the verdict judges (``_judge``): a liking
   for ``before`` or ``after`` cancels.
2. Evidence: the sentence that tells the story. Distractor: the wrong restatement, where there is one; the control then has a right one in its
   place.
"""

from __future__ import annotations

from typing import Any

from symbolic_residue.errors import ConfigError, NoRightAnswerError
from symbolic_residue.prompts import build_prompt, TemporalItem
from symbolic_residue.shells._failure import Ask, Failure, places_of
from symbolic_residue.shells.temporal_inference._pairs import EventPair, pair_parts, pair_prompts
from symbolic_residue.shells.temporal_inference._residue import TemporalInferenceResidue

__all__ = ["pair_failures"]

_RELATIONS = {"ordering reversal": "order", "causal confusion": "cause"}


def pair_failures(tokenizer: Any, source: Any, mode: str, wordings: int, id: str | None) -> list[Failure]:
    """The failure of an item's or a residue's pair.

    Raises:
        NoRightAnswerError: there is no pair of the mode's relation, or its story gives no order. ConfigError: neither item nor residue.
    """
    if isinstance(source, TemporalItem):
        pair = None if source.pair is None else EventPair.model_validate(source.pair)
        name = source.id
    elif isinstance(source, TemporalInferenceResidue):
        pair, name = source.asked.pair, "pair"
        wordings = source.config.wordings
    else:
        raise ConfigError("That is neither an item of temporal-coherence nor a residue of temporal-inference.")
    if pair is None or pair.relation != _RELATIONS[mode]:
        raise NoRightAnswerError(
            f"{id or name} has no right answer for {mode}.", why=f"It holds no pair of the relation {_RELATIONS[mode]!r}."
        )
    if pair.story == "neutral":
        raise NoRightAnswerError(f"{id or name} has no right answer.", why="Its story gives no order, so neither word is right.")
    right = pair.model_copy(update={"echo": "right"})
    asks = []
    for p in pair_prompts(tokenizer, pair, wordings):
        parts = pair_parts(pair, p.wording, p.a_first)
        wrong = pair.echo == "wrong"
        matched = " ".join(pair_parts(right, p.wording, p.a_first)) if wrong else None
        asks.append(
            Ask(
                tuple(build_prompt(tokenizer, p.text).ids),
                p.right,
                p.wrong,
                evidence=places_of(tokenizer, p.text, parts[0]),
                distractor=places_of(tokenizer, p.text, parts[1]) if wrong else (),
                control=None if matched is None else tuple(build_prompt(tokenizer, matched).ids),
            )
        )
    # Every item has all wordings, so two items hang together by their events alone: each is a frame of its own.
    return [Failure(id or name, id or name, tuple(asks))]
