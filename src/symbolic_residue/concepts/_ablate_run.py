"""Texts run under changes of the heads' outputs, many changes to a forward.

1. A change (``Swap``) names heads and what takes the place of their outputs ``z`` at the rows in question: the pooled ones, or every row but the
   first token's (the attention sink keeps its own).
2. What is read: projections of the residual stream on given vectors, averaged over the pooled rows; the divergence KL(unchanged ‖ changed) of the
   next token at the last pooled row, in nats; with every row changed also the text's own NLL a token, in nats.
3. Where each text is pooled at its last token and only that row changes, everything before is run once and kept (``LastRow``): a change then costs
   one row a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.concepts._choose import Head
from symbolic_residue.instrument import collate, Edit, Instrument, LastRow, Replace, Trace
from symbolic_residue.prompts import Prompt

__all__ = ["Readings", "Swap", "Tokens", "run_swaps"]

Array = NDArray[np.float64]
Tokens = Literal["pooled", "all"]


@dataclass(frozen=True, eq=False)
class Swap:
    """One change: layer → (heads, what replaces them ``[text or 1, head, d_head]``). Empty: nothing changes."""

    layers: Mapping[int, tuple[tuple[int, ...], NDArray[np.floating]]]

    @classmethod
    def of(cls, heads: Sequence[Head], values: Mapping[int, NDArray[np.floating]]) -> Swap:
        """From whole layers' values ``[text or 1, all heads, d_head]``."""
        grouped: dict[int, list[int]] = {}
        for layer, head in heads:
            grouped.setdefault(layer, []).append(head)
        return cls({layer: (tuple(some), values[layer][:, some]) for layer, some in sorted(grouped.items())})


@dataclass(frozen=True, eq=False)
class Readings:
    """What came out.

    Attributes:
        projections: layer → ``[swap, text]``.
        kl: ``[swap, text]``, nats.
        nll: ``[swap, text]``, nats a token, where every row is changed; else None.
    """

    projections: dict[int, Array]
    kl: Array
    nll: Array | None


