"""Forwards that share a prefix: the last row under many edits, and step-by-step continuation.

1. ``LastRow`` runs every row but the last once, without edits, and keeps keys and values. An edit that acts on the last row only cannot
   change anything before it, so each further run needs just that one row. It equals the full forward with the same edit (tested).
2. ``Prefix`` runs the beginnings of sequences once; endings are then read and edited after any cut of them. Where a layer keeps a state that cannot be
   cut (hybrids), it runs the whole sequences instead; either way a trace holds the ending's rows.
3. ``Decoder`` continues sequences token by token, or with any vector in place of an embedded token. ``LastRow.decoder`` continues its sequences, the last row
   being the first step.
4. Sequences that begin alike may share that beginning (``LastRow(shared=…)``): it runs once, and its keys and values are copied. Tokens may be hidden
   (``hidden``) from all rows after the shared beginning.
5. The last row without edits is part of the sequence too: what it added is kept (``keep``), so that :meth:`LastRow.continued` need not run it again.

All use a cache that keeps every key of every layer, also where the family has sliding windows (the mask hides what the window hides), so key j is always
position j of the padded sequence.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from symbolic_residue.errors import EditError, InstrumentError
from symbolic_residue.instrument._batch import Batch
from symbolic_residue.instrument._edits import Edit, Positions
from symbolic_residue.instrument._instrument import cache_name, Instrument
from symbolic_residue.instrument._prefill import (
    fresh,
    hide,
    masks,
    positions_of,
    prefill,
    shared_prefill,
    shortened,
    side_by_side,
    taken,
)
from symbolic_residue.instrument._trace import Trace
from symbolic_residue.instrument.attention import AttentionRead
from symbolic_residue.types import Point

__all__ = ["Decoder", "LastRow", "Prefix"]


class LastRow:
    """The last row of a left-padded batch, again and again under edits.

    Args:
        instrument: the model's instrument.
        batch: left-padded sequences of at least two tokens.
        shared: for each sequence, how many of its first tokens may be run once together with those of sequences that begin with the same ones; less than
            its length.
        hidden: for each sequence a span (start, stop) of its shared tokens that no later row sees, or None. Every run hides it too.
        cache: keys and values of every row but the last, where they are there already (:meth:`Prefix.last_row`).
        reads: points to read while those rows run (where nothing is shared or hidden); ``on_read`` is called with each and its tensor.

    Raises:
        InstrumentError: the batch is padded on the right, or has a single column; a shared beginning that is no beginning.
        EditError: a hidden span that is not in the shared beginning, or is all of it.
    """

    def __init__(
        self,
        instrument: Instrument,
        batch: Batch,
        *,
        cache: Any = None,
        shared: Sequence[int] | None = None,
        hidden: Sequence[tuple[int, int] | None] | None = None,
        reads: Sequence[str] = (),
        on_read: Callable[[Point, Tensor], None] | None = None,
    ) -> None:
        ids, mask = batch.ids.to(instrument.device), batch.mask.to(instrument.device)
        if ids.shape[1] < 2 or not bool(mask[:, -1].all()):
            raise InstrumentError("Edits of the last row need left padding and at least two tokens.")
        self.instrument = instrument
        self.batch = batch
        self.size = ids.shape[0]
        self.width = ids.shape[1]
        self._mask, self._ids = mask, ids
        self._positions = positions_of(mask)
        self._hidden = list(hidden) if hidden is not None else [None] * self.size
        self._after: tuple[Any, Tensor] | None = None
        """Keys and values of every row, and the last row's logits ``[batch, vocab]``: left by a run without edits that was to be kept."""
        if cache is not None:
            self._cache = cache
        elif shared is None and hidden is None:
            with instrument.attached(reads=reads, on_read=on_read) if reads else nullcontext():
                self._cache, _ = prefill(instrument, ids[:, :-1], mask[:, :-1], self._positions[:, :-1])
        else:
            self._cache = shared_prefill(instrument, ids, mask, shared or [0] * self.size, self._hidden)

    def _spans(self) -> list[tuple[int, int] | None]:
        """The hidden spans in the whole padded sequence."""
        lead = (self.width - self._mask.sum(-1)).tolist()
        return [None if h is None else (lead[i] + h[0], lead[i] + h[1]) for i, h in enumerate(self._hidden)]

    @property
    def hides(self) -> list[Edit]:
        """The edits that hide the hidden spans, as a decoder's caller attaches them; none where nothing is hidden."""
        return masks(self._spans())

    def select(self, sequences: Sequence[int]) -> LastRow:
        """These sequences alone, in this order, as a last row of its own; nothing is run again."""
        at = torch.tensor(list(sequences), device=self._ids.device)
        row = copy.copy(self)
        row.size = len(at)
        row.batch = replace(
            self.batch,
            ids=self.batch.ids[at.cpu()],
            mask=self.batch.mask[at.cpu()],
            regions=None if self.batch.regions is None else tuple(self.batch.regions[i] for i in sequences),
            lead=tuple(self.batch.lead[i] for i in sequences),
            last=tuple(self.batch.last[i] for i in sequences),
        )
        row._mask, row._ids, row._positions = self._mask[at], self._ids[at], self._positions[at]
        row._hidden = [self._hidden[i] for i in sequences]
        if self._after is None:
            row._cache = taken(self._cache, at)
        else:
            whole = taken(self._after[0], at)
            row._after, row._cache = (whole, self._after[1][at]), shortened(whole)
        return row

    @classmethod
    def join(cls, rows: Sequence[LastRow]) -> LastRow:
        """Several as one, padded on the left to one length; nothing is run again.

        Raises:
            InstrumentError: a layer keeps a state, which cannot be padded.
        """
        if len(rows) == 1:
            return rows[0]
        out, width = copy.copy(rows[0]), max(row.width for row in rows)
        gaps = [width - row.width for row in rows]
        out.size, out.width = sum(row.size for row in rows), width
        out._ids = torch.cat([pad(row._ids, (gap, 0)) for row, gap in zip(rows, gaps, strict=True)])
        out._mask = torch.cat([pad(row._mask, (gap, 0)) for row, gap in zip(rows, gaps, strict=True)])
        out._positions = positions_of(out._mask)
        out._hidden = [span for row in rows for span in row._hidden]
        regions = [row.batch.regions for row in rows]
        out.batch = Batch(
            out._ids.cpu(),
            out._mask.cpu(),
            None if any(r is None for r in regions) else tuple(r for some in regions for r in some or ()),
            tuple(lead + gap for row, gap in zip(rows, gaps, strict=True) for lead in row.batch.lead),
            (width - 1,) * out.size,
        )
        afters = [row._after for row in rows if row._after is not None]
        if len(afters) == len(rows):
            whole = side_by_side([cache for cache, _ in afters])
            out._after, out._cache = (whole, torch.cat([logits for _, logits in afters])), shortened(whole)
        else:
            out._after, out._cache = None, side_by_side([row._cache for row in rows])
        return out

    def decoder(self) -> Decoder:
        """The sequences to be continued, without their last token: feed :attr:`last` as the first step, and its logits choose the first new token."""
        decoder = Decoder.__new__(Decoder)
        decoder.instrument, decoder._mask = self.instrument, self._mask[:, :-1]
        decoder._next = decoder._mask.sum(-1)
        decoder._cache = fresh(self._cache)
        decoder.logits = torch.empty(self.size, 0)
        return decoder

    def continued(self) -> Decoder:
        """The sequences to be continued after their last token, whose logits are there: run now, or kept from a run without edits."""
        decoder = self.decoder()
        if self._after is None:
            decoder.step(ids=self.last)
            return decoder
        cache, logits = self._after
        decoder._cache, decoder._mask, decoder._next = fresh(cache), self._mask, self._mask.sum(-1)
        decoder.logits = logits.float()
        return decoder

    def follow(
        self,
        tails: Sequence[Sequence[int]],
        *,
        reads: Sequence[str] = (),
        attention: AttentionRead | None = None,
        keep_logits: int = 0,
    ) -> Trace:
        """One forward of the last row and of tokens that are known to come after it.

        Args:
            tails: token ids after each sequence, of any length; rows behind a shorter one are padding and mean nothing.
            reads: points; tensors come as ``[sequence, 1 + longest tail, …]``, row 0 being the last row.
            attention: statistics of all these rows (``rows=None``); keys behind the prompts form the region ``generated``.
            keep_logits: keep the logits of the last n rows; 0 keeps all.

        Raises:
            InstrumentError: not one tail a sequence, or more tokens than the context holds.
        """
        if len(tails) != self.size:
            raise InstrumentError(f"There are {len(tails)} tails for {self.size} sequences.")
        size, device, limit = max(map(len, tails)), self._ids.device, self.instrument.parts.max_context
        lengths = self._mask.sum(-1).tolist()
        if limit is not None and max(n + len(t) for n, t in zip(lengths, tails, strict=True)) > limit:
            raise InstrumentError(f"More than the context of {limit} tokens.", todo="Shorten what follows.")
        ids = torch.tensor([[*t, *[0] * (size - len(t))] for t in tails], device=device, dtype=torch.long).reshape(self.size, size)
        there = torch.tensor([[1] * len(t) + [0] * (size - len(t)) for t in tails], device=device).reshape(self.size, size)
        positions = self._positions[:, -1:] + torch.arange(size + 1, device=device)
        call: dict[str, Any] = {cache_name(self.instrument.model): fresh(self._cache), "use_cache": True}
        if keep_logits:
            call["logits_to_keep"] = keep_logits
        seen, edits = hide(self.instrument, torch.cat([self._mask, there.to(self._mask)], 1), self._spans())
        with (
            torch.no_grad(),
            self.instrument.attached(reads=reads, attention=attention, edits=edits, prompt=self.width) as trace,
        ):
            out = self.instrument.model(
                input_ids=torch.cat([self._ids[:, -1:], ids], 1),
                attention_mask=seen,
                position_ids=positions if limit is None else positions.clamp_max(limit - 1),
                **call,
            )
            trace.logits = out.logits
        return trace

    @property
    def last(self) -> Tensor:
        """``[batch]``: the last token of each sequence."""
        return self._ids[:, -1]

    def run(
        self,
        edits: Sequence[Edit] = (),
        *,
        reads: Sequence[str] = (),
        attention: AttentionRead | None = None,
        copies: int = 1,
        keep: bool = False,
    ) -> Trace:
        """One forward of the last row.

        Args:
            edits: acting on row −1 (rows may be given as ``(-1,)`` or left out); ``keys`` count over the whole padded sequence.
            reads: points; tensors come as ``[sequence · copies, 1, …]``.
            attention: statistics of the row (``rows`` left out, or ``(-1,)``); with one copy, its regions are the batch's unless given.
            copies: repeats of every sequence; repeat ``c`` of sequence ``i`` is batch index ``i · copies + c``.
            keep: keep what this run, without edits and copies, adds to the sequences, for :meth:`continued`.

        Returns:
            A trace whose logits are ``[sequence · copies, 1, vocab]``.

        Raises:
            EditError: an edit of positions, or of another row.
        """
        for edit in edits:
            if isinstance(edit, Positions):
                raise EditError("Positions cannot be changed in the last row alone.")
            if edit.rows is not None and any(r != -1 for r in edit.rows):
                raise EditError("Only the last row is run here.", todo="Write rows=(-1,).")
        keep = keep and not edits and copies == 1
        if attention is not None and attention.regions is None and self.batch.regions is not None and copies == 1:
            attention = replace(attention, regions=self.batch.regions)
        cache = fresh(self._cache)
        mask, ids, positions = self._mask, self._ids[:, -1:], self._positions[:, -1:]
        if copies > 1:
            # Recurrent layers have no batch_repeat_interleave, and those with attention beside repeat that part only.
            cache.reorder_cache(torch.arange(self.size, device=ids.device).repeat_interleave(copies))
            mask, ids, positions = (t.repeat_interleave(copies, 0) for t in (mask, ids, positions))
        mask, hiding = hide(self.instrument, mask, self._spans(), copies)
        with (
            torch.no_grad(),
            self.instrument.attached(reads=reads, attention=attention, edits=[*edits, *hiding]) as trace,
        ):
            call = {cache_name(self.instrument.model): cache, "use_cache": True}
            out = self.instrument.model(input_ids=ids, attention_mask=mask, position_ids=positions, **call)
            trace.logits = out.logits
        if keep and (short := shortened(cache)) is not None:  # the rows before are held once
            self._cache, self._after = short, (cache, out.logits[:, -1])
        return trace


