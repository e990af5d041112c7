"""``residue shells``: every shell on its benchmark, and runs of shells compared.

1. ``list``: the shells, what each asks, its operations and its benchmark.
2. ``integrate``: several shells on one prompt, and what they blame together.
3. ``run``: items of each shell's benchmark through the shell; verdict rates on planted items beside null ones, the heads confirmed, and a report.
4. ``compare``: the same items in two runs or more, tested item by item.
5. ``silence``, ``disruption``, ``errors``, ``cross-run``, ``attention``: measures that any shell can use, on prompts of the user's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._accumulation import errors
from symbolic_residue.cli._common import (
    Adapter,
    default_output,
    Device,
    Dtype,
    echo_json,
    Json,
    measure_items,
    Model,
    NoReport,
    open_for_cli,
    Output,
    Resume,
    Seed,
)
from symbolic_residue.cli._compare import compare
from symbolic_residue.cli._cross_run import cross_run_command
from symbolic_residue.cli._disruption import disruption
from symbolic_residue.cli._failure_graphs import graph_config, GraphNodes, Graphs, item_of, run_graphs
from symbolic_residue.cli._integrate import integrate
from symbolic_residue.cli._silence import silence
from symbolic_residue.cli._view import attention

__all__ = ["run_suite", "shells_app"]

shells_app = typer.Typer(help="Every shell on its benchmark; runs compared.", no_args_is_help=True, add_completion=False)


@shells_app.callback()
def _group() -> None:
    """Every shell on its benchmark; runs compared."""


shells_app.command("integrate")(integrate)
shells_app.command("compare")(compare)
shells_app.command("silence")(silence)
shells_app.command("disruption")(disruption)
shells_app.command("errors")(errors)
shells_app.command("cross-run")(cross_run_command)
shells_app.command("attention")(attention)


@shells_app.command("list")
def list_command(json: Json = False) -> None:
    """List the shells: what each asks, its operations, its benchmark."""
    from symbolic_residue.shells import shell_class, SHELLS

    rows = []
    for name, entry in SHELLS.items():
        shell = shell_class(name)
        rows.append(
            {
                "shell": name,
                "question": entry.question,
                "operations": list(shell.operations),
                "benchmark": shell.benchmark,
                "items": len(shell.items()) if shell.benchmark else 0,
            }
        )
    if json:
        echo_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("shell", "question", "operations", "benchmark", "items"):
        table.add_column(title, overflow="fold", justify="right" if title == "items" else "left")
    for row in rows:
        table.add_row(row["shell"], row["question"], " ".join(row["operations"]), row["benchmark"] or "none", str(row["items"]))
    Console().print(table)


@shells_app.command("run")
def run_command(
    model: Model = "demo",
    shell: Annotated[
        list[str] | None,
        typer.Option("--shell", "-s", help="Only this shell; may be given again. Default: all.", show_default=False),
    ] = None,
    items: Annotated[
        int, typer.Option("--items", "-n", help="Items of each shell's benchmark: half planted, half null. 0 takes all.")
    ] = 8,
    split: Annotated[str, typer.Option("--split", help="held-out, calibration or all.")] = "held-out",
    full: Annotated[
        bool, typer.Option("--full", help="Each shell's full options instead of those of a suite: slower, narrower intervals.")
    ] = False,
    no_attribution: Annotated[bool, typer.Option("--no-attribution", help="Verdicts only: no heads are tested.")] = False,
    across: Annotated[
        bool, typer.Option("--across", help="Also silence and attention disruption, on each item's own prompt and control.")
    ] = False,
    graphs: Graphs = 0,
    graph_nodes: GraphNodes = 200,
    adapter: Adapter = None,
    output: Output = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    resume: Resume = False,
    reuse: Annotated[
        Path | None, typer.Option("--reuse", help="A run with fewer items: what it has measured is taken over.", show_default=False)
    ] = None,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Which failures does this model have, how strong, against which control, and what is to blame?"""
    from symbolic_residue.shells import SHELLS

    code = run_suite(
        "shells",
        shell or list(SHELLS),
        n=items or None,
        split=split,
        full=full,
        attribution=not no_attribution,
        across=across,
        graphs=graphs,
        graph_nodes=graph_nodes,
        model=model,
        adapter=adapter,
        output=output,
        seed=seed,
        dtype=dtype,
        device=device,
        resume=resume,
        report=not no_report,
        as_json=json,
        reuse=reuse,
    )
    raise typer.Exit(code)


def run_suite(
    kind: str,
    names: list[str],
    *,
    n: int | None,
    split: str,
    full: bool,
    attribution: bool,
    model: str,
    adapter: Any,
    output: Any,
    seed: int,
    dtype: str,
    device: str,
    resume: bool,
    report: bool,
    as_json: bool,
    across: bool = False,
    graphs: int = 0,
    graph_nodes: int = 200,
    reuse: Path | None = None,
) -> int:
    """Items of the benchmarks of several shells into one run folder; returns the exit code."""
    from symbolic_residue.diagnose import add_across, choose_items, item_name, suite_across, suite_item
    from symbolic_residue.prompts import PromptItem, PromptSet
    from symbolic_residue.shells import config_class, make_shell
    from symbolic_residue.store import RunFolder

    names = list(dict.fromkeys(names))
    output = output or default_output(kind)
    pooled = {f"across.{name}": name for name in names} if across else {}
    explained = {item_of(name): name for name in names} if graphs else {}
    chosen = {item_name(name, item): (name, item) for name in names for item in choose_items(name, n, split=split)}
    options = {} if attribution else {"top_heads": 0}
    configs = {name: (config_class(name).make if full else config_class(name).quick)(**options) for name in names}
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    shells = {name: make_shell(name, loaded, configs[name]) for name in names}

    def work(asked: PromptItem, progress: Any) -> Any:
        if asked.id in pooled:
            run = RunFolder.open(output)
            return suite_across(
                shells[pooled[asked.id]].instrument,
                pooled[asked.id],
                item=asked.id,
                kinds=run.table("shell_items"),
                endings_table=run.table("endings"),
                tensors={name: run.tensors(name) for name in ("across_prompt", "across_control", "attention_metrics")},
                seed=seed,
                progress=progress,
            )
        if asked.id in explained:
            shell = shells[explained[asked.id]]
            return run_graphs(
                shell, RunFolder.open(output), item=asked.id, top=graphs, nodes=graph_nodes, seed=seed, progress=progress
            )
        name, item = chosen[asked.id]
        result = suite_item(shells[name], item, seed=seed, progress=progress)
        return add_across(shells[name], result) if across else result

    items = [PromptItem(id=key, prompt=item.shown) for key, (_, item) in chosen.items()]
    items += [PromptItem(id=key, prompt=f"items of {name}") for key, name in pooled.items()]
    items += [PromptItem(id=key, prompt=f"failures of {name}") for key, name in explained.items()]

    return measure_items(
        kind=kind,
        loaded=loaded,
        prompts=PromptSet(items, []),
        config={
            "shells": {name: config.model_dump(mode="json") for name, config in configs.items()},
            "split": split,
            "items_each": n,
            "seed": seed,
            **({"across": True} if across else {}),
            **graph_config(graphs, graph_nodes),
        },
        output=output,
        resume=resume,
        seed=seed,
        report=report,
        as_json=as_json,
        work=work,
        reuse=None if reuse is None else (reuse, list(chosen)),
    )
