"""REMEMBER, SHIFT, PREDICT: the command triple, each usable by itself.

1. REMEMBER keeps the residual stream at chosen positions (the anchors).
2. SHIFT makes the jump in time before the end of a context; see ``_shift``.
3. PREDICT reads what comes next after the shift: most probable tokens, the targets' probabilities, a greedy continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import Prompt
from symbolic_residue.shells.temporal_inference._config import Direction, Mode
from symbolic_residue.shells.temporal_inference._runs import Tail, TextRuns
from symbolic_residue.shells.temporal_inference._shift import make_tail

__all__ = ["Prediction", "Remembered", "Shifted", "predict", "remember", "shift"]


@dataclass(frozen=True)
class Remembered:
    """Residual states at anchors.

    Attributes:
        positions: the anchors; ``tokens`` what stands there.
        states: ``[layer + 1, position, d_model]``: before the first layer, then after each.
    """

    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    states: Tensor = field(repr=False)


@dataclass(frozen=True)
class Shifted:
    """A context after a jump.

    Attributes:
        ids, positions: what the model reads, and where.
        text: the tokens as text.
        distance, direction, mode: of the shift.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    text: str
    distance: int
    direction: Direction
    mode: Mode


@dataclass(frozen=True)
class Prediction:
    """What comes next.

    Attributes:
        top: (token, probability), best first.
        targets: probability of the first token of each target.
        continuation: greedy, as text.
    """

    top: list[tuple[str, float]]
    targets: dict[str, float]
    continuation: str


def remember(instrument: Instrument, prompt: Prompt, positions: Sequence[int]) -> Remembered:
    """REMEMBER; positions may count from the end.

    Raises:
        ConfigError: a position outside the context.
    """
    n = len(prompt)
    if not positions or any(not -n <= p < n for p in positions):
        raise ConfigError(f"Anchors {list(positions)} in a context of {n} tokens.", todo=f"Name positions from {-n} to {n - 1}.")
    at = tuple(p % n for p in positions)
    trace = instrument.run(collate([prompt]), reads=("resid_pre.0", "resid_post.*"), keep_logits=1)
    names = ["resid_pre.0", *(f"resid_post.{i}" for i in range(instrument.parts.n_layers))]
    return Remembered(at, tuple(prompt.tokens[p] for p in at), torch.stack([trace[name][0, list(at)] for name in names]).cpu())


def shift(tokenizer: Any, ids: Sequence[int], distance: int, direction: Direction, mode: Mode) -> Shifted:
    """SHIFT at the end of a context: ``tokens`` forward drops its last ``distance`` tokens, backward reads them again; ``positions`` moves its last token."""
    tail = make_tail(ids, len(ids), distance, direction, mode, 0)
    whole = (*ids[: tail.start], *tail.ids)
    return Shifted(whole, (*range(tail.start), *tail.positions), tokenizer.decode(list(whole)), distance, direction, mode)


def predict(instrument: Instrument, tokenizer: Any, shifted: Shifted, targets: Sequence[str], top_k: int, steps: int) -> Prediction:
    """PREDICT.

    Raises:
        ConfigError: a target without tokens.
    """
    runs = TextRuns(instrument, shifted.ids[:-1] if len(shifted.ids) > 2 else shifted.ids)
    start = len(shifted.ids) - 1
    # From the first token that stands elsewhere than where counting would put it.
    moved = next((i for i, p in enumerate(shifted.positions) if p != i), start)
    first = max(1, min(start, moved))
    tail = Tail(first, shifted.ids[first:], shifted.positions[first:], 0)
    p = torch.softmax(runs.last(tail), -1)
    best = p.topk(min(top_k, len(p)))
    found = {}
    for target in targets:
        pieces = tokenizer.encode(target, add_special_tokens=False)
        if not pieces:
            raise ConfigError(f"The target {target!r} has no tokens.")
        found[target] = float(p[pieces[0]])
    new = runs.greedy(tail, steps)
    top = [(tokenizer.decode([int(i)]), float(v)) for v, i in zip(best.values, best.indices, strict=True)]
    return Prediction(top, found, tokenizer.decode(new))
