"""Graphs of a run's worst failures: ``--graphs`` of ``residue shells run`` and ``silence``, and ``residue graph failures RUN`` for a run that is there.

Graphs go to ``graphs/SHELL/01`` … in the run folder: ``failing`` and ``control`` with ``graph.safetensors``, ``graph.json`` and ``report.html``,
``difference/report.html`` where both have as many tokens, and ``asked.json``, written last, which says what they were made for: a run that is
gone on with makes none of them twice.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import Adapter, default_output, Device, echo_json, item_progress, Json, NoReport, open_for_cli
from symbolic_residue.errors import ConfigError, DamagedFileError, RunExistsError, WriteError

if TYPE_CHECKING:
    from symbolic_residue.cli._shell_common import Common
    from symbolic_residue.graph import Graph
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.shells.across import Aimed, FailureGraphs
    from symbolic_residue.store import RunFolder

__all__ = ["GraphNodes", "Graphs", "explained", "failures", "graph_config", "item_of", "run_graphs", "silence_graphs"]

Graphs = Annotated[
    int,
    typer.Option(
        "--graphs", min=0, help="Attribution graphs of so many of the worst failures (of each shell), beside their controls."
    ),
]
GraphNodes = Annotated[int, typer.Option("--graph-nodes", min=1, help="Neurons that each of these graphs chooses.")]

_TABLES = ("shell_items", "verdicts")


def item_of(shell: str) -> str:
    """The item that holds a shell's graphs."""
    return f"graphs.{shell}"


def graph_config(graphs: int, nodes: int) -> dict[str, Any]:
    """What a run's configuration says of them; nothing where none are made."""
    return {"graphs": graphs, "graph_nodes": nodes} if graphs else {}


class _Shelf:
    """Graphs of failures in a run folder."""

    def __init__(self, run: Path, weights: str) -> None:
        self.run, self.weights = run, weights

    def load(self, name: str, aimed: Aimed, nodes: int) -> tuple[Graph, Graph | None] | None:
        """The graphs that are there, if they were made for this."""
        from symbolic_residue.graph import load_graph

        folder = self.run / "graphs" / name
        try:
            if json.loads((folder / "asked.json").read_text("utf-8")) != self._asked(aimed, nodes):
                return None
            return load_graph(folder / "failing"), None if aimed.prompt.control is None else load_graph(folder / "control")
        except (OSError, ValueError, DamagedFileError):
            return None

    def save(self, name: str, found: FailureGraphs, nodes: int) -> str:
        """Keep graphs and pages; ``graphs/NAME``.

        Raises:
            WriteError: they cannot be written.
        """
        from symbolic_residue.cli._graph import write_page
        from symbolic_residue.graph import save_graph

        folder = self.run / "graphs" / name
        try:
            (folder / "asked.json").unlink(missing_ok=True)
            for side, graph in (("failing", found.failing), ("control", found.control)):
                if graph is not None:
                    write_page(graph, save_graph(graph, folder / side))
            if found.difference is not None:
                (folder / "difference").mkdir(exist_ok=True)
                write_page(found.difference.graph(), folder / "difference")
            (folder / "asked.json").write_text(json.dumps(self._asked(found.aimed, nodes)), "utf-8")
        except OSError as error:
            raise WriteError(f"The graphs cannot be written to {folder}.", why=str(error)) from error
        return f"graphs/{name}"

    def _asked(self, aimed: Aimed, nodes: int) -> dict[str, Any]:
        prompt, contrast = aimed.prompt, aimed.contrast
        control = None if prompt.control is None else list(prompt.control)
        return {
            "ids": list(prompt.ids),
            "control": control,
            "target": [contrast.name, list(contrast.plus), list(contrast.minus)],
            "nodes": nodes,
            "weights_sha256": self.weights,
        }


def run_graphs(shell: Any, run: RunFolder, *, item: str, top: int, nodes: int, seed: int, progress: Any) -> Any:
    """The item of a shell's graphs in a run of ``residue shells run``."""
    from symbolic_residue.diagnose import suite_graphs

    shelf = _Shelf(run.path, shell.loaded.provenance.weights_sha256)
    tables = {name: run.table(name) for name in _TABLES}
    return suite_graphs(shell, tables, shelf, item=item, top=top, nodes=nodes, seed=seed, progress=progress)


