"""A failure from texts: a prompt, its right answer, and where in the prompt the answer is said, if it is."""

from __future__ import annotations

from typing import Any

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.prompts import build_prompt, find_span
from symbolic_residue.shells._failure import Ask, Failure

__all__ = ["failure_of"]


def failure_of(
    tokenizer: Any,
    prompt: str,
    answer: str,
    *,
    id: str = "failure",
    frame: str | None = None,
    wrong: str | None = None,
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
        wrong: the one answer that the right one stands against; left out, every other token.
        evidence: the words of the prompt that say the answer (its first place); ``distractor`` those that say something else.
        control: a matched prompt whose answer the model gets right.
        chat: render prompt and control as a user's turn.
        max_tokens: the model's context.

    Raises:
        PromptError: an unusable prompt, or an answer without a token.
        SpanError: evidence or distractor is not in the prompt.
        ConfigError: evidence and distractor share tokens, or right and wrong begin with the same token.
    """
    built = build_prompt(tokenizer, prompt, chat=chat, max_tokens=max_tokens)
    tokens = []
    for text in (answer, wrong):
        ids = [] if text is None else tokenizer.encode(text, add_special_tokens=False)
        if text is not None and (not ids or not text.strip()):
            raise PromptError(
                f"The answer {text!r} of {id!r} has no token.", todo="Give a word with its leading space, as in ' yes'."
            )
        tokens.append(int(ids[0]) if ids else None)
    if tokens[0] == tokens[1]:
        raise ConfigError(f"{answer!r} and {wrong!r} of {id!r} begin with the same token.")

    def places(text: str | None) -> tuple[int, ...]:
        return () if text is None else tuple(find_span(built, text=text, occurrence=0).positions())

    said, against = places(evidence), places(distractor)
    if set(said) & set(against):
        raise ConfigError(f"Evidence and distractor of {id!r} share tokens.", todo="Give spans apart.")
    matched = None if control is None else tuple(build_prompt(tokenizer, control, chat=chat, max_tokens=max_tokens).ids)
    ask = Ask(tuple(built.ids), tokens[0], tokens[1], said, against, matched)
    return Failure(id, frame or id, (ask,))
