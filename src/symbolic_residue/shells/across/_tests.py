"""The rows of the tables ``overlap`` and ``blame``: every pair of shells, and all at once, level by level.

1. A pair is compared over the units that both score. For heads and features there are two tests: of the sets that each blames, and of the units that lead
   in both (``_overlap``, steps 2 and 4); where interventions confirmed some in both, a third of the confirmed ones.
2. All shells at once are compared over the units that all of them score.
3. The crossed control counts the shared units of one shell here and the other on another text, both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from symbolic_residue.shells._findings import listed
from symbolic_residue.shells.across._blame import Blame
from symbolic_residue.shells.across._overlap import (
    blamed,
    leading,
    Mask,
    Overlap,
    overlap_in_a_row,
    overlap_of_leaders,
    overlap_of_several,
    overlap_within_layers,
)
from symbolic_residue.stats import benjamini_hochberg

__all__ = ["ALL", "overlap_frame", "overlap_rows", "unit_rows"]

_STRATIFIED = ("head", "feature")
_LEVEL = 0.05
ALL = "all shells"
_TEXT, _INT, _FLOAT, _BOOL = pl.String(), pl.Int64(), pl.Float64(), pl.Boolean()
_OVERLAP: dict[str, pl.DataType] = {
    **dict.fromkeys(("level", "first", "second"), _TEXT),
    **dict.fromkeys(("units", "first_n", "second_n", "shared"), _INT),
    **dict.fromkeys(("expected", "low", "high", "p", "q", "crossed"), _FLOAT),
    "crossed_n": _INT,
    **dict.fromkeys(("null", "shared_units"), _TEXT),
}


def _paired(first: Blame, second: Blame) -> tuple[tuple[int, ...], dict[str, Blame]] | None:
    """Both shells' scores over the units that both score, in the first one's order; None where there are fewer than two."""
    places = {unit: i for i, unit in enumerate(second.units)}
    known = [
        (i, places[unit])
        for i, unit in enumerate(first.units)
        if unit in places and np.isfinite(first.score[i]) and np.isfinite(second.score[places[unit]])
    ]
    if len(known) < 2:
        return None
    here, there = (np.array(column) for column in zip(*known, strict=True))
    units = tuple(first.units[i] for i in here)
    cut = {
        side: Blame(b.level, units, b.score[at], None if b.confirmed is None else b.confirmed[at], b.basis)
        for side, b, at in (("first", first, here), ("second", second, there))
    }
    return tuple(layer for layer, _ in units), cut


def _overlap(level: str, first: Mask, second: Mask, layers: Sequence[int]) -> Overlap:
    return overlap_within_layers(first, second, layers) if level in _STRATIFIED else overlap_in_a_row(first, second)


def overlap_frame(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Rows of :func:`overlap_rows` as the table ``overlap``: q over the tests that could show anything."""
    able = [i for i, row in enumerate(rows) if row["least"] <= _LEVEL]
    out = [{name: row[name] for name in _OVERLAP} for row in rows]
    for i, q in zip(able, benjamini_hochberg([rows[i]["p"] for i in able]) if able else (), strict=True):
        out[i]["q"] = float(q)
    return pl.DataFrame(out, schema=_OVERLAP)