class Prefix:
    """Beginnings of left-padded sequences, run once; endings after any cut of them.

    Args:
        instrument: the model's instrument.
        batch: left-padded beginnings.
        reads: points to read while they run; ``on_read`` is called with each point and its tensor.

    Raises:
        InstrumentError: the batch is padded on the right.
    """

    def __init__(
        self,
        instrument: Instrument,
        batch: Batch,
        *,
        reads: Sequence[str] = (),
        on_read: Callable[[Point, Tensor], None] | None = None,
    ) -> None:
        self.instrument = instrument
        self._ids, self._mask = batch.ids.to(instrument.device), batch.mask.to(instrument.device)
        if not bool(self._mask[:, -1].all()):
            raise InstrumentError("Beginnings that are continued need left padding.")
        self.size, self.width = self._ids.shape
        self._cache: Any = None
        self._ran: tuple[Tensor, int, Any] | None = None
        """What a run that was to be kept left: its whole sequences, how much of the beginnings it left out, keys and values."""
        with instrument.attached(reads=reads, on_read=on_read) if reads else nullcontext():
            cache, _ = prefill(instrument, self._ids, self._mask, positions_of(self._mask))
        if all(layer.mixer is None for layer in instrument.parts.layers):
            self._cache = cache

    def run(
        self,
        tails: Tensor,
        *,
        drop: int = 0,
        reads: Sequence[str] = (),
        attention: AttentionRead | None = None,
        edits: Sequence[Edit] = (),
        copies: int = 1,
        keep_logits: int = 0,
        keep: bool = False,
    ) -> Trace:
        """One forward of the endings.

        Args:
            tails: token ids ``[batch, query]`` of the endings, all of one length.
            drop: columns of the beginnings that are left out, counted from their end.
            reads: points; tensors hold the ending's rows (``v`` and ``k``: every key).
            attention: statistics of the ending's rows over all keys; its regions cover beginning and ending.
            edits: of the ending's rows, which count from the end (negative), None being all of the ending; ``keys`` count over the whole
                padded sequence.
            copies: repeats of every sequence; repeat ``c`` of sequence ``i`` is batch index ``i · copies + c``.
            keep_logits: keep the logits of the last n rows; 0 keeps all of the ending's.
            keep: keep the keys and values of this run, without edits and copies, for :meth:`last_row`.

        Raises:
            EditError: an edit of positions, or of rows that are not counted from the end.
        """
        ids, mask, length = self._joined(tails, drop)
        own = range(-length, 0)
        for edit in edits:
            if isinstance(edit, Positions):
                raise EditError("Positions cannot be changed in the ending alone.")
            if edit.rows is not None and any(r not in own for r in edit.rows):
                raise EditError("Only the ending's rows are run here.", todo=f"Count them from the end: -{length} to -1.")
        if copies > 1:
            ids, mask = (t.repeat_interleave(copies, 0) for t in (ids, mask))
        kept = ids.shape[1] - length
        keep = keep and not edits and copies == 1
        if self._cache is None or kept == 0 or not bool(mask[:, :kept].any(1).all()):
            if attention is not None and attention.rows is None:
                attention = replace(attention, rows=tuple(own))
            acting: list[Edit] = [
                replace(e, rows=tuple(own)) if not isinstance(e, Positions) and e.rows is None else e for e in edits
            ]
            trace = self.instrument.run(
                ids, attention_mask=mask, reads=reads, attention=attention, edits=acting, keep_logits=keep_logits or length
            )
            for point, tensor in trace.tensors.items():
                if point.kind not in ("k", "v"):
                    trace.tensors[point] = tensor[:, -length:]
            return trace
        cache = fresh(self._cache)
        if drop:
            cache.crop(-drop)
        if copies > 1:
            cache.reorder_cache(torch.arange(self.size, device=ids.device).repeat_interleave(copies))
        call: dict[str, Any] = {cache_name(self.instrument.model): cache, "use_cache": True}
        if keep_logits:
            call["logits_to_keep"] = keep_logits
        with torch.no_grad(), self.instrument.attached(reads=reads, attention=attention, edits=edits) as trace:
            out = self.instrument.model(
                input_ids=ids[:, kept:], attention_mask=mask, position_ids=positions_of(mask)[:, kept:], **call
            )
            trace.logits = out.logits
        if keep:
            self._ran = (ids, drop, cache)
        return trace

    def last_row(self, tails: Tensor, *, drop: int = 0) -> LastRow:
        """The last row of the sequences with these endings, for many edits; the beginnings are not run again, nor endings that a kept run began with."""
        ids, mask, length = self._joined(tails, drop)
        lead = tuple(int(row.int().argmax()) for row in mask.bool())
        batch = Batch(ids, mask, None, lead, (ids.shape[1] - 1,) * self.size)
        kept = ids.shape[1] - length
        if self._cache is None or kept == 0 or not bool(mask[:, :kept].any(1).all()):
            return LastRow(self.instrument, batch)
        if self._ran is not None and self._ran[1] == drop and torch.equal(self._ran[0][:, : ids.shape[1]], ids):
            cache = fresh(self._ran[2])
            cache.crop(ids.shape[1] - 1 - self._ran[0].shape[1])
            return LastRow(self.instrument, batch, cache=cache)
        cache = fresh(self._cache)
        if drop:
            cache.crop(-drop)
        if length > 1:
            call: dict[str, Any] = {cache_name(self.instrument.model): cache, "use_cache": True, "logits_to_keep": 1}
            with torch.no_grad():
                self.instrument.model(
                    input_ids=ids[:, kept:-1], attention_mask=mask[:, :-1], position_ids=positions_of(mask)[:, kept:-1], **call
                )
        return LastRow(self.instrument, batch, cache=cache)

    def _joined(self, tails: Tensor, drop: int) -> tuple[Tensor, Tensor, int]:
        """Ids and mask of beginning and ending, and the ending's length; columns that are padding throughout are kept."""
        tails = tails.to(self._ids.device)
        if tails.dim() != 2 or tails.shape[0] != self.size or not tails.shape[1]:
            raise InstrumentError(f"Endings of shape {tuple(tails.shape)} do not fit {self.size} beginnings.")
        if not 0 <= drop <= self.width:
            raise InstrumentError(f"{drop} columns cannot be left out of {self.width}.")
        keep = self.width - drop
        ids = torch.cat([self._ids[:, :keep], tails], 1)
        mask = torch.cat([self._mask[:, :keep], torch.ones_like(tails)], 1)
        limit = self.instrument.parts.max_context
        if limit is not None and int(mask.sum(1).max()) > limit:
            raise InstrumentError(f"{int(mask.sum(1).max())} tokens are more than the model's context of {limit}.")
        return ids, mask, tails.shape[1]


