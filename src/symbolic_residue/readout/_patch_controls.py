"""Controls of a patch: the same patch from runs that have nothing to do with it, so that a recovered fraction has a null to stand beside.

1. *Unrelated prompts*, run by the source model and cut to the source's length: what putting any other text's activations there does.
2. *Shuffled rows* of the source itself: every row gets the values of another row, in one cycle, so that none keeps its own. The first row keeps its
   place where a class has other rows: its residual stream is an attention sink's, of another size altogether.
3. A patch whose control recovers as much brought disturbance, not information.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError, PromptError
from symbolic_residue.readout._patch_pairs import PatchPair

__all__ = ["Donors", "make_donors"]


@dataclass(frozen=True)
class Donors:
    """Where the values of a patch and of its controls come from.

    Attributes:
        ids: ``[sequence, source row]``: the source, then unrelated prompts.
        shuffles: for each shuffled control, the row whose values row s gets.
    """

    ids: Tensor
    shuffles: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """Number of controls."""
        return len(self.ids) - 1 + len(self.shuffles)

    def value(self, activations: Tensor, donor: int, rows: Sequence[int]) -> Tensor:
        """Values at source rows, ``[1, row, …]``; donor 0 is the source, the others are controls.

        Args:
            activations: ``[sequence, source row, …]`` of ``ids``.
            donor: 0 to ``count``.
            rows: source rows.
        """
        if donor < len(self.ids):
            return activations[donor : donor + 1, list(rows)]
        return activations[:1, self._shuffled(donor - len(self.ids), rows)]

    def _shuffled(self, which: int, rows: Sequence[int]) -> list[int]:
        shuffle = self.shuffles[which]
        if list(rows) == [0]:
            return [shuffle[1]]
        return [0 if row == 0 else shuffle[row] for row in rows]


def make_donors(pair: PatchPair, controls: int | Sequence[Any], rng: np.random.Generator) -> Donors:
    """The source and its controls.

    Args:
        pair: in the direction in which it is patched.
        controls: a number of shuffles, or unrelated prompts (a ``Prompt`` or ids).
        rng: of the shuffles.

    Raises:
        ConfigError: a negative number, or a source too short to shuffle.
        PromptError: a control prompt shorter than the source.
    """
    n = len(pair.source)
    if isinstance(controls, int):
        if controls < 0:
            raise ConfigError(f"{controls} controls make no sense.", todo="Give 0 or more.")
        if controls and n < 3:
            raise ConfigError(
                f"The source of pair {pair.name!r} is too short to shuffle ({n} tokens).", todo="Give control prompts."
            )
        return Donors(torch.tensor([pair.source]), tuple(_cycle(n, rng) for _ in range(controls)))
    rows = [list(pair.source)]
    for prompt in controls:
        ids = list(getattr(prompt, "ids", prompt))
        if len(ids) < n:
            raise PromptError(
                f"A control prompt has {len(ids)} tokens, the source of pair {pair.name!r} has {n}.",
                why="Every source row needs the control's row at its place.",
                todo="Give longer control prompts; they are cut to length.",
            )
        rows.append([int(i) for i in ids[:n]])
    return Donors(torch.tensor(rows), ())


def _cycle(n: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Rows 1 to n − 1 in one random cycle (so none stays), row 0 in its place."""
    order = 1 + rng.permutation(n - 1)
    to = np.zeros(n, dtype=np.int64)
    to[order] = np.roll(order, 1)
    return tuple(to.tolist())
