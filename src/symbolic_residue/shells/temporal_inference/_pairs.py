"""Two events in a known order, or one the cause of the other, asked about in several wordings.

1. A wording tells the story, may repeat it once wrongly or rightly (the *echo*), and begins the answer with the first event: ``In truth, A``. The next word is
   ``before`` or ``after`` (``so`` or ``because``).
2. Every wording is asked twice, with A first and with B first, so that the right word differs and a liking for one of the words cancels:
   preference = ½ [log-odds(before − after | A first) + log-odds(after − before | B first)].
3. *Neutral*: the same question after a story that gives no order; which word counts as right is decided by the order of mention. Its preference is the control.

The sentences are this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from symbolic_residue.errors import ConfigError

__all__ = ["Echo", "EventPair", "PairPrompt", "Relation", "pair_parts", "pair_prompts"]

Relation = Literal["order", "cause"]
Echo = Literal["none", "right", "wrong"]

CONNECTIVES: dict[str, tuple[str, str]] = {"order": (" before", " after"), "cause": (" so", " because")}
"""The word after A when A comes first, and when B does."""

STORIES: dict[str, tuple[str, ...]] = {
    "order": (
        "First {x}, then {y}.",
        "It began when {x}. It ended when {y}.",
        "At nine {x}. At ten {y}.",
        "Early in the day {x}. Late in the day {y}.",
        "On Monday {x}. On Tuesday {y}.",
        "Step one: {x}. Step two: {y}.",
        "Last year {x}. This year {y}.",
        "In the morning {x}, and in the evening {y}.",
    ),
    "cause": (
        "The cause: {x}. The result: {y}.",
        "This is what started it: {x}. This is what it led to: {y}.",
        "Reason: {x}. Outcome: {y}.",
        "The trigger was that {x}. The effect was that {y}.",
        "What made it happen: {x}. What happened: {y}.",
        "The source of it all was that {x}. The consequence was that {y}.",
        "Origin: {x}. Consequence: {y}.",
        "The root of it: {x}. The end of it: {y}.",
    ),
}
"""x is the earlier event, or the cause."""

NEUTRAL: dict[str, tuple[str, ...]] = {
    "order": (
        "Two things are known: {x}, and {y}.",
        "Nobody knows the order: {x}; {y}.",
        "The notes have no dates: {x}; {y}.",
        "Some time or other {x}, some time or other {y}.",
        "The list is not sorted: {x}; {y}.",
        "Item: {x}. Item: {y}.",
        "We heard two things: {x}, and {y}.",
        "In one place {x}, and in another {y}.",
    ),
    "cause": (
        "Two things that have nothing to do with each other: {x}; {y}.",
        "The notes do not say what led to what: {x}; {y}.",
        "Item: {x}. Item: {y}.",
        "In one place {x}, and in another {y}.",
        "We heard two things: {x}, and {y}.",
        "It is a mere list: {x}; {y}.",
        "Two things are known: {x}, and {y}.",
        "Apart from each other {x} and {y}.",
    ),
}
"""Stories without an order."""

_WRONG = ("A false note says that", "By mistake the log says that", "Tom is wrong to say that", "A liar claimed that")
_RIGHT = ("A true note says that", "With good reason the log says that", "Tom is right to say that", "A witness confirmed that")
_QUESTIONS = ("In truth,", "In fact,", "Really,", "As it was,")


class EventPair(BaseModel):
    """Two events, as clauses in the past tense without a full stop: ``Mara fed the cat``, ``Mara locked the door``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: str
    """One event (A: the question begins with it)."""
    second: str
    """The other (B)."""
    relation: Relation = "order"
    """Whether the story gives their order in time, or which one is the cause."""
    echo: Echo = "none"
    """Whether the story is followed by a wrong or a right restatement."""
    story: Literal["told", "neutral"] = "told"
    """``neutral`` leaves the order out of the story: nothing can be reversed then."""

    @field_validator("first", "second")
    @classmethod
    def _clause(cls, text: str) -> str:
        if not text.strip() or text != text.strip() or text[-1] in ".!?,;":
            raise ValueError("an event is a clause without white space around it and without a full stop")
        return text

    @model_validator(mode="after")
    def _different(self) -> EventPair:
        if self.first == self.second:
            raise ValueError("the two events are the same")
        if self.story == "neutral" and self.echo != "none":
            raise ValueError("a neutral story has no echo")
        return self

    @property
    def shown(self) -> str:
        """The first wording."""
        return _text(self, 0, True, "told")


class PairPrompt(BaseModel):
    """One prompt: ``wording``, whether A is first, its text, and the first tokens of the right and of the wrong word."""

    model_config = ConfigDict(frozen=True)

    wording: int
    a_first: bool
    text: str
    right: int
    wrong: int


def pair_prompts(tokenizer: Any, pair: EventPair, wordings: int, *, control: bool = False) -> list[PairPrompt]:
    """The prompts of a pair, both orders of every wording; with ``control`` those of the neutral stories.

    Raises:
        ConfigError: the tokenizer begins both words with the same token.
    """
    ids = [tokenizer.encode(word, add_special_tokens=False)[0] for word in CONNECTIVES[pair.relation]]
    if ids[0] == ids[1]:
        words = " and ".join(repr(word) for word in CONNECTIVES[pair.relation])
        raise ConfigError(f"{words} begin with the same token.", why="The next token cannot tell them apart in this tokenizer.")
    out = []
    for wording in range(wordings):
        for a_first in (True, False):
            right, wrong = ids if a_first else ids[::-1]
            # The control's story words differ from the neutral item's own, so that the two are not one text.
            text = _text(pair, wording, a_first, "control" if control else "told")
            out.append(PairPrompt(wording=wording, a_first=a_first, text=text, right=right, wrong=wrong))
    return out


def _text(pair: EventPair, wording: int, a_first: bool, which: Literal["told", "control"]) -> str:
    return " ".join(pair_parts(pair, wording, a_first, control=which == "control"))


def pair_parts(pair: EventPair, wording: int, a_first: bool, *, control: bool = False) -> list[str]:
    """Story, echo (where there is one) and question of a prompt; joined by spaces they are its text."""
    x, y = (pair.first, pair.second) if a_first else (pair.second, pair.first)
    neutral: Sequence[str] = NEUTRAL[pair.relation]
    if control:
        story = neutral[(wording + len(neutral) // 2) % len(neutral)] if pair.story == "neutral" else neutral[wording]
    else:
        story = (neutral if pair.story == "neutral" else STORIES[pair.relation])[wording]
    told = story.format(x=x, y=y)
    parts = [told[0].upper() + told[1:]]
    if not control and pair.echo != "none":
        words = CONNECTIVES[pair.relation]
        word = words[a_first] if pair.echo == "wrong" else words[not a_first]
        lead = (_WRONG if pair.echo == "wrong" else _RIGHT)[wording % len(_WRONG)]
        parts.append(f"{lead} {pair.first}{word} {pair.second}.")
    return [*parts, f"{_QUESTIONS[wording % len(_QUESTIONS)]} {pair.first}"]
