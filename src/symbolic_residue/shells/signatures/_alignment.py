"""Alignment matrix: which units answer to which shell's stress, units × shells.

1. Every item of a shell's two sides (planted, null) is read at the last row of its prompt; a unit's number is its activation there. Units are MLP neurons, or
   whatever ``encode`` makes of the points read: features of a dictionary. Layers are read in groups that fit ``memory``; a group takes one forward an item.
2. *Effect* of a unit for a shell: rank-biserial correlation, ``2 AUC − 1`` of planted against null, in [−1, 1].
3. *p*: labels permuted over the shell's items; the largest standardised effect over all units of all shells in each draw, so the family-wise error over
   the whole matrix is held. Items are what is permuted and counted, never units. *q* holds the false discovery rate among a shell's units instead
   (``_permuted``).
4. *Pairs of shells*: Pearson correlation of their effects over units, its null by permuted labels; p values are two-sided, Holm over pairs.

What is exchangeable: with ``ShellPrompts``, items of one frame that has both sides, and apart from them all items of one-sided frames; else all items of the
shell. Items of a one-sided frame are alike in their wording too, so an effect there is one for items like these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.shells._base import Progress, quiet
from symbolic_residue.shells._confirm import in_pieces
from symbolic_residue.shells.signatures._permuted import Labels, pair_frame, Running
from symbolic_residue.shells.signatures._prompts import ShellPrompts

if TYPE_CHECKING:
    from torch import Tensor

    from symbolic_residue.types import Point

__all__ = ["AlignmentMatrix", "alignment_matrix"]

Array = NDArray[np.float64]
Sides = tuple[Sequence[Prompt | str], Sequence[Prompt | str]] | ShellPrompts
_FEWEST = 4
_LEVEL = 0.05
_MEMORY = 2**28


@dataclass(frozen=True, eq=False)
class AlignmentMatrix:
    """Effects of units for shells.

    Attributes:
        shells: names.
        layer, unit: of each unit ``[unit]``.
        effect: ``[shell, unit]`` in [−1, 1].
        p: ``[shell, unit]``, family-wise over units × shells.
        q: ``[shell, unit]``, false discovery rate over the units of a shell.
        fdr: the rate at which ``aligned`` is said by ``q``; None where it is said by ``p`` (at 0.05).
        items: (planted, null) items of each shell.
        pairs: ``first, second, correlation, null_low, null_high, p, p_adjusted, units``: shells two by two.
    """

    shells: tuple[str, ...]
    layer: NDArray[np.int64] = field(repr=False)
    unit: NDArray[np.int64] = field(repr=False)
    effect: Array = field(repr=False)
    p: Array = field(repr=False)
    q: Array = field(repr=False)
    fdr: float | None
    items: tuple[tuple[int, int], ...]
    pairs: pl.DataFrame = field(repr=False)

    @property
    def aligned(self) -> NDArray[np.bool_]:
        """``[shell, unit]``: ``q`` at most ``fdr`` where one was asked for, else ``p`` at most 0.05."""
        return self.p <= _LEVEL if self.fdr is None else self.q <= self.fdr

    def counts(self) -> pl.DataFrame:
        """Aligned units by layer and shell: ``layer, shell, aligned, units``."""
        rows = [
            {"layer": int(at), "shell": shell, "aligned": int(self.aligned[s, here].sum()), "units": int(here.sum())}
            for at in np.unique(self.layer)
            for s, shell in enumerate(self.shells)
            for here in [self.layer == at]
        ]
        return pl.DataFrame(rows)

    def frame(self, top: int = 40) -> pl.DataFrame:
        """The table ``alignments`` of the units with the largest effect for any shell, at most ``top``, strongest first."""
        order = np.argsort(-np.abs(self.effect).max(0), kind="stable")[:top]
        return pl.DataFrame(
            [
                {
                    "layer": int(self.layer[u]),
                    "unit": int(self.unit[u]),
                    "shell": shell,
                    "effect": float(self.effect[s, u]),
                    "p": float(self.p[s, u]),
                    "q": float(self.q[s, u]),
                    "planted_n": self.items[s][0],
                    "null_n": self.items[s][1],
                    "aligned": bool(self.aligned[s, u]),
                }
                for u in order
                for s, shell in enumerate(self.shells)
            ]
        )

    def tables(self) -> dict[str, pl.DataFrame]:
        """For a run folder, without the ``item`` column."""
        found = {"alignments": self.frame()}
        return found | {"alignment_pairs": self.pairs} if len(self.pairs) else found

    def chart(self, top: int = 24) -> Any:
        """The strongest units × shells as an Altair chart (needs the ``figures`` extra)."""
        from symbolic_residue.figures import alignment_map

        return alignment_map(self.frame(top))


def alignment_matrix(
    instrument: Instrument,
    shells: Mapping[str, Sides],
    *,
    reads: Sequence[str] = ("mlp_act.*",),
    encode: Callable[[str, Tensor], Tensor] | None = None,
    fdr: float | None = None,
    seed: int = 0,
    n_permutations: int = 500,
    memory: int = _MEMORY,
    progress: Progress = quiet,
) -> AlignmentMatrix:
    """Units × shells.

    Args:
        instrument: the model's instrument.
        shells: name → what ``shell_prompts`` gives, or (planted prompts, null prompts); four or more each.
        reads: points whose last row holds the units: one layer, several or all.
        encode: (point, its last rows ``[item, d]``) → ``[item, unit]``, such as a dictionary's encoder; the values themselves when left out.
        fdr: say ``aligned`` by this false discovery rate among a shell's units instead of the family-wise error over the matrix.
        seed: of the permutations.
        n_permutations: of each shell's labels.
        memory: bytes of activations held at once; more layers than fit are read in groups, one point at least.
        progress: told how far it is.

    Raises:
        ConfigError: too few items or permutations, or a rate outside (0, 1).
        ReadError: a point that the model does not have.
        PromptError: a prompt that is empty or too long.
    """
    if n_permutations < 19:
        raise ConfigError(f"{n_permutations} permutations cannot give a p value of 0.05.", todo="Take 19 or more.")
    if fdr is not None and not 0 < fdr < 1:
        raise ConfigError(f"A false discovery rate of {fdr} is none.", todo="Give a number between 0 and 1.")
    if not shells:
        raise ConfigError("There is no shell to align with.")
    rng, tokenizer, limit = np.random.default_rng(seed), instrument.loaded.tokenizer, instrument.parts.max_context
    labels, built = [], []
    for name, sides in shells.items():
        planted, null = sides
        if min(len(planted), len(null)) < _FEWEST:
            raise ConfigError(
                f"{name} has {len(planted)} planted and {len(null)} null items.", todo=f"Give {_FEWEST} or more of each."
            )
        frames = (sides.planted_frames, sides.null_frames) if isinstance(sides, ShellPrompts) else None
        labels.append(Labels.draw(len(planted), len(null), rng, n_permutations, frames))
        built.append([build_prompt(tokenizer, p, max_tokens=limit) if isinstance(p, str) else p for p in (*planted, *null)])
    points = tuple(str(point) for point in instrument.points(tuple(reads)))
    widths = {point: values.shape[1] for point, values in _activations(instrument, [min(built[0], key=len)], points, encode)}
    running, layer, unit = Running(labels), [], []
    groups = _groups(widths, 4 * sum(map(len, built)), memory)
    for i, group in enumerate(groups):
        read = []
        for s, prompts in enumerate(built):
            progress(f"reading layers, group {i + 1} of {len(groups)}", (i + s / len(built)) / len(groups))
            read.append(_activations(instrument, prompts, group, encode))
        for parts in zip(*read, strict=True):  # one point of all shells
            point = parts[0][0]
            width = parts[0][1].shape[1]
            layer.append(np.full(width, -1 if point.layer is None else point.layer, dtype=np.int64))
            unit.append(np.arange(width, dtype=np.int64))
            running.add([values for _, values in parts])
    progress("aligned", 1.0)
    effect, p, q = running.finish()
    items = tuple((int((one.weights > 0).sum()), int((one.weights < 0).sum())) for one in labels)
    return AlignmentMatrix(
        tuple(shells), np.concatenate(layer), np.concatenate(unit), effect, p, q, fdr, items, pair_frame(tuple(shells), running)
    )


def _groups(widths: Mapping[Point, int], each: int, memory: int) -> list[tuple[str, ...]]:
    """Points in groups whose activations fit: ``each`` bytes a unit."""
    groups: list[tuple[str, ...]] = []
    held = memory + 1
    for point, width in widths.items():
        if held + width * each > memory or not groups:
            groups.append(())
            held = 0
        groups[-1] += (str(point),)
        held += width * each
    return groups


@torch.no_grad()
def _activations(
    instrument: Instrument, prompts: Sequence[Prompt], reads: Sequence[str], encode: Callable[[str, Tensor], Tensor] | None
) -> list[tuple[Point, NDArray[np.float32]]]:
    """Each point with ``[item, unit]`` at the last row."""
    kept: dict[Point, list[NDArray[np.float32]]] = {}

    def keep(point: Point, tensor: Tensor) -> None:
        rows = tensor[:, -1].float()
        rows = rows if encode is None else encode(str(point), rows)
        kept.setdefault(point, []).append(rows.flatten(1).float().cpu().numpy().copy())

    for piece in in_pieces(prompts):
        instrument.run(collate(piece), reads=tuple(reads), keep_logits=1, on_read=keep)
    return [(point, np.concatenate(parts)) for point, parts in kept.items()]
