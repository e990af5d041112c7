"""One forward of an arrangement, read at its probes.

1. The whole arrangement runs once, without a cache, teacher-forced: every slot's token is given.
2. The model's own rotary modules must have received the positions that were asked (``PositionWatch``).
3. What a probe saw is kept by place (see ``_arms``): its attention weights, the distance to every key that it saw, the softmax's log-denominator. Its own
   key is set aside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import InstrumentError
from symbolic_residue.instrument import AttentionRead, Trace
from symbolic_residue.parallel._forward import call_model, model_positions
from symbolic_residue.parallel._rotary import PositionWatch
from symbolic_residue.parallel.measure._arms import Arranged, Sight

if TYPE_CHECKING:
    from symbolic_residue.instrument import Edit, Instrument

__all__ = ["EditsOf", "Seen", "replay"]

EditsOf = Callable[[Arranged], "Sequence[Edit]"]
"""Edits for an arrangement: what the model under test is made to do in it."""


@dataclass
class Seen:
    """What the probes of one arm saw. Axes: layer (those with attention), head, row (probe), place.

    Attributes:
        layers: the model's layer numbers.
        arranged: what was run.
        weights: ``[layer, head, row, place]`` float64; 0 where the place was not seen. The probe's own key is left out.
        own: ``[layer, head, row]``: weight on the own key.
        lse: ``[layer, head, row]``: log of the softmax's denominator.
        distance: ``[row, place]``: position of the probe minus that of the key; NaN where it was not visible.
        seats: ``[row, place]``: the same in the whole positions that windows count.
        windows: by layer, the sliding window or None.
        log_p: ``[row, vocab]`` float32 log-probabilities of the next token; None where not asked.
        extra: weights ``[layer, head, extra row, slot]`` of other rows asked for.
        trace: of the forward.
    """

    layers: tuple[int, ...]
    arranged: Arranged
    weights: Tensor
    own: Tensor
    lse: Tensor
    distance: Tensor
    seats: Tensor
    windows: tuple[int | None, ...]
    log_p: Tensor | None
    extra: Tensor | None
    trace: Trace

    @property
    def sights(self) -> dict[Sight, int]:
        """Sight → row."""
        return self.arranged.probe_of

    def visible(self, layer: int) -> Tensor:
        """``[row, place]`` bool: keys that the probes could see in the layer at this index, the own one left out."""
        window = self.windows[layer]
        seen = ~self.distance.isnan()
        return seen if window is None else seen & (self.seats < window)


def replay(
    instrument: Instrument,
    arranged: Arranged,
    *,
    bias: float = 0.0,
    edits: EditsOf | None = None,
    reads: Sequence[str] = (),
    logits: bool = False,
    extra: Sequence[int] = (),
) -> Seen:
    """Run an arrangement once and read its probes.

    Args:
        instrument: of the model.
        arranged: from ``arrange``.
        bias: added to the scores of siblings as rows of later steps see them.
        edits: edits of the forward.
        reads: points to read (all rows).
        logits: keep the probes' next-token distributions.
        extra: other slots whose attention weights are wanted.

    Raises:
        InstrumentError: a model in training mode, or one that rotates by other positions than it was given.
    """
    if instrument.model.training:
        raise InstrumentError(
            "The model is in training mode.", why="Dropout would change its attention.", todo="Call model.eval()."
        )
    rows = [*arranged.rows, *extra]
    read = AttentionRead(stats=("lse",), rows=tuple(rows), weights=True)
    watch = PositionWatch(instrument)
    with (
        torch.no_grad(),
        watch.watching(),
        instrument.attached(reads=reads, attention=read, edits=() if edits is None else edits(arranged)) as trace,
    ):
        out = call_model(
            instrument,
            arranged.layout,
            mode="isolated",
            visible=arranged.visible,
            bias=bias,
            keep_logits=len(arranged.rows) if logits else 1,
        )
    asked = model_positions(arranged.layout.position)
    if not torch.equal(watch.positions.double().cpu(), asked.double().cpu().expand(len(watch.positions), -1)):
        raise InstrumentError("The model's rotary modules received other positions than the arrangement's.")
    table = trace.attention
    assert table is not None
    weights = table["weights"][:, 0].cpu()
    n = len(arranged.rows)
    slot_of = _slots(arranged)
    there = slot_of >= 0
    index = slot_of.clamp_min(0)[None, None].expand(*weights.shape[:2], -1, -1)
    by_place = weights[:, :, :n].gather(-1, index).masked_fill(~there, 0.0).double()
    at = torch.tensor(arranged.rows)
    own = weights[:, :, torch.arange(n), at].double()
    distance, seats = (
        (p[at][:, None] - p[slot_of.clamp_min(0)]).masked_fill(~there, float("nan"))
        for p in (arranged.layout.position[0].cpu(), arranged.layout.seat[0].cpu())
    )
    return Seen(
        table.layers,
        arranged,
        by_place,
        own,
        table["lse"][:, 0, :, :n].double().cpu(),
        distance,
        seats,
        tuple(instrument.parts.windows[i] for i in table.layers),
        torch.log_softmax(out.logits[0, -n:].float(), -1) if logits else None,
        weights[:, :, n:].double() if extra else None,
        trace,
    )


def _slots(arranged: Arranged) -> Tensor:
    """``[row, place]``: the slot at which a probe saw a place; −1 where it did not, or where the place is its own."""
    out = torch.full((len(arranged.rows), arranged.n_places), -1, dtype=torch.int64)
    visible = arranged.visible[0].cpu()
    for i, row in enumerate(arranged.rows):
        for slot in visible[row].nonzero()[:, 0].tolist():
            if slot != row:
                out[i, arranged.places[slot]] = slot
    return out
