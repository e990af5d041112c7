"""The fixed menu of edits, each a kind, a place and a dose; all act on the last row only (of an answer: on every row that chooses a token of it).

1. **anchor**: bias +ln s on the evidence's keys in all layers and heads (their odds grow s-fold). **inhibit**: the same on the distractor's keys with s < 1.
2. **head**: one head's output scaled. Places: the heads with the largest mean direct logit attribution (either sign) to the right answer − the wrong
   one (or the best other token), at the token where the two part.
3. **steer**: α times the mean difference (control − failing prompt) of the residual stream after a layer.
4. **bias**: b nats on the logits of the tokens that stand in the evidence.
5. Each has a random twin of the same kind and dose: another span of as many tokens, another head, another direction of the same length, other tokens of
   the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from symbolic_residue.instrument import Add, AttentionBias, Edit, HeadScale

__all__ = ["KINDS", "OF_EVIDENCE", "Cell", "Dose", "Menu", "cell_of", "random_cell", "random_span", "twin_of"]

KINDS = ("anchor", "inhibit", "head", "steer", "bias")
OF_EVIDENCE = ("anchor", "inhibit", "bias")
"""Kinds that act on words of the prompt."""


@dataclass(frozen=True)
class Menu:
    """Doses of each kind, weakest first; an empty one leaves the kind out.

    Attributes:
        anchor, inhibit: factors on the odds of the keys.
        head: factors on a head's output (1 is nothing); ``heads`` how many heads are tried.
        steer: multiples of the direction; ``layers`` depths as shares of the model's.
        bias: nats.
    """

    anchor: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0, 64.0)
    inhibit: tuple[float, ...] = (0.5, 0.25, 0.1, 0.02, 0.0)
    head: tuple[float, ...] = (0.5, 1.5, 0.0, 2.0, 3.0, 5.0)
    heads: int = 8
    steer: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    layers: tuple[float, ...] = (0.25, 0.5, 0.75)
    bias: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Dose:
    """One entry of the menu: ``kind``, ``place`` (``all heads``, ``4.2``, ``after layer 12`` …), ``dose``; ``layer`` and ``head`` where it has them."""

    kind: str
    place: str
    dose: float
    layer: int = -1
    head: int = -1

    @property
    def recipe(self) -> tuple[str, str]:
        """Kind and place."""
        return self.kind, self.place


@dataclass(frozen=True)
class Cell:
    """An entry on one prompt: what to edit in the forward (given the copy's batch index), and what to add to the logits afterwards.

    Attributes:
        edit: makes the edit for one batch index; None where only the logits change.
        tokens: whose logits rise by ``nats``.
    """

    edit: Callable[[int], Edit] | None
    tokens: tuple[int, ...] = ()
    nats: float = 0.0


def cell_of(
    dose: Dose, ids: Sequence[int], evidence: Sequence[int], distractor: Sequence[int], direction: Tensor | None
) -> Cell | None:
    """The entry on a prompt, or None where the prompt lacks what it acts on."""
    last = (-1,)
    if dose.kind in ("anchor", "inhibit"):
        keys = [p for p in (evidence if dose.kind == "anchor" else distractor) if p < len(ids) - 1]
        if not keys:
            return None
        value = math.log(dose.dose) if dose.dose > 0 else -math.inf
        # Left padding is the caller's: one prompt at a time has none.
        return Cell(lambda b: AttentionBias(value, keys, rows=last, batch=(b,)))
    if dose.kind == "head":
        return Cell(lambda b: HeadScale(dose.layer, dose.head, dose.dose, rows=last, batch=(b,)))
    if dose.kind == "steer":
        if direction is None:
            return None
        return Cell(lambda b: Add(f"resid_post.{dose.layer}", rows=last, batch=(b,), value=direction * dose.dose))
    tokens = tuple(sorted({ids[p] for p in evidence}))
    return Cell(None, tokens, dose.dose) if tokens else None


def twin_of(dose: Dose, direction: Tensor | None, n_heads: int, rng: np.random.Generator) -> tuple[Dose, Tensor | None]:
    """The same kind and dose elsewhere in the model: another head of the layer, another direction of the same length. Edits of the evidence stay as they are:
    their twin is another span of each prompt (:func:`random_cell`)."""
    if dose.kind == "head" and n_heads > 1:
        other = int(rng.integers(n_heads - 1))
        other += int(other >= dose.head)
        return Dose(dose.kind, f"{dose.layer}.{other}", dose.dose, dose.layer, other), None
    if dose.kind == "steer" and direction is not None:
        noise = torch.tensor(rng.standard_normal(direction.shape[0]), dtype=direction.dtype, device=direction.device)
        return dose, noise * (direction.norm() / noise.norm())
    return dose, direction


def random_cell(dose: Dose, ids: Sequence[int], n: int, avoid: Sequence[int], rng: np.random.Generator) -> Cell | None:
    """An edit of the evidence on a random span of ``n`` tokens: the control, and what the entry does to an unrelated prompt."""
    span = random_span(len(ids), n, avoid, rng)
    return cell_of(dose, ids, span, span, None)


def random_span(length: int, n: int, avoid: Sequence[int], rng: np.random.Generator) -> tuple[int, ...]:
    """``n`` neighbouring positions, never the first (attention sinks there) nor the last, outside ``avoid`` where there is such a place."""
    n = max(1, min(n, length - 2))
    starts = [s for s in range(1, length - n) if not set(range(s, s + n)) & set(avoid)] or list(range(1, max(2, length - n)))
    start = starts[int(rng.integers(len(starts)))]
    return tuple(p for p in range(start, start + n) if p < length - 1)
