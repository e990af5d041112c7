"""What to read from attention, and the table that comes back.

1. ``AttentionRead`` says which statistics, rows and layers are wanted, and how the keys divide into regions.
2. ``RegionMap`` turns region labels (one per key) into an indicator ``[batch, key, region]`` once per forward.
3. ``AttentionTable`` holds the answer, stacked over layers, with rows that do not exist (padding) as NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args, Literal, TYPE_CHECKING

import torch
from torch import Tensor

from symbolic_residue.errors import AttentionError, ConfigError, ReadError

if TYPE_CHECKING:
    from symbolic_residue.prompts import Regions

__all__ = ["STATS", "AttentionRead", "AttentionTable", "RegionMap", "Stat"]

Stat = Literal["mass", "entropy", "lse", "max", "argmax", "distance", "self"]
STATS: tuple[Stat, ...] = get_args(Stat)


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
    """

    regions: Regions | Sequence[Regions] | None = None
    stats: tuple[Stat, ...] = ("mass", "entropy", "distance")
    rows: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    weights: bool = False
    split_self: bool = False

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
    """Region labels as an indicator: names and ``[batch or 1, key, region]`` in float32."""

    names: tuple[str, ...]
    indicator: Tensor

    @classmethod
    def build(
        cls, regions: Regions | Sequence[Regions], batch: int, n_keys: int, lead: Sequence[int], device: torch.device
    ) -> RegionMap:
        """Indicator of the regions over the batch's keys; padding keys belong to no region.

        Args:
            regions: one for all sequences, or one a sequence.
            batch: number of sequences.
            n_keys: padded length.
            lead: number of padding keys before each sequence's first token.
            device: where the indicator shall live.

        Raises:
            ReadError: a sequence's labels do not fit its length.
        """
        several = list(regions) if isinstance(regions, Sequence) else [regions] * batch
        if len(several) != batch:
            raise ReadError(f"{len(several)} region maps were given for a batch of {batch}.")
        names: list[str] = []
        for one in several:
            names += [name for name in one.names if name not in names]
        out = torch.zeros(batch, n_keys, len(names), device=device)
        for i, one in enumerate(several):
            labels = torch.tensor(one.labels, dtype=torch.long, device=device)
            if lead[i] + len(labels) > n_keys:
                raise ReadError(f"Regions cover {len(labels)} tokens, but the sequence has {n_keys - lead[i]}.")
            columns = torch.tensor([names.index(name) for name in one.names], device=device)
            out[i, lead[i] + torch.arange(len(labels), device=device), columns[labels]] = 1.0
        return cls(tuple(names), out)


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
        backend: which computation produced the numbers (``flash``, ``blocks``), as recorded in provenance.
    """

    layers: tuple[int, ...]
    rows: Tensor
    regions: tuple[str, ...]
    valid: Tensor
    backend: str
    values: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.values:
            raise ReadError(f"{name!r} was not read.", todo=f"This table holds: {', '.join(self.values)}.")
        return self.values[name]

    def mass(self, region: str) -> Tensor:
        """Attention mass on one region, ``[layer, batch, head, row]``."""
        if region not in self.regions:
            raise ReadError(f"There is no region {region!r}.", todo=f"Regions here: {', '.join(self.regions)}.")
        return self["mass"][..., self.regions.index(region)]

    @classmethod
    def stack(
        cls, per_layer: dict[int, dict[str, Tensor]], rows: Tensor, regions: tuple[str, ...], valid: Tensor, backend: str
    ) -> AttentionTable:
        """Join one forward's layers; a row that is padding becomes NaN."""
        layers = tuple(sorted(per_layer))
        if not layers:
            raise AttentionError("No layer reported attention.", why="The model never called the attention function.")
        values = {}
        for name in per_layer[layers[0]]:
            joined = torch.stack([per_layer[i][name] for i in layers])
            if not bool(valid.all()):
                gone = ~valid[None, :, None, :]
                gone = gone.reshape(gone.shape + (1,) * (joined.dim() - 4))
                joined = joined.masked_fill(gone, -1 if name == "argmax" else float("nan"))
            values[name] = joined
        return cls(layers, rows, regions, valid, backend, values)
