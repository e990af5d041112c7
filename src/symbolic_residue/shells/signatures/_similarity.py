"""Which natural prompts are like a shell's planted failure: by category (``generalization_map``) and one by one (``failure_similarity``).

Similarity is a difference along the shell's axis (``_axes``) in units of the shell's own shift: 0 = like other natural prompts, 1 = as far from them as
planted items are from null ones. Two nulls stand against it, and both must be rejected:

1. *Category labels carry nothing.* The prompts' category labels are permuted. The statistic of a cell is the category's mean position minus the others',
   over the standard error from the spread of *all* prompts; labels take no part in that spread nor in the axes, so under the null every labelling is as
   good as the one observed, and the p value is exact. Each cell is compared with the largest statistic of all cells (single step), which holds the
   family-wise error over categories × shells. For one prompt the others are the background: its position among theirs, again by the largest over shells.
2. *The shell's axis is any axis.* Axes are drawn at random instead, once uniformly in the whitened space and once uniformly in the standardised
   components; the larger p counts. The statistic is the category's mean minus the others' along the axis, standardised over the draws cell by cell: the
   cosine between displacement and axis, in the end. A category that differs from the others in every direction (code, say) passes the first test and fails
   this one. Each cell is compared with the largest of all. This one rests on how axes are drawn: where categories differ strongly, its error is near the
   level, not exactly under it.

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
from symbolic_residue.shells.signatures._axes import Axes, make_axes, ShellSignature, unit
from symbolic_residue.shells.signatures._components import COMPONENTS, READABLE_GROUPS
from symbolic_residue.shells.signatures._signature import Signature, signature_matrix

__all__ = ["SimilarityMap", "failure_similarity", "generalization_map"]

Array = NDArray[np.float64]
_LEVEL = 0.05
_FEWEST_PROMPTS = 3


@dataclass(frozen=True)
class SimilarityMap:
    """Similarities to shells.

    Attributes:
        frame: the table ``similarities``: one row a category (or prompt) and shell.
        components: names of the components that were compared.
        n_permutations: draws behind each p value.
    """

    frame: pl.DataFrame
    components: tuple[str, ...]
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
    seed: int = 0,
    n_permutations: int = 2000,
    groups: tuple[str, ...] = READABLE_GROUPS,
) -> SimilarityMap:
    """Similarity of each category of natural prompts to each shell.

    Args:
        natural: category → signatures of its prompts, at least three each, in two categories or more. Prompts are the units: no two should share a pattern.
        shells: from ``read_shell`` or ``shell_signature``.
        seed: of the permutations.
        n_permutations: of the categories' labels, and as many random axes.
        groups: of components to compare.

    Raises:
        ConfigError: too few categories, prompts or shared components.
    """
    few = [c for c, prompts in natural.items() if len(prompts) < _FEWEST_PROMPTS]
    if len(natural) < 2 or few:
        raise ConfigError(
            f"Category {few[0]!r} has {len(natural[few[0]])} prompts." if few else f"{len(natural)} categories cannot be compared.",
            todo=f"Give two categories or more, of {_FEWEST_PROMPTS} prompts or more.",
        )
    _check(n_permutations)
    categories = list(natural)
    matrix = signature_matrix([s for prompts in natural.values() for s in prompts])
    labels = np.repeat(np.arange(len(categories)), [len(p) for p in natural.values()])
    axes = make_axes(shells, [matrix], groups)
    x = axes.scaled(matrix)
    rng = np.random.default_rng(seed)
    statistic = _category_statistic(x @ axes.axes.T, labels)
    largest = _label_null(x @ axes.axes.T, labels, rng, n_permutations)
    p = _exceeding(statistic, largest)
    apart = np.stack([x[labels == c].mean(0) - x[labels != c].mean(0) for c in range(len(categories))])
    p_axis = _axis_null(axes, lambda a: apart @ a.T, rng, n_permutations)
    position = x @ axes.axes.T
    reach = float(np.quantile(largest, 1 - _LEVEL))
    rows = []
    for c, category in enumerate(categories):
        for s in range(len(shells)):
            mine, rest = position[labels == c, s], position[labels != c, s]
            difference, half = _welch(mine, rest)
            error = position[:, s].std(ddof=1) * np.sqrt(1 / len(mine) + 1 / len(rest))
            rows.append(
                _row(
                    category,
                    shells,
                    axes,
                    s,
                    difference,
                    half,
                    len(mine),
                    float(reach * error),
                    float(p[c, s]),
                    float(p_axis[c, s]),
                )
            )
    return _map(rows, axes, n_permutations)


def failure_similarity(
    failure: Signature,
    shells: Sequence[ShellSignature],
    *,
    background: Sequence[Signature] = (),
    seed: int = 0,
    n_permutations: int = 2000,
    groups: tuple[str, ...] = READABLE_GROUPS,
) -> SimilarityMap:
    """Similarity of one natural failure to each shell.

    Args:
        failure: the signature of the prompt.
        shells: from ``read_shell`` or ``shell_signature``.
        background: signatures of other natural prompts; without them the position is taken from each shell's null items and no outcome is ``similar``. With
            fewer than 19 no
            p value reaches 0.05.
        seed: of the random axes.
        n_permutations: how many of them.
        groups: of components to compare.

    Raises:
        ConfigError: too few shared components, or options out of range.
    """
    _check(n_permutations)
    one, others = failure.values[None], signature_matrix(list(background))
    axes = make_axes(shells, [one, others] if len(others) else [one], groups)
    x = axes.scaled(one)[0]
    rng = np.random.default_rng(seed)
    if len(others):
        y = axes.scaled(others)
        together = np.concatenate([y @ axes.axes.T, (x @ axes.axes.T)[None]])
        spread = together.std(0, ddof=1)
        standard = np.divide(together - together.mean(0), spread, out=np.zeros_like(together), where=spread > 0)
        largest = standard[:-1].max(1)
        p = _exceeding(standard[-1], largest)
        centre = np.broadcast_to(y.mean(0), (len(shells), y.shape[1]))
        reach = float(np.quantile(largest, 1 - _LEVEL)) * spread
    else:
        p, reach = np.full(len(shells), np.nan), np.full(len(shells), np.nan)
        centre = np.stack([axes.scaled(s.null).mean(0) for s in shells])

    def along(directions: Array) -> Array:
        return ((x - centre) * directions).sum(1)[None]

    p_axis = _axis_null(axes, along, rng, n_permutations)[0]
    position = along(axes.axes)[0]
    rows = [
        _row(failure.name, shells, axes, s, float(position[s]), np.nan, 1, float(reach[s]), float(p[s]), float(p_axis[s]))
        for s in range(len(shells))
    ]
    return _map(rows, axes, n_permutations)


# -- the two nulls -----------------------------------------------------------------------------------------------------------


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
    error = spread * np.sqrt(1 / size + 1 / (n - size))
    return np.divide(difference, error, out=np.zeros_like(difference), where=error > 0)


def _label_null(position: Array, labels: NDArray[np.int64], rng: np.random.Generator, draws: int) -> Array:
    """``[draw]``: the largest statistic of all cells under permuted category labels."""
    found = []
    for start in range(0, draws, 500):
        size = min(500, draws - start)
        permuted = rng.permuted(np.tile(labels, (size, 1)), axis=1)
        found.append(_statistics(position, permuted).max((1, 2)))
    return np.concatenate(found)


def _axis_null(axes: Axes, along: Any, rng: np.random.Generator, draws: int) -> Array:
    """Adjusted p values ``[…, shell]`` against axes drawn at random; ``along`` gives displacements along axes ``[shell, dimension]``."""
    n_shells, n = axes.axes.shape
    observed = along(axes.axes)
    p = np.zeros(observed.shape)
    for turn in (np.eye(n), axes.scale[:, None] * axes.whitening):
        drawn = np.stack([along(a) for a in unit(rng.normal(size=(draws, n_shells, n)) @ turn)])
        everything = np.concatenate([drawn, observed[None]])
        spread = everything.std(0)
        standard = np.divide(everything - everything.mean(0), spread, out=np.zeros_like(everything), where=spread > 0)
        p = np.maximum(p, _exceeding(standard[-1], standard[:-1].reshape(draws, -1).max(1)))
    return p


def _exceeding(observed: Array, largest: Array) -> Array:
    ordered = np.sort(largest)
    # What is equal on paper may differ by rounding.
    count = len(ordered) - np.searchsorted(ordered, observed - 1e-12 * (1 + np.abs(observed)), side="left")
    return (1 + count) / (1 + len(ordered))


# -- rows --------------------------------------------------------------------------------------------------------------------


def _welch(mine: Array, rest: Array) -> tuple[float, float]:
    """Difference of means and half of its 95 % interval (Welch)."""
    a, b = mine.var(ddof=1) / len(mine), rest.var(ddof=1) / len(rest)
    difference = float(mine.mean() - rest.mean())
    if not a + b > 0:
        return difference, float("nan")
    freedom = (a + b) ** 2 / (a**2 / (len(mine) - 1) + b**2 / (len(rest) - 1))
    return difference, float(sps.t.ppf(1 - _LEVEL / 2, freedom) * np.sqrt(a + b))


def _row(
    category: str,
    shells: Sequence[ShellSignature],
    axes: Axes,
    s: int,
    difference: float,
    half: float,
    n: int,
    reach: float,
    p: float,
    p_axis: float,
) -> dict[str, Any]:
    clear, shift, separation = bool(axes.has_signature[s]), float(axes.shift[s]), axes.separation[s]
    if not clear:
        outcome = "no signature"
    elif np.isnan(p):
        outcome = "undecided" if p_axis <= _LEVEL else "not shown"
    else:
        outcome = "similar" if max(p, p_axis) <= _LEVEL else "not shown"
    unit = shift if clear else float("nan")
    return {
        "category": category,
        "shell": shells[s].shell,
        "outcome": outcome,
        "similarity": _known(difference / unit),
        "low": _known((difference - half) / unit),
        "high": _known((difference + half) / unit),
        "n": n,
        "control": _known(reach / unit),
        "p": _known(p),
        "p_axis": p_axis,
        "shell_auc": separation.value,
        "shell_low": _known(separation.low),
        "shell_high": _known(separation.high),
        "shell_n": separation.n,
        "unit": "the shell's own shift",
    }


_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("category", "shell", "outcome"), pl.String),
    **dict.fromkeys(("similarity", "low", "high"), pl.Float64),
    "n": pl.Int64,
    **dict.fromkeys(("control", "p", "p_axis", "shell_auc", "shell_low", "shell_high"), pl.Float64),
    "shell_n": pl.Int64,
    "unit": pl.String,
}


def _map(rows: list[dict[str, Any]], axes: Axes, draws: int) -> SimilarityMap:
    return SimilarityMap(pl.DataFrame(rows, schema=_SCHEMA), tuple(COMPONENTS[i].name for i in axes.components), draws)


def _known(x: float) -> float | None:
    return None if np.isnan(x) else float(x)


def _check(n_permutations: int) -> None:
    if n_permutations < 19:
        raise ConfigError(f"{n_permutations} permutations cannot give a p value of 0.05.", todo="Take 19 or more.")
