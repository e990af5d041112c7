"""DISTILL, SPLICE, NULLIFY: instructions as directions, and how far apart these point.

1. **DISTILL**: the residual stream after a layer (default the last but one), mean over the content tokens of the instruction (words, without punctuation and
   the smallest function words), minus the same mean over a bank of neutral instructions. Uncentred directions share a large common part, and their cosines are
   all near 1.
2. **SPLICE**: the mean of several vectors, and their conflict: the mean over pairs of 1 − cosine, in [0, 2].
3. **NULLIFY**: the spliced vector, or None where the conflict is above the threshold.

The text is read after the frame's opening, so that its first word is not the position that attention sinks into.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import build_prompt, Prompt

__all__ = ["NEUTRAL", "Splice", "conflict_of", "content_positions", "distill", "nullify", "splice"]

OPENING = "Rule: "
NEUTRAL = (
    "Read the question with care.", "Take your time with this.", "Think about what is asked.", "Here is something to answer.",
    "Look at the next line.", "Give the matter some thought.", "Consider the text below.", "This is a question for you.",
    "Please have a look at it.", "Keep the question in mind.", "Answer what is asked here.", "Go on to the question.",
    "The question comes next.", "Be helpful to the reader.", "Do what you can here.", "Try to be of help.",
    "See what you make of this.", "Attend to the following.", "Work on the next item.", "Handle the request below.",
    "Respond to what follows.", "Let us look at one case.", "Proceed with the task.", "Please deal with this now.",
)  # fmt: skip
"""Instructions that ask for nothing in particular."""

_SMALL = frozenset(
    ["a", "an", "the", "to", "of", "in", "on", "at", "and", "or", "with", "your", "you", "is", "be", "as", "it", "this", "that"]
)


@dataclass(frozen=True)
class Splice:
    """Several instruction vectors as one.

    Attributes:
        vector: their mean ``[d_model]``.
        conflict: mean over pairs of 1 − cosine, in [0, 2]; 0 for one vector alone.
        cosines: ``[vector, vector]``.
    """

    vector: Tensor
    conflict: float
    cosines: Tensor


def content_positions(prompt: Prompt, start: int) -> list[int]:
    """Tokens from character ``start`` on that carry words: no punctuation, none of the smallest function words; all tokens where that leaves none."""
    inside = [i for i, (a, b) in enumerate(prompt.offsets) if b > start and b > a and i > 0]
    kept = []
    for i in inside:
        a, b = prompt.offsets[i]
        words = [m for m in re.finditer(r"\w+", prompt.text) if m.start() < b and m.end() > a]
        if words and not all(m[0].lower() in _SMALL for m in words):
            kept.append(i)
    return kept or inside


def distill(instrument: Instrument, tokenizer: Any, texts: Sequence[str], layer: int) -> Tensor:
    """Uncentred vectors ``[text, d_model]`` in float32: see the module, step 1.

    Raises:
        PromptError: an empty text.
    """
    prompts = []
    for text in texts:
        if not text.strip():
            raise PromptError("An instruction is empty.", todo="Write what the model shall do.")
        prompts.append(build_prompt(tokenizer, OPENING + text.strip(), max_tokens=instrument.parts.max_context))
    batch = collate(prompts)
    resid = instrument.run(batch, reads=(f"resid_post.{layer}",), keep_logits=1)[f"resid_post.{layer}"].float()
    return torch.stack(
        [resid[i, [batch.lead[i] + p for p in content_positions(prompt, len(OPENING))]].mean(0) for i, prompt in enumerate(prompts)]
    )


def conflict_of(vectors: Tensor) -> tuple[float, Tensor]:
    """Mean over pairs of 1 − cosine of ``vectors [vector, d_model]``, and all cosines.

    Raises:
        ConfigError: a vector of length zero or with numbers that are not finite.
    """
    x = vectors.double()
    size = x.norm(dim=-1, keepdim=True)
    if not bool(torch.isfinite(x).all()) or bool((size == 0).any()):
        raise ConfigError("An instruction vector is zero or not finite.", why="It has no direction.")
    x = x / size
    cosines = (x @ x.T).clamp(-1.0, 1.0)
    pairs = [float(1 - cosines[i, j]) for i, j in combinations(range(len(x)), 2)]
    return (sum(pairs) / len(pairs) if pairs else 0.0), cosines


def splice(vectors: Sequence[Tensor] | Tensor) -> Splice:
    """SPLICE; see the module.

    Raises:
        ConfigError: no vector, or vectors of different lengths, or without direction.
    """
    rows = list(vectors)
    if not rows or len({tuple(v.shape) for v in rows}) != 1 or rows[0].dim() != 1:
        raise ConfigError("SPLICE needs one or more vectors [d_model] of one length.")
    stacked = torch.stack([v.detach() for v in rows])
    conflict, cosines = conflict_of(stacked)
    return Splice(stacked.mean(0), conflict, cosines)


def nullify(spliced: Splice, threshold: float) -> Tensor | None:
    """NULLIFY; see the module."""
    return None if spliced.conflict > threshold else spliced.vector
