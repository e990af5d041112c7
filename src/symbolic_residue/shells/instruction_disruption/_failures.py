"""What INSTRUCTION-DISRUPTION should get right: the instruction that holds is followed.

1. Where the two contradict each other (or are not known to be compatible), the one with priority holds: the first rule, or the system's. Where one
   answer can follow both, both hold.
2. One failure a pair. Its prompts are both orders (and arrangements) with the first questions; whether an answer follows is said by the
   instruction's own program on the greedy answer, so that a liking for one of the two instructions, whatever its place, restores at most half of
   them.
3. Evidence: the block of what holds. Distractor: the other block. Control: the prompt without the other block; where both hold, examples that
   follow both.
4. Heads are chosen at the first token in which the two right continuations differ (``_preference``), where a plain answer is known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from symbolic_residue.prompts._instructions import Instruction
from symbolic_residue.shells._failure import Ask, Failure
from symbolic_residue.shells.instruction_disruption._config import InstructionDisruptionConfig
from symbolic_residue.shells.instruction_disruption._frames import build_frames, Frame
from symbolic_residue.shells.instruction_disruption._preference import plain_pairs
from symbolic_residue.shells.instruction_disruption._residue import Asked

__all__ = ["instruction_failure"]

_QUESTIONS = 3
_ENOUGH = 0.5


def instruction_failure(
    tokenizer: Any, asked: Asked, config: InstructionDisruptionConfig, chat: bool, limit: int | None, id: str, frame: str
) -> Failure:
    """The failure of a pair of instructions.

    Raises:
        PromptError, TemplateError: a prompt that is too long, or that the template cannot take.
    """
    asked = asked.model_copy(update={"tasks": asked.tasks[:_QUESTIONS]})

    def frames(of: Asked) -> list[Frame]:
        return build_frames(tokenizer, of, config.arrangements, examples=config.examples, chat=chat, both_orders=False, limit=limit)

    made, both = frames(asked), asked.relation == "compatible"
    # Where both hold, the matched prompt that shows how is the same with examples of both; its own joint examples leave nothing to match.
    other = frames(asked.model_copy(update={"joint": True})) if both and not asked.joint else made
    matched = {(f.condition, f.order, f.arrangement, f.task): tuple(f.prompt.ids) for f in other}
    pairs = plain_pairs(tokenizer, asked)
    asks = []
    for f in made:
        if f.condition != "conflict":
            continue
        hold = f.order if both else f.order[0]
        condition = "conflict" if both else f"alone {hold}"
        ask = Ask(
            tuple(f.prompt.ids),
            None,
            evidence=_positions(f, hold),
            distractor=_positions(f, "" if both else f.order[1]),
            control=None if both and asked.joint else matched[condition, hold, f.arrangement, f.task],
            check=_Follows(tuple(asked.a if name == "a" else asked.b for name in hold)),
        )
        pair = pairs[f.task]
        if pair is not None and not both:
            common, a, b = pair
            ask = replace(ask, answer=a if hold == "a" else b, wrong=b if hold == "a" else a, given=tuple(common))
        asks.append(ask)
    return Failure(id, frame, tuple(asks), limit=_ENOUGH, steps=config.max_new_tokens)


class _Follows:
    """Whether an answer follows all of some instructions."""

    def __init__(self, instructions: tuple[Instruction, ...]) -> None:
        self.instructions = instructions

    def __call__(self, answer: str) -> bool:
        return all(i.check(answer) for i in self.instructions)


def _positions(frame: Frame, names: str) -> tuple[int, ...]:
    return tuple(sorted(p for name in names for p in range(*frame.spans[name])))
