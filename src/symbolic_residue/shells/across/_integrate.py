"""Several shells on one text, and what they blame together.

1. ``run_all`` runs every shell on the text. A shell whose ``run`` needs more (a fact, two instructions) is asked what it finds in the text (its method
   ``asks(text)``, or the arguments given for it); one that cannot be run is kept with the reason.
2. ``integrated_attribution`` reads what each shell blames (``_blame``) and tests the overlap of every pair, and of all, against chance (``_overlap``).
3. The crossed control: one shell on this text against the other on other texts. Units that are shared there as well are blamed whatever the text.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from symbolic_residue.errors import ConfigError, InputError, PromptError
from symbolic_residue.shells._base import Progress, quiet, ShellBase
from symbolic_residue.shells._findings import listed
from symbolic_residue.shells.across._blame import Blame, blames_of, LEVELS
from symbolic_residue.shells.across._overlap import (
    blamed,
    Mask,
    Overlap,
    overlap_in_a_row,
    overlap_of_several,
    overlap_within_layers,
)
from symbolic_residue.stats import benjamini_hochberg

__all__ = ["SHARES", "IntegratedAttribution", "IntegratedRun", "ShellIntegrator"]

SHARES: dict[str, float] = {"head": 0.05, "layer": 0.2, "token": 0.1, "feature": 0.05}
"""The share of its units that a shell blames, by level."""

_STRATIFIED = ("head", "feature")
ALL = "all shells"


@dataclass(frozen=True)
class IntegratedRun:
    """Several shells on one text.

    Attributes:
        input_text: the text.
        findings: of the shells that ran, by name.
        refused: why the others did not, by name.
    """

    input_text: str
    findings: dict[str, Any] = field(repr=False)
    refused: dict[str, str]

    def tables(self) -> dict[str, pl.DataFrame]:
        """The verdicts of all shells that ran, in one table."""
        found = [f.tables().get("verdicts") for f in self.findings.values()]
        frames = [frame for frame in found if frame is not None and len(frame)]
        return {"verdicts": pl.concat(frames)} if frames else {}


@dataclass(frozen=True)
class IntegratedAttribution:
    """What several shells blame together.

    Attributes:
        overlap: one row a test (table ``overlap``).
        blame: units blamed by at least one shell, one row for each shell that scores them (table ``blame``).
        silent: shells that ran and blame nothing, by name, with the reason; ``refused`` those that did not run.
        summary: in one sentence.
    """

    overlap: pl.DataFrame = field(repr=False)
    blame: pl.DataFrame = field(repr=False)
    silent: dict[str, str]
    refused: dict[str, str]
    summary: str

    def tables(self) -> dict[str, pl.DataFrame]:
        """``overlap`` and ``blame``."""
        return {"overlap": self.overlap, "blame": self.blame}


class ShellIntegrator:
    """Run several shells on one text and compare what they blame.

    Args:
        shells: name → shell, all on the same model.

    Raises:
        ConfigError: fewer than two shells, or shells on different models.
    """

    def __init__(self, shells: Mapping[str, ShellBase[Any, Any]]) -> None:
        if len(shells) < 2:
            raise ConfigError("Integration needs at least two shells.", todo="Give {name: shell, name: shell}.")
        hashes = {shell.loaded.provenance.weights_sha256 for shell in shells.values()}
        if len(hashes) > 1:
            raise ConfigError("The shells are on different models.", why="Their heads and layers are not the same units.")
        self.shells = dict(shells)

    def run_all(
        self,
        input_text: str,
        *,
        asked: Mapping[str, Mapping[str, Any]] | None = None,
        seed: int = 0,
        progress: Progress = quiet,
    ) -> IntegratedRun:
        """Every shell on the text: run and analysed.

        Args:
            input_text: the prompt.
            asked: by shell, further arguments of its ``run`` (a fact, candidates …).
            seed: of everything random.
            progress: told which shell is at work, and the share done.

        Raises:
            ConfigError: arguments for a shell that is not here.
            PromptError: no shell could be run; all reasons are in the message.
        """
        asked = asked or {}
        if unknown := [name for name in asked if name not in self.shells]:
            raise ConfigError(f"There is no shell {unknown[0]!r} here.", todo=f"Shells: {', '.join(self.shells)}.")
        findings: dict[str, Any] = {}
        refused: dict[str, str] = {}
        for i, (name, shell) in enumerate(self.shells.items()):

            def told(what: str, share: float, name: str = name, i: int = i) -> None:
                progress(f"{name}: {what}", (i + share) / len(self.shells))

            try:
                more = _needed(shell, input_text, asked.get(name, {}))
                residue = shell.run(input_text, seed=seed, progress=lambda w, s, told=told: told(w, 0.5 * s), **more)
                findings[name] = shell.analyze_residue(residue, progress=lambda w, s, told=told: told(w, 0.5 + 0.5 * s))
            except InputError as error:
                refused[name] = str(error)
        if not findings:
            raise PromptError("No shell can be run on this text.", why=" ".join(f"{n}: {why}" for n, why in refused.items()))
        return IntegratedRun(input_text, findings, refused)

    def integrated_attribution(
        self,
        results: IntegratedRun,
        *,
        elsewhere: Sequence[IntegratedRun] = (),
        shares: Mapping[str, float] | None = None,
        seed: int = 0,
        n_draws: int = 9999,
    ) -> IntegratedAttribution:
        """Which units several shells blame, against chance; see ``_overlap`` for the null.

        Args:
            results: from :meth:`run_all`.
            elsewhere: the same shells on other texts, for the crossed control.
            shares: the share of units that a shell blames, by level; :data:`SHARES` where left out.
            seed: of the draws of the test over all shells; ``n_draws`` how many.

        Raises:
            ConfigError: an unknown level, a share out of range, or fewer than two shells that ran.
        """
        if unknown := [level for level in shares or {} if level not in LEVELS]:
            raise ConfigError(f"There is no level {unknown[0]!r}.", todo=f"Levels: {', '.join(LEVELS)}.")
        if len(results.findings) < 2:
            reasons = " ".join(f"{n}: {why}" for n, why in results.refused.items())
            raise ConfigError(f"{len(results.findings)} shell ran, and an overlap needs two.", why=reasons)
        share = SHARES | dict(shares or {})
        said = {name: blames_of(findings) for name, findings in results.findings.items()}
        silent = {name: "It blames no unit of any level." for name, found in said.items() if not found}
        others = [{name: blames_of(findings) for name, findings in run.findings.items()} for run in elsewhere]
        rows: list[dict[str, Any]] = []
        units: list[dict[str, Any]] = []
        for level in LEVELS:
            mine = {name: found[level] for name, found in said.items() if level in found}
            away = [{name: found[level] for name, found in run.items() if level in found} for run in others]
            rows += _tests(level, mine, away, share[level], seed, n_draws)
            units += _units(level, mine, share[level])
        overlap = pl.DataFrame(rows, schema=_OVERLAP)
        if len(rows):
            overlap = overlap.with_columns(q=pl.Series(benjamini_hochberg(overlap["p"].to_numpy())))
        return IntegratedAttribution(
            overlap, pl.DataFrame(units, schema=_BLAME), silent, dict(results.refused), _summary(overlap, silent, results)
        )

    def visualize_integrated(self, attribution: IntegratedAttribution) -> Any:
        """Heads by layer, coloured by the number of shells that blame them, as an Altair chart (needs the ``figures`` extra).

        Raises:
            ConfigError: no shell blames a head.
        """
        from symbolic_residue.figures import blame_map

        return blame_map(attribution.blame)


def _needed(shell: ShellBase[Any, Any], text: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the shell's ``run`` besides the text: those given, else those that the shell finds in the text.

    Raises:
        ConfigError: some are missing.
    """
    own: Any = getattr(shell, "asks", None)
    found: dict[str, Any] = dict(given)
    if own is not None and not given:
        found = dict(own(text))
    parameters = inspect.signature(shell.run).parameters.values()
    common = ("input_text", "seed", "progress")
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    lacking = [p.name for p in parameters if p.kind in plain and p.default is p.empty and p.name not in (*found, *common)]
    if lacking:
        raise ConfigError(
            f"{shell.name} needs more than a text: {listed(lacking)}.",
            todo=f"Give run_all(asked={{{shell.name!r}: {{{lacking[0]!r}: …}}}}).",
        )
    return found


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


