"""Keys of long tables as whole numbers: one number a row, in the order of the columns, so that rows are grouped, joined and sorted by it alone.

1. Texts are encoded once, as an ``Enum`` of the column's texts in order; compared, joined and sorted they are then numbers.
2. A text is its rank, a whole number its distance from the least, null comes first; the columns are the digits of one number.
3. Where the number would not fit in 63 bits it is replaced by its rank among the rows before it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

__all__ = ["encoded", "key_codes", "plain"]

_MOST = 2**62
_WIDE = 2**32


def encoded(frame: pl.DataFrame, more: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """The frame with its texts as ``Enum``, categories in order; ``more``: further categories of some columns."""
    out = []
    for name, dtype in frame.schema.items():
        if dtype == pl.String:
            names = pl.concat([frame[name].drop_nulls(), pl.Series(name, more.get(name, ()), pl.String)]).unique().sort()
            out.append(pl.col(name).cast(pl.Enum(names)))
    return frame.with_columns(out)


def plain(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with its texts as text again."""
    return frame.with_columns(pl.col(name).cast(pl.String) for name, dtype in frame.schema.items() if dtype == pl.Enum)


def key_codes(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """``[row]`` whole numbers of 0 or more: equal where the columns are, and smaller where the rows sort before (null first).

    Args:
        frame: its ``columns`` are texts from :func:`encoded`, or whole numbers.
        columns: the most important first.
    """
    code, size = pl.repeat(0, len(frame), dtype=pl.Int64, eager=True), 1
    for name in columns:
        digit, width = _digit(frame[name])
        if size * width >= _MOST:
            code, size = _ranked(code), len(frame)
        code, size = code * width + digit, size * width
    return code.alias("code")


def _digit(column: pl.Series) -> tuple[pl.Series, int]:
    """Order-preserving numbers of one column, 0 for null, and how many they may be."""
    if column.dtype == pl.Enum:
        column = column.to_physical()
    if column.null_count() == len(column):
        return pl.repeat(0, len(column), dtype=pl.Int64, eager=True), 1
    column = column.cast(pl.Int64)
    low, high = column.min(), column.max()
    assert isinstance(low, int)
    assert isinstance(high, int)
    if high - low >= _WIDE:
        return (_ranked(column) + 1).fill_null(0), len(column) + 1
    if not column.null_count():
        return (column - low) if low else column, high - low + 1
    return (column - (low - 1)).fill_null(0), high - low + 2


def _ranked(column: pl.Series) -> pl.Series:
    return column.rank("dense").cast(pl.Int64) - 1
