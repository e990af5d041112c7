"""``residue diagnose``: why does the model fail on this prompt?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import Chat, File, gather_prompts, Prompt
from symbolic_residue.cli._failure_graphs import explained, graph_config, GraphNodes, Graphs
from symbolic_residue.cli._shell_common import Common, measuring

__all__ = ["diagnose"]


@measuring
def diagnose(
    prompt: Prompt = None,
    file: File = None,
    chat: Chat = False,
    candidate: Annotated[
        list[str] | None, typer.Option("--candidate", help="A competing next token; give it twice or more.")
    ] = None,
    control: Annotated[str | None, typer.Option("--control", help="A matched prompt whose answer is settled.")] = None,
    graphs: Graphs = 0,
    graph_nodes: GraphNodes = 200,
    *,
    common: Common,
) -> None:
    """Find out why a model fails on a prompt: verdicts with their controls, who pulls which way, and a report."""
    prompts = gather_prompts(prompt, file, candidates=candidate, control=control)
    loaded = common.open()
    from symbolic_residue.diagnose import diagnose_item
    from symbolic_residue.shells import ValueCollapseShell

    shell = ValueCollapseShell(loaded=loaded)

    def work(item: Any, progress: Any) -> Any:
        return diagnose_item(shell, item, chat=chat, seed=common.seed, progress=progress)

    common, prompts, done = explained(common, shell, prompts, work, graphs, graph_nodes)
    code = common.measure(
        kind="diagnose",
        loaded=loaded,
        prompts=prompts,
        config={"shells": {"value-collapse": shell.config.model_dump(mode="json")}, "chat": chat}
        | graph_config(graphs, graph_nodes),
        work=done,
    )
    raise typer.Exit(code)