def _tests(
    level: str, mine: dict[str, Blame], away: list[dict[str, Blame]], share: float, seed: int, n_draws: int
) -> list[dict[str, Any]]:
    rows = []
    null = "within layers, exact" if level in _STRATIFIED else "shifts around the ring, exact"
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
        sure = [cut[side].confirmed for side in ("first", "second")]
        if sure[0] is not None and sure[1] is not None and sure[0].any() and sure[1].any():
            shared = sure[0] & sure[1]
            names = [_unit_name(level, *unit) for unit, both in zip(cut["first"].units, shared, strict=True) if both]
            found = _overlap(level, sure[0], sure[1], layers)
            rows.append(_row(f"confirmed {level}", a, b, [sure[0], sure[1]], len(layers), found, null, names, []))
    if len(mine) > 2:
        common = [u for u in next(iter(mine.values())).units if all(u in m.units for m in mine.values())]
        if len(common) > 1:
            sets = [blamed(np.nan_to_num(m.score[[m.units.index(u) for u in common]]), share) for m in mine.values()]
            layers = [layer for layer, _ in common]
            found = overlap_of_several(sets, layers if level in _STRATIFIED else None, seed=seed, n_draws=n_draws)
            names = [_unit_name(level, *u) for u, n in zip(common, np.sum(sets, 0), strict=True) if n >= 2]
            null = f"{'within layers' if level in _STRATIFIED else 'shifts around the ring'}, {n_draws} draws"
            union = np.any(sets, 0)
            rows.append(_row(level, ALL, "all pairs", [union, union], len(common), found, null, names, []))
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
        "q": found.p,
        "crossed": float(np.mean(crossed)) if crossed else None,
        "crossed_n": len(crossed),
        "null": null,
        "shared_units": ", ".join(names),
    }


