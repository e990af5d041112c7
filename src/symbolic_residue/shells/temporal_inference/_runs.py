"""One text under many shifts: the tokens before the cut run once, each shift costs only what comes after it.

1. The whole text runs once; keys and values of every token are kept, and the log-probability of every true next token.
2. A *tail* continues the first ``start`` tokens of the text: a mask hides the later keys, positions are given token by token. Tails of similar length go
   through the model together. This equals the whole forward of prefix and tail (tested), because nothing before the tail can see it.
3. Where that does not hold (sliding windows, other token mixers, positions that come from the mask alone) every tail runs whole.

Log-probabilities are in nats, float64.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symbolic_residue.errors import EditError, PromptError, UnsupportedModelError
from symbolic_residue.instrument import Edit, Instrument, Positions

__all__ = ["Tail", "TextRuns"]

Array = NDArray[np.float64]
_KEYS_AT_ONCE = 6000


@dataclass(frozen=True)
class Tail:
    """What follows the first ``start`` tokens of the text.

    Attributes:
        start: tokens of the text that are kept, at least 1.
        ids: the tokens after them.
        positions: the position of each.
        scored: the last so many of ``ids`` whose log-probability is wanted; each is predicted by the token before it, so at most ``len(ids) − 1``.
    """

    start: int
    ids: tuple[int, ...]
    positions: tuple[int, ...]
    scored: int


class TextRuns:
    """A text and its shifted forms.

    Args:
        instrument: the model's instrument.
        ids: the text, at least two tokens.

    Attributes:
        log_p: ``[token]`` log-probability of each token given those before it; NaN for the first.
        shared: whether tails share the text's keys.

    Raises:
        PromptError: fewer than two tokens, or more than the model's context.
    """

    def __init__(self, instrument: Instrument, ids: Sequence[int]) -> None:
        parts = instrument.parts
        if len(ids) < 2:
            raise PromptError("A text of one token has nothing to shift.", todo="Give a longer text.")
        if parts.max_context is not None and len(ids) > parts.max_context:
            raise PromptError(
                f"{len(ids)} tokens are more than the model's context of {parts.max_context}.", todo="Shorten the text."
            )
        self.instrument, self.ids = instrument, list(ids)
        windows = any(parts.attention_window(i) is not None for i in parts.attention_layers)
        self.shared = parts.position_ids and not windows and all(layer.mixer is None for layer in parts.layers)
        tokens = torch.tensor([self.ids], device=instrument.device)
        if self.shared:
            from transformers import DynamicCache

            self._cache = DynamicCache()
            with torch.no_grad():
                out = instrument.model(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    use_cache=True,
                    **{instrument.cache_name: self._cache},
                )
            logits = out.logits
        else:
            logits = instrument.run(tokens)["logits"]
        self.log_p = np.concatenate([[np.nan], _log_p(logits[0, :-1], tokens[0, 1:])])

    def may_jump(self) -> bool:
        """Whether the model looks at position ids at all."""
        return self.instrument.parts.position_ids

    def score(self, tails: Sequence[Tail], edits: Sequence[Sequence[Edit]] = ()) -> list[Array]:
        """Log-probabilities of each tail's scored tokens.

        Args:
            tails: what to run.
            edits: for each tail the edits of its own rows, without ``batch`` or ``rows`` (set here); none where left out. Only where tails share keys.

        Raises:
            EditError: positions outside the model's.
        """
        for tail in tails:
            self._check(tail)
        if edits and not self.shared:
            raise UnsupportedModelError("Edits of tails need a model whose tails share the text's keys.")
        order = sorted(range(len(tails)), key=lambda i: len(tails[i].ids))
        found: list[Array] = [np.zeros(0)] * len(tails)
        size = max(1, _KEYS_AT_ONCE // (len(self.ids) + max((len(t.ids) for t in tails), default=1)))
        while order:
            # A group is padded to its longest tail, so lengths in it lie within two of each other.
            mine = [i for i in order[:size] if len(tails[i].ids) <= len(tails[order[0]].ids) + 2]
            order = order[len(mine) :]
            group = [tails[i] for i in mine]
            # The last token is predicted, never read.
            read = [Tail(t.start, t.ids[:-1], t.positions[:-1], t.scored) for t in group]
            keep = max(t.scored for t in group)
            logits = (
                self._tails(read, [edits[i] for i in mine] if edits else None, keep)[0] if self.shared else self._whole(read, keep)
            )
            for row, i in enumerate(mine):
                n = tails[i].scored
                wanted = torch.tensor(tails[i].ids[-n:], device=logits[row].device)
                found[i] = _log_p(logits[row][-n:], wanted)
        return found

    def _check(self, tail: Tail) -> None:
        limit = self.instrument.parts.max_context
        if limit is not None and (max(tail.positions) >= limit or min(tail.positions) < 0):
            raise EditError(
                f"The shift needs positions up to {max(tail.positions)}; the model has 0 to {limit - 1}.",
                todo="Use a shorter shift or a shorter text.",
            )

    def _tails(
        self, tails: Sequence[Tail], edits: Sequence[Sequence[Edit]] | None, keep: int, plain: bool = False
    ) -> tuple[Tensor, Any, Tensor]:
        """Logits ``[tail, row, vocab]`` of the last ``keep`` rows (tails padded on the left), the cache afterwards, and its mask."""
        device, n, width = self.instrument.device, len(self.ids), max(len(t.ids) for t in tails)
        cache = copy.deepcopy(self._cache)
        if len(tails) > 1:
            cache.reorder_cache(torch.zeros(len(tails), dtype=torch.long, device=device))  # type: ignore[arg-type]
        ids = torch.zeros((len(tails), width), dtype=torch.long)
        positions, mask = torch.zeros_like(ids), torch.zeros((len(tails), n + width), dtype=torch.long)
        for i, tail in enumerate(tails):
            m = len(tail.ids)
            ids[i, -m:], positions[i, -m:] = torch.tensor(tail.ids), torch.tensor(tail.positions)
            mask[i, : tail.start] = 1
            mask[i, -m:] = 1
        acting = [replace(edit, rows=None, batch=(i,)) for i, own in enumerate(edits or ()) for edit in own]  # type: ignore[type-var]
        mask = mask.to(device)
        edited = None if plain else acting
        return self._forward(ids.to(device), positions.to(device), mask, cache, edited, keep), cache, mask

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Any, edits: Sequence[Edit] | None, keep: int) -> Tensor:
        call = {self.instrument.cache_name: cache, "use_cache": True, "logits_to_keep": keep}
        # Where nothing is edited the model runs as it is (what the caller attached reads it).
        with torch.no_grad(), self.instrument.attached(edits=edits) if edits else nullcontext():
            return self.instrument.model(input_ids=ids, attention_mask=mask, position_ids=positions, **call).logits

    def _whole(self, tails: Sequence[Tail], keep: int) -> list[Tensor]:
        out = []
        for tail in tails:
            ids = torch.tensor([self.ids[: tail.start] + list(tail.ids)])
            positions = torch.tensor([[*range(tail.start), *tail.positions]])
            natural = bool((positions[0] == torch.arange(ids.shape[1])).all())
            moved = () if natural else (Positions(positions),)
            out.append(self.instrument.run(ids, edits=moved, keep_logits=min(keep, ids.shape[1]))["logits"][0])
        return out

    def states(self, tail: Tail, points: Sequence[str], rows: int) -> tuple[dict[str, Tensor], Tensor]:
        """What the last ``rows`` tokens of the tail carry at ``points`` (``[row, d_model]`` float64), and their logits ``[row, vocab]``."""
        self._check(tail)
        if self.shared:
            with self.instrument.attached(reads=points) as trace:
                logits = self._tails([tail], None, rows, plain=True)[0]
        else:
            ids = torch.tensor([self.ids[: tail.start] + list(tail.ids)])
            positions = torch.tensor([[*range(tail.start), *tail.positions]])
            natural = bool((positions[0] == torch.arange(ids.shape[1])).all())
            trace = self.instrument.run(ids, reads=points, edits=() if natural else (Positions(positions),), keep_logits=rows)
            logits = trace["logits"]
        return {point: trace[point][0, -rows:].double().cpu() for point in points}, logits[0, -rows:].double().cpu()

    def greedy(self, tail: Tail, steps: int) -> list[int]:
        """The most probable continuation after prefix and tail, ``steps`` tokens, positions counting on."""
        new: list[int] = []
        if not self.shared:
            for _ in range(steps):
                after = range(tail.positions[-1] + 1, tail.positions[-1] + 1 + len(new))
                new.append(int(self.last(Tail(tail.start, (*tail.ids, *new), (*tail.positions, *after), 0)).argmax()))
            return new
        logits, cache, mask = self._tails([tail], None, 1)
        for i in range(steps):
            new.append(int(logits[0, -1].argmax()))
            if i + 1 < steps:
                at = torch.tensor([[tail.positions[-1] + 1 + i]], device=mask.device)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                logits = self._forward(torch.tensor([[new[-1]]], device=mask.device), at, mask, cache, (), 1)
        return new

    def last(self, tail: Tail) -> Tensor:
        """``[vocab]`` float64 logits after the last token of the tail."""
        self._check(tail)
        logits = self._tails([tail], None, 1)[0] if self.shared else self._whole([tail], 1)
        return logits[0][-1].double().cpu()


def _log_p(logits: Tensor, ids: Tensor) -> Array:
    """``[row]`` log-probability of one token in each row of ``logits [row, vocab]``."""
    found = logits.double()
    return (found.gather(-1, ids[:, None])[:, 0] - found.logsumexp(-1)).cpu().numpy()
