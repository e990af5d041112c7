"""What to read from attention, and the table that comes back.

1. ``AttentionRead`` says which statistics, rows and layers are wanted, and how the keys divide into regions.
2. ``RegionMap`` turns region labels (one per key) into an indicator ``[batch, key, region]`` once per forward.
3. ``AttentionTable`` holds the answer, stacked over layers as they come (``LayerStack``), with rows that do not exist (padding) as NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args, Literal, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import AttentionError, ConfigError, ReadError

if TYPE_CHECKING:
    from symbolic_residue.instrument.attention._call import Call
    from symbolic_residue.prompts import Regions

GENERATED = "generated"
"""Region of the tokens that were generated after the prompt."""

__all__ = ["GENERATED", "STATS", "AttentionRead", "AttentionTable", "RegionMap", "Stat"]

Stat = Literal["mass", "entropy", "lse", "max", "argmax", "distance", "self", "sink", "received"]
STATS: tuple[Stat, ...] = get_args(Stat)
"""mass: Σ of weights on a region. entropy: −Σ p ln p over keys, nats. lse: log of the softmax's denominator. max, argmax: the largest weight and its key.
distance: the row's position minus the mean attended position, tokens. self: weight of the row's own key. sink: weight of the head's sink logit (0
where there is none). received: Σ of a key's weights over the rows read, ``[layer, batch, head, key]``."""


@dataclass(frozen=True)
class AttentionRead:
    """A request for exact attention readouts.

    Attributes:
        regions: how the keys divide: one ``Regions`` for all sequences of the batch, or one each; None takes those of the batch's prompts.
        stats: which statistics; ``entropy`` in nats, ``distance`` in tokens (row minus mean attended key).
        rows: query rows to read (negative counts from the end); ``None`` reads all.
        layers: layers to read; ``None`` reads all.
        weights: also keep the full attention rows ``[layer, batch, head, row, key]``; needs explicit ``rows``.
        split_self: take each row's own key out of its region into a region ``self`` of its own.
        on_call: called with each read layer and its attention call (queries, keys, who sees whom) as the forward reaches it. ``row_weights`` gives any
            row's weights from it later: the T×T matrix need not be kept. Edits of the attention are not in it, and are refused.
    """

    regions: Regions | Sequence[Regions] | None = None
    stats: tuple[Stat, ...] = ("mass", "entropy", "distance")
    rows: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    weights: bool = False
    split_self: bool = False
    on_call: Callable[[int, Call], None] | None = None

    def __post_init__(self) -> None:
        unknown = [s for s in self.stats if s not in STATS]
        if unknown:
            raise ConfigError(f"Unknown attention statistic {unknown[0]!r}.", todo=f"Use some of: {', '.join(STATS)}.")
        if self.weights and self.rows is None:
            raise ConfigError(
                "Full attention weights for every row would be the T×T matrix.",
                todo="Name the rows that you need: rows=(-1,).",
            )


