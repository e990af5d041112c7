"""A vector added to siblings' input, fitted so that a set disturbs what follows as little as possible.

1. Teacher: the top path alone, an ordinary sequence. Its rows give the next-token distributions p.
2. Student: the same tokens with their siblings, under the tree's own mode and positions; the vector e is added to the embedding of every sibling (the top
   one too).
   The rows of the top tokens give q(e).
3. Loss: the mean of KL(p ‖ q(e)) over the rows whose sequence holds siblings, nats. Adam takes a few dozen steps from e = 0; the model's weights stay as
   they are.
4. The last trees may be held out: their loss before and after says whether the vector carries over to texts that it was not fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.parallel._forward import call_model
from symbolic_residue.parallel._layout import Layout, Mode
from symbolic_residue.parallel._tree import Tree

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument

__all__ = ["SiblingEmbedding", "fit_sibling_embedding"]


@dataclass(frozen=True)
class SiblingEmbedding:
    """A fitted vector.

    Attributes:
        value: ``[d_model]``, float32.
        before, after: mean KL on the trees that it was fitted on, nats.
        held_before, held_after: the same on trees that were held out; None where none were.
        trees, held: how many there were.
        steps: of the optimiser.
    """

    value: Tensor
    before: float
    after: float
    held_before: float | None
    held_after: float | None
    trees: int
    held: int
    steps: int


@dataclass
class _Example:
    layout: Layout
    rows: Tensor
    """Slots of the top tokens whose sequence holds siblings."""
    mode: Mode
    bias: float
    teacher: Tensor
    """``[row, vocab]`` log-probabilities of the top path alone."""


def fit_sibling_embedding(
    instrument: Instrument, trees: Sequence[Tree], *, held: int = 0, steps: int = 40, rate: float = 0.01
) -> SiblingEmbedding:
    """Fit the vector on trees that were decoded without one.

    Args:
        instrument: of the model.
        trees: with sets of more than one token.
        held: how many trees, the last ones, are only measured on.
        steps: of Adam.
        rate: Adam's learning rate, in units of the embeddings' root mean square.

    Returns:
        The vector of the step with the least loss on the fitted trees, and the losses.

    Raises:
        ConfigError: no tree with siblings among those to fit (or to hold out), or numbers out of range.
    """
    if not 0 <= held < len(trees):
        raise ConfigError(f"{held} of {len(trees)} trees cannot be held out.", todo="Leave at least one to fit on.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or not 0 < rate < float("inf"):
        raise ConfigError(f"steps={steps!r} and rate={rate!r} make no optimisation.")
    examples = [_example(instrument, tree) for tree in trees]
    fitted = [one for one in examples[: len(trees) - held] if one is not None]
    kept = [one for one in examples[len(trees) - held :] if one is not None]
    if not fitted or (held and not kept):
        raise ConfigError(
            "No tree has a set of more than one token before its end.", todo="Lower the threshold, or give longer trees."
        )
    weight: Tensor = instrument.parts.embed.weight  # type: ignore[assignment]
    scale = float(weight.detach().float().pow(2).mean().sqrt())
    value = torch.zeros(instrument.parts.d_model, device=weight.device, requires_grad=True)
    optimiser = torch.optim.Adam([value], lr=rate * scale)
    trained = [p for p in instrument.model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        best, least, first = value.detach().clone(), float("inf"), float("nan")
        for number in range(steps + 1):
            optimiser.zero_grad()
            loss = torch.stack([_loss(instrument, one, value) for one in fitted]).mean()
            now = float(loss.detach())
            first = now if number == 0 else first
            if now < least:
                best, least = value.detach().clone(), now
            if number < steps:
                loss.backward()
                optimiser.step()
        with torch.no_grad():
            zero = torch.zeros_like(best)
            told = [float(torch.stack([_loss(instrument, one, v) for one in kept]).mean()) if kept else None for v in (zero, best)]
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return SiblingEmbedding(best.float().cpu(), first, least, told[0], told[1], len(fitted), len(kept), steps)


def _example(instrument: Instrument, tree: Tree) -> _Example | None:
    """What one tree asks; None where no row comes after siblings."""
    layout = tree.layout(instrument.device)
    top = (layout.step[0] >= 0) & (layout.rank[0] == 0)
    wide = [step.number for step in tree.steps if len(step.tokens) > 1]
    if not wide:
        return None
    rows = (top & (layout.step[0] >= wide[0])).nonzero()[:, 0]
    prompt = (layout.step[0] < 0).nonzero()[:, 0]
    alone = layout.take(torch.cat([prompt, top.nonzero()[:, 0]]))
    alone.position = torch.arange(alone.n_slots, dtype=torch.float64, device=alone.ids.device)[None]
    alone.seat, alone.size = alone.position, torch.ones_like(alone.size)
    with torch.no_grad():
        logits = call_model(instrument, alone, mode="isolated").logits[0, -len(rows) :]
    return _Example(
        layout,
        rows,
        tree.config.get("mode", "isolated"),
        float(tree.config.get("bias", 0.0)),
        torch.log_softmax(logits.float(), -1),
    )


def _loss(instrument: Instrument, one: _Example, value: Tensor) -> Tensor:
    """Mean KL(teacher ‖ student), nats."""
    out = call_model(instrument, one.layout, mode=one.mode, bias=one.bias, embedding=value)
    student = torch.log_softmax(out.logits[0, one.rows].float(), -1)
    return (one.teacher.exp() * (one.teacher - student)).sum(-1).mean()
