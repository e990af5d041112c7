"""Which siblings later rows hardly look at.

1. At each step the rows of the new set look at all earlier tokens. A row's look at a key is its attention weight divided by 1 − its weight on the sink (the
   sequence's first token), averaged over the chosen layers and heads; rows that leave nothing for other keys are left out.
2. The rows of a set count as ``Pruning.source`` says: the top row's, or all weighted by their probabilities.
3. A token of step t is judged at step t + after: its score is the mean of the looks of those steps. The rule keeps it or not; a set's top token always stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import ConfigError
from symbolic_residue.parallel._config import Pruning
from symbolic_residue.parallel._layout import Layout
from symbolic_residue.parallel._tree import TreeStep

if TYPE_CHECKING:
    from symbolic_residue.instrument import AttentionTable

__all__ = ["Looks", "sink_free"]


def sink_free(weights: Tensor, sink: Tensor) -> Tensor:
    """Weights ``[…, key]`` as shares of what a row leaves for keys other than the sink ``[…]``; NaN where it leaves (almost) nothing."""
    rest = (1.0 - sink)[..., None]
    return torch.where(rest > 1e-6, weights / rest.clamp_min(1e-6), float("nan"))


class Looks:
    """Attention that siblings have received so far, and judgement on it.

    Args:
        pruning: the rule.
        attention_layers: of the model.
        n: sequences.

    Raises:
        ConfigError: layers without attention.
    """

    def __init__(self, pruning: Pruning, attention_layers: Sequence[int], n: int) -> None:
        unknown = [] if pruning.layers is None else [i for i in pruning.layers if i not in attention_layers]
        if unknown:
            raise ConfigError(f"Layer {unknown[0]} has no attention to prune by.")
        self.pruning = pruning
        self.received: list[dict[int, list[float]]] = [{} for _ in range(n)]
        """By sequence: column of the layout → its looks, one a step."""

    def add(self, number: int, table: AttentionTable, layout: Layout, width: int, weights: Sequence[Sequence[float]]) -> None:
        """Take the looks of a step's rows.

        Args:
            number: of the step.
            table: ``weights [layer, batch, head, row, key]`` of the new set's rows.
            layout: all slots, the new set last.
            width: columns of the new set.
            weights: by sequence, the rows' shares.

        Raises:
            ConfigError: heads that the model does not have.
        """
        held = table["weights"].double()
        if self.pruning.layers is not None:
            held = held[[table.layers.index(i) for i in self.pruning.layers]]
        if self.pruning.heads is not None:
            if max(self.pruning.heads) >= held.shape[2] or min(self.pruning.heads) < 0:
                raise ConfigError(f"There are {held.shape[2]} heads to prune by, not {max(self.pruning.heads) + 1}.")
            held = held[:, :, list(self.pruning.heads)]
        new = layout.n_slots - width
        judged = layout.siblings() & (layout.step >= number - self.pruning.after) & (layout.step < number)
        for i, shares in enumerate(weights):
            columns = judged[i, :new].nonzero()[:, 0].tolist()
            if not columns or int(layout.step[i, new]) != number:
                continue
            first = int(layout.real[i].int().argmax())
            rows = 1 if self.pruning.source == "top" else len(shares)
            share = torch.tensor(shares[:rows], dtype=torch.float64, device=held.device)
            mine = held[:, i, :, :rows]
            looks = sink_free(mine, mine[..., first]).nanmean((0, 1))  # [row, key]
            look = (share[:, None] * looks).sum(0) / share.sum()
            for column in columns:
                self.received[i].setdefault(column, []).append(float(look[column]))

    def judge(self, number: int, sequence: int, steps: Sequence[TreeStep]) -> tuple[list[TreeStep], list[int]]:
        """Steps with their tokens judged (those whose time has come), and the columns that are to go."""
        at = number - self.pruning.after
        step = next((s for s in steps if s.number == at), None)
        if step is None or len(step.tokens) < 2:
            return [], []
        columns = sorted(self.received[sequence])
        mine = {c: sum(self.received[sequence][c]) / len(self.received[sequence][c]) for c in columns}
        # The layout's columns of a step stand in the order of its tokens.
        own = [c for c in columns if len(self.received[sequence][c]) == self.pruning.after][: len(step.tokens)]
        scores = [mine[c] for c in own]
        for c in own:
            del self.received[sequence][c]
        bound = self.pruning.least * (max(scores) if self.pruning.rule == "relative" else 1.0)
        tokens, gone = [], []
        for rank, (token, column, score) in enumerate(zip(step.tokens, own, scores, strict=True)):
            out = rank > 0 and score < bound
            tokens.append(replace(token, score=score, gone=number + 1 if out else None))
            if out:
                gone.append(column)
        return [replace(step, tokens=tuple(tokens))], gone

    def moved(self, columns: Mapping[int, int]) -> None:
        """The layout's columns were renumbered; those that are missing are gone."""
        self.received = [{columns[c]: looks for c, looks in mine.items() if c in columns} for mine in self.received]
