"""Rows of texts read some at a time, and weighted sums of them: what keeps statistics of many texts small.

1. Activations may lie in mapped files; only the rows of one block are turned into float64, a few megabytes of them.
2. A difference of means, a class mean, each of them under every drawn labeling: all are weighted sums of rows, ``[draw, …]``, and are added up block by block.
   Memory is draws × row, however many texts there are; labels themselves are one byte a draw and text.
3. Rows are taken from their mean before they are summed (a pass of its own): it changes no difference and no covariance, and keeps their digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._design import Design

__all__ = ["BLOCK", "Rows", "group_blocks", "group_sums", "label_weights"]

Array = NDArray[np.float64]
BLOCK = 2**22
"""Bytes of a block of rows in float64."""
_MOST = 512


class Rows:
    """Some rows of an array, as float64 when they are asked for.

    Args:
        array: ``[row, …]``, in memory or mapped.
        index: which rows, in their order; None is all.
    """

    def __init__(self, array: NDArray[np.floating], index: NDArray[np.intp] | None = None) -> None:
        self._array, self._index = array, index
        self.shape: tuple[int, ...] = (len(array) if index is None else len(index), *array.shape[1:])

    @classmethod
    def of(cls, x: NDArray[np.floating] | Rows) -> Rows:
        """Rows as they are; an array as all its rows."""
        return x if isinstance(x, Rows) else cls(np.asarray(x))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def width(self) -> int:
        """Numbers in one row."""
        return math.prod(self.shape[1:])

    @property
    def per_block(self) -> int:
        """Rows of a block: few enough that the weights of a thousand draws for them are no larger than the rows."""
        return max(1, min(_MOST, BLOCK // (8 * max(1, self.width))))

    def take(self, which: slice | NDArray[np.intp]) -> Array:
        """Rows by number, ``[k, …]`` float64, a copy."""
        return np.array(self._array[which] if self._index is None else self._array[self._index[which]], dtype=np.float64)

    def all(self) -> Array:
        """Every row at once: for what has no other way."""
        return self.take(slice(None))

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """``(which, rows)`` from the first to the last."""
        for start in range(0, len(self), self.per_block):
            at = slice(start, min(start + self.per_block, len(self)))
            yield at, self.take(at)

    def mean(self) -> Array:
        """``[…]``."""
        total = np.zeros(self.shape[1:])
        for _, block in self.blocks():
            total += block.sum(0)
        return total / max(1, len(self))

    def project(self, v: Array) -> Array:
        """``x · v`` of every row, ``[n]``."""
        return np.concatenate([block @ v for _, block in self.blocks()])

    def sums(self, weights: Callable[[slice], Array], mean: Array | float = 0.0) -> Array:
        """``Σ_i w_i (x_i − mean)`` for every row of weights, ``[draw, …]``.

        Args:
            weights: of a block of rows, ``[draw, k]``.
            mean: ``[…]``, taken from each row.
        """
        found: Array | None = None
        for at, block in self.blocks():
            part = weights(at) @ (block - mean).reshape(len(block), -1)
            found = part if found is None else np.add(found, part, out=found)
        assert found is not None
        return found.reshape(-1, *self.shape[1:])


def label_weights(design: Design, labels: NDArray[np.bool_]) -> Callable[[slice], Array]:
    """``Design.weights`` of ``labels [draw, n]``, for a block of texts at a time."""
    n = len(design.positive)
    plus, minus = design.weights(np.ones(n, dtype=bool)), design.weights(np.zeros(n, dtype=bool))
    return lambda at: np.where(labels[:, at], plus[at], minus[at])


def group_blocks(group: NDArray[np.intp], size: int) -> Iterator[tuple[range, NDArray[np.intp]]]:
    """Groups, some at a time, with the numbers of their texts, group after group: about ``size`` texts, and never less than one group.

    Args:
        group: ``[n]``: the group of each text, from 0 without gaps.
        size: texts of a block.
    """
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group))
    first = 0
    while first < len(ends):
        start = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, start + size, side="right")))
        yield range(first, stop), order[start : ends[stop - 1]]
        first = stop


def group_sums(rows: Array, group: NDArray[np.intp]) -> Array:
    """Sums of the rows ``[n, d]`` of each group, ``[group, d]``; groups from 0 without gaps."""
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return np.add.reduceat(rows[order], starts, axis=0)
