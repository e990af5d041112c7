"""Runs of a pair in which some features of a dictionary stay live and all others have the values of the corrupted run.

1. Both prompts run once; their features and errors (``dictionaries.standing``) are kept from the first position on at which the prompts differ. In play are the
   features that are active in either run, and the neurons of layers that the dictionary lacks. A feature that is active in neither is held at 0, which it is in
   both.
2. In a kept run the dictionary stands in for its layers' MLPs from that position on: kept features are live (they answer by their encoders), all others have
   their value in the corrupted run, the skip connection answers to what is read.
3. **Errors** are no features and cannot be chosen. ``corrupted`` (the default): they have the corrupted run's values in every kept run, as all that is not
   kept. With none kept that is then the run that neurons have with none kept (but for a skip connection, which answers), and 1 is the clean run: curves of
   features and of neurons share both ends, and that of features ends below 1 by what only the errors hold. ``clean``: they have the clean run's values; what
   they hold is given, the curve is of the features' part alone and ends at 1. With a bad dictionary that part is small, and is called 1 all the same.
4. All features live with the clean run's errors is the clean run: checked for every pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args, Literal

import torch
from torch import Tensor

from symbolic_residue.dictionaries import Dictionary, stand_in, standing
from symbolic_residue.errors import ConfigError, DictionaryError, UnsupportedModelError
from symbolic_residue.graph._kept import check_ends, KeepUnits, PairRun, ranks, run_pair
from symbolic_residue.graph._pairs import TokenPair
from symbolic_residue.instrument import Edit, Instrument
from symbolic_residue.types import Point

__all__ = ["Errors", "FeaturePairRun", "run_feature_pair", "run_units", "scattered"]

Errors = Literal["corrupted", "clean"]
_HELD = 1 << 25
"""Activations of features that are held at a time, over the layers of a dictionary."""


@dataclass(frozen=True, eq=False)
class FeaturePairRun(PairRun):
    """Both runs of a pair; ``clean`` and ``corrupted`` are ``[cell]`` in the layers of the dictionary.

    Attributes:
        dictionary: whose features are in play.
        errors: whose values errors have in kept runs.
        cells: layer by layer rows and features that are in play, ``[cell]`` each, in order; None where the layer keeps its neurons.
        left: errors by layer ``[row, d_model]``: of the clean and of the corrupted run.
        whole: the logit difference with all kept and the clean run's errors.
    """

    dictionary: Dictionary
    errors: Errors
    cells: tuple[tuple[Tensor, Tensor] | None, ...]
    left: tuple[Mapping[int, Tensor], Mapping[int, Tensor]]
    whole: float = float("nan")

    @property
    def rows(self) -> int:
        """Positions from the first difference on."""
        return self.pair.ids.shape[1] - self.pair.first

    def held_errors(self) -> Mapping[int, Tensor]:
        """What errors are in kept runs."""
        return self.left[0 if self.errors == "clean" else 1]

    def kept(self, rank: Sequence[Tensor], counts: Sequence[int], max_tokens: int = 1024) -> Tensor:
        """As of :class:`PairRun`; ``rank`` is ``[cell]`` in the layers of the dictionary."""
        features = sum(one.n_features for one in self.dictionary.layers.values())
        return super().kept(rank, counts, max(self.rows, min(max_tokens, _HELD // features)))

    def edits(self, rank: Sequence[Tensor], counts: Tensor) -> list[Edit]:
        """What keeps the first ``counts [sequence]`` in rank live."""
        parts = self.instrument.parts
        found: list[Edit] = [
            KeepUnits(f"mlp_act.{i}", value=self.corrupted[i], rank=rank[i], counts=counts)
            for i, cells in enumerate(self.cells)
            if cells is None
        ]
        return found + stand_in(parts, self.dictionary, self.held_errors(), _Kept(self, rank, counts))


@dataclass(frozen=True, eq=False)
class _Kept:
    run: FeaturePairRun
    rank: Sequence[Tensor] = field(default_factory=tuple)
    counts: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __call__(self, layer: int, live: Tensor) -> Tensor:
        at = self.run.cells[layer]
        assert at is not None
        out = scattered(self.run.corrupted[layer].to(live), at, live.shape[1:]).repeat(len(live), 1, 1)
        keep = self.rank[layer][None] < self.counts[:, None]
        sequence, cell = keep.nonzero(as_tuple=True)
        row, feature = at[0][cell], at[1][cell]
        out[sequence, row, feature] = live[sequence, row, feature]
        return out


def scattered(values: Tensor, cells: tuple[Tensor, Tensor], shape: Sequence[int]) -> Tensor:
    """``values [..., cell]`` as ``[..., row, feature]``, 0 elsewhere; gradients pass."""
    flat = values.new_zeros(*values.shape[:-1], shape[0] * shape[1])
    return flat.index_add(-1, cells[0] * shape[1] + cells[1], values).view(*values.shape[:-1], *shape)


def run_feature_pair(
    instrument: Instrument, pair: TokenPair, dictionary: Dictionary, errors: Errors = "corrupted"
) -> FeaturePairRun:
    """Both runs.

    Raises:
        ConfigError: errors that are neither ``corrupted`` nor ``clean``.
        DictionaryError: a dictionary of another model, or no feature in play.
        UnsupportedModelError: a layer without a dictionary whose neurons are no single vector.
        VerificationError: with all features live and the clean run's errors, the run is not the clean one.
    """
    if errors not in get_args(Errors):
        raise ConfigError(f"errors={errors!r} is not known.", todo="Use 'corrupted', or 'clean'.")
    parts = instrument.parts
    neurons = [i for i in range(parts.n_layers) if i not in dictionary.layers]
    for i in neurons:
        absent = parts.layers[i].absent("mlp_act")
        if absent is not None:
            raise UnsupportedModelError(
                absent,
                why="A neuron that is kept or replaced must be an entry of one vector.",
                todo="Use a model without experts, or a dictionary of these layers.",
            )
    both = standing(instrument, dictionary, pair.ids, pair.first)
    took: dict[int, Tensor] = {}

    def keep(point: Point, tensor: Tensor) -> None:
        assert point.layer is not None
        took[point.layer] = tensor[:, pair.first :].clone()

    if neurons:
        instrument.run(pair.ids, reads=[f"mlp_act.{i}" for i in neurons], on_read=keep, keep_logits=1)
    cells: list[tuple[Tensor, Tensor] | None] = []
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for i in range(parts.n_layers):
        if i in took:
            cells.append(None)
            values = (took[i][0], took[i][1])
        else:
            at = (both.features[i] != 0).any(0).nonzero(as_tuple=True)
            cells.append((at[0], at[1]))
            values = (both.features[i][0][at], both.features[i][1][at])
        for side, one in zip(sides, values, strict=True):
            side.append(one)
    left = tuple({i: one[side] for i, one in both.errors.items()} for side in (0, 1))
    logits = both.logits.double()
    clean, corrupted = (logits[:, pair.answer] - logits[:, pair.wrong]).tolist()

    def made(errors: Errors, whole: float) -> FeaturePairRun:
        return FeaturePairRun(
            instrument,
            pair,
            tuple(sides[0]),
            tuple(sides[1]),
            clean,
            corrupted,
            dictionary,
            errors,
            tuple(cells),
            (left[0], left[1]),
            whole,
        )

    first = made("clean", float("nan"))
    if not first.in_play:
        raise DictionaryError(
            f"No feature of the dictionary is active in either prompt from position {pair.first} on, where they begin to differ.",
            why="There is nothing that could be kept.",
            todo="Use units='neurons', or check reads= when the dictionary is opened.",
        )
    whole = float(first.kept(ranks(first.clean), [first.in_play])[0])
    check_ends(first, whole)
    return made(errors, whole)


def run_units(
    instrument: Instrument, pair: TokenPair, units: Literal["neurons"] | Dictionary, errors: Errors = "corrupted"
) -> PairRun:
    """Both runs, of neurons or of a dictionary's features.

    Raises:
        ConfigError: units that are neither; others as of ``run_pair`` and :func:`run_feature_pair`.
    """
    if not isinstance(units, str):
        return run_feature_pair(instrument, pair, units, errors)
    if units != "neurons":
        raise ConfigError(f"units={units!r} is not known.", todo="Use 'neurons', or a dictionary from open_dictionary.")
    return run_pair(instrument, pair)