def explained(common: Common, shell: Any, prompts: Any, work: Any, graphs: int, nodes: int) -> tuple[Common, Any, Any]:
    """Options, prompts and work of a run of one shell, with the item of its graphs behind the others; as they are where none are asked for.

    What fails is written down with each item (``graphs/prompts``), so that it can be explained later.

    Raises:
        ConfigError: a prompt has the id of that item.
    """
    if not graphs:
        return common, prompts, work
    from symbolic_residue.diagnose import item_failures
    from symbolic_residue.prompts import PromptItem, PromptSet
    from symbolic_residue.store import RunFolder

    path, last = common.output or default_output(shell.name), item_of(shell.name)
    if any(item.id == last for item in prompts.items):
        raise ConfigError(f"A prompt has the id {last!r}.", why="The item of that name holds the graphs.", todo="Rename it.")

    def whole(item: Any, progress: Any) -> Any:
        if item.id == last:
            return shell_graphs(
                shell, RunFolder.open(path), item=last, top=graphs, nodes=nodes, seed=common.seed, progress=progress
            )
        result = work(item, progress)
        found, reasons = item_failures(shell, result, seed=common.seed)
        _write_down(path, item.id, [asdict(one) for one in found], reasons)
        return result

    pooled = PromptItem(id=last, prompt=f"failures of {shell.name}")
    return replace(common, output=path), PromptSet([*prompts.items, pooled], prompts.bad), whole


def shell_graphs(shell: Any, run: RunFolder, *, item: str, top: int, nodes: int, seed: int, progress: Any) -> Any:
    """The item of the graphs of a run of one shell on prompts of one's own."""
    from symbolic_residue.diagnose import graphs_item
    from symbolic_residue.shells.across import FailingPrompt

    found, reasons = [], {}
    for name in run.done_items():
        file = _noted(run.path, name)
        if not file.exists():
            continue
        try:
            noted = json.loads(file.read_text("utf-8"))
            for one in noted["prompts"]:
                spans = {span: tuple(places) for span, places in one["spans"].items()}
                lists = {key: None if one[key] is None else tuple(one[key]) for key in ("ids", "control")}
                found.append(FailingPrompt(**(one | lists | {"spans": spans})))
            reasons |= noted["reasons"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reasons[name] = f"{file} cannot be read: {error}"
    shelf = _Shelf(run.path, shell.loaded.provenance.weights_sha256)
    return graphs_item(
        shell.instrument, found, reasons, shelf, item=item, shell=shell.name, top=top, nodes=nodes, seed=seed, progress=progress
    )


def _noted(run: Path, item: str) -> Path:
    return run / "graphs" / "prompts" / f"{hashlib.sha256(item.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.json"


def _write_down(run: Path, item: str, prompts: list[dict[str, Any]], reasons: dict[str, str]) -> None:
    file = _noted(run, item)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"item": item, "prompts": prompts, "reasons": reasons}), "utf-8")
    except OSError as error:
        raise WriteError(f"{file} cannot be written.", why=str(error)) from error


def silence_graphs(
    instrument: Instrument, run: RunFolder, *, top: int, nodes: int, ends: list[int], seed: int, progress: Any
) -> Any:
    """The item of the graphs of silent prompts in a run of ``residue shells silence``."""
    from symbolic_residue.diagnose import graphs_item, silent_prompts

    found = silent_prompts(run.table("endings"), run.table("tokens"), run.tensors("across_control"))
    shelf = _Shelf(run.path, instrument.loaded.provenance.weights_sha256)
    return graphs_item(
        instrument,
        *found,
        shelf,
        item=item_of("silence"),
        shell="silence",
        top=top,
        nodes=nodes,
        ends=ends,
        seed=seed,
        progress=progress,
    )


