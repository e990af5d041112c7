"""The scores of ``_baselines`` for features of a dictionary, in kept runs of ``_kept_features``.

All are the same estimates with the dictionary in the place of its layers' MLPs: slopes of the replacement model pass encoders and decoders, gradients pass
live features. ``magnitude`` takes the length of all that a feature writes (over the layers of a cross-layer transcoder). A feature that is active in the
corrupted run alone has a slope in the clean replacement by what it would write there. Errors: mixed as the embeddings are in ``atp``, ``eap-ig`` and
``ig gauss`` (the clean run's at the clean run); those of the kept runs in ``mixed``, which again adds up to the metric with all kept − none kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from symbolic_residue.dictionaries import stand_in
from symbolic_residue.graph._baselines import Layers, MIXED_AT, Mixture, PairScores
from symbolic_residue.graph._columns import Units
from symbolic_residue.graph._features import silenced, with_dictionary
from symbolic_residue.graph._freeze import freeze
from symbolic_residue.graph._kept import PairRun
from symbolic_residue.graph._kept_features import FeaturePairRun, scattered
from symbolic_residue.graph._local import LocalModel
from symbolic_residue.graph._mlp import find_mlp
from symbolic_residue.instrument import Add, Edit

__all__ = ["FeatureScores", "scores_of"]


class FeatureScores(PairScores):
    """The scores of one pair; see :class:`PairScores`. ``score`` gives ``[cell]`` in the layers of the dictionary."""

    run: FeaturePairRun

    def _magnitude(self) -> Layers:
        found = []
        for i, (a, b) in enumerate(zip(self.run.clean, self.run.corrupted, strict=True)):
            cells = self.run.cells[i]
            if cells is None:
                lengths = find_mlp(self.run.instrument.parts.layers[i], a.dtype).down.norm(dim=1)
            else:
                decoders = self.run.dictionary.layers[i].decoders.values()
                lengths = sum((d.to(a.dtype).square().sum(1) for d in decoders), torch.zeros((), dtype=a.dtype)).sqrt()[cells[1]]
            found.append((a - b).abs() * lengths)
        return tuple(found)

    def _units(self) -> Units:
        """Features in play, as units of the prompts."""
        rows = [
            torch.stack([torch.full_like(cells[0], i), cells[0] + self.run.pair.first, cells[1]], 1)
            for i, cells in enumerate(self.run.cells)
            if cells is not None
        ]
        return Units.of(torch.cat(rows))

    def _freeze(self, side: int) -> LocalModel:
        with torch.no_grad():
            local = with_dictionary(freeze(self.run.instrument, self.run.pair.ids[side]), self.run.dictionary)
            return silenced(local, self._units())

    def _slope(self, local: LocalModel, layer: int, slopes: Tensor) -> Tensor:
        cells = self.run.cells[layer]
        if cells is None:
            return slopes[self.run.pair.first :]
        own = local.units[layer].cells()
        assert own is not None
        count = self.run.dictionary.layers[layer].n_features
        return slopes[torch.searchsorted(own[0] * count + own[1], (cells[0] + self.run.pair.first) * count + cells[1])]

    def _at(self, points: Sequence[float]) -> Layers:
        run, n, first = self.run, len(points), self.run.pair.first
        at = torch.tensor(list(points), dtype=torch.float64).view(-1, 1, 1)
        errors = {i: (at * a + (1 - at) * run.left[1][i]).to(a) for i, a in run.left[0].items()}
        leaves = [torch.zeros(n, *self._leaf(i), dtype=a.dtype, requires_grad=True) for i, a in enumerate(run.clean)]
        edits: list[Edit] = [Add(f"mlp_act.{i}", value=leaves[i]) for i, cells in enumerate(run.cells) if cells is None]
        edits += stand_in(run.instrument.parts, run.dictionary, errors, _Plus(run, leaves), rows=self._rows())
        found = self._gradients(leaves, edits, points)
        return tuple((one if cells is not None else one[:, first:]).mean(0) for one, cells in zip(found, run.cells, strict=True))

    def _leaf(self, layer: int) -> tuple[int, ...]:
        cells = self.run.cells[layer]
        return (self.run.pair.ids.shape[1], self.run.clean[layer].shape[1]) if cells is None else (len(cells[0]),)

    def _rows(self) -> tuple[int, ...]:
        return tuple(range(-self.run.rows, 0))

    def _mixed(self) -> Layers:
        run, z = self.run, torch.tensor(MIXED_AT, dtype=torch.float64)
        leaves = [a.new_zeros(len(z), *a.shape).requires_grad_() for a in run.clean]
        edits: list[Any] = [
            Mixture(f"mlp_act.{i}", rows=self._rows(), value=run.corrupted[i], z=z, leaf=leaves[i])
            for i, cells in enumerate(run.cells)
            if cells is None
        ]
        mixes = _Mix(run, leaves, z)
        edits += stand_in(run.instrument.parts, run.dictionary, run.held_errors(), mixes, rows=self._rows())
        found = self._gradients(leaves, edits, (1.0,) * len(z))
        live = mixes.live | {i: edit.live["a"] for edit in edits if isinstance(edit, Mixture) for i in [int(edit.point[8:])]}
        return tuple((slope * (live[i] - run.corrupted[i])).mean(0) for i, slope in enumerate(found))

    def _cells(self, layer: int, rank: Tensor, count: int) -> tuple[Tensor, Tensor]:
        cells = self.run.cells[layer]
        return super()._cells(layer, rank, count) if cells is None else (cells[0][rank < count], cells[1][rank < count])


def scores_of(run: PairRun, *, steps: int = 5, seed: int = 0) -> PairScores:
    """The scores of a pair of runs, of neurons or of features."""
    return (FeatureScores if isinstance(run, FeaturePairRun) else PairScores)(run, steps=steps, seed=seed)


@dataclass(frozen=True, eq=False)
class _Plus:
    """Live features plus leaves whose gradients are theirs."""

    run: FeaturePairRun
    leaves: Sequence[Tensor]

    def __call__(self, layer: int, live: Tensor) -> Tensor:
        cells = self.run.cells[layer]
        assert cells is not None
        return live + scattered(self.leaves[layer], cells, live.shape[1:])


@dataclass(frozen=True, eq=False)
class _Mix:
    """``z · live + (1 − z) · corrupted`` of the features in play, 0 of the others, plus leaves; the live values are kept."""

    run: FeaturePairRun
    leaves: Sequence[Tensor]
    z: Tensor
    live: dict[int, Tensor] = field(default_factory=dict)

    def __call__(self, layer: int, live: Tensor) -> Tensor:
        cells = self.run.cells[layer]
        assert cells is not None
        mine = live[:, cells[0], cells[1]]
        self.live[layer] = mine.detach()
        z = self.z.to(mine)[:, None]
        return scattered(z * mine + (1 - z) * self.run.corrupted[layer] + self.leaves[layer], cells, live.shape[1:])
