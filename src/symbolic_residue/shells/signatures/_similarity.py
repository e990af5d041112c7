"""Which natural prompts are like a shell's planted failure: by category (``generalization_map``) and one by one (``failure_similarity``).

Similarity is a difference along the shell's axis (``_axes``) in units of the shell's own shift: 0 = like other natural prompts, 1 = as far from them as
planted items are from null ones. Everything here is conditional on the shells' items: axes, scale and shift are made from them alone and stay fixed.

*Categories.* Two claims, tested together:

1. *Farther* (``p``): category labels carry nothing. Labels are permuted over the prompts, whole frames where prompts share one. The statistic of a cell is the
   category's mean position minus the others', over the standard error from the spread of *all* prompts; labels take no part in that spread nor in the axes, so
   under the null every labelling is as good as the one observed and the p value is exact at any n, for any distribution, sizes and correlations. Each cell is
   compared with the largest statistic of all cells (single step), which holds the family-wise error over categories × shells.
2. *Toward the shell* (``p_toward``): categories of text differ in every direction, so being farther is not yet being like the failure. The category's
   displacement from the others, in the axis's space, has a part along the axis ``d`` and a part across it of length ``e``. The null is ``d ≤ shift / 4`` or
   ``d ≤ e / 2`` (outside a cone of 63° about the axis). ``e²`` is what is seen less the variance of the difference of means across the axis, from the spread
   within categories (unbiased). The statistics are ``d − shift / 4`` and ``d − e / 2``, each over the standard error from the spread of all prompts along what
   it measures; the smallest of them and of statistic 1 is compared with the same permutation distribution. So it never rejects where 1 does not; beyond that
   it is conservative, not exact, since the spread of all prompts holds what categories differ by as well. No random axes are drawn, so nothing rests on how.

*One prompt* against a background of others: ``p`` ranks its position among theirs, ``p_toward`` its cosine with the axis, both from the mean of all and by the
largest over shells (standardised over all). If the prompt is one like the others, each rank is as likely as any other, and both are exact.

Outcomes: ``similar`` (both p at most the level, and the shell has a signature), ``not shown``, ``no signature`` (the shell's planted items do not stand
clear of its null items, held out), ``undecided`` (one prompt without a background: failure and manner of writing cannot be told apart).

p values: (1 + count) / (1 + draws), never 0 (Phipson & Smyth 2010); single-step maximum: Westfall & Young 1993.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats as sps

from symbolic_residue.errors import ConfigError
from symbolic_residue.shells.signatures._axes import Axis, make_axes, ShellSignature, unit
from symbolic_residue.shells.signatures._components import COMPONENTS, READABLE_GROUPS
from symbolic_residue.shells.signatures._signature import Signature, signature_matrix
from symbolic_residue.stats import bound

__all__ = ["SimilarityMap", "failure_similarity", "generalization_map"]

Array = NDArray[np.float64]
_LEVEL = 0.05
_FEWEST_PROMPTS = 3
_FEWEST_BACKGROUND = 19
LEAST_SHARE = 0.25
"""Least similarity: this share of the shell's shift."""
LEAST_SLOPE = 0.5
"""Least displacement along the axis over that across it: a cone of 63°, a cosine of 0.447."""


@dataclass(frozen=True)
class SimilarityMap:
    """Similarities to shells.

    Attributes:
        frame: the table ``similarities``: one row a category (or prompt) and shell.
        components: names of the components that were compared with any shell.
        missing: shell → names of those that its items lack; they take no part in its column.
        n_permutations: labellings (for one prompt: background prompts) behind each p value.
    """

    frame: pl.DataFrame
    components: tuple[str, ...]
    missing: dict[str, tuple[str, ...]]
    n_permutations: int

    def tables(self) -> dict[str, pl.DataFrame]:
        """For a run folder, without the ``item`` column."""
        return {"similarities": self.frame}

    def chart(self) -> Any:
        """Categories × shells as an Altair chart (needs the ``figures`` extra)."""
        from symbolic_residue.figures import similarity_map

        return similarity_map(self.frame)


