"""Attribution graphs of a run's worst failures, as one item for each shell.

1. What fails: planted items of a packaged benchmark on which a verdict with a right answer fires, or on which the model is silent (of a failure that is asked
   in several prompts, the first); or the silent prompts of a run of ``shells silence``. Prompts are made again from the benchmark, so that a run can be
   explained later.
2. Every prompt is read once, the worst few get graphs beside their matched controls (``shells.across.explain_failure``). Graphs go to a :class:`Shelf`, which
   has those of a run that was cut off.
3. Tables: ``failure_graphs`` (a row a failure; where no graph could be made, the reason), ``failure_parts``, ``failure_units``. Means over prompts are the
   report's, from these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import polars as pl
import torch

from symbolic_residue.diagnose._across import across_row, measured_item, Progress
from symbolic_residue.diagnose._diagnose import ItemResult
from symbolic_residue.errors import ConfigError, InputError, InstrumentError, ModelError, NoRightAnswerError
from symbolic_residue.figures import number
from symbolic_residue.graph import Graph
from symbolic_residue.instrument import Instrument
from symbolic_residue.shells import shell_class, ShellBase
from symbolic_residue.shells.across import (
    aim,
    Aimed,
    explain_failure,
    failing_prompts,
    FailingPrompt,
    FailureGraphs,
    stressed,
    worst_of,
)

__all__ = ["GRAPHS", "Shelf", "graphs_item", "item_failures", "silent_prompts", "suite_failures", "suite_graphs"]

SILENT = "silence"
"""The mode of a prompt on which no verdict fires, and the model says nothing."""

GRAPHS = (
    "Attribution graphs of the failures with the largest targets (logits; above 0 the model fails at the next token). A target divides into parts that add up "
    "to it: by the span whose embeddings carry it over all paths, by the layer and the place of what writes it directly. Attention patterns and norms are held."
)

_BESIDE_SILENCE = (
    "A section on silence splits the same difference over heads and MLPs at the last row, and confirms the strongest; here stand the prompt's tokens, and the "
    "neurons of all layers and places, behind it, and nothing is confirmed."
)


class Shelf(Protocol):
    """Where graphs are kept."""

    def load(self, name: str, aimed: Aimed, nodes: int) -> tuple[Graph, Graph | None] | None:
        """The graphs of a failure, where they were made for the same prompt, target and model."""
        ...

    def save(self, name: str, found: FailureGraphs, nodes: int) -> str:
        """Keep them; their folder, relative to the run's."""
        ...


def suite_failures(
    shell: ShellBase[Any, Any], shell_items: pl.DataFrame, verdicts: pl.DataFrame, *, seed: int = 0
) -> tuple[list[FailingPrompt], dict[str, str]]:
    """The prompts of a shell's failures in a run, and by item the reason where there is none; ``mode`` is ``SILENT`` where no verdict fires.

    Args:
        shell: which.
        shell_items, verdicts: tables of the run.
        seed: of the run.

    Raises:
        ConfigError: an item that this version's benchmark does not have.
    """
    kind = shell_class(shell.name)
    mine = shell_items.filter((pl.col("shell") == shell.name) & ~pl.col("null"))
    items = {item.id: item for item in kind.items()}
    fired = verdicts.filter((pl.col("shell") == shell.name) & (pl.col("outcome") == "fires"))
    found: list[FailingPrompt] = []
    reasons: dict[str, str] = {}
    for row in mine.iter_rows(named=True):
        modes = fired.filter(pl.col("item") == row["item"])["mode"].to_list()
        item = items.get(row["benchmark_item"])
        if item is None:
            raise ConfigError(f"{shell.name} has no item {row['benchmark_item']!r}.", why="The run was made with another version.")
        mode = next((m for m in [*modes, *item.modes] if m in kind.right_answers), None)
        if mode is None:
            if modes:
                reasons[item.id] = kind.no_right_answers.get(modes[0], f"No answer is right for {modes[0]}.")
            continue
        try:
            failures = shell.failures(item, mode, seed=seed)
        except (InputError, NoRightAnswerError) as error:
            if modes:
                reasons[item.id] = str(error)
            continue
        for failure in failures if modes else failures[:1]:
            prompts = failing_prompts(failure, mode if mode in modes else modes[0] if modes else SILENT, shell.name)
            found += prompts if modes else prompts[:1]
    return found, reasons


