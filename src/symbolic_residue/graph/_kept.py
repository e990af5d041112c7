"""Runs of a pair in which some neurons stay live and all others have the values of the corrupted run.

1. Both prompts run once; every neuron's activation is kept from the first position on at which the prompts differ. Before it both runs are the same
   (attention is causal), so those neurons are not in play.
2. In a *kept run* the clean prompt is run again: attention, norms and kept neurons are live (they answer to what they now read), and every other neuron is
   set to its value in the corrupted run, by the instrument's edit at ``mlp_act``. Many sets, nested by rank, run as one batch; the common beginning runs once.
3. All kept is the clean run; none kept is the clean prompt's embeddings with the corrupted run's MLPs. Both are measured, the first is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from symbolic_residue.errors import UnsupportedModelError, VerificationError
from symbolic_residue.graph._pairs import TokenPair
from symbolic_residue.instrument import collate, Edit, Instrument, Prefix, Replace, Trace
from symbolic_residue.types import Point

__all__ = ["KeepUnits", "PairRun", "check_ends", "ranks", "run_pair"]

_TOLERANCE = 1e-3
"""Of the logit difference with all neurons kept from the clean run's, relative to the logits' size: float32's rounding under another batch shape."""


@dataclass(frozen=True, eq=False)
class KeepUnits(Replace):
    """At ``mlp_act``: in each sequence the neurons whose rank is below the sequence's count stay as they are, all others get ``value [row, neuron]``."""

    rank: Tensor = field(default_factory=lambda: torch.zeros(0))
    """``[row, neuron]``, 0 first."""
    counts: Tensor = field(default_factory=lambda: torch.zeros(0))
    """``[batch]``."""

    def act(self, chosen: Tensor, point: Point) -> Tensor:
        """``chosen`` where it is kept."""
        keep = self.rank.to(chosen.device)[None] < self.counts.to(chosen.device)[:, None, None]
        return torch.where(keep, chosen, super().act(chosen, point))


@dataclass(frozen=True, eq=False)
class PairRun:
    """Both runs of a pair.

    Attributes:
        instrument: the model.
        pair: the pair in its tokenizer.
        clean, corrupted: layer by layer ``[row, neuron]``: activations from position ``pair.first`` on.
        clean_difference, corrupted_difference: ``logit(answer) − logit(wrong)`` of each prompt.
    """

    instrument: Instrument
    pair: TokenPair
    clean: tuple[Tensor, ...]
    corrupted: tuple[Tensor, ...]
    clean_difference: float
    corrupted_difference: float

    @property
    def in_play(self) -> int:
        """Neurons × positions from the first difference on."""
        return sum(one.numel() for one in self.clean)

    def difference(self, logits: Tensor) -> Tensor:
        """``logit(answer) − logit(wrong)`` of ``logits [..., vocab]``, in float64."""
        return logits[..., self.pair.answer].double() - logits[..., self.pair.wrong].double()

    def kept(self, rank: Sequence[Tensor], counts: Sequence[int], max_tokens: int = 1024) -> Tensor:
        """Logit differences ``[count]`` of kept runs, the first ``counts`` in rank kept in each.

        Args:
            rank: layer by layer ``[row, neuron]``, from :func:`ranks`.
            counts: how many are kept.
            max_tokens: rows run together.
        """
        first, ids = self.pair.first, self.pair.ids[:1]
        rows = ids.shape[1] - first
        step = max(1, max_tokens // rows)
        prefix = None
        if first:
            prefix = Prefix(self.instrument, collate([ids[0, :first].tolist()]))
        found = []
        for start in range(0, len(counts), step):
            part = torch.tensor(list(counts[start : start + step]))
            edits = self.edits(rank, part)
            if prefix is None:
                trace: Trace = self.instrument.run(ids.repeat(len(part), 1), edits=edits, keep_logits=1)
            else:
                trace = prefix.run(ids[:, first:], edits=edits, copies=len(part), keep_logits=1)
            assert trace.logits is not None
            found.append(self.difference(trace.logits[:, -1]).cpu())
        return torch.cat(found)

    def edits(self, rank: Sequence[Tensor], counts: Tensor) -> list[Edit]:
        """What keeps the first ``counts [sequence]`` in rank live, and sets all others."""
        return [
            KeepUnits(f"mlp_act.{i}", value=value, rank=order, counts=counts)
            for i, (value, order) in enumerate(zip(self.corrupted, rank, strict=True))
        ]


def run_pair(instrument: Instrument, pair: TokenPair) -> PairRun:
    """Both runs.

    Raises:
        UnsupportedModelError: a layer whose neurons are no single vector (a mixture of experts).
        VerificationError: with all neurons kept, the run is not the clean one.
    """
    for layer in instrument.parts.layers:
        absent = layer.absent("mlp_act")
        if absent is not None:
            raise UnsupportedModelError(absent, why="A neuron that is kept or replaced must be an entry of one vector.")
    took: dict[int, Tensor] = {}

    def keep(point: Point, tensor: Tensor) -> None:
        assert point.layer is not None
        took[point.layer] = tensor[:, pair.first :].clone()

    reads = [f"mlp_act.{i}" for i in range(instrument.parts.n_layers)]
    trace = instrument.run(pair.ids, reads=reads, on_read=keep, keep_logits=1)
    assert trace.logits is not None
    logits = trace.logits[:, -1].double()
    clean, corrupted = (logits[:, pair.answer] - logits[:, pair.wrong]).tolist()
    sides = [tuple(took[i][side] for i in range(instrument.parts.n_layers)) for side in (0, 1)]
    return PairRun(instrument, pair, sides[0], sides[1], clean, corrupted)


def check_ends(run: PairRun, all_kept: float) -> None:
    """Whether keeping all neurons gave the clean run.

    Raises:
        VerificationError: it did not.
    """
    size = max(1.0, abs(run.clean_difference), abs(run.corrupted_difference))
    if not abs(all_kept - run.clean_difference) <= _TOLERANCE * size:
        raise VerificationError(
            f"With all neurons kept the logit difference is {all_kept:.4f}, in the clean run {run.clean_difference:.4f}.",
            why="The runs with edits are then no runs of this model.",
            todo="Report it, with the model's name.",
        )


def ranks(scores: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Rank of every neuron, 0 for the largest score, in the scores' shapes; ties go to the earlier layer, position, neuron."""
    flat = torch.cat([one.flatten() for one in scores])
    order = flat.argsort(descending=True, stable=True)
    rank = torch.empty(len(flat), dtype=torch.int32, device=flat.device)
    rank[order] = torch.arange(len(flat), dtype=torch.int32, device=flat.device)
    parts = rank.split([one.numel() for one in scores])
    return tuple(part.view(one.shape) for part, one in zip(parts, scores, strict=True))
