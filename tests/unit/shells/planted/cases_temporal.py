"""TEMPORAL-INFERENCE: an induction model on texts whose continuation repeats a span, and a model that repeats the connective it has read.

*Drift*: the second half of the continuation repeats the span that the shift drops, the first half does not. *Break*: the continuation repeats a span that stands some
way back: shifts that stop short of it cost nothing, those that reach past it cost all. Twins: the same texts where the induction head is knocked out, and the same
model where the span that is repeated is not the one that is dropped.

*Reversal, confusion*: the head that finds ``before``, ``after``, ``so``, ``because`` in the context raises the same word. A wrong restatement then turns the answer,
and a right one does not; stories without a connective (the control) give it nothing to repeat.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from shells.temporal.induction import induction_model

from symbolic_residue.prompts import build_prompt
from symbolic_residue.shells import EventPair, TemporalInferenceConfig, TemporalInferenceFindings, TemporalInferenceShell
from symbolic_residue.shells.temporal_inference._pairs import CONNECTIVES, pair_prompts
from symbolic_residue.shells.temporal_inference._references import REFERENCES

from .builder import Planted, word_tokenizer
from .registry import plants

SHELL = "temporal-inference"
WORDS = [
    "apple",
    "stone",
    "river",
    "green",
    "candle",
    "seven",
    "window",
    "horse",
    "paper",
    "silver",
    "garden",
    "bottle",
    "north",
    "hammer",
    "coffee",
    "yellow",
    "village",
    "engine",
    "button",
    "orange",
    "mirror",
    "winter",
    "doctor",
    "basket",
    "copper",
    "ladder",
    "summer",
    "pocket",
    "bridge",
    "needle",
    "island",
    "carpet",
    "letter",
    "monkey",
    "forest",
    "castle",
    "violin",
]
NEW = WORDS[26:37]
SURE = 0.3
"""Factor on the unembedding, so that a word that is not a copy costs no more than a few nats, whatever is guessed in its place."""
DROPPED = [*WORDS[:12], *WORDS[12:26], "sugar", "planet", *NEW, *WORDS[12:23]]
"""12 words, a span of 16, eleven new ones, the beginning of the span again."""
KEPT = [*WORDS[12:26], "sugar", "planet", *WORDS[:12], *NEW, *WORDS[12:23]]
"""The span first: what is dropped is not what is repeated."""
GAP = [*WORDS[:12], *WORDS[12:22], *WORDS[22:27], *WORDS[12:20]]
"""12 words, a span of ten, five others, the span again."""


@cache
def tokenizer() -> Any:
    return word_tokenizer([" ".join(DROPPED), " " + DROPPED[0], KEPT[0], *REFERENCES.values()])


def text_findings(words: list[str], distance: int, *, knocked_out: bool = False, **options: Any) -> TemporalInferenceFindings:
    config = TemporalInferenceConfig.quick(**{"places": 6, "stride": 1, "context": 3, "top_heads": 0} | options)
    model = induction_model(knocked_out=knocked_out, vocab=len(tokenizer()))
    with torch.no_grad():
        model.lm_head.weight.mul_(SURE)
    shell = TemporalInferenceShell(model, tokenizer(), config)
    text = " ".join(words)
    assert len(build_prompt(tokenizer(), text).ids) == len(words)
    return shell.analyze_residue(shell.run(text, shift_distance=distance))


def drifting(words: list[str], *, knocked_out: bool = False) -> TemporalInferenceFindings:
    return text_findings(words, 16, knocked_out=knocked_out, horizon=16, distances=(1, 2))


def breaking(*, knocked_out: bool = False, distances: tuple[int, ...] = (1, 2, 3, 4, 5, 20, 22, 24)) -> TemporalInferenceFindings:
    return text_findings(GAP, 5, knocked_out=knocked_out, places=4, horizon=4, window=4, distances=distances)


@plants(SHELL, "present", "drift")
def the_second_half_repeats_what_was_dropped() -> TemporalInferenceFindings:
    return drifting(DROPPED)


@plants(SHELL, "absent", "drift")
def the_same_text_without_the_induction_head() -> TemporalInferenceFindings:
    return drifting(DROPPED, knocked_out=True)


@plants(SHELL, "absent", "drift")
def the_second_half_repeats_what_was_kept() -> TemporalInferenceFindings:
    return drifting(KEPT)


@plants(SHELL, "present", "discontinuity break")
def shifts_that_reach_past_the_repeated_span() -> TemporalInferenceFindings:
    found = breaking()
    assert "Between 5 and 20 tokens" in found.verdict("discontinuity break").note
    return found


@plants(SHELL, "absent", "discontinuity break")
def the_same_shifts_without_the_induction_head() -> TemporalInferenceFindings:
    return breaking(knocked_out=True)


@plants(SHELL, "absent", "discontinuity break")
def shifts_that_stop_short_of_the_span() -> TemporalInferenceFindings:
    return breaking(distances=(1, 2, 3, 4, 5, 6, 7))


@cache
def echoing() -> TemporalInferenceShell:
    """Repeats the connective that it has read."""
    first, second = "Mara fed the cat", "Mara locked the door"
    pairs = [
        EventPair(first=first, second=second, relation=r, echo=e) for r in ("order", "cause") for e in ("none", "right", "wrong")
    ]  # type: ignore[arg-type]
    texts = [
        p.text for pair in pairs for c in (False, True) for p in pair_prompts(word_tokenizer(["a before"]), pair, 8, control=c)
    ]
    made = Planted(word_tokenizer([*texts, *(w for pair in CONNECTIVES.values() for w in pair)]))
    words = [w for pair in CONNECTIVES.values() for w in pair]
    made.mark(words, 1)
    made.attend(0, 0, key=1, strength=12.0)
    for i, word in enumerate(words):
        made.mark([word], 2 + i)
        made.say(word, 10 + i)
    made.copy(0, 0, [(2 + i, 10 + i, 1.0) for i in range(len(words))])
    return TemporalInferenceShell(made.model, made.tokenizer, TemporalInferenceConfig.quick(top_heads=0))


def echoed(relation: Any, echo: Any) -> TemporalInferenceFindings:
    shell = echoing()
    return shell.analyze_residue(
        shell.run(pair=EventPair(first="Mara fed the cat", second="Mara locked the door", relation=relation, echo=echo))
    )


@plants(SHELL, "present", "ordering reversal")
def the_wrong_order_is_repeated() -> TemporalInferenceFindings:
    found = echoed("order", "wrong")
    assert abs(found.verdict("ordering reversal").value.value + 4.0) < 0.5
    return found


@plants(SHELL, "absent", "ordering reversal")
def the_right_order_is_repeated() -> TemporalInferenceFindings:
    return echoed("order", "right")


@plants(SHELL, "present", "causal confusion")
def the_wrong_direction_is_repeated() -> TemporalInferenceFindings:
    return echoed("cause", "wrong")


@plants(SHELL, "absent", "causal confusion")
def the_right_direction_is_repeated() -> TemporalInferenceFindings:
    return echoed("cause", "right")
