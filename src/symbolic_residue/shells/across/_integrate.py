"""Several shells on one text, and what they blame together.

1. ``run_all`` runs every shell on the text. Each is first asked which question of its own the text holds (its method ``asks(text)``: the fact and what asks
   for it, two instructions …), unless that is given; one of which nothing can be asked there is left out, with the reason.
2. ``integrated_attribution`` reads what each shell blames (``_blame``) and tests the overlap of every pair, and of all, against chance (``_overlap``,
   ``_tests``).
3. The crossed control: one shell on this text against the other on other texts. Units that are shared there as well are blamed whatever the text.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from symbolic_residue.errors import ConfigError, InputError, PromptError
from symbolic_residue.shells._base import Progress, quiet, ShellBase
from symbolic_residue.shells._findings import listed
from symbolic_residue.shells.across._blame import BLAME, blames_of, LEVELS, SHARES
from symbolic_residue.shells.across._tests import ALL, overlap_frame, overlap_rows, unit_rows

__all__ = ["IntegratedAttribution", "IntegratedRun", "ShellIntegrator"]


@dataclass(frozen=True)
class IntegratedRun:
    """Several shells on one text.

    Attributes:
        input_text: the text.
        findings: of the shells that ran, by name.
        refused: why the others were left out, by name.
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
        for i, name in enumerate(self.shells):

            def told(what: str, share: float, name: str = name, i: int = i) -> None:
                progress(f"{name}: {what}", (i + share) / len(self.shells))

            try:
                findings[name] = self.run_one(name, input_text, asked=asked.get(name), seed=seed, progress=told)
            except InputError as error:
                refused[name] = str(error)
        if not findings:
            raise PromptError("No shell can be run on this text.", why=" ".join(f"{n}: {why}" for n, why in refused.items()))
        return IntegratedRun(input_text, findings, refused)

    def run_one(
        self,
        name: str,
        input_text: str,
        *,
        asked: Mapping[str, Any] | None = None,
        seed: int = 0,
        progress: Progress = quiet,
    ) -> Any:
        """One of the shells on the text, run and analysed: its findings.

        Args:
            name: which shell.
            input_text: the prompt.
            asked: further arguments of its ``run``; left out, what it finds in the text.
            seed, progress: as for :meth:`run_all`.

        Raises:
            InputError: nothing can be asked of this text, or it cannot be used. ConfigError: no such shell.
        """
        arguments = self.arguments(name, input_text, asked=asked)
        shell = self.shells[name]
        residue = shell.run(**arguments, seed=seed, progress=lambda what, share: progress(what, 0.5 * share))
        return shell.analyze_residue(residue, progress=lambda what, share: progress(what, 0.5 + 0.5 * share))

    def arguments(self, name: str, input_text: str, *, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The arguments of one shell's ``run`` on the text: those given, else those that the shell finds in it (its ``asks``).

        Raises:
            InputError: nothing can be asked of this text. ConfigError: no such shell, or arguments that the text does not give.
        """
        if name not in self.shells:
            raise ConfigError(f"There is no shell {name!r} here.", todo=f"Shells: {', '.join(self.shells)}.")
        return {"input_text": input_text} | _needed(self.shells[name], input_text, asked or {})

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
            rows += overlap_rows(level, mine, away, share[level], seed, n_draws)
            units += unit_rows(level, mine, share[level])
        overlap = overlap_frame(rows)
        return IntegratedAttribution(
            overlap, pl.DataFrame(units, schema=BLAME), silent, dict(results.refused), _summary(overlap, silent, results)
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
    found = dict(given) if given else shell.asks(text)
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


def _summary(overlap: pl.DataFrame, silent: Mapping[str, str], results: IntegratedRun) -> str:
    sure = overlap.filter(pl.col("q") <= 0.05)
    said = [_shared(row) for row in sure.to_dicts()]
    if overlap.is_empty():
        text = "Nothing was compared: no two shells score the same units"
    else:
        text = f"{'; '.join(said)} (more than chance)" if said else "No overlap beyond chance"
    ran = [name for name in results.findings if name not in silent]
    names = f"{listed(ran)} ran" if ran else "no shell blames anything"
    left = [
        *(f"{name} blames nothing" for name in silent),
        *(f"{name} was left out ({_short(why)})" for name, why in results.refused.items()),
    ]
    return f"{text}; {'; '.join([names, *left])}."


def _shared(row: Mapping[str, Any]) -> str:
    if row["first"] == ALL:
        return f"{row['second']} of shells together share {row['shared']} {row['level']}s"
    if row["level"].startswith("leading "):
        return f"{row['first']} and {row['second']} share a {row['level']}, {row['shared_units']} (among the first {row['first_n']} of {row['units']})"
    return f"{row['first']} and {row['second']} share {row['shared']} of {row['first_n']} {row['level']}s"


def _short(why: str) -> str:
    """The first sentence of a reason."""
    return why.split(". ")[0].rstrip(".")
