"""CANCEL: hide exactly these tokens in exactly these layers, and see what the output does.

1. What is hidden is a set of *cells* (layer, token). In each of them the key is masked before softmax from every row that comes after the token; the
   token's own row keeps it, as in SENSE.
2. Effect: KL(P ‖ P′) of the next-token distribution (nats), and the fall of ln P(answer).
3. *Random control*: the same cells with the tokens exchanged at random among the counted ones. Each token's layers stay together, so every layer
   hides as many positions as before. *Matched distance*: the same, but tokens change places only with neighbours (blocks of :data:`BLOCK` counted
   tokens, at an offset drawn each time), so that how far they are from the end stays the same within a few tokens.
4. Many sets go through the model in one forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import AttentionMask, Batch, Edit, Instrument
from symbolic_residue.prompts import Prompt

__all__ = ["BLOCK", "Cancellation", "Cells", "cancel", "effects", "exchanged", "moved_to"]

Array = NDArray[np.float64]
Cells = NDArray[np.bool_]
"""``[layer, token]`` over the layers with softmax attention: True is hidden."""
BLOCK = 4
_TOKENS_AT_ONCE = 1536


@dataclass(frozen=True)
class Cancellation:
    """What hiding some cells did to the next token.

    Attributes:
        cells: how many (layer, token) were hidden.
        kl: KL(P ‖ P′), nats.
        fall: ln P(answer) − ln P′(answer), nats.
        before, after: probability of the answer.
        top_before, top_after: the best token without and with the mask.
    """

    cells: int
    kl: float
    fall: float
    before: float
    after: float
    top_before: str
    top_after: str


def cancel(
    instrument: Instrument,
    prompt: Prompt,
    sets: Sequence[Cells],
    told: Callable[[float], None] = lambda share: None,
    *,
    known: dict[bytes, Tensor] | None = None,
) -> Tensor:
    """``[set, vocab]`` float64: log-probabilities of the next token, each with one set of cells hidden.

    ``known``: what has been run by the sets' bytes; it is added to.
    """
    known = {} if known is None else known
    n = len(prompt)
    layers = instrument.attention_layers
    size = max(1, _TOKENS_AT_ONCE // n)
    # Equal sets need one run.
    keys = [cells.tobytes() for cells in sets]
    first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
    once = sorted(first.values())
    for start in range(0, len(once), size):
        group = once[start : start + size]
        edits: list[Edit] = []
        for b, i in enumerate(group):
            edits += _masks(sets[i], layers, n, b)
        ids = torch.tensor([prompt.ids] * len(group))
        trace = instrument.run(
            Batch(ids, torch.ones_like(ids), None, (0,) * len(group), (n - 1,) * len(group)), edits=edits, keep_logits=1
        )
        found = torch.log_softmax(trace["logits"][:, -1].double(), -1).cpu()
        known.update({keys[i]: one for i, one in zip(group, found, strict=True)})
        told(min(1.0, (start + size) / len(once)))
    if not keys:
        return torch.empty(0, instrument.parts.vocab_size, dtype=torch.float64)
    return torch.stack([known[key] for key in keys])


def _masks(cells: Cells, layers: Sequence[int], n: int, sequence: int) -> list[Edit]:
    """One mask for each token; those of neighbours that share their layers would not be fewer, since each has rows of its own."""
    return [
        AttentionMask(
            [int(j)],
            rows=range(int(j) + 1, n),
            layers=[layers[place] for place in np.flatnonzero(cells[:, j]).tolist()],
            batch=(sequence,),
        )
        for j in np.flatnonzero(cells.any(0))
        if j < n - 1
    ]


def effects(base: Tensor, found: Tensor, answer: int) -> tuple[Array, Array]:
    """KL(P ‖ P′) and fall of ln P(answer), ``[set]`` each in nats; ``base [vocab]`` and ``found [set, vocab]`` are log-probabilities."""
    # The sum of p (ln p − ln q) can round to just below 0.
    kl = (base.exp() * (base - found)).nan_to_num(0.0).sum(-1).clamp_min(0.0)
    return kl.numpy(), (base[answer] - found[:, answer]).numpy()


def exchanged(cells: Cells, counted: Sequence[int], rng: np.random.Generator, n: int, *, block: int | None = None) -> list[Cells]:
    """``n`` random controls of a set: its columns permuted among the counted tokens, all of them or (``block``) among neighbours only."""
    at = np.asarray(counted)
    out = []
    for _ in range(n):
        order = np.arange(len(at))
        if block is None:
            order = rng.permutation(order)
        else:
            offset = int(rng.integers(block))
            for piece in np.split(order.copy(), range(offset or block, len(at), block)):
                order[piece] = rng.permutation(piece)
        moved = np.zeros_like(cells)
        moved[:, at] = cells[:, at[order]]
        out.append(moved)
    return out


def moved_to(cells: Cells, source: int, targets: Sequence[int]) -> list[Cells]:
    """One token's cells at other tokens: the same layers."""
    out = []
    for target in targets:
        moved = np.zeros_like(cells)
        moved[:, target] = cells[:, source]
        out.append(moved)
    return out


def as_cells(under: Mapping[int, Sequence[int]], instrument: Instrument, prompt: Prompt) -> Cells:
    """Cells from positions by layer.

    Raises:
        ConfigError: a layer without softmax attention; a position that is the sink, the last one, or not there.
    """
    layers, n = instrument.attention_layers, len(prompt)
    cells = np.zeros((len(layers), n), bool)
    for layer, positions in under.items():
        if layer not in layers:
            raise ConfigError(
                f"Layer {layer} has no softmax attention, so nothing can be hidden in it.",
                todo=f"Layers that have it: {', '.join(map(str, layers)) or 'none'}.",
            )
        for position in positions:
            if not 0 < position < n - 1:
                raise ConfigError(
                    f"Position {position} cannot be cancelled.",
                    why="The first token is the sink, and the last has no later row that could see it.",
                    todo=f"Use positions from 1 to {n - 2}.",
                )
            cells[layers.index(layer), position] = True
    return cells
