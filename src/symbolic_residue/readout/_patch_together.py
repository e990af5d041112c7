"""Source and target walked side by side, a few layers at a time.

1. Consecutive layers form a segment as long as their activations stay within a budget (a layer larger than the budget is a segment of its own).
2. A segment is one forward of each model, from where the last one stopped. Layers that nothing is asked of are passed over within a segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TYPE_CHECKING

from torch import Tensor

from symbolic_residue.readout._patch_restart import Walk

if TYPE_CHECKING:
    from symbolic_residue.instrument import Trace

__all__ = ["BUDGET", "LayerRuns", "together"]

BUDGET = 256 * 2**20
"""Bytes of activations that a segment may keep."""


class LayerRuns(NamedTuple):
    """One layer of both runs.

    Attributes:
        layer: which.
        source: a trace with the layer's points.
        target: a trace with the layer's points (where asked for both).
        residual: the target's ``resid_pre``, ``[1, query, d_model]``.
    """

    layer: int
    source: Trace
    target: Trace
    residual: Tensor


def together(
    source: Walk, target: Walk, points: Mapping[int, Sequence[str]], *, both: bool = False, budget: int = BUDGET
) -> Iterator[LayerRuns]:
    """Both runs at every layer that has points, ascending.

    Args:
        source: at its start.
        target: at its start.
        points: layer → points to read.
        both: read the points in the target, too.
        budget: bytes.
    """
    parts, n_sequences = target.instrument.parts, len(source.ids) + len(target.ids)
    width = max(parts.d_model, parts.n_heads * parts.d_head)
    each = n_sequences * max(source.ids.shape[1], target.ids.shape[1]) * width * source.residual.element_size()
    segment: list[int] = []
    size = 0
    layers = sorted(points)
    for i, layer in enumerate(layers):
        segment.append(layer)
        size += each * (1 + len(points[layer]))
        following = each * (1 + len(points[layers[i + 1]])) if i + 1 < len(layers) else None
        if following is not None and size + following <= budget:
            continue
        names = [point for one in segment for point in points[one]]
        before = [f"resid_pre.{one}" for one in segment]
        of_source = source.advance(layer + 1, names)
        of_target = target.advance(layer + 1, [*before, *(names if both else ())])
        for one in segment:
            yield LayerRuns(one, of_source, of_target, of_target[f"resid_pre.{one}"])
        segment, size = [], 0