def generalization_map(
    natural: Mapping[str, Sequence[Signature]],
    shells: Sequence[ShellSignature],
    *,
    frames: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    n_permutations: int = 2000,
    groups: tuple[str, ...] = READABLE_GROUPS,
) -> SimilarityMap:
    """Similarity of each category of natural prompts to each shell.

    Args:
        natural: category → signatures of its prompts, at least three each (three frames, where there are ``frames``), in two categories or more.
        shells: from ``read_shell`` or ``shell_signature``.
        frames: category → the sentence pattern of each of its prompts. Prompts of one frame are averaged into one unit, which is what is permuted and
            counted. Left out, every prompt is a unit: no two should share a pattern then.
        seed: of the permutations.
        n_permutations: of the categories' labels.
        groups: of components to compare.

    Raises:
        ConfigError: too few categories, prompts or shared components; frames that do not match the prompts, or one in two categories.
    """
    _check(n_permutations)
    matrices = _units(natural, frames)
    few = [c for c, rows in matrices.items() if len(rows) < _FEWEST_PROMPTS]
    if len(matrices) < 2 or few:
        raise ConfigError(
            f"Category {few[0]!r} has {len(matrices[few[0]])} {'prompts' if frames is None else 'frames'}."
            if few
            else f"{len(matrices)} categories cannot be compared.",
            todo=f"Give two categories or more, of {_FEWEST_PROMPTS} or more.",
        )
    matrix = np.concatenate(list(matrices.values()))
    labels = np.repeat(np.arange(len(matrices)), [len(rows) for rows in matrices.values()])
    axes = make_axes(shells, [matrix], groups)
    found = compare_categories(matrix, labels, axes, np.random.default_rng(seed), n_permutations)
    rows = []
    for c, category in enumerate(matrices):
        for s, axis in enumerate(axes):
            mine, rest = found.position[labels == c, s], found.position[labels != c, s]
            half = _half(mine, rest)
            rows.append(_row(category, axis, found.difference[c, s], half, len(mine), found, (c, s)))
    return _map(rows, axes, n_permutations)


def failure_similarity(
    failure: Signature,
    shells: Sequence[ShellSignature],
    *,
    background: Sequence[Signature] = (),
    groups: tuple[str, ...] = READABLE_GROUPS,
) -> SimilarityMap:
    """Similarity of one natural failure to each shell.

    Args:
        failure: the signature of the prompt.
        shells: from ``read_shell`` or ``shell_signature``.
        background: signatures of other natural prompts, 19 or more, none of the prompt's own pattern; without them the position is taken from each shell's
            null items and the outcome is ``undecided``.
        groups: of components to compare.

    Raises:
        ConfigError: too few shared components, or a background with which no p value reaches 0.05.
    """
    if 0 < len(background) < _FEWEST_BACKGROUND:
        raise ConfigError(
            f"{len(background)} prompts are no background.", why="No p value reaches 0.05 with so few.",
            todo=f"Give {_FEWEST_BACKGROUND} or more, or none.",
        )  # fmt: skip
    one, others = failure.values[None], signature_matrix(list(background))
    axes = make_axes(shells, [one, others] if len(others) else [one], groups)
    found = compare_one(one[0], others, axes, shells)
    rows = [_row(failure.name, axis, found.difference[0, s], float("nan"), 1, found, (0, s)) for s, axis in enumerate(axes)]
    return _map(rows, axes, len(others))


def _units(natural: Mapping[str, Sequence[Signature]], frames: Mapping[str, Sequence[str]] | None) -> dict[str, Array]:
    """Category → ``[unit, component]``: prompts, or means over the prompts of a frame."""
    whole = {c: signature_matrix(list(prompts)) for c, prompts in natural.items()}
    if frames is None:
        return whole
    owner: dict[str, str] = {}
    units = {}
    for category, matrix in whole.items():
        mine = list(frames.get(category, ()))
        if len(mine) != len(matrix):
            raise ConfigError(f"Category {category!r} has {len(matrix)} prompts and {len(mine)} frames.")
        names = list(dict.fromkeys(mine))
        for name in names:
            if owner.setdefault(name, category) != category:
                raise ConfigError(
                    f"The frame {name!r} is in the categories {owner[name]!r} and {category!r}.",
                    why="Frames are permuted between categories as wholes.",
                )
        units[category] = np.stack([matrix[[f == name for f in mine]].mean(0) for name in names])
    return units


