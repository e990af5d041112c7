"""Alignment matrix: which units answer to which shell's stress, units × shells.

1. Every item of a shell's two sides (planted, null) is read once as a plain prompt; a unit's number is its activation at the last row. Units are MLP
   neurons, or whatever ``encode`` makes of the points read: features of a dictionary.
2. *Effect* of a unit for a shell: rank-biserial correlation, ``2 AUC − 1`` of planted against null, in [−1, 1].
3. *p*: labels permuted over the shell's items; the largest standardised rank sum over all units in each draw, so the family-wise error over units is held
   (single step, Westfall & Young 1993). Items are what is permuted and counted, never units.
4. *Pairs of shells*: Pearson correlation of their effects over units. Units hang together, so its null is made by permuting the first shell's labels (and
   the second's, the larger p counts), not from the number of units; p values are two-sided, Holm over pairs.

Items of one frame are alike; the permutation treats them as exchangeable, so an effect is one for items like these.

"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.instrument import collate, Instrument
from symbolic_residue.prompts import build_prompt, Prompt
from symbolic_residue.shells._base import Progress, quiet
from symbolic_residue.shells._confirm import in_pieces
from symbolic_residue.stats import empirical_p, holm

if TYPE_CHECKING:
    from torch import Tensor

    from symbolic_residue.types import Point

__all__ = ["AlignmentMatrix", "alignment_matrix"]

Array = NDArray[np.float64]
Sides = tuple[Sequence[Prompt | str], Sequence[Prompt | str]]
_FEWEST = 4
_LEVEL = 0.05
_CHUNK = 50


@dataclass(frozen=True, eq=False)
class AlignmentMatrix:
    """Effects of units for shells.

    Attributes:
        shells: names.
        layer, unit: of each unit ``[unit]``.
        effect: ``[shell, unit]`` in [−1, 1].
        p: ``[shell, unit]``, family-wise over units.
        items: (planted, null) items of each shell.
        pairs: ``first, second, correlation, null_low, null_high, p, p_adjusted, units``: shells two by two.
    """

    shells: tuple[str, ...]
    layer: NDArray[np.int64] = field(repr=False)
    unit: NDArray[np.int64] = field(repr=False)
    effect: Array = field(repr=False)
    p: Array = field(repr=False)
    items: tuple[tuple[int, int], ...]
    pairs: pl.DataFrame = field(repr=False)

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
                    "planted_n": self.items[s][0],
                    "null_n": self.items[s][1],
                    "aligned": bool(self.p[s, u] <= _LEVEL),
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
    seed: int = 0,
    n_permutations: int = 500,
    progress: Progress = quiet,
) -> AlignmentMatrix:
    """Units × shells.

    Args:
        instrument: the model's instrument.
        shells: name → (planted prompts, null prompts), four or more each; ``shell_prompts`` gives those of a packaged benchmark.
        reads: points whose last row holds the units.
        encode: (point, its last rows ``[item, d]``) → ``[item, unit]``, such as a dictionary's encoder; the values themselves when left out.
        seed: of the permutations.
        n_permutations: of each shell's labels.
        progress: told how far it is.

    Raises:
        ConfigError: too few items or permutations.
        ReadError: a point that the model does not have.
        PromptError: a prompt that is empty or too long.
    """
    if n_permutations < 19:
        raise ConfigError(f"{n_permutations} permutations cannot give a p value of 0.05.", todo="Take 19 or more.")
    if not shells:
        raise ConfigError("There is no shell to align with.")
    for name, sides in shells.items():
        if min(map(len, sides)) < _FEWEST:
            raise ConfigError(
                f"{name} has {len(sides[0])} planted and {len(sides[1])} null items.", todo=f"Give {_FEWEST} or more of each."
            )
    rng = np.random.default_rng(seed)
    effects, ps, drawn, items = [], [], [], []
    layer = unit = np.empty(0, dtype=np.int64)
    for done, (name, (planted, null)) in enumerate(shells.items()):
        progress(f"reading {name}", done / len(shells))
        layer, unit, values = _activations(instrument, [*planted, *null], tuple(reads), encode)
        effect, p, null_effects = _effects(values, len(planted), rng, n_permutations)
        effects.append(effect)
        ps.append(p)
        drawn.append(null_effects)
        items.append((len(planted), len(null)))
    progress("aligned", 1.0)
    names = tuple(shells)
    pairs = _pairs(names, effects, drawn)
    return AlignmentMatrix(names, layer, unit, np.stack(effects), np.stack(ps), tuple(items), pairs)


@torch.no_grad()
def _activations(
    instrument: Instrument, prompts: Sequence[Prompt | str], reads: tuple[str, ...], encode: Callable[[str, Tensor], Tensor] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """Layer and number of each unit, and ``[item, unit]`` at the last row."""
    tokenizer, limit = instrument.loaded.tokenizer, instrument.parts.max_context
    built = [build_prompt(tokenizer, p, max_tokens=limit) if isinstance(p, str) else p for p in prompts]
    kept: dict[Point, list[Tensor]] = {}

    def keep(point: Point, tensor: Tensor) -> None:
        rows = tensor[:, -1].float()
        kept.setdefault(point, []).append(rows.clone() if encode is None else encode(str(point), rows))

    for piece in in_pieces(built):
        instrument.run(collate(piece), reads=reads, keep_logits=1, on_read=keep)
    columns = {point: torch.cat(parts).flatten(1).double().cpu().numpy() for point, parts in kept.items()}
    layer = np.concatenate([np.full(c.shape[1], -1 if point.layer is None else point.layer) for point, c in columns.items()])
    unit = np.concatenate([np.arange(c.shape[1]) for c in columns.values()])
    return layer.astype(np.int64), unit.astype(np.int64), np.concatenate(list(columns.values()), 1)


def _effects(values: Array, n_planted: int, rng: np.random.Generator, draws: int) -> tuple[Array, Array, NDArray[np.float32]]:
    """Rank-biserial effects ``[unit]``, family-wise p ``[unit]``, and the effects under permuted labels ``[draw, unit]`` (float32)."""
    n = len(values)
    ranks = sps.rankdata(values, axis=0)
    centred = ranks - (n + 1) / 2
    # 2 AUC − 1 = (mean rank of planted − mean rank of null) / (n / 2).
    weight = np.concatenate([np.full(n_planted, 1 / n_planted), np.full(n - n_planted, -1 / (n - n_planted))]) * 2 / n
    spread = centred.std(0)
    inverse = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    effect = weight @ centred
    null = np.empty((draws, values.shape[1]), dtype=np.float32)
    largest = np.empty(draws)
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        one = rng.permuted(np.tile(weight, (size, 1)), axis=1) @ centred
        null[start : start + size] = one
        largest[start : start + size] = np.abs(one * inverse).max(1)
    p = empirical_p(np.abs(effect * inverse) * (1 - 1e-12), largest)
    return np.clip(effect, -1, 1), np.asarray(p), null


def _pairs(names: tuple[str, ...], effects: list[Array], drawn: list[NDArray[np.float32]]) -> pl.DataFrame:
    schema: dict[str, Any] = {
        "first": pl.String, "second": pl.String, **dict.fromkeys(("correlation", "null_low", "null_high", "p", "p_adjusted"), pl.Float64), "units": pl.Int64,
    }  # fmt: skip
    rows = []
    for a, b in combinations(range(len(names)), 2):
        found = _correlation(effects[a][None], effects[b])[0]
        nulls = [_correlation(drawn[a], effects[b]), _correlation(drawn[b], effects[a])]
        ps = [empirical_p(abs(found), np.abs(null)) for null in nulls]
        worse = nulls[int(ps[1] > ps[0])]
        low, high = np.quantile(worse, [0.025, 0.975])
        rows.append(
            {
                "first": names[a],
                "second": names[b],
                "correlation": found,
                "null_low": float(low),
                "null_high": float(high),
                "p": max(ps),
                "units": len(effects[a]),
            }
        )
    if rows:
        for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_adjusted"] = float(adjusted)
    return pl.DataFrame(rows, schema=schema)


def _correlation(several: NDArray[Any], one: Array) -> Array:
    """Pearson correlation of each row ``[draw, unit]`` with ``[unit]``; 0 where a side does not vary."""
    other = one - one.mean()
    mean = several.mean(1, keepdims=True, dtype=np.float64)
    dot = several @ other.astype(several.dtype)
    size = np.sqrt(np.maximum((several.astype(np.float64) ** 2).mean(1) - mean[:, 0] ** 2, 0) * several.shape[1]) * np.linalg.norm(
        other
    )
    return np.divide(dot, size, out=np.zeros(len(several)), where=size > 0)
