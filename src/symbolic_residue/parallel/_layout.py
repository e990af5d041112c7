"""Where every token of a multi-path sequence stands: slots, positions, steps, and who sees whom.

1. A *slot* is a place in the key-value cache. The prompt's tokens take the first ones, then each step's set takes one for each of its tokens, in falling
   probability. Several sequences stand side by side; a sequence with a smaller set has padding slots in that step.
2. A row of the prompt sees the prompt up to itself. A row of step s sees the prompt, every token of earlier steps that is not gone by step s, itself, and
   of its
   own set: nobody (``isolated``), the more probable ones (``causal``), all (``visible``).
3. A sliding window counts in positions: a key is seen if the row's position minus the key's is less than the window. In an ordinary sequence that is the
   window of
   the model. An offset within a set does not count (``seat``): a token moved by a thousandth must not gain or lose a key.
4. Transformers takes such a pattern as an additive mask ``[batch, 1, row, key]``; architectures whose layers differ in their window take one for each kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args, Literal, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError

if TYPE_CHECKING:
    from symbolic_residue.models import Parts

__all__ = ["MODES", "NEVER", "PADDING", "PROMPT", "SCHEMES", "Layout", "Mode", "Scheme", "additive", "place", "seats_of"]

Mode = Literal["isolated", "causal", "visible"]
"""What a sibling sees of its own set: nobody, the more probable ones, all."""

Scheme = Literal["shared", "offset", "unique"]
"""Positions of a set: all at one, spread around it by ε, or one each."""

MODES: tuple[Mode, ...] = get_args(Mode)
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
PROMPT, PADDING, NEVER = -1, -2, 2**31 - 1


def place(scheme: Scheme, base: float, size: int, epsilon: float = 0.0) -> tuple[list[float], float]:
    """Positions of a set of ``size`` tokens whose step begins at ``base``, and where the next step begins.

    ``shared``: all at ``base``. ``offset``: ``base + ε (i − (size − 1) / 2)``. ``unique``: ``base + i``; the next step begins behind them.
    """
    if scheme == "unique":
        return [base + i for i in range(size)], base + size
    if scheme == "offset":
        return [base + epsilon * (i - (size - 1) / 2) for i in range(size)], base + 1
    return [base] * size, base + 1


def seats_of(scheme: str, positions: list[float]) -> list[float]:
    """What windows count for a set at these positions: under ``offset`` the middle of the set."""
    if scheme != "offset" or not positions:
        return [float(round(p)) for p in positions]
    return [float(round(sum(positions) / len(positions)))] * len(positions)


@dataclass
class Layout:
    """Slots of one or more sequences, each tensor ``[batch, slot]``."""

    ids: Tensor
    """Token ids (int64); 0 at padding."""
    position: Tensor
    """Rotary positions (float64)."""
    step: Tensor
    """The step that the token belongs to (int64); ``PROMPT`` and ``PADDING`` are below 0."""
    rank: Tensor
    """Place within the set by falling probability (int64), 0 in the prompt."""
    size: Tensor
    """Tokens of the set (int64), 1 in the prompt."""
    gone: Tensor
    """First step whose rows no longer see the token (int64); ``NEVER`` while it stays."""
    seat: Tensor = None  # type: ignore[assignment]
    """Whole positions that sliding windows count (float64): those of the step, whatever the offset. Left out, the positions rounded."""

    def __post_init__(self) -> None:
        if self.seat is None:
            self.seat = self.position.round()

    @classmethod
    def of_prompts(cls, prompts: list[list[int]], device: torch.device | str = "cpu") -> Layout:
        """Prompts of any length, padded on the left.

        Raises:
            ConfigError: no prompt, or an empty one.
        """
        if not prompts or not all(prompts):
            raise ConfigError("A prompt is empty.", todo="Give every sequence at least one token.")
        width = max(map(len, prompts))
        lead = [width - len(p) for p in prompts]

        def rows(make: Any, fill: int) -> Tensor:
            return torch.tensor([[fill] * n + make(p) for n, p in zip(lead, prompts, strict=True)], device=device)

        zero = rows(lambda p: [0] * len(p), 0)
        return cls(
            rows(list, 0),
            rows(lambda p: list(range(len(p))), 0).double(),
            rows(lambda p: [PROMPT] * len(p), PADDING),
            zero,
            zero + 1,
            zero + NEVER,
        )

    @property
    def n_slots(self) -> int:
        """Slots of each sequence, padding included."""
        return self.ids.shape[1]

    @property
    def real(self) -> Tensor:
        """``[batch, slot]`` bool: tokens, not padding."""
        return self.step != PADDING

    @property
    def keys(self) -> Tensor:
        """``[batch]``: tokens of each sequence."""
        return self.real.sum(1)

    def with_set(
        self, step: int, ids: list[list[int]], positions: list[list[float]], seats: list[list[float]] | None = None
    ) -> Layout:
        """One more step: a set for each sequence (an empty one where a sequence has ended), in falling probability.

        ``seats`` are what windows count; left out, the positions rounded.
        """
        width = max(map(len, ids))

        def more(values: list[list[Any]], fill: Any, like: Tensor) -> Tensor:
            new = [row + [fill] * (width - len(row)) for row in values]
            return torch.cat([like, torch.tensor(new, dtype=like.dtype, device=like.device)], 1)

        return Layout(
            more(ids, 0, self.ids),
            more(positions, 0.0, self.position),
            more([[step] * len(row) for row in ids], PADDING, self.step),
            more([list(range(len(row))) for row in ids], 0, self.rank),
            more([[len(row)] * len(row) for row in ids], 1, self.size),
            more([[NEVER] * len(row) for row in ids], NEVER, self.gone),
            more([[float(round(p)) for p in row] for row in positions] if seats is None else seats, 0.0, self.seat),
        )

    def take(self, slots: Tensor) -> Layout:
        """These slots alone (of every sequence), in this order."""
        return Layout(*(t[:, slots] for t in (self.ids, self.position, self.step, self.rank, self.size, self.gone, self.seat)))

    def visible(self, mode: Mode, rows: slice = slice(None)) -> Tensor:
        """``[batch, row, key]`` bool: who sees whom, windows left aside. A padding row sees itself, so that it is defined.

        Args:
            mode: what a sibling sees of its own set.
            rows: slots whose rows are asked for; keys are all slots.
        """
        index = torch.arange(self.n_slots, device=self.ids.device)
        own = index[rows][None, :, None] == index[None, None, :]
        step_i, step_j = self.step[:, rows, None], self.step[:, None, :]
        prompt = (step_j == PROMPT) & (index[rows][:, None] >= index[None, :])[None]
        earlier = (step_j >= 0) & (step_j < step_i) & (self.gone[:, None, :] > step_i)
        seen = torch.where(step_i == PROMPT, prompt, (step_j == PROMPT) | earlier)
        if mode != "isolated":
            same = (step_j == step_i) & (step_j >= 0)
            if mode == "causal":
                same = same & (self.rank[:, None, :] < self.rank[:, rows, None])
            seen = seen | same
        return torch.where(self.real[:, rows, None], seen, False) | own

    def siblings(self) -> Tensor:
        """``[batch, slot]`` bool: tokens that share their step with others."""
        return (self.step >= 0) & (self.size > 1)


def additive(
    visible: Tensor,
    layout: Layout,
    parts: Parts,
    *,
    rows: slice = slice(None),
    bias: float = 0.0,
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:
    """The additive mask that transformers takes: ``[batch, 1, row, key]``, or one by kind of layer where windows differ.

    Args:
        visible: ``[batch, row, key]`` bool.
        layout: of the keys.
        parts: of the model (its windows).
        rows: the slots that the rows are.
        bias: added to the scores of siblings, as rows of later steps see them.
        dtype: the model's.
    """
    floor = torch.finfo(dtype).min
    seats = layout.seat[:, rows]
    added = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    if bias:
        later = layout.siblings()[:, None, :] & (layout.step[:, None, :] < layout.step[:, rows, None])
        added = torch.where(later, torch.tensor(bias, dtype=dtype, device=visible.device), added)

    def mask(window: int | None) -> Tensor:
        seen = visible
        if window is not None:
            near = seats[:, :, None] - layout.seat[:, None, :] < window
            index = torch.arange(layout.n_slots, device=visible.device)
            own = index[rows][:, None] == index
            seen = seen & (near | own[None])
        return added.masked_fill(~seen, floor)[:, None]

    windows = {parts.windows[i] for i in parts.attention_layers}
    if len(windows) == 1:
        return mask(windows.pop())
    (window,) = windows - {None}
    return {"full_attention": mask(None), "sliding_attention": mask(window)}
