"""Which token of a text stands for it.

1. ``last``: the last token (padding is none). ``last_content``: the last token whose own part of the text holds a letter or a digit, so that a full stop,
   a quotation mark, a line break at the end, or a chat template's own tokens are passed over. ``mean_last_m``: the plain mean over the last m tokens.
2. The first token is never pooled: most heads rest on it, and its activation says nothing about the text. A text too short for that is refused.
3. Positions count from the text's own first token, so padding, on either side, cannot shift them.
"""

from __future__ import annotations

from typing import get_args, Literal

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.prompts import Prompt

__all__ = ["POOLINGS", "Pooling", "pooled_positions"]

Pooling = Literal["last", "last_content", "mean_last_m"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


def pooled_positions(prompt: Prompt, pooling: Pooling = "last", m: int = 16) -> range:
    """The positions that are averaged, in the text's own count: one, or the last ``m``.

    Args:
        prompt: the text as the model reads it.
        pooling: see the module's text.
        m: tokens of ``mean_last_m``.

    Raises:
        ConfigError: an unknown pooling, or ``m`` below 1.
        PromptError: a text in which only the first token could be meant, without a letter or digit, or with fewer than ``m`` tokens after the first.
    """
    if pooling not in POOLINGS:
        raise ConfigError(f"{pooling!r} is no pooling.", todo=f"Use one of: {', '.join(POOLINGS)}.")
    if m < 1:
        raise ConfigError(f"The mean of the last {m} tokens cannot be taken.", todo="Give m of 1 or more.")
    n, shown = len(prompt), prompt.text[:60]
    stop = n if pooling != "last_content" else _after_content(prompt)
    start = stop - (m if pooling == "mean_last_m" else 1)
    if start < 1:
        if pooling == "mean_last_m":
            raise PromptError(
                f"The text {shown!r} has {n - 1} tokens after the first; {m} are to be averaged.",
                todo="Lengthen it, or average fewer tokens.",
            )
        raise PromptError(
            f"The text {shown!r} has no token to pool{' with a letter or digit' if pooling == 'last_content' else ''} after its first.",
            why="The first token holds the attention sink, not the text.",
            todo="Lengthen the text.",
        )
    return range(start, stop)


def _after_content(prompt: Prompt) -> int:
    frame = {at for at, name in enumerate(prompt.regions.names) if name in ("special", "assistant_header")}
    for at in range(len(prompt) - 1, -1, -1):
        start, stop = prompt.offsets[at]
        if int(prompt.regions.labels[at]) not in frame and any(c.isalnum() for c in prompt.text[start:stop]):
            return at + 1
    return 0