# -- the tests ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """Every cell ``[category, shell]`` of a comparison: ``difference`` along the axis, ``cosine`` of the displacement with it, both p values, ``reach`` (what
    the best of all cells reaches by chance in 95 %), and the ``position`` of every prompt ``[prompt, shell]``."""

    difference: Array
    cosine: Array
    p: Array
    p_toward: Array
    reach: Array
    position: Array


def compare_categories(
    matrix: Array, labels: NDArray[np.int64], axes: Sequence[Axis], rng: np.random.Generator, draws: int
) -> Cells:
    """Both tests of every cell.

    Args:
        matrix: ``[prompt, component]``.
        labels: ``[prompt]`` category numbers from 0.
        axes: of the shells.
        rng: for the permutations.
        draws: how many.
    """
    position = np.stack([axis.positions(matrix) for axis in axes], 1)
    member = (labels == np.arange(labels.max() + 1)[:, None]).astype(np.float64)
    size = member.sum(1)
    scale = np.sqrt(1 / size + 1 / (len(labels) - size))
    # What a mean difference is, as weights of the prompts: [category, prompt].
    weights = member / size[:, None] - (1 - member) / (len(labels) - size)[:, None]
    farther, difference, cosine, toward = (np.empty((len(member), len(axes))) for _ in range(4))
    free = len(labels) - len(member)
    for s, axis in enumerate(axes):
        x = axis.scaled(matrix)
        apart = weights @ x
        along = apart @ axis.direction
        across = apart - along[:, None] * axis.direction
        # Of the squared length across the axis, the part that sampling adds.
        within = x - (member / size[:, None] @ x)[labels]
        noise = ((within**2).sum() - ((within @ axis.direction) ** 2).sum()) / free * scale**2
        length = np.sqrt(np.maximum((across**2).sum(1) - noise, 0.0))
        slope = axis.direction - LEAST_SLOPE * unit(across)
        spread = position[:, s].std(ddof=1) * scale
        difference[:, s], cosine[:, s] = along, unit(apart) @ axis.direction
        farther[:, s] = _over(along, spread)
        cone = _over(along - LEAST_SLOPE * length, (x @ slope.T).std(0, ddof=1) * scale)
        margin = _over(along - LEAST_SHARE * max(axis.shift, 0.0), spread)
        toward[:, s] = np.minimum(np.minimum(cone, margin), farther[:, s])
    largest = _label_null(position, labels, rng, draws)
    reach = np.quantile(largest, 1 - _LEVEL) * position.std(0, ddof=1) * scale[:, None]
    return Cells(difference, cosine, _exceeding(farther, largest), _exceeding(toward, largest), reach, position)


def compare_one(one: Array, others: Array, axes: Sequence[Axis], shells: Sequence[ShellSignature]) -> Cells:
    """Both tests of one prompt ``[component]`` against others ``[prompt, component]``, which may be none; cells are ``[1, shell]``."""
    n_shells = len(axes)
    if not len(others):
        none = np.full((1, n_shells), np.nan)
        apart = [axis.scaled(one) - axis.scaled(s.null).mean(0) for axis, s in zip(axes, shells, strict=True)]
        along = np.array([[a @ axis.direction for a, axis in zip(apart, axes, strict=True)]])
        cosine = np.array([[unit(a) @ axis.direction for a, axis in zip(apart, axes, strict=True)]])
        return Cells(along, cosine, none, none, none, along)
    together = np.concatenate([others, one[None]])
    position, cosine = np.empty((2, len(together), n_shells))
    difference = np.empty(n_shells)
    for s, axis in enumerate(axes):
        x = axis.scaled(together)
        # The mean of all, the prompt too: so every prompt is measured in the same way.
        x = x - x.mean(0)
        position[:, s], cosine[:, s] = x @ axis.direction, unit(x) @ axis.direction
        difference[s] = position[-1, s] - position[:-1, s].mean()
    p = []
    for values in (position, cosine):
        standard = _over(values - values.mean(0), values.std(0, ddof=1))
        p.append((_exceeding(standard[-1], standard[:-1].max(1)), np.quantile(standard[:-1].max(1), 1 - _LEVEL)))
    reach = p[0][1] * position.std(0, ddof=1)
    return Cells(difference[None], cosine[-1:], p[0][0][None], p[1][0][None], reach[None], position)


def _category_statistic(position: Array, labels: NDArray[np.int64]) -> Array:
    """``[category, shell]``: mean of the category − mean of the others, over the standard error from the spread of all."""
    return _statistics(position, labels[None])[0]


def _statistics(position: Array, labelings: NDArray[np.int64]) -> Array:
    """The statistic for several labelings ``[draw, prompt]`` of positions ``[prompt, shell]``: ``[draw, category, shell]``."""
    n, k = position.shape[0], int(labelings.max()) + 1
    member = (labelings[:, None, :] == np.arange(k)[None, :, None]).astype(np.float64)
    size = member.sum(2)[..., None]
    spread = position.std(0, ddof=1)
    centred = position - position.mean(0)
    mean = member @ centred / size
    # The others' sum is minus the category's, since all sum to 0.
    difference = mean + mean * size / (n - size)
    return _over(difference, spread * np.sqrt(1 / size + 1 / (n - size)))


def _label_null(position: Array, labels: NDArray[np.int64], rng: np.random.Generator, draws: int) -> Array:
    """``[draw]``: the largest statistic of all cells under permuted category labels."""
    found = []
    for start in range(0, draws, 500):
        size = min(500, draws - start)
        permuted = rng.permuted(np.tile(labels, (size, 1)), axis=1)
        found.append(_statistics(position, permuted).max((1, 2)))
    return np.concatenate(found)


def _over(x: Array, error: Array) -> Array:
    """Their ratio; 0 where nothing varies."""
    return np.divide(x, error, out=np.zeros(np.broadcast_shapes(np.shape(x), np.shape(error))), where=error > 0)


def _exceeding(observed: Array, largest: Array) -> Array:
    ordered = np.sort(largest)
    # What is equal on paper may differ by rounding.
    count = len(ordered) - np.searchsorted(ordered, observed - 1e-12 * (1 + np.abs(observed)), side="left")
    return (1 + count) / (1 + len(ordered))


# -- rows --------------------------------------------------------------------------------------------------------------------


def _half(mine: Array, rest: Array) -> float:
    """Half of the 95 % interval of the difference of means (Welch)."""
    a, b = mine.var(ddof=1) / len(mine), rest.var(ddof=1) / len(rest)
    if not a + b > 0:
        return float("nan")
    freedom = (a + b) ** 2 / (a**2 / (len(mine) - 1) + b**2 / (len(rest) - 1))
    return float(sps.t.ppf(1 - _LEVEL / 2, freedom) * np.sqrt(a + b))


def _row(category: str, axis: Axis, difference: float, half: float, n: int, cells: Cells, at: tuple[int, int]) -> dict[str, Any]:
    clear, separation = axis.has_signature, axis.separation
    p, p_toward = float(cells.p[at]), float(cells.p_toward[at])
    if not clear:
        outcome = "no signature"
    elif np.isnan(p):
        outcome = "undecided"
    else:
        outcome = "similar" if max(p, p_toward) <= _LEVEL else "not shown"
    unit = axis.shift if clear else float("nan")
    return {
        "category": category,
        "shell": axis.shell,
        "outcome": outcome,
        "similarity": bound(difference / unit),
        "low": bound((difference - half) / unit),
        "high": bound((difference + half) / unit),
        "n": n,
        "control": bound(float(cells.reach[at]) / unit),
        "cosine": bound(float(cells.cosine[at])),
        "p": bound(p),
        "p_toward": bound(p_toward),
        "components": len(axis.components),
        "shell_auc": separation.value,
        "shell_low": bound(separation.low),
        "shell_high": bound(separation.high),
        "shell_n": separation.n,
        "unit": "the shell's own shift",
    }


_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("category", "shell", "outcome"), pl.String),
    **dict.fromkeys(("similarity", "low", "high"), pl.Float64),
    "n": pl.Int64,
    **dict.fromkeys(("control", "cosine", "p", "p_toward"), pl.Float64),
    "components": pl.Int64,
    **dict.fromkeys(("shell_auc", "shell_low", "shell_high"), pl.Float64),
    "shell_n": pl.Int64,
    "unit": pl.String,
}


def _map(rows: list[dict[str, Any]], axes: Sequence[Axis], draws: int) -> SimilarityMap:
    used = sorted({int(i) for axis in axes for i in axis.components})
    missing = {axis.shell: axis.missing for axis in axes if axis.missing}
    return SimilarityMap(pl.DataFrame(rows, schema=_SCHEMA), tuple(COMPONENTS[i].name for i in used), missing, draws)


def _check(n_permutations: int) -> None:
    if n_permutations < 19:
        raise ConfigError(f"{n_permutations} permutations cannot give a p value of 0.05.", todo="Take 19 or more.")
