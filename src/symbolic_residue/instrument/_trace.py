"""What one forward left behind: tensors at the points that were read, attention tables, logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from symbolic_residue.errors import ReadError
from symbolic_residue.instrument.attention import AttentionTable
from symbolic_residue.types import Point

__all__ = ["Trace"]


@dataclass
class Trace:
    """Readouts of one forward.

    Attributes:
        tensors: ``Point → [batch, query, d]`` (``[batch, query, head, d_head]`` at z, q, k, v), after edits.
        logits: ``[batch, query, vocab]``, or only the last rows when the forward was asked for those.
        attention: the attention table, or None when none was asked for.
        lead: number of padding tokens before each sequence.
        on_read: called with each point and its tensor as the forward reaches it; the tensor is then not kept.
    """

    tensors: dict[Point, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    attention: AttentionTable | None = None
    lead: tuple[int, ...] = ()
    calls: dict[int, int] = field(default_factory=dict)
    on_read: Callable[[Point, Tensor], None] | None = None

    def record(self, point: Point, tensor: Tensor) -> None:
        """Keep what was read at a point, or hand it on."""
        if self.on_read is None:
            self.tensors[point] = tensor
        else:
            self.on_read(point, tensor)

    def clear(self, lead: tuple[int, ...] = ()) -> None:
        """Forget what was read: a new forward begins."""
        self.tensors, self.logits, self.attention, self.lead, self.calls = {}, None, None, lead, {}

    def select(self, sequences: Sequence[int]) -> Trace:
        """These sequences alone, in this order."""
        at = list(sequences)
        out = Trace({point: tensor[at] for point, tensor in self.tensors.items()}, calls=dict(self.calls))
        out.logits = None if self.logits is None else self.logits[at]
        out.attention = None if self.attention is None else self.attention.select(at)
        out.lead = tuple(self.lead[i] for i in at) if self.lead else ()
        return out

    def __getitem__(self, point: str | Point) -> Tensor:
        if isinstance(point, str):
            kind, _, layer = point.partition(".")
            point = Point(kind, int(layer) if layer else None)  # type: ignore[arg-type]
        if point == Point("logits") and self.logits is not None:
            return self.logits
        if point not in self.tensors:
            held = ", ".join(map(str, sorted(self.tensors, key=str))) or "none"
            raise ReadError(f"{point} was not read.", todo=f"Points in this trace: {held}.")
        return self.tensors[point]
