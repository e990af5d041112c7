"""Shared vocabulary: points where a model is read or edited, and spans of a prompt.

Point names are the field's: ``resid_pre.L resid_mid.L resid_post.L attn_out.L z.L mlp_in.L mlp_act.L
mlp_out.L mixer_out.L q.L k.L v.L`` with ``L`` a layer counted from 0, and ``logits`` without a layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import get_args, Literal

from symbolic_residue.errors import ReadError

__all__ = ["HEAD_POINTS", "POINT_KINDS", "Point", "PointKind", "Span"]

PointKind = Literal[
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "z",
    "mlp_in",
    "mlp_act",
    "mlp_out",
    "mixer_out",
    "q",
    "k",
    "v",
    "logits",
]
POINT_KINDS: tuple[PointKind, ...] = get_args(PointKind)

HEAD_POINTS: tuple[PointKind, ...] = ("z", "q", "k", "v")
"""Points whose tensors have a head axis: ``[batch, query, head, d_head]``."""

_POINT = re.compile(r"^([a-z_]+)(?:\.(\d+|\*))?$")


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One named place in the forward pass; ``layer`` is ``None`` only for ``logits``."""

    kind: PointKind
    layer: int | None = None

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"{self.kind}.{self.layer}"

    @classmethod
    def parse(cls, text: str, n_layers: int) -> list[Point]:
        """``"resid_post.3"`` or ``"z.*"`` (all layers) or ``"logits"`` as points.

        Raises:
            ReadError: an unknown kind, a missing layer, or a layer out of range.
        """
        match = _POINT.match(text)
        if not match or match[1] not in POINT_KINDS:
            raise ReadError(f"{text!r} is no point.", todo=f"Use one of: {', '.join(POINT_KINDS)}, as in 'z.3' or 'resid_post.*'.")
        kind, layer = match[1], match[2]
        if kind == "logits":
            if layer is not None:
                raise ReadError(f"{text!r}: logits have no layer.", todo="Write 'logits'.")
            return [cls("logits")]
        if layer is None:
            raise ReadError(f"{text!r} lacks a layer.", todo=f"Write '{kind}.0' for the first layer or '{kind}.*' for all.")
        if layer == "*":
            return [cls(kind, i) for i in range(n_layers)]  # type: ignore[arg-type]
        if int(layer) >= n_layers:
            raise ReadError(f"{text!r}: the model has layers 0 to {n_layers - 1}.")
        return [cls(kind, int(layer))]  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``start`` up to but not including ``stop``, with a name."""

    start: int
    stop: int
    name: str = ""

    def __len__(self) -> int:
        return self.stop - self.start

    def positions(self) -> range:
        """The token positions of the span."""
        return range(self.start, self.stop)
