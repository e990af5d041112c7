"""What a model should get right: prompts, what should come next, and where in them it is said.

1. A *failure* is one thing to get right, asked in one prompt or in several that belong together (both orders of a minimal pair, several paddings of
   one fact): :class:`Ask` is one of these prompts.
2. Its *measure* is the log-odds (nats) of the right next token over the wrong one, or over the best other token where no wrong one is named, as the
   mean over the prompts. It is right where that is above ``limit`` (0). A liking for one of two words, which helps one order of a minimal pair as
   much as it harms the other, therefore restores nothing.
3. Where prompts bring a program (``check``), the measure is the share of greedy answers that the program passes; right above one half.
4. A shell says by ``right_answers`` for which failure modes there is a right answer, by ``no_right_answers`` why there is none for the others, and
   by ``failures`` what they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from symbolic_residue.prompts import build_prompt

__all__ = ["LOG_ODDS", "SHARE", "Ask", "Failure", "places_of"]

LOG_ODDS = "log-odds of the right answer (nats)"
SHARE = "share of answers that follow"


@dataclass(frozen=True)
class Ask:
    """One prompt and what should follow it.

    Attributes:
        ids: the tokens that the model reads.
        answer: the right next token; None where only the program knows what is right.
        wrong: the token that it stands against; None stands for the best other one.
        evidence: positions that say the answer, empty where none are known; ``distractor`` positions that say something else; ``padding`` those
            that were put between.
        control: a matched prompt that the model answers rightly, for steering; None where there is none.
        check: says whether a greedy answer is right; None judges the next token.
        given: tokens between the prompt and ``answer``, where the right answer and a wrong one begin alike; only with ``check``.
    """

    ids: tuple[int, ...]
    answer: int | None
    wrong: int | None = None
    evidence: tuple[int, ...] = ()
    distractor: tuple[int, ...] = ()
    control: tuple[int, ...] | None = None
    check: Callable[[str], bool] | None = None
    given: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()


@dataclass(frozen=True)
class Failure:
    """One thing to get right.

    Attributes:
        id: its name; ``frame`` what resamples together (the item itself where nothing else is known).
        asks: the prompts that ask for it.
        limit: the measure must be above it.
        steps: the longest greedy answer, in tokens; 0 judges the next token.
    """

    id: str
    frame: str
    asks: tuple[Ask, ...]
    limit: float = 0.0
    steps: int = 0

    @property
    def measure(self) -> str:
        """What decides, in words with its unit."""
        return SHARE if self.steps else LOG_ODDS


def places_of(tokenizer: Any, text: str, part: str, *, chat: bool = False) -> tuple[int, ...]:
    """Positions of every place of ``part``, as whole words, in a prompt's text; empty where it is not there."""
    prompt = build_prompt(tokenizer, text, chat=chat)
    cuts = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(part.strip())}(?!\w)", prompt.text)] if part.strip() else []
    return tuple(i for i, (a, b) in enumerate(prompt.offsets) if a < b and any(a < stop and b > start for start, stop in cuts))