@dataclass
class RegionMap:
    """Region labels over the keys: names, and ``[batch, key]`` int32 with −1 for keys of no region."""

    names: tuple[str, ...]
    labels: Tensor

    def indicator(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``[batch, key, region]``: 1 where the key belongs to the region."""
        names = torch.arange(len(self.names), device=self.labels.device, dtype=self.labels.dtype)
        return (self.labels[..., None] == names).to(dtype)

    def keys(self, start: int, stop: int) -> RegionMap:
        """The map of keys ``start`` to ``stop``."""
        return self if start == 0 and stop == self.labels.shape[1] else RegionMap(self.names, self.labels[:, start:stop])

    @classmethod
    def build(
        cls,
        regions: Regions | Sequence[Regions],
        batch: int,
        n_keys: int,
        lead: Sequence[int],
        device: torch.device,
        *,
        prompt: int | None = None,
    ) -> RegionMap:
        """The regions over the batch's keys; padding keys belong to none.

        Args:
            regions: one for all sequences, or one a sequence.
            batch: number of sequences.
            n_keys: padded length.
            lead: number of padding keys before each sequence's first token.
            device: where the labels shall live.
            prompt: padded length of the prompts; keys after it were generated and form the region ``generated``.

        Raises:
            ReadError: a sequence's labels do not fit its length.
        """
        several = list(regions) if isinstance(regions, Sequence) else [regions] * batch
        if len(several) != batch:
            raise ReadError(f"{len(several)} region maps were given for a batch of {batch}.")
        names: list[str] = []
        for one in several:
            names += [name for name in one.names if name not in names]
        width = n_keys if prompt is None else min(prompt, n_keys)
        out = torch.full((batch, n_keys), -1, dtype=torch.int32)
        for i, one in enumerate(several):
            n = len(one.labels)
            if lead[i] + n > width:
                raise ReadError(f"Regions cover {n} tokens, but the sequence has {width - lead[i]}.")
            columns = torch.tensor([names.index(name) for name in one.names], dtype=torch.int32)
            out[i, lead[i] : lead[i] + n] = columns[torch.tensor(one.labels, dtype=torch.long)]
        if prompt is not None:
            if GENERATED not in names:
                names.append(GENERATED)
            out[:, width:] = names.index(GENERATED)
        return cls(tuple(names), out.to(device))


@dataclass
class AttentionTable:
    """Attention readouts of one forward.

    Every statistic is ``[layer, batch, head, row]`` (``mass`` with a last axis ``region``, ``weights`` with a last axis
    ``key``) in float32; entries of rows that do not exist (padding) are NaN, and -1 in ``argmax``.

    Attributes:
        layers: the model's layer numbers along the layer axis.
        rows: the query positions along the row axis (in the padded sequence).
        regions: names along the region axis.
        valid: ``[batch, row]``: False where the row is padding.
        backend: which computations produced the numbers (``torch``, ``blocks``, ``native``, ``triton``, ``dense``; joined by ``+``).
        mode: ``observe`` (the model's own attention ran, the readout stood beside it) or ``replace`` (the backend gave the layer's output too).
    """

    layers: tuple[int, ...]
    rows: Tensor
    regions: tuple[str, ...]
    valid: Tensor
    backend: str
    values: dict[str, Tensor] = field(default_factory=dict)
    mode: str = "observe"

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.values:
            raise ReadError(f"{name!r} was not read.", todo=f"This table holds: {', '.join(self.values)}.")
        return self.values[name]

    def select(self, sequences: Sequence[int]) -> AttentionTable:
        """These sequences alone, in this order."""
        at = list(sequences)
        return replace(self, valid=self.valid[at], values={name: value[:, at] for name, value in self.values.items()})

    def mass(self, region: str) -> Tensor:
        """Attention mass on one region, ``[layer, batch, head, row]``."""
        if region not in self.regions:
            raise ReadError(f"There is no region {region!r}.", todo=f"Regions here: {', '.join(self.regions)}.")
        return self["mass"][..., self.regions.index(region)]


class LayerStack:
    """One forward's readouts, written into one tensor a statistic as the layers come.

    A layer's own tensors are let go at once: kept until the end they would lie between the large ones that every layer frees again, and the heap would
    grow with each layer.

    Args:
        layers: those that will be read, ascending.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._seen: set[int] = set()
        self._values: dict[str, Tensor] = {}

    def add(self, layer: int, stats: Mapping[str, Tensor]) -> None:
        """Take one layer's statistics, ``[batch, head, row, …]`` each.

        Raises:
            AttentionError: other statistics than the first layer's.
            ReadError: a size differs from the first layer's.
        """
        if not self._seen:
            # Layers may live on several devices: the table is on the first one's.
            self._values = {name: part.new_empty((len(self._places), *part.shape)) for name, part in stats.items()}
        if stats.keys() != self._values.keys():  # a place that nobody writes would hold whatever memory held
            raise AttentionError(
                f"Layer {layer} reported {', '.join(sorted(stats))} where others reported {', '.join(sorted(self._values))}."
            )
        for name, part in stats.items():
            whole = self._values[name]
            if whole.shape[1:] != part.shape:
                raise ReadError(
                    f"{name!r} has a different size in different layers.", why="Some layers keep fewer keys in their cache."
                )
            whole[self._places[layer]] = part.detach()
        self._seen.add(layer)

    def table(self, rows: Tensor, regions: tuple[str, ...], valid: Tensor, backend: str, mode: str) -> AttentionTable:
        """The readouts; a row that is padding becomes NaN.

        Raises:
            AttentionError: no layer reported.
        """
        if not self._seen:
            raise AttentionError("No layer reported attention.", why="The model never called the attention function.")
        layers = tuple(sorted(self._seen))
        values = {}
        for name, whole in self._values.items():
            found = whole if len(layers) == len(self._places) else whole[[self._places[layer] for layer in layers]]
            if name != "received" and not bool(valid.all()):
                gone = ~valid.to(found.device)[None, :, None, :]
                gone = gone.reshape(gone.shape + (1,) * (found.dim() - 4))
                found.masked_fill_(gone, -1 if name == "argmax" else float("nan"))
            values[name] = found
        return AttentionTable(layers, rows, regions, valid, backend, values, mode)