class Decoder:
    """Continue left-padded sequences step by step.

    Args:
        instrument: the model's instrument (only its plain model runs; what is attached meanwhile reads and edits it).
        batch: left-padded sequences.

    Attributes:
        logits: ``[batch, vocab]`` after the last step, float32.
        length: tokens so far, padding included.
    """

    def __init__(self, instrument: Instrument, batch: Batch) -> None:
        self.instrument = instrument
        self._mask = batch.mask.to(instrument.device)
        self._next = self._mask.sum(-1)
        """``[batch]``: the position of the token to come."""
        self._cache, logits = prefill(instrument, batch.ids.to(instrument.device), self._mask, positions_of(self._mask))
        self.logits = logits.float()

    @property
    def length(self) -> int:
        """Tokens so far, padding included."""
        return self._mask.shape[1]

    def keep(self, sequences: Sequence[int]) -> None:
        """Go on with these sequences only, in this order."""
        at = torch.tensor(list(sequences), device=self._mask.device)
        self._mask, self._next = self._mask[at], self._next[at]
        if self.logits.numel():
            self.logits = self.logits[at]
        self._cache.reorder_cache(at)

    def step(self, *, ids: Tensor | None = None, embeds: Tensor | None = None, running: Tensor | None = None) -> Tensor:
        """Append one token (``ids [batch]``) or one vector (``embeds [batch, d_model]``) to each sequence; returns the new logits.

        Args:
            ids, embeds: what to append.
            running: ``[batch]`` bool: False where the sequence has ended. Its token fills the batch only and its position stays, so that it never leaves
                the context; its logits mean nothing from then on. None: all run.

        Raises:
            InstrumentError: neither or both were given, or the context is full.
        """
        if (ids is None) == (embeds is None):
            raise InstrumentError("Give either ids or embeds.")
        limit = self.instrument.parts.max_context
        alive = torch.ones_like(self._next) if running is None else running.to(self._next)
        if limit is not None and int((self._next * alive).max()) >= limit:
            raise InstrumentError(f"The context of {limit} tokens is full.")
        positions = (self._next - 1 + alive)[:, None]
        self._next = self._next + alive
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], 1)
        call: dict[str, Any] = {"input_ids": ids[:, None]} if ids is not None else {"inputs_embeds": embeds[:, None]}  # type: ignore[index]
        with torch.no_grad():
            out = self.instrument.model(
                **call,
                attention_mask=self._mask,
                position_ids=positions,
                use_cache=True,
                **{cache_name(self.instrument.model): self._cache},
            )
        self.logits = out.logits[:, -1].float()
        return self.logits