def item_failures(shell: ShellBase[Any, Any], result: ItemResult, *, seed: int = 0) -> tuple[list[FailingPrompt], dict[str, str]]:
    """The prompts of an item that a shell has just run, if a verdict with a right answer fires on it; else its prompt, in case the model is silent there.

    Of VALUE-COLLAPSE the right candidate is the one that leads on the control.
    """
    residue = getattr(result.findings, "residue", None)
    if residue is None or "verdicts" not in result.tables:
        return [], {}
    fired = result.tables["verdicts"].filter(pl.col("outcome") == "fires")["mode"].to_list()
    mode = next((m for m in fired if m in type(shell).right_answers), None)
    try:
        if mode is None:
            pair, alone = stressed(shell, residue), []
            if pair is not None:
                control = None if pair[1] is None else tuple(pair[1])
                alone.append(FailingPrompt(result.item, SILENT, shell.name, tuple(pair[0]), control=control))
            said = type(shell).no_right_answers.get(fired[0], f"No answer is right for {fired[0]}.") if fired else ""
            return alone, {result.item: said} if said else {}
        if shell.name == "value-collapse":
            return [_torn(shell, residue, mode, result.item)], {}
        failures = shell.failures(residue, mode, id=result.item, seed=seed)
        return [one for failure in failures for one in failing_prompts(failure, mode, shell.name)], {}
    except (InputError, NoRightAnswerError) as error:
        return [], {result.item: str(error)}


def _torn(shell: ShellBase[Any, Any], residue: Any, mode: str, name: str) -> FailingPrompt:
    pair = stressed(shell, residue)
    prompt, control = pair or ([], None)
    if control is None:
        raise NoRightAnswerError("No candidate is known to be right.", why="A conversation's control is not read here.")
    candidates = list(residue.asked.candidates)
    logits = [shell.instrument.run(torch.tensor([ids]), keep_logits=1)["logits"][0, -1].double() for ids in (prompt, control)]
    right = max(candidates, key=lambda t: float(logits[1][t]))
    wrong = max((t for t in candidates if t != right), key=lambda t: float(logits[0][t]))
    return FailingPrompt(name, mode, shell.name, tuple(prompt), right, wrong, control=tuple(control))


def silent_prompts(
    endings: pl.DataFrame, tokens: pl.DataFrame, controls: Mapping[str, Any]
) -> tuple[list[FailingPrompt], dict[str, str]]:
    """The silent prompts of a run of ``shells silence``, and their controls.

    Args:
        endings, tokens: tables of the run.
        controls: item → token ids of its control, the run's tensor ``across_control``; runs of earlier versions have none.
    """
    found: list[FailingPrompt] = []
    for item in endings.filter((pl.col("side") == "prompt") & pl.col("ended"))["item"].to_list():
        mine = tokens.filter(pl.col("item") == item).sort("position")
        regions = mine["region"].to_list()
        spans = {name: tuple(i for i, one in enumerate(regions) if one == name) for name in dict.fromkeys(regions)}
        control = tuple(int(t) for t in controls[item]) if item in controls else None
        found.append(FailingPrompt(item, SILENT, "silence", tuple(mine["token_id"].to_list()), spans=spans, control=control))
    return found, {}


def suite_graphs(
    shell: ShellBase[Any, Any], tables: Mapping[str, pl.DataFrame], shelf: Shelf, *, item: str, top: int, **options: Any
) -> ItemResult:
    """:func:`graphs_item` of a shell's failures in a run; ``tables``: its ``shell_items verdicts``. What cannot be used is a reason, no error."""
    try:
        found = suite_failures(shell, tables["shell_items"], tables["verdicts"], seed=options.get("seed", 0))
    except InputError as error:
        return _nothing(item, shell.name, str(error), {}, options.get("seed", 0))
    return graphs_item(shell.instrument, *found, shelf, item=item, shell=shell.name, top=top, **options)


