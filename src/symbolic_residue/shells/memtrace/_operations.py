"""RECALL, ANCHOR, INHIBIT: the command triple, each usable by itself.

1. RECALL reads a token at a position with the logit lens, depth by depth: how probable, how many tokens are better, and from which depth on it is
   among the best to the end.
2. ANCHOR multiplies the odds of a span's keys by ``strength`` (an attention bias of ln strength) for every row after the span, in chosen layers and
   heads; or, with ``mode="embedding"``, scales the span's input embeddings. INHIBIT is the same with a strength below 1; 0 hides the span (in mode
   embedding: zeroes it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import AttentionBias, AttentionMask, collate, Edit, Instrument
from symbolic_residue.prompts import Prompt
from symbolic_residue.readout import lens_reads, logit_lens
from symbolic_residue.types import Span

__all__ = ["Anchoring", "Recall", "anchor", "recall"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Recall:
    """RECALL's result; depth 0 is the embedding, depth l + 1 follows layer l.

    Attributes:
        position: the row that was read; ``token`` the token's text.
        probability: ``[depth]`` of the token; ``rank`` ``[depth]``: how many tokens are more probable.
        readable_from: the first depth from which the token is among the ``readable_rank`` best at every depth to the end, or None.
    """

    position: int
    token: str
    probability: Array
    rank: NDArray[np.int64]
    readable_from: int | None


@dataclass(frozen=True)
class Anchoring:
    """ANCHOR's or INHIBIT's result.

    Attributes:
        span: the tokens acted on.
        before, after: next-token distributions ``[vocab]``.
        tokens: texts of the tokens asked for (the best one before, where none was); ``ids`` theirs.
        shift: change of each one's log-probability (nats), ``[token]``.
    """

    span: Span
    before: Array
    after: Array
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    shift: Array


def recall(instrument: Instrument, prompt: Prompt, position: int, token: int, text: str, rank: int) -> Recall:
    """RECALL on one prompt."""
    if not -len(prompt) <= position < len(prompt):
        raise ConfigError(f"There is no position {position} in a prompt of {len(prompt)} tokens.")
    at = position % len(prompt)
    trace = instrument.run(collate([prompt]), reads=lens_reads(), keep_logits=1)
    lens = logit_lens(trace, instrument.parts, tokens=(token,), rows=(at,))
    ranks = lens.rank[:, 0, 0, 0].cpu().numpy().astype(np.int64)
    return Recall(at, text, lens.log_probability[:, 0, 0, 0].double().exp().cpu().numpy(), ranks, readable_from(ranks, rank))


def readable_from(ranks: Sequence[int] | NDArray[np.int64], rank: int) -> int | None:
    """The first depth from which every rank is below ``rank``, or None."""
    bad = np.flatnonzero(np.asarray(ranks) >= rank)
    first = int(bad[-1]) + 1 if len(bad) else 0
    return first if first < len(ranks) else None


def anchor(
    instrument: Instrument,
    prompt: Prompt,
    span: Span,
    strength: float,
    mode: str,
    *,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    tokens: Sequence[int],
    texts: Sequence[str],
) -> Anchoring:
    """ANCHOR (or INHIBIT) on one prompt; see the module."""
    if not math.isfinite(strength) or strength < 0:
        raise ConfigError(f"The strength is {strength}.", todo="Give a factor of at least 0.")
    batch = collate([prompt])
    before = torch.softmax(instrument.run(batch, keep_logits=1)["logits"][0, -1].double(), -1)
    if mode == "attention":
        rows = list(range(span.stop, len(prompt)))
        if not rows:
            raise ConfigError("The span is the end of the prompt.", why="No later row looks at it.")
        if strength == 0 and span.start == 0:
            raise ConfigError("The first token cannot be hidden.", why="It is the attention sink.", todo="Begin the span later.")
        keys = list(range(span.start, span.stop))
        edits: list[Edit] = []
        if strength == 0:
            edits = [AttentionMask(keys, rows=rows, layers=layers, heads=heads)]
        elif strength != 1:
            edits = [AttentionBias(math.log(strength), keys, rows=rows, layers=layers, heads=heads)]
        logits = instrument.run(batch, edits=edits, keep_logits=1)["logits"]
    elif mode == "embedding":
        if layers is not None or heads is not None:
            raise ConfigError("Embeddings have no layers or heads.", todo="Leave layers and heads out.")
        with torch.no_grad():
            embedded = instrument.parts.embed(batch.ids.to(instrument.device)).clone()
        embedded[:, span.start : span.stop] *= strength
        logits = instrument.run(batch, inputs_embeds=embedded, keep_logits=1)["logits"]
    else:
        raise ConfigError(f"There is no mode {mode!r}.", todo="Use 'attention' or 'embedding'.")
    after = torch.softmax(logits[0, -1].double(), -1)
    ids = list(tokens)
    shift = after[ids].clamp_min(1e-300).log() - before[ids].clamp_min(1e-300).log()
    return Anchoring(span, before.cpu().numpy(), after.cpu().numpy(), tuple(texts), tuple(ids), shift.cpu().numpy())