def run_swaps(
    instrument: Instrument,
    prompts: Sequence[Prompt],
    positions: Sequence[range],
    swaps: Sequence[Swap],
    vectors: Mapping[int, NDArray[np.floating]],
    *,
    tokens: Tokens = "pooled",
    rows: int = 128,
) -> Readings:
    """Run every text under every change.

    Args:
        instrument: of the model.
        prompts: the texts.
        positions: the pooled positions of each, in its own count.
        swaps: the changes.
        vectors: layer → ``[d_model]``; projections are on these.
        tokens: which rows change.
        rows: sequences a forward, at most (an eighth of it where whole texts are run).
    """
    n = len(prompts)
    out = Readings(
        {layer: np.zeros((len(swaps), n)) for layer in vectors},
        np.zeros((len(swaps), n)),
        np.zeros((len(swaps), n)) if tokens == "all" else None,
    )
    cached = tokens == "pooled" and all(own == range(len(p) - 1, len(p)) for p, own in zip(prompts, positions, strict=True))
    order = sorted(range(n), key=lambda i: (len(prompts[i]), i))
    step = max(1, rows // 2 if cached else rows // 8)
    for start in range(0, n, step):
        at = order[start : start + step]
        piece = _Piece(instrument, [prompts[i] for i in at], [positions[i] for i in at], at, vectors, tokens)
        (piece.last_row if cached else piece.whole)(swaps, max(1, (rows if cached else rows // 8) // len(at)), out)
    return out


@dataclass
class _Piece:
    """Some of the texts."""

    instrument: Instrument
    prompts: Sequence[Prompt]
    positions: Sequence[range]
    at: Sequence[int]
    vectors: Mapping[int, NDArray[np.floating]]
    tokens: Tokens

    @property
    def _reads(self) -> tuple[str, ...]:
        return tuple(f"resid_post.{layer}" for layer in self.vectors)

    def last_row(self, swaps: Sequence[Swap], copies: int, out: Readings) -> None:
        row = LastRow(self.instrument, collate(self.prompts, side="left"))
        plain = _log_p(row.run(reads=self._reads), slice(-1, None))[:, 0]
        n = len(self.at)
        for start in range(0, len(swaps), copies):
            some = swaps[start : start + copies]
            edits = [
                edit
                for c, swap in enumerate(some)
                for edit in self._edits(swap, [[i * len(some) + c] for i in range(n)], [(-1,)] * n)
            ]
            trace = row.run(edits, reads=self._reads, copies=len(some))
            divergence = _kl(plain.repeat_interleave(len(some), 0), _log_p(trace, slice(-1, None))[:, 0])
            for c in range(len(some)):
                own = slice(c, None, len(some))
                self._keep(start + c, trace, own, [(-1,)] * n, divergence[own], None, out)

    def whole(self, swaps: Sequence[Swap], copies: int, out: Readings) -> None:
        n = len(self.at)
        plain: Tensor | None = None
        todo = [Swap({}), *swaps]
        for start in range(0, len(todo), copies):
            some = todo[start : start + copies]
            batch = collate([p for _ in some for p in self.prompts], side="left")
            lead = batch.lead[:n]
            pooled = [tuple(first + j for j in own) for first, own in zip(lead, self.positions, strict=True)]
            width = batch.ids.shape[1]
            rows = pooled if self.tokens == "pooled" else [tuple(range(first + 1, width)) for first in lead]
            edits = [edit for c, swap in enumerate(some) for edit in self._edits(swap, [[c * n + i] for i in range(n)], rows)]
            keep = 0 if self.tokens == "all" else width - min(own[-1] for own in pooled)
            trace = self.instrument.run(batch, reads=self._reads, edits=edits, keep_logits=keep)
            assert trace.logits is not None
            logits = trace.logits
            last = torch.tensor([own[-1] - width + logits.shape[1] for own in pooled], device=logits.device)
            for c in range(len(some)):
                own = slice(c * n, (c + 1) * n)
                at_end = torch.log_softmax(logits[own][torch.arange(n, device=last.device), last].double(), -1)
                plain = at_end if plain is None else plain
                if start + c == 0:
                    continue
                nll = self._nll(logits[own], batch.ids[:n], lead) if self.tokens == "all" else None
                self._keep(start + c - 1, trace, own, pooled, _kl(plain, at_end), nll, out)

    def _edits(self, swap: Swap, batch: Sequence[list[int]], rows: Sequence[tuple[int, ...]]) -> list[Edit]:
        """The change as edits; texts with the same rows go together where the values allow it."""
        edits: list[Edit] = []
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, own in enumerate(rows):
            groups.setdefault(own, []).append(i)
        for layer, (heads, values) in swap.layers.items():
            for own, texts in groups.items():
                indices = [b for i in texts for b in batch[i]]
                value = values if len(values) == 1 else values[[self.at[i] for i in texts]]
                edits.append(
                    Replace(
                        f"z.{layer}",
                        rows=own,
                        heads=heads,
                        batch=indices,
                        value=torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))[:, None],
                    )
                )
        return edits

    def _keep(
        self, swap: int, trace: Trace, own: slice, pooled: Sequence[tuple[int, ...]], kl: Tensor, nll: Tensor | None, out: Readings
    ) -> None:
        for layer, v in self.vectors.items():
            tensor = trace[f"resid_post.{layer}"][own]
            vector = torch.from_numpy(np.asarray(v, dtype=np.float64)).to(tensor.device)
            found = torch.stack([tensor[i, list(rows)].double().mean(0) for i, rows in enumerate(pooled)]) @ vector
            out.projections[layer][swap, self.at] = found.cpu().numpy()
        out.kl[swap, self.at] = kl.cpu().numpy()
        if nll is not None and out.nll is not None:
            out.nll[swap, self.at] = nll.cpu().numpy()

    @staticmethod
    def _nll(logits: Tensor, ids: Tensor, lead: Sequence[int]) -> Tensor:
        """``[text]``: mean over the tokens after the first two (the second is chosen by the first token's row, which never changes)."""
        found = []
        for i, first in enumerate(lead):
            row = torch.log_softmax(logits[i, first + 1 : -1].double(), -1)
            chosen = ids[i, first + 2 :].to(row.device)
            found.append(-row.gather(-1, chosen[:, None]).mean() if len(chosen) else row.new_tensor(float("nan")))
        return torch.stack(found)


def _log_p(trace: Trace, rows: slice) -> Tensor:
    assert trace.logits is not None
    return torch.log_softmax(trace.logits[:, rows].double(), -1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """``[text]``: KL(p ‖ q) of log-probabilities ``[text, vocab]``, nats; tokens that p cannot give count nothing."""
    return torch.where(p > float("-inf"), p.exp() * (p - q), 0.0).sum(-1).clamp_min(0.0)
