"""The last rows of several prompts, run again and again: under edits, and with reads.

1. Prompts are cut into pieces of bounded memory; each piece's rows before the last run once and are cached (``LastRow``).
2. Every later run, whatever it reads or edits at the last row, costs one token a prompt. A prompt of one token has no prefix and runs whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from symbolic_residue.instrument import Batch, collate, Edit, Instrument, LastRow, Trace
from symbolic_residue.prompts import Prompt

__all__ = ["LastRows", "in_pieces"]

_TOKENS_AT_ONCE = 4096


def in_pieces(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Prompts in batches of bounded memory."""
    size = max(1, _TOKENS_AT_ONCE // max(map(len, prompts)))
    return [list(prompts[i : i + size]) for i in range(0, len(prompts), size)]


class LastRows:
    """The last rows of several prompts.

    Args:
        instrument: the model's instrument.
        prompts: the prompts.

    Attributes:
        pieces: their batches; ``rows`` the cached last row of each, None where a single token has no prefix.
    """

    def __init__(self, instrument: Instrument, prompts: Sequence[Prompt]) -> None:
        self.instrument = instrument
        self.prompts = list(prompts)
        self.pieces: list[Batch] = [collate(piece) for piece in in_pieces(prompts)]
        self.rows = [LastRow(instrument, batch) if batch.ids.shape[1] > 1 else None for batch in self.pieces]

    @classmethod
    def prepared(cls, row: LastRow) -> LastRows:
        """From one batch whose other rows have run already."""
        rows = cls.__new__(cls)
        rows.instrument, rows.prompts, rows.pieces, rows.rows = row.instrument, [], [row.batch], [row]
        return rows

    @property
    def tokens(self) -> int:
        """How many tokens are kept, padding included."""
        return sum(batch.ids.numel() for batch in self.pieces)

    def run(self, edits: Sequence[Edit] = (), *, reads: Sequence[str] = ()) -> Iterator[Trace]:
        """One trace a piece; tensors and logits end in the last row (``[prompt, 1, …]``, or the whole prompt where it is one token)."""
        for batch, row in zip(self.pieces, self.rows, strict=True):
            if row is not None:
                yield row.run(edits, reads=reads)
            else:
                yield self.instrument.run(batch, edits=edits, reads=reads)
