"""What is to be healed: a prompt, its right answer, and where in the prompt the answer is said, if it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.prompts import build_prompt, find_span, Prompt

__all__ = ["Failure", "failure_of"]


@dataclass(frozen=True)
class Failure:
    """A prompt and its right answer.

    Attributes:
        id: its name; ``frame`` what resamples together (the item itself where nothing else is known).
        prompt: the tokens.
        answer: the right next token; ``answer_text`` as text.
        evidence: positions that say the answer, empty where none are known; ``distractor`` positions that say something else.
        control: a matched prompt that the model answers rightly, for steering; None where there is none.
    """

    id: str
    frame: str
    prompt: Prompt
    answer: int
    answer_text: str
    evidence: tuple[int, ...] = ()
    distractor: tuple[int, ...] = ()
    control: Prompt | None = None


def failure_of(
    tokenizer: Any,
    prompt: str,
    answer: str,
    *,
    id: str = "failure",
    frame: str | None = None,
    evidence: str | None = None,
    distractor: str | None = None,
    control: str | None = None,
    chat: bool = False,
    max_tokens: int | None = None,
) -> Failure:
    """A failure from texts.

    Args:
        tokenizer: the model's.
        prompt: what the model reads.
        answer: what it should say next, leading space included; its first token counts.
        id: a name; ``frame`` what it shares with others that are made alike.
        evidence: the words of the prompt that say the answer (its first place); ``distractor`` those that say something else.
        control: a matched prompt whose answer the model gets right.
        chat: render prompt and control as a user's turn.
        max_tokens: the model's context.

    Raises:
        PromptError: an unusable prompt, or an answer without a token.
        SpanError: evidence or distractor is not in the prompt.
        ConfigError: evidence and distractor share tokens.
    """
    built = build_prompt(tokenizer, prompt, chat=chat, max_tokens=max_tokens)
    ids = tokenizer.encode(answer, add_special_tokens=False)
    if not ids or not answer.strip():
        raise PromptError(
            f"The answer {answer!r} of {id!r} has no token.", todo="Give a word with its leading space, as in ' yes'."
        )

    def places(text: str | None) -> tuple[int, ...]:
        return () if text is None else tuple(find_span(built, text=text, occurrence=0).positions())

    said, against = places(evidence), places(distractor)
    if set(said) & set(against):
        raise ConfigError(f"Evidence and distractor of {id!r} share tokens.", todo="Give spans apart.")
    return Failure(
        id=id,
        frame=frame or id,
        prompt=built,
        answer=int(ids[0]),
        answer_text=answer,
        evidence=said,
        distractor=against,
        control=None if control is None else build_prompt(tokenizer, control, chat=chat, max_tokens=max_tokens),
    )
