"""What one shell blames, read from its tables: heads, layers, tokens, features, each with a score.

1. *Heads*: the table ``heads`` (size of the direct logit attribution of its first target, and which ones interventions confirmed); where ``head_scores``
   has more heads, its
   first score instead (distance between value and control), with what was confirmed.
2. *Layers*: ``components`` (size of what the layer's parts add together to the first target); else ``maps`` (its first map: mean size over positions).
3. *Tokens*: ``tokens`` (size of the influence). *Features*: ``features`` (``feature, layer, score``), which a shell of one's own may give.
4. Findings that have a method ``blame()`` say it themselves: level → frame with ``layer, unit, score`` and, where it is known, ``confirmed``.

Position 0 is the attention sink and is never blamed: it enters neither a mean nor a set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from symbolic_residue.errors import ConfigError
from symbolic_residue.shells.across._overlap import blamed

__all__ = ["BLAME", "LEVELS", "SHARES", "Blame", "KeptBlame", "blame_table", "blames_of"]

LEVELS = ("head", "layer", "token", "feature")
"""Kinds of units, in the order in which they are reported."""

SHARES: dict[str, float] = {"head": 0.05, "layer": 0.2, "token": 0.1, "feature": 0.05}
"""The share of its units that a shell blames, by level."""

Unit = tuple[int, str]

BLAME: dict[str, pl.DataType] = {
    "level": pl.String(),
    "layer": pl.Int64(),
    **dict.fromkeys(("unit", "shell"), pl.String()),
    "score": pl.Float64(),
    **dict.fromkeys(("rank", "of"), pl.Int64()),
    **dict.fromkeys(("blamed", "confirmed"), pl.Boolean()),
    "by": pl.Int64(),
    "basis": pl.String(),
}
"""Columns of the table ``blame``."""


@dataclass(frozen=True)
class Blame:
    """One shell's scores of the units of one level.

    Attributes:
        level: one of :data:`LEVELS`.
        units: (layer, name) of each unit; the layer is −1 where the unit has none.
        score: ``[unit]``, ≥ 0: how much the shell blames it; NaN where it does not say.
        confirmed: ``[unit]``: interventions confirmed it; None where nothing was confirmed or could have been.
        basis: what the score is, in words.
    """

    level: str
    units: tuple[Unit, ...]
    score: NDArray[np.float64]
    confirmed: NDArray[np.bool_] | None
    basis: str


def blames_of(findings: Any) -> dict[str, Blame]:
    """What a shell's findings blame, by level; levels about which they say nothing are left out.

    Raises:
        ConfigError: the findings' own ``blame()`` gives an unknown level or lacks a column.
    """
    own = getattr(findings, "blame", None)
    if callable(own):
        said: Mapping[str, pl.DataFrame] = own()  # type: ignore[assignment]
        return {level: _given(level, frame) for level, frame in said.items()}
    tables: dict[str, pl.DataFrame] = findings.tables()
    found = (_heads(tables), _layers(tables), _tokens(tables), _features(tables))
    return {blame.level: blame for blame in found if blame is not None and bool(np.isfinite(blame.score).any())}


def _given(level: str, frame: pl.DataFrame) -> Blame:
    lacking = [name for name in ("layer", "unit", "score") if name not in frame.columns]
    if level not in LEVELS or lacking:
        raise ConfigError(
            f"The blame of {level!r} cannot be read.",
            why=f"It lacks {', '.join(lacking)}." if lacking else "There is no such level.",
            todo=f"Give frames with layer, unit and score for some of: {', '.join(LEVELS)}.",
        )
    basis = str(frame["basis"][0]) if "basis" in frame.columns and len(frame) else "the shell's own"
    return _blame(level, frame, basis)


def _blame(level: str, frame: pl.DataFrame, basis: str) -> Blame:
    units = tuple((int(layer), str(unit)) for layer, unit in frame.select("layer", "unit").rows())
    if len(set(units)) < len(units):
        raise ConfigError(f"A {level} is blamed twice.", todo="Give each unit one score.")
    confirmed = frame["confirmed"] if "confirmed" in frame.columns else None
    known = confirmed is not None and confirmed.null_count() < len(confirmed)
    return Blame(
        level,
        units,
        frame["score"].cast(pl.Float64).fill_null(float("nan")).abs().to_numpy(),
        confirmed.fill_null(False).to_numpy() if known and confirmed is not None else None,
        basis,
    )


def _first(frame: pl.DataFrame, column: str) -> tuple[str, pl.DataFrame]:
    name = str(frame[column][0])
    return name, frame.filter(pl.col(column) == name)


def _heads(tables: dict[str, pl.DataFrame]) -> Blame | None:
    heads, scores = tables.get("heads"), tables.get("head_scores")
    tested = None
    if heads is not None and len(heads):
        target, mine = _first(heads, "target")
        tested = mine.select("layer", pl.col("head").cast(pl.String).alias("unit"), pl.col("dla").alias("score"), "confirmed")
    if scores is not None and len(scores):
        name, mine = _first(scores, "score")
        distance = pl.col("value") - pl.col("control").fill_null(0.0).fill_nan(0.0)
        frame = mine.select("layer", pl.col("head").cast(pl.String).alias("unit"), distance.alias("score"))
        # A shell whose table ``heads`` lists the heads tested only scores all of them here.
        if tested is None or len(frame) > len(tested):
            if tested is not None:
                frame = frame.join(
                    tested.select("layer", "unit", "confirmed"), on=["layer", "unit"], how="left", maintain_order="left"
                )
            return _blame("head", frame, f"{name}, distance from control")
    return None if tested is None else _blame("head", tested, f"direct logit attribution of {target}")


def _layers(tables: dict[str, pl.DataFrame]) -> Blame | None:
    components = tables.get("components")
    if components is not None and len(components):
        target, mine = _first(components, "target")
        frame = mine.filter(pl.col("layer") >= 0).group_by("layer", maintain_order=True).agg(score=pl.col("contribution").sum())
        basis = f"direct logit attribution of {target}"
    else:
        maps = tables.get("maps")
        if maps is None or maps.is_empty():
            return None
        basis, mine = _first(maps, "map")
        frame = mine.filter(pl.col("position") > 0).group_by("layer", maintain_order=True).agg(score=pl.col("value").abs().mean())
    return _blame("layer", frame.sort("layer").with_columns(unit=pl.lit("")), basis) if len(frame) else None


def _tokens(tables: dict[str, pl.DataFrame]) -> Blame | None:
    tokens = tables.get("tokens")
    if tokens is None or "influence" not in tokens.columns:
        return None
    mine = tokens.filter(pl.col("position") > 0).sort("position")
    name = pl.format("{} {}", pl.col("position"), pl.col("token"))
    frame = mine.select(pl.lit(-1, pl.Int64).alias("layer"), name.alias("unit"), pl.col("influence").alias("score"))
    # A shell that did not ask leaves zeros or nulls.
    said = frame.filter(pl.col("score").is_not_null() & (pl.col("score") != 0))
    return _blame("token", frame, "influence on the answer") if len(said) else None


def _features(tables: dict[str, pl.DataFrame]) -> Blame | None:
    features = tables.get("features")
    if features is None or features.is_empty():
        return None
    kept = [name for name in ("confirmed",) if name in features.columns]
    frame = features.select("layer", pl.col("feature").cast(pl.String).alias("unit"), "score", *kept)
    return _blame("feature", frame, "the shell's features")


def blame_table(shell: str, findings: Any, shares: Mapping[str, float] | None = None) -> pl.DataFrame:
    """Everything that one shell blames as the table ``blame``, level by level, the most blamed first; :class:`KeptBlame` reads it again.

    Args:
        shell: its name.
        findings: the shell's.
        shares: the share of its units that a shell blames, by level; :data:`SHARES` where left out.
    """
    share = SHARES | dict(shares or {})
    rows: list[dict[str, Any]] = []
    for level, found in blames_of(findings).items():
        mine = blamed(found.score, share[level])
        order = np.argsort(-np.nan_to_num(found.score), kind="stable")
        rows += [
            {
                "level": level,
                "layer": found.units[i][0],
                "unit": found.units[i][1],
                "shell": shell,
                "score": float(found.score[i]) if np.isfinite(found.score[i]) else None,
                "rank": rank,
                "of": len(found.units),
                "blamed": bool(mine[i]),
                "confirmed": None if found.confirmed is None else bool(found.confirmed[i]),
                "by": int(mine[i]),
                "basis": found.basis,
            }
            for rank, i in enumerate(map(int, order), start=1)
        ]
    return pl.DataFrame(rows, schema=BLAME)


class KeptBlame:
    """A shell's findings as far as they are kept in its table ``blame``: enough to integrate them."""

    def __init__(self, table: pl.DataFrame) -> None:
        self._table = table

    def blame(self) -> dict[str, pl.DataFrame]:
        """Level → units with their scores, in the order of layer and unit (in which rows of layers and tokens are shifted)."""
        known = dict(self._table.group_by("level", maintain_order=True))
        return {str(level): _in_a_row(frame) for (level,), frame in known.items()}

    def tables(self) -> dict[str, pl.DataFrame]:
        """The table itself."""
        return {"blame": self._table}


def _in_a_row(frame: pl.DataFrame) -> pl.DataFrame:
    """Units by layer, then by the number that their name begins with (a token's position, a head), else by name."""
    number = pl.col("unit").str.extract(r"^(\d+)").cast(pl.Int64)
    return frame.sort("layer", number, "unit", nulls_last=True, maintain_order=True)
