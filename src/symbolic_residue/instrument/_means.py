"""Mean activations over sequences, for mean ablation.

1. For each trace, the tensor at the point is cut to the asked rows; negative rows count from the end of each forward.
2. Sums are kept in float64; traces may come from a generator, one at a time.
3. The mean is of each row by itself (every sequence must then have a token there), or over all rows (padding left out), with the number of
   tokens that it stands on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from symbolic_residue.errors import ReadError
from symbolic_residue.instrument._apply import resolve
from symbolic_residue.instrument._edits import Index
from symbolic_residue.instrument._trace import Trace

__all__ = ["ActivationMean", "mean_activation"]


@dataclass(frozen=True, eq=False)
class ActivationMean:
    """A mean with what it stands on.

    Attributes:
        value: ``[row, …]``, or ``[…]`` when rows were averaged too (``[d]``, at head points ``[head, d_head]``); float32, or float64 of a float64 model.
        n_sequences: sequences that went in.
        n_tokens: activations behind each number: ``n_sequences``, or all their tokens when rows were averaged too.
    """

    value: Tensor
    n_sequences: int
    n_tokens: int


def mean_activation(
    traces: Iterable[Trace], point: str, rows: Index = None, *, over_rows: bool = False, masks: Iterable[Tensor] | None = None
) -> ActivationMean:
    """Mean of the activation at a point, over the sequences of all traces.

    Args:
        traces: runs that read the point.
        point: e.g. ``"z.3"``.
        rows: which rows; None is all. Sequences of different lengths share rows counted from the end, ``(-1,)``.
        over_rows: average over rows too.
        masks: for each trace ``[batch, query]``, 1 for real tokens (``Batch.mask``). Without them only the padding *before* a sequence is known
            (``Trace.lead``), so right-padded batches need them.

    Raises:
        ReadError: no trace, a point that was not read, a row that is padding (unless rows are averaged), forwards with different numbers of rows, or
            values that are not finite.
        EditError: a row out of range.
    """
    total: Tensor | None = None
    n_sequences = n_tokens = 0
    dtype = torch.float32
    each = ((trace, None) for trace in traces) if masks is None else zip(traces, masks, strict=True)
    for trace, mask in each:
        tensor = trace[point]
        index = torch.tensor(resolve(rows, tensor.shape[1], "row"), device=tensor.device, dtype=torch.long)
        real = _real(trace, mask, tensor)[:, index]
        chosen = tensor[:, index].double()
        if over_rows:
            summed = chosen[real].sum(0)
            n_tokens += int(real.sum())
        else:
            if not bool(real.all()):
                sequence, at = (~real).nonzero()[0].tolist()
                raise ReadError(
                    f"Row {int(index[at])} of sequence {sequence} is padding.",
                    why="A mean of this row would hold what is no token.",
                    todo="Name rows that every sequence has (rows=(-1,) under left padding), or average over rows (over_rows=True).",
                )
            summed = chosen.sum(0)
            n_tokens += len(tensor)
        if total is not None and total.shape != summed.shape:
            raise ReadError(
                f"{point} has {tuple(summed.shape)} in one run and {tuple(total.shape)} in another.",
                todo="Name rows that all runs have (rows=(-1,)), or average over rows (over_rows=True).",
            )
        total = summed if total is None else total + summed
        n_sequences += len(tensor)
        dtype = torch.promote_types(tensor.dtype, dtype)
    if total is None or not n_tokens:
        raise ReadError(f"There is no activation at {point} to take the mean of.")
    value = (total / n_tokens).to(dtype)
    if not bool(torch.isfinite(value).all()):
        raise ReadError(f"The mean of {point} is not finite.", todo="Look for NaN or infinity in the runs.")
    return ActivationMean(value, n_sequences, n_tokens)


def _real(trace: Trace, mask: Tensor | None, tensor: Tensor) -> Tensor:
    """``[batch, row]``: what is no padding."""
    batch, n_rows = tensor.shape[:2]
    if mask is not None:
        if tuple(mask.shape) != (batch, n_rows):
            raise ReadError(f"A mask of shape {tuple(mask.shape)} does not fit {batch} sequences of {n_rows} rows.")
        return mask.bool().to(tensor.device)
    lead = torch.tensor(trace.lead or (0,) * batch, device=tensor.device)
    return torch.arange(n_rows, device=tensor.device) >= lead[:, None]