def failures(
    run: Annotated[
        Path, typer.Argument(help="The run folder of residue shells run, or of residue shells silence.", show_default=False)
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="Failures of each shell that get graphs, the worst.")] = 3,
    nodes: Annotated[int, typer.Option("--nodes", "-n", min=1, help="Neurons that each prompt chooses.")] = 200,
    shell: Annotated[
        list[str] | None, typer.Option("--shell", "-s", help="Only this shell's; again for more. Default: all.", show_default=False)
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Make them anew where the run has some.")] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Default: the run's own.", show_default=False)] = None,
    adapter: Adapter = None,
    device: Device = "cpu",
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Graphs of the worst failures of a run, beside their matched controls, added to the run and its report.

    What in the prompt, in which layers, by which neurons; every target divides into parts that add up to it. Means over prompts stand in the report.
    """
    from symbolic_residue.shells import config_class, make_shell
    from symbolic_residue.store import RunFolder

    folder = RunFolder.open(run)
    config, made_on = folder.manifest.config, folder.manifest.provenance
    shells = config["shells"] if isinstance(config.get("shells"), dict) else {}
    suite, noted = "shell_items" in folder.manifest.tables, (run / "graphs" / "prompts").is_dir()
    there = ["silence"] if folder.manifest.kind == "silence" else list(shells) if suite or noted else []
    if not there:
        raise ConfigError(
            f"{run} is a run of {folder.manifest.kind}.",
            todo="Give a run of residue shells run or silence, or of one shell that was made with --graphs.",
        )
    if unknown := [name for name in shell or [] if name not in there]:
        raise ConfigError(f"The run has no shell {unknown[0]!r}.", todo=f"It has: {', '.join(there)}.")
    wanted = {item_of(name): name for name in there if not shell or name in shell}
    done = [item for item in wanted if item in folder.done_items()]
    if done and not again:
        raise RunExistsError(f"{run} has {', '.join(done)} already.", todo="Add --again to make them anew, or name other shells.")
    loaded = open_for_cli(model or str(made_on.get("model")), adapter=adapter, dtype="float32", device=device)
    if made_on.get("weights_sha256") != loaded.provenance.weights_sha256:
        raise ConfigError(
            f"{run} was made on another model ({made_on.get('model')}).",
            why="Its failures are not this model's.",
            todo="Give its --model, and --adapter where it had one.",
        )
    from symbolic_residue.instrument import Instrument

    seed, results = int(config.get("seed", 0)), []
    with RunFolder.reopen(run, drop=lambda item: item in wanted) as opened, item_progress(len(wanted)) as update:
        counts = opened.manifest.items
        for item, name in wanted.items():

            def told(what: str, share: float, item: str = item) -> None:
                update(item, what, share)

            if name == "silence":
                result = silence_graphs(
                    Instrument(loaded),
                    opened,
                    top=top,
                    nodes=nodes,
                    ends=config["end"],
                    seed=seed,
                    progress=told,
                )
            else:
                made = make_shell(name, loaded, config_class(name).make(**config["shells"][name]))
                result = (run_graphs if suite else shell_graphs)(
                    made, opened, item=item, top=top, nodes=nodes, seed=seed, progress=told
                )
            opened.write_item(item, result.tables)
            results.append(result)
        if counts.planned is not None:
            counts.planned = max(counts.planned, counts.done + counts.failed)
    page = None
    if not no_report:
        from symbolic_residue.report import render_report

        page = render_report(run)
    _answer(results, run, page, json)


def _answer(results: list[Any], run: Path, page: Path | None, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "item": result.item,
                "summary": result.summary,
                "graphs": result.tables["failure_graphs"].to_dicts() if "failure_graphs" in result.tables else [],
            }
            for result in results
        ]
        echo_json({"run": str(run), "report": str(page) if page else None, "items": rows})
        return
    from rich.console import Console
    from rich.markup import escape

    from symbolic_residue.figures import visible

    console = Console()
    for result in results:
        console.print(f"[bold]{escape(result.item)}[/]: {escape(visible(result.summary))}", soft_wrap=True)
        if "failure_parts" in result.tables:
            _show(console, result)
    console.print(f"graphs: {escape(str(run / 'graphs'))}", soft_wrap=True)
    if page is not None:
        console.print(f"report: {escape(str(page))}", soft_wrap=True)


def _show(console: Any, result: Any) -> None:
    """What carries the failures, by span."""
    from rich.markup import escape
    from rich.table import Table

    from symbolic_residue.figures import visible
    from symbolic_residue.report import failure_tables

    held = {name: result.tables[name].to_dicts() for name in ("failure_graphs", "failure_parts", "failure_units")}
    for one in failure_tables(held, splits=("span",)):
        console.print(f"[dim]{escape(visible(one['caption']))}[/]", soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        for name, numeric in one["columns"]:
            table.add_column(escape(name), justify="right" if numeric else "left", header_style="dim")
        for cells, _ in one["rows"]:
            table.add_row(*map(escape, cells))
        console.print(table)