def overlap_rows(
    level: str, mine: dict[str, Blame], away: list[dict[str, Blame]], share: float, seed: int, n_draws: int
) -> list[dict[str, Any]]:
    """The tests of one level: ``mine`` are the shells' scores here, ``away`` those on other texts."""
    rows = []
    stratified = level in _STRATIFIED
    null = "within layers, exact" if stratified else "shifts around the ring, exact"
    for a, b in combinations(mine, 2):
        pair = _paired(mine[a], mine[b])
        if pair is None:
            continue
        layers, cut = pair
        sets = [blamed(cut[side].score, share) for side in ("first", "second")]
        names = [_unit_name(level, *unit) for unit, both in zip(cut["first"].units, sets[0] & sets[1], strict=True) if both]
        crossed = [] if level == "token" else [n for run in away for n in _crossed(mine, run, a, b, share)]
        found = _overlap(level, sets[0], sets[1], layers)
        rows.append(_row(level, a, b, sets, len(layers), found, null, names, crossed))
        if stratified:
            first, second = leading(cut["first"].score, cut["second"].score, layers)
            names = [_unit_name(level, *unit) for unit, both in zip(cut["first"].units, first & second, strict=True) if both]
            found = overlap_of_leaders(first, second, layers)
            rows.append(
                _row(f"leading {level}", a, b, [first, second], len(layers), found, "within thirds of the depth, exact", names, [])
            )
        sure = [cut[side].confirmed for side in ("first", "second")]
        if sure[0] is not None and sure[1] is not None and sure[0].any() and sure[1].any():
            shared = sure[0] & sure[1]
            names = [_unit_name(level, *unit) for unit, both in zip(cut["first"].units, shared, strict=True) if both]
            found = _overlap(level, sure[0], sure[1], layers)
            rows.append(_row(f"confirmed {level}", a, b, [sure[0], sure[1]], len(layers), found, null, names, []))
    # A shell that scores a few units only would leave next to nothing that all of them score.
    most = max((len(m.units) for m in mine.values()), default=0)
    wide = {name: m for name, m in mine.items() if 2 * len(m.units) >= most}
    if len(wide) > 2:
        known = [set(m.units) for m in wide.values()]
        common = [u for u in next(iter(wide.values())).units if all(u in units for units in known)]
        if len(common) > 1:
            sets = [blamed(np.nan_to_num(m.score[[m.units.index(u) for u in common]]), share) for m in wide.values()]
            layers = [layer for layer, _ in common]
            found = overlap_of_several(sets, layers if level in _STRATIFIED else None, seed=seed, n_draws=n_draws)
            names = [_unit_name(level, *u) for u, n in zip(common, np.sum(sets, 0), strict=True) if n >= 2]
            null = f"{'within layers' if level in _STRATIFIED else 'shifts around the ring'}, {n_draws} draws"
            union = np.any(sets, 0)
            pairs = "all pairs" if len(wide) == len(mine) else f"all pairs of {listed(list(wide))}"
            rows.append(_row(level, ALL, pairs, [union, union], len(common), found, null, names, []))
    return rows


def _crossed(mine: dict[str, Blame], run: dict[str, Blame], a: str, b: str, share: float) -> list[int]:
    """Shared units of one shell here and the other there, both ways."""
    out = []
    for here, there in ((a, b), (b, a)):
        pair = _paired(mine[here], run[there]) if there in run else None
        if pair is not None:
            sets = [blamed(pair[1][side].score, share) for side in ("first", "second")]
            out.append(int((sets[0] & sets[1]).sum()))
    return out


def _row(
    level: str,
    first: str,
    second: str,
    sets: Sequence[Mask],
    n: int,
    found: Overlap,
    null: str,
    names: Sequence[str],
    crossed: Sequence[int],
) -> dict[str, Any]:
    return {
        "level": level,
        "first": first,
        "second": second,
        "units": n,
        "first_n": int(sets[0].sum()),
        "second_n": int(sets[1].sum()),
        "shared": found.shared,
        "expected": found.expected,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "q": None,
        "crossed": float(np.mean(crossed)) if crossed else None,
        "crossed_n": len(crossed),
        "null": null if found.least <= _LEVEL else f"{null}; no overlap of such sets could reach {_LEVEL:g}",
        "least": found.least,
        "shared_units": ", ".join(names),
    }


def _unit_name(level: str, layer: int, unit: str) -> str:
    if level == "layer":
        return str(layer)
    return unit if layer < 0 else f"{layer}.{unit}"


def unit_rows(level: str, mine: dict[str, Blame], share: float) -> list[dict[str, Any]]:
    """The units of one level that at least one shell blames, a row for each shell that scores them."""
    by: dict[tuple[int, str], int] = {}
    sets = {name: blamed(b.score, share) for name, b in mine.items()}
    for name, b in mine.items():
        for unit, is_blamed in zip(b.units, sets[name], strict=True):
            by[unit] = by.get(unit, 0) + int(is_blamed)
    rows = []
    for name, b in mine.items():
        rank = np.argsort(np.argsort(-np.nan_to_num(b.score), kind="stable"), kind="stable") + 1
        rows += [
            {
                "level": level,
                "layer": unit[0],
                "unit": unit[1],
                "shell": name,
                "score": float(b.score[i]) if np.isfinite(b.score[i]) else None,
                "rank": int(rank[i]),
                "of": len(b.units),
                "blamed": bool(sets[name][i]),
                "confirmed": None if b.confirmed is None else bool(b.confirmed[i]),
                "by": by[unit],
                "basis": b.basis,
            }
            for i, unit in enumerate(b.units)
            if by[unit]
        ]
    return sorted(rows, key=lambda r: (-r["by"], r["layer"], r["unit"]))