def graphs_item(
    instrument: Instrument,
    prompts: Sequence[FailingPrompt],
    reasons: Mapping[str, str],
    shelf: Shelf,
    *,
    item: str,
    shell: str,
    top: int,
    nodes: int = 200,
    ends: Sequence[int] = (),
    seed: int = 0,
    progress: Progress = lambda what, share: None,
) -> ItemResult:
    """The worst failures explained, as an item of the run.

    Args:
        instrument: the model's.
        prompts, reasons: what fails, and why others are left out, as of :func:`suite_failures`.
        shelf: where graphs are kept.
        item: its id; ``shell`` whose failures.
        top: failures that get graphs; nodes: neurons that each prompt chooses.
        ends: end tokens, if not the model's own.
        seed: of the run.
        progress: told what is going on, and the share done.

    Raises:
        ConfigError: fewer than one graph asked for.
    """
    progress("failures read", 0.0)
    try:
        aimed, unread = aim(instrument, prompts, ends=ends)
    except (InputError, ModelError, InstrumentError) as error:
        return _nothing(item, shell, str(error), {}, seed)
    aimed = [one for one in aimed if one.prompt.mode != SILENT or one.kind == "silence"]
    unread = (
        {}
        if shell == "silence"
        else {name: why for name, why in unread.items() if name in {p.id for p in prompts if p.mode != SILENT}}
    )
    worst = worst_of(aimed, top)
    rows = [_row(FailingPrompt(name, "", shell, ()), reason=why) for name, why in {**reasons, **unread}.items()]
    parts, units, made = [], [], 0
    for place, one in enumerate(worst, 1):
        progress(f"graph of {one.prompt.id}", (place - 0.5) / (len(worst) + 0.5))
        name = f"{shell}/{place:02d}"
        try:
            found = explain_failure(instrument, one, nodes=nodes, kept=shelf.load(name, one, nodes))
        except (InputError, ModelError, InstrumentError) as error:
            rows.append(_row(one.prompt, one, reason=str(error)))
            continue
        rows.append(_row(one.prompt, one, found, folder=shelf.save(name, found, nodes)))
        names = [pl.lit(one.prompt.id).alias("failure"), pl.lit(one.kind).alias("kind")]
        parts.append(found.parts.with_columns(names))
        units.append(found.units.with_columns(names))
        made += 1
    tables = {"failure_graphs": pl.DataFrame(rows, schema=_ROWS)} if rows else {}
    if not made:
        fires = "" if shell == "silence" else "no verdict with a right answer fires, and "
        why = f"{fires}the model is silent on no prompt."
        if rows:
            why = f"no graph could be made: {rows[-1]['reason']}"
        return _nothing(item, shell, why, tables, seed)
    about = f"{GRAPHS} {_BESIDE_SILENCE}" if any(one.kind == "silence" for one in worst) else GRAPHS
    tables |= {"failure_parts": pl.concat(parts), "failure_units": pl.concat(units)}
    said = _said(rows, len({one.prompt.id for one in aimed}))
    row = across_row("graphs", about, said, n=made, counts="failing prompts, the worst", pooled=True, control=_control(rows))
    return measured_item(item, [row], tables, prompt=f"failures of {shell}", seed=seed)


def _nothing(item: str, shell: str, why: str, tables: Mapping[str, pl.DataFrame], seed: int) -> ItemResult:
    row = across_row("graphs", GRAPHS, n=0, counts="failing prompts", pooled=True, reason=why)
    return measured_item(item, [row], tables, prompt=f"failures of {shell}", seed=seed)


def _said(rows: Sequence[dict[str, Any]], failing: int) -> str:
    done = [row for row in rows if row["folder"]]
    kinds = {kind: [row for row in done if row["kind"] == kind] for kind in dict.fromkeys(row["kind"] for row in done)}
    told = [f"Graphs of the {len(done)} worst of {failing} failing prompts."]
    for kind, mine in kinds.items():
        values = ", ".join(number(row["value"], signed=True) for row in mine)
        beside = [row for row in mine if row["control_value"] is not None]
        said = f"{kind.capitalize()}: {values} logits"
        if beside:
            said += f" (controls: {', '.join(number(row['control_value'], signed=True) for row in beside)})"
        told.append(said + ".")
    if sick := [row for row in done if row["healthy"] is False]:
        told.append(
            f"{len(sick)} of the controls fail{'s' if len(sick) == 1 else ''} too, so {'it is' if len(sick) == 1 else 'they are'} no healthy control."
        )
    if len(done) == 1:
        told.append("One prompt: no interval.")
    return " ".join(told)


def _control(rows: Sequence[dict[str, Any]]) -> str | None:
    done = [row["compared"] for row in rows if row["folder"]]
    if all(one == "no control" for one in done):
        return None
    said = f"the same tokens on the matched control: {done.count('difference')} of as many tokens, node by node"
    return f"{said}; {done.count('side by side')} of another length, side by side"


def _row(
    prompt: FailingPrompt,
    aimed: Aimed | None = None,
    found: FailureGraphs | None = None,
    *,
    folder: str | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    shares = [share for side in (found.ghosts if found is not None else ()) for share in side]
    shares = [share if share == share else None for share in shares] + [None] * (len(_SHARES) - len(shares))
    return {
        "failure": prompt.id,
        "mode": prompt.mode,
        "kind": None if aimed is None else aimed.kind,
        "target": None if aimed is None else aimed.contrast.name,
        "value": None if aimed is None else aimed.value,
        "control_value": None if found is None else found.control_value,
        "compared": None if found is None else found.compared,
        "healthy": None if found is None else found.healthy,
        "tokens": len(prompt.ids) or None,
        "control_tokens": None if found is None or found.control is None else len(found.control.ids),
        "nodes": None if found is None else len(found.failing),
        "worst_row": None if found is None else found.worst_row,
        **dict(zip(_SHARES, shares, strict=True)),
        "folder": folder,
        "reason": reason,
    }


_SHARES = ("ghosts", "ghosts_random", "control_ghosts", "control_ghosts_random")
_ROWS: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(("failure", "mode", "kind", "target"), pl.String),
    **dict.fromkeys(("value", "control_value"), pl.Float64),
    "compared": pl.String,
    "healthy": pl.Boolean,
    **dict.fromkeys(("tokens", "control_tokens", "nodes"), pl.Int64),
    **dict.fromkeys(("worst_row", *_SHARES), pl.Float64),
    **dict.fromkeys(("folder", "reason"), pl.String),
}
