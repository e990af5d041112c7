"""The last rows of several prompts, run again and again: under edits, and with reads.

1. Prompts are cut into pieces of bounded memory; each piece's rows before the last run once and are cached (``LastRow``).
2. Every later run, whatever it reads or edits at the last row, costs one token a prompt. A prompt of one token has no prefix and runs whole.
3. The run without edits is kept (``plain``): what has been read once is not run again. ``join`` puts prompts that ran apart into one batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from symbolic_residue.instrument import AttentionRead, Batch, collate, Edit, Instrument, LastRow, Trace
from symbolic_residue.prompts import Prompt
from symbolic_residue.types import Point

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
        reads: points to read while the other rows run; ``on_read`` is called with each and its tensor.

    Attributes:
        pieces: their batches; ``rows`` the cached last row of each, None where a single token has no prefix.
    """

    _plain: list[Trace] | None = None

    def __init__(
        self,
        instrument: Instrument,
        prompts: Sequence[Prompt],
        *,
        reads: Sequence[str] = (),
        on_read: Callable[[Point, Tensor], None] | None = None,
    ) -> None:
        self.instrument = instrument
        self.prompts = list(prompts)
        self.pieces: list[Batch] = [collate(piece) for piece in in_pieces(prompts)]
        self.rows = [
            LastRow(instrument, batch, reads=reads, on_read=on_read) if batch.ids.shape[1] > 1 else None for batch in self.pieces
        ]

    @classmethod
    def prepared(cls, row: LastRow, logits: Tensor | None = None) -> LastRows:
        """From one batch whose other rows have run already; ``logits`` ``[prompt, vocab]`` of the last rows, where these have too."""
        rows = cls.__new__(cls)
        rows.instrument, rows.prompts, rows.pieces, rows.rows = row.instrument, [], [row.batch], [row]
        if logits is not None:
            rows._plain = [Trace(logits=logits[:, None])]
        return rows

    @classmethod
    def join(cls, some: Sequence[LastRows]) -> LastRows:
        """The prompts of several, in order, with what :meth:`plain` read of all of them; neighbours become one piece where memory and model allow."""
        out = cls.__new__(cls)
        out.instrument, out.prompts = some[0].instrument, [prompt for one in some for prompt in one.prompts]
        plain = [one._plain for one in some]
        kept = [trace for traces in plain for trace in traces or ()] if None not in plain else None
        whole = all(layer.mixer is None for layer in out.instrument.parts.layers)  # a state cannot be padded
        groups: list[list[int]] = []
        rows = [row for one in some for row in one.rows]
        for i, row in enumerate(rows):
            together = [rows[j] for j in groups[-1]] if groups and whole else []
            sizes = [(r.size, r.width) for r in (*together, row) if r is not None]
            fits = len(sizes) == len(together) + 1 and sum(n for n, _ in sizes) * max(w for _, w in sizes) <= _TOKENS_AT_ONCE
            if together and fits:
                groups[-1].append(i)
            else:
                groups.append([i])
        batches = [batch for one in some for batch in one.pieces]
        out.rows = [rows[g[0]] if len(g) == 1 else LastRow.join([r for i in g if (r := rows[i]) is not None]) for g in groups]
        out.pieces = [batches[g[0]] if row is None else row.batch for g, row in zip(groups, out.rows, strict=True)]
        if kept is not None:
            out._plain = [_joined([kept[i] for i in g]) for g in groups]
        return out

    def without_cache(self) -> LastRows:
        """What :meth:`plain` read, without the keys and values: nothing can be run from it."""
        out = copy.copy(self)
        out.rows = []
        return out

    @property
    def tokens(self) -> int:
        """How many tokens are kept, padding included."""
        return sum(batch.ids.numel() for batch in self.pieces)

    def plain(self, reads: Sequence[str] = (), *, attention: AttentionRead | None = None) -> list[Trace]:
        """:meth:`run` without edits, kept: it runs again only for a point, or an attention table, that it was not asked for before."""
        held = self._plain
        known = set(held[0].tensors) if held else set()
        missing = held is None or (attention is not None and held[0].attention is None)
        if missing or not known.issuperset(self.instrument.points(reads)):
            wanted = dict.fromkeys([*map(str, known), *reads])
            self._plain = held = list(self.run(reads=tuple(wanted), attention=attention, keep=True))
        assert held is not None
        return held

    def run(
        self, edits: Sequence[Edit] = (), *, reads: Sequence[str] = (), attention: AttentionRead | None = None, keep: bool = False
    ) -> Iterator[Trace]:
        """One trace a piece; tensors and logits end in the last row (``[prompt, 1, …]``, or the whole prompt where it is one token)."""
        for batch, row in zip(self.pieces, self.rows, strict=True):
            if row is not None:
                yield row.run(edits, reads=reads, attention=attention, keep=keep)
            else:
                yield self.instrument.run(batch, edits=edits, reads=reads, attention=attention)


def _joined(traces: Sequence[Trace]) -> Trace:
    """One trace of one-row traces: the points that all have, and the logits; attention tables are not joined."""
    if len(traces) == 1:
        return traces[0]
    shared = [point for point in traces[0].tensors if all(point in trace.tensors for trace in traces)]
    out = Trace({point: torch.cat([trace[point] for trace in traces]) for point in shared})
    out.logits = torch.cat([trace["logits"] for trace in traces])
    return out
