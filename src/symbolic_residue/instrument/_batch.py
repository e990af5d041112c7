"""Several prompts as one padded batch, with their regions kept in step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import PromptError

if TYPE_CHECKING:
    from symbolic_residue.prompts import Prompt, Regions

__all__ = ["Batch", "collate"]


@dataclass(frozen=True)
class Batch:
    """Token ids and mask ``[batch, query]``; ``regions`` one a sequence, in the sequence's own positions.

    Attributes:
        lead: padding tokens before each sequence.
        last: the position of each sequence's last real token.
    """

    ids: Tensor
    mask: Tensor
    regions: tuple[Regions, ...] | None
    lead: tuple[int, ...]
    last: tuple[int, ...]


def collate(
    sequences: Sequence[Prompt] | Sequence[Sequence[int]], *, pad_id: int = 0, side: Literal["left", "right"] = "left"
) -> Batch:
    """Pad sequences to one length. Left padding keeps every last token in the last row.

    Args:
        sequences: prompts, or lists of token ids.
        pad_id: id to pad with (never attended to).
        side: where padding goes.

    Raises:
        PromptError: no sequence, or an empty one.
    """
    ids: list[list[int]] = [list(getattr(s, "ids", s)) for s in sequences]  # type: ignore[arg-type]
    if not ids or not all(ids):
        raise PromptError("A batch needs at least one sequence, and each at least one token.")
    width = max(map(len, ids))
    gaps = [width - len(one) for one in ids]
    left = side == "left"
    rows = [[pad_id] * g + one if left else one + [pad_id] * g for one, g in zip(ids, gaps, strict=True)]
    mask = [[0] * g + [1] * len(one) if left else [1] * len(one) + [0] * g for one, g in zip(ids, gaps, strict=True)]
    regions = tuple(s.regions for s in sequences) if all(hasattr(s, "regions") for s in sequences) else None  # type: ignore[union-attr]
    return Batch(
        torch.tensor(rows),
        torch.tensor(mask),
        regions,
        tuple(gaps) if left else (0,) * len(ids),
        (width - 1,) * len(ids) if left else tuple(len(one) - 1 for one in ids),
    )