def _unit_name(level: str, layer: int, unit: str) -> str:
    if level == "layer":
        return str(layer)
    return unit if layer < 0 else f"{layer}.{unit}"


def _units(level: str, mine: dict[str, Blame], share: float) -> list[dict[str, Any]]:
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


def _summary(overlap: pl.DataFrame, silent: Mapping[str, str], results: IntegratedRun) -> str:
    sure = overlap.filter(pl.col("q") <= 0.05)
    said = [
        f"all pairs of shells together share {r['shared']} {r['level']}s"
        if r["first"] == ALL
        else f"{r['first']} and {r['second']} share {r['shared']} of {r['first_n']} {r['level']}s"
        for r in sure.to_dicts()
    ]
    if overlap.is_empty():
        text = "Nothing was compared: no two shells score the same units"
    else:
        text = f"{'; '.join(said)} (more than chance)" if said else "No overlap beyond chance"
    left = [*(f"{name} blames nothing" for name in silent), *(f"{name} was not run" for name in results.refused)]
    return f"{text}{'; ' + '; '.join(left) if left else ''}."


_TEXT, _INT, _FLOAT, _BOOL = pl.String(), pl.Int64(), pl.Float64(), pl.Boolean()
_OVERLAP: dict[str, pl.DataType] = {
    **dict.fromkeys(("level", "first", "second"), _TEXT),
    **dict.fromkeys(("units", "first_n", "second_n", "shared"), _INT),
    **dict.fromkeys(("expected", "low", "high", "p", "q", "crossed"), _FLOAT),
    "crossed_n": _INT,
    **dict.fromkeys(("null", "shared_units"), _TEXT),
}
_BLAME: dict[str, pl.DataType] = {
    "level": _TEXT,
    "layer": _INT,
    **dict.fromkeys(("unit", "shell"), _TEXT),
    "score": _FLOAT,
    **dict.fromkeys(("rank", "of"), _INT),
    **dict.fromkeys(("blamed", "confirmed"), _BOOL),
    "by": _INT,
    "basis": _TEXT,
}
