"""``residue shell value-collapse``: can the model decide between competing next tokens?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import Chat, File, gather_prompts, Prompt
from symbolic_residue.cli._failure_graphs import GraphNodes, Graphs
from symbolic_residue.cli._shell_common import Common, measuring, run_shell

__all__ = ["value_collapse"]


@measuring
def value_collapse(
    prompt: Prompt = None,
    file: File = None,
    chat: Chat = False,
    candidate: Annotated[
        list[str] | None, typer.Option("--candidate", help="A competing next token; give it twice or more.")
    ] = None,
    control: Annotated[str | None, typer.Option("--control", help="A matched prompt whose answer is settled.")] = None,
    mass: Annotated[float, typer.Option("--mass", help="Probability that the candidates hold together.")] = 0.9,
    threshold: Annotated[float, typer.Option("--yield-threshold", help="YIELD needs this probability.")] = 0.5,
    steps: Annotated[int, typer.Option("--steps", help="STABILIZE: the most steps.")] = 8,
    variants: Annotated[int, typer.Option("--variants", help="Small edits of the prompt; the intervals' n.")] = 12,
    top_heads: Annotated[int, typer.Option("--top-heads", help="Heads to ablate and patch.")] = 12,
    refiner: Annotated[str, typer.Option("--refiner", help="rollout, soft or layers: whose traces decide.")] = "layers",
    graphs: Graphs = 0,
    graph_nodes: GraphNodes = 200,
    *,
    common: Common,
) -> None:
    """VALUE-COLLAPSE: can the model decide between competing next tokens?"""
    prompts = gather_prompts(prompt, file, candidates=candidate, control=control)
    from symbolic_residue.shells import ValueCollapseConfig, ValueCollapseShell

    config = ValueCollapseConfig.make(
        mass=mass, yield_threshold=threshold, steps=steps, variants=variants, top_heads=top_heads, verdict_refiner=refiner
    )
    shell = ValueCollapseShell(loaded=common.open(), config=config)

    def run(item: Any, told: Any) -> Any:
        messages = [dict(m) for m in item.messages] if item.messages is not None else None
        return shell.run(
            item.prompt,
            messages=messages,
            chat=chat and messages is None,
            candidates=item.candidates,
            control=item.control,
            seed=common.seed,
            progress=told,
        )

    run_shell(
        common, shell, prompts, run, chat=chat, in_chat=lambda item: chat or item.messages is not None, graphs=(graphs, graph_nodes)
    )
