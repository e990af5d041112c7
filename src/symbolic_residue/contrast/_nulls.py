"""Null models: is the difference that training made larger than what any tuning makes?

1. A *null model* is the base with an adapter that has not learned the behaviour (random weights of equal norm, another behaviour, shuffled labels), read
   on the same ids. Any tuning moves attention, off the sink above all, so that "tuned differs from base" alone says little of what was learned.
2. With d = tuned − base and e = null − base of one example, training stands out where d is larger than e *in size*: d − e and d + e both lie on d's
   side of zero. (A null that moves as far the other way is no weaker a null: which way an adapter without meaning pushes is chance.)
3. Both are paired by example: interval and p by flipping whole clusters, step-down max-T over the layers (and heads) of the place.
   All nulls and both signs have to pass, so that the largest p stands and no further correction is due (an intersection–union test).
4. What this does not cover: examples are the unit, so that it speaks of *these* nulls. Of m nulls drawn like the tuned model, were it one of them,
   it would be the largest at a given layer with chance 1/(m + 1): several nulls of one kind say more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TYPE_CHECKING

import numpy as np
import polars as pl

from symbolic_residue.contrast._frames import COLUMN, PLACE
from symbolic_residue.contrast._options import interval, Options
from symbolic_residue.contrast._stack import Stack
from symbolic_residue.errors import RecordError
from symbolic_residue.stats import bound, max_t

if TYPE_CHECKING:
    from symbolic_residue.contrast._training import DiffOfDiffs

__all__ = ["beyond_nulls"]

_SCHEMA: dict[str, Any] = {
    **PLACE, **COLUMN, "nulls": pl.String,
    **{f"{way}_{name}": pl.Float64 for way in ("up", "down") for name in ("margin", "margin_low", "margin_high", "null_p")},
}  # fmt: skip


def beyond_nulls(difference: DiffOfDiffs, nulls: Sequence[DiffOfDiffs], options: Options) -> pl.DataFrame:
    """The smallest margin of tuned − base over the nulls, for each place and layer (and head).

    Args:
        difference: tuned − base.
        nulls: null model − the same base.
        options: level, seed, resamples.

    Returns:
        ``nulls`` the names compared with, and for a rise (``up_``) and a fall (``down_``) the weakest margin with its interval, and the largest
        p. Places that no null has are left out.

    Raises:
        RecordError: a null of another base, of the tuned model itself, of other layers or another stratum, or on other examples.
    """
    for null in nulls:
        _check(difference, null)
    rows: list[dict[str, Any]] = []
    for place, d in difference.paired.items():
        tests: list[tuple[Any, ...]] = []
        names: list[str] = []
        for null in nulls:
            twins = [e for at, e in null.paired.items() if all(getattr(at, name) == getattr(place, name) for name in PLACE)]
            if not twins:
                continue
            mine, theirs, clusters = d.shared(twins[0])
            if len(clusters) < 2:
                raise RecordError(
                    f"{place.condition}, {place.region}: {len(clusters)} examples are in the differences of {difference.tuned!r} and of {null.tuned!r}.",
                    why="A null model is compared example by example.",
                    todo="Run the null model over the ids of the tuned model's generations (force-feed).",
                )
            names.append(null.tuned)
            for other in (theirs, -theirs):
                part = Stack(mine - other, tuple(map(str, range(len(clusters)))), clusters)
                value, low, high = interval(part, options)
                p = (
                    max_t(part.values, seed=options.seed, n_resamples=options.n_resamples, clusters=clusters)
                    if part.n_clusters > 1
                    else np.full(len(value), np.nan)
                )
                tests.append((value, low, high, p))
        if names:
            rows += _rows(place, difference.columns, names, np.array(tests))
    return pl.DataFrame(rows, schema=_SCHEMA)


def _rows(
    place: Any, columns: Sequence[tuple[int, int | None]], names: list[str], tests: np.ndarray[Any, Any]
) -> list[dict[str, Any]]:
    """``tests [test, (value, low, high, p), column]`` → for either side the weakest margin and the largest p."""
    at = np.arange(tests.shape[2])
    found: dict[str, tuple[Any, ...]] = {}
    for way, near in (("up", tests[:, 1]), ("down", -tests[:, 2])):
        weakest = np.argmin(np.where(np.isnan(near), np.inf, near), axis=0)
        found[way] = (*(tests[weakest, k, at] for k in range(3)), tests[:, 3].max(axis=0))
    return [
        {
            **{name: getattr(place, name) for name in PLACE}, "layer": layer, "head": head, "nulls": ", ".join(names),
            **{
                f"{way}_{name}": bound(values[i])
                for way, of in found.items()
                for name, values in zip(("margin", "margin_low", "margin_high", "null_p"), of, strict=True)
            },
        }
        for i, (layer, head) in enumerate(columns)
    ]  # fmt: skip


def _check(difference: DiffOfDiffs, null: DiffOfDiffs) -> None:
    if null.reference != difference.reference:
        raise RecordError(
            f"{null.tuned!r} is compared with {null.reference!r}, {difference.tuned!r} with {difference.reference!r}.",
            why="A null model says how far tuning alone moves the same base.",
            todo="Give diff_of_diffs(null, base) with the base of the difference.",
        )
    if null.tuned == difference.tuned:
        raise RecordError(
            f"{null.tuned!r} is given as its own null model.", todo="Give another adapter's differences, under its own name."
        )
    if null.columns != difference.columns or null.stratum != difference.stratum:
        raise RecordError(
            f"The differences of {null.tuned!r} have {len(null.columns)} layers and heads against {null.stratum}, those of {difference.tuned!r} "
            f"{len(difference.columns)} against {difference.stratum}.",
            todo="Make both with the same stratum=, heads= and models of one shape.",
        )
