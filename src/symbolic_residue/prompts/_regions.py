"""Regions: exactly one name for every token of a prompt.

1. A partition is kept as one integer label a token, ``labels [key]``, into a tuple of names. So it cannot overlap, and it
   cannot leave a token out; the constructor refuses labels that point at no name.
2. Every change (carve a span, append tokens, pad) gives a new object; nothing is edited in place, and the array is
   read-only, since one prompt's regions are shared by many runs.
3. Names may be empty of tokens. The tuple of names stays the same over all prompts of a kind (chat, plain text), so that
   tables of attention mass by region line up across prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from symbolic_residue.errors import SpanError
from symbolic_residue.types import Span

__all__ = ["CHAT_REGIONS", "TEXT_REGIONS", "Regions"]

CHAT_REGIONS = ("sink", "system", "user", "assistant_header", "answer", "special")
"""Names for a chat prompt. ``special`` is what the template writes around the contents."""

TEXT_REGIONS = ("sink", "text", "answer")
"""Names for plain text; ``special`` is added only where the text holds control tokens beyond position 0."""


@dataclass(frozen=True, eq=False)
class Regions:
    """A partition of a prompt's tokens into named regions.

    Args:
        names: region names, distinct; a name may have no token.
        labels: int64 ``[key]``, the index into ``names`` of each token. Copied, then read-only.

    Raises:
        SpanError: names that repeat or are empty; labels that are not one-dimensional integers within ``names``.
    """

    names: tuple[str, ...]
    labels: np.ndarray

    def __post_init__(self) -> None:
        names = tuple(self.names)
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
            raise SpanError(f"Region names must be distinct and not empty: {names!r}.")
        given = np.asarray(self.labels)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise SpanError(f"Region labels must be a one-dimensional array of integers, not {given.dtype} {list(given.shape)}.")
        labels = given.astype(np.int64)  # astype copies: the caller's array stays the caller's
        if labels.size and (labels.min() < 0 or labels.max() >= len(names)):
            raise SpanError(f"Region labels must lie within 0 to {len(names) - 1}.", why="Every token has exactly one region.")
        labels.setflags(write=False)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return int(self.labels.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Regions):
            return NotImplemented
        return self.names == other.names and np.array_equal(self.labels, other.labels)

    def __hash__(self) -> int:
        return hash((self.names, self.labels.tobytes()))

    @classmethod
    def from_spans(cls, n: int, spans: Iterable[Span], rest: str = "other") -> Regions:
        """Regions of ``n`` tokens from named spans; tokens in no span are named ``rest``.

        Spans of one name join into one region. ``rest`` is among the names only if a token is left for it or a span uses it.

        Raises:
            SpanError: a span without a name, empty, out of range, or overlapping another.
        """
        names: list[str] = []
        labels = np.full(n, -1, dtype=np.int64)
        for span in spans:
            _check_range(span.start, span.stop, n)
            if not span.name:
                raise SpanError(f"The span of tokens {span.start} to {span.stop - 1} has no name.")
            if (labels[span.start : span.stop] >= 0).any():
                raise SpanError(
                    f"The span {span.name!r} (tokens {span.start} to {span.stop - 1}) overlaps an earlier one.",
                    why="Every token has exactly one region.",
                )
            if span.name not in names:
                names.append(span.name)
            labels[span.start : span.stop] = names.index(span.name)
        if (labels < 0).any():
            if rest not in names:
                names.append(rest)
            labels[labels < 0] = names.index(rest)
        return cls(tuple(names), labels)

    def spans(self) -> list[Span]:
        """Maximal runs of one region, in order; together they are the whole prompt."""
        if not len(self):
            return []
        cuts = [0, *(np.flatnonzero(np.diff(self.labels)) + 1).tolist(), len(self)]
        return [Span(start, stop, self.names[self.labels[start]]) for start, stop in itertools.pairwise(cuts)]

    def indicator(self, n_keys: int | None = None) -> np.ndarray:
        """Bool ``[key, region]``, one True a row; columns in the order of ``names``.

        Args:
            n_keys: the number of keys the caller has; a check only.

        Raises:
            SpanError: ``n_keys`` differs from the number of tokens here.
        """
        if n_keys is not None and n_keys != len(self):
            raise SpanError(
                f"There are {n_keys} keys, but regions for {len(self)} tokens.",
                todo="Use .append for generated tokens and .padded for padding.",
            )
        return self.labels[:, None] == np.arange(len(self.names))[None, :]

    def counts(self) -> dict[str, int]:
        """Number of tokens by region name, empty regions included."""
        return dict(zip(self.names, np.bincount(self.labels, minlength=len(self.names)).tolist(), strict=True))

    def per_token(self) -> list[str]:
        """The region name of each token, ``[key]``."""
        return [self.names[label] for label in self.labels]

    def positions(self, name: str) -> np.ndarray:
        """Int64 positions of the tokens in region ``name``, ascending; empty where the region has none.

        Raises:
            SpanError: no region of this name.
        """
        if name not in self.names:
            raise SpanError(f"There is no region {name!r}.", todo=f"Use one of: {', '.join(self.names)}.")
        return np.flatnonzero(self.labels == self.names.index(name))

    def with_span(self, name: str, start: int, stop: int) -> Regions:
        """Tokens ``start`` up to but not including ``stop`` taken out of their regions and put in ``name`` (new or there already).

        Raises:
            SpanError: an empty span, one out of range (negative positions are not resolved here), or an empty name.
        """
        _check_range(start, stop, len(self))
        names = self._names_with(name)
        labels = self.labels.copy()
        labels[start:stop] = names.index(name)
        return Regions(names, labels)

    def append(self, n: int, name: str = "answer") -> Regions:
        """These regions followed by ``n`` tokens of ``name``, as for generated tokens.

        Raises:
            SpanError: ``n`` is negative, or the name is empty.
        """
        if n < 0:
            raise SpanError(f"Cannot append {n} tokens.")
        names = self._names_with(name)
        return Regions(names, np.concatenate([self.labels, np.full(n, names.index(name), dtype=np.int64)]))

    def padded(self, left: int = 0, right: int = 0) -> Regions:
        """These regions with ``left`` and ``right`` padding tokens around, in region ``pad``.

        The name ``pad`` is there even where nothing is padded, so that the rows of one batch share their columns.

        Raises:
            SpanError: a negative number.
        """
        if left < 0 or right < 0:
            raise SpanError(f"Cannot pad by {left} and {right} tokens.")
        names = self._names_with("pad")
        pad = names.index("pad")
        return Regions(names, np.pad(self.labels, (left, right), constant_values=pad))

    def _names_with(self, name: str) -> tuple[str, ...]:
        return self.names if name in self.names else (*self.names, name)

    @classmethod
    def _from_names(cls, names: Sequence[str], per_token: Sequence[str]) -> Regions:
        """Regions from one name a token; a name outside ``names`` is refused."""
        index = {name: i for i, name in enumerate(names)}
        unknown = sorted({name for name in per_token if name not in index})
        if unknown:
            raise SpanError(f"Tokens with no region: {unknown}.", why="Every token has exactly one region.")
        return cls(tuple(names), np.array([index[name] for name in per_token], dtype=np.int64))


def _check_range(start: int, stop: int, n: int) -> None:
    if not 0 <= start < stop <= n:
        raise SpanError(
            f"Tokens {start} to {stop} are no span of a prompt with {n} tokens.", why="A span is 0 <= start < stop <= n."
        )
