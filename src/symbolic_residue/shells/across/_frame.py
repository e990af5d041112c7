"""The self-describing frame of a meta-shell, and its scrambled twin of equal token length.

1. The frame names the shell, its three commands, what each stands for (the interpretability map), what silence means (the null reflection), and why
   the test is made (the motivation); the prompt follows.
2. The scrambled frame has the same words in a shuffled order, in the same lines. It is the control: as many tokens of the same words, and no description.
   Shuffles are drawn by seed until one has as many tokens as the frame.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from symbolic_residue.errors import ConfigError, PromptError

__all__ = ["frame_of", "scrambled"]

_TRIES = 400
_WORD = re.compile(r"\S+")


def frame_of(shell: Any) -> str:
    """The frame of a shell, ending in a line break. A shell's attribute ``meaning`` (one phrase for each operation) stands before the general words."""
    first, second, third = shell.operations
    meaning = getattr(shell, "meaning", None) or (
        "puts the text under one kind of stress",
        "follows how the stress is carried from layer to layer",
        "is the place where an answer is given or withheld",
    )
    if len(meaning) != 3:
        raise ConfigError(f"{shell.name} explains {len(meaning)} of its three operations.", todo="Give meaning = (a, b, c).")
    return (
        f"Probe {shell.name}: a controlled test of the model that reads these lines.\n"
        f"Commands: {first}, {second}, {third}.\n"
        f"Map: {first} {meaning[0]}; {second} {meaning[1]}; {third} {meaning[2]}.\n"
        "Null reflection: an answer that does not come is a finding too, and is read like any other.\n"
        "Motivation: where a model fails under a known stress, one sees which of its parts carried the load.\n"
        "The text:\n"
    )


def scrambled(frame: str, n_tokens: Callable[[str], int], seed: int) -> str:
    """The frame with its words shuffled, of as many tokens.

    Args:
        frame: the frame.
        n_tokens: tokens of the whole prompt with this frame.
        seed: of the shuffles.

    Raises:
        PromptError: no shuffle has as many tokens.
    """
    words = _WORD.findall(frame)
    if len(set(words)) < 2:
        return frame
    rng = np.random.default_rng(seed)
    wanted = n_tokens(frame)
    for _ in range(_TRIES):
        order = iter(rng.permutation(len(words)))
        text = _WORD.sub(lambda _, order=order: words[int(next(order))], frame)
        if text != frame and n_tokens(text) == wanted:
            return text
    raise PromptError(
        f"No shuffle of the frame has {wanted} tokens.",
        why="The control must be as long as the frame.",
        todo="Word the frame otherwise.",
    )
