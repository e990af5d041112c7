"""``residue shell layer-salience``: what does the model stop looking at, and did it matter?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import Chat, File, gather_prompts, Prompt
from symbolic_residue.cli._failure_graphs import GraphNodes, Graphs
from symbolic_residue.cli._shell_common import Common, measuring, run_shell

__all__ = ["layer_salience"]


@measuring
def layer_salience(
    prompt: Prompt = None,
    file: File = None,
    chat: Chat = False,
    answer: Annotated[
        str | None,
        typer.Option("--answer", help="The next word to follow, with its leading space; default the model's own best."),
    ] = None,
    threshold: Annotated[float, typer.Option("--threshold", help="WEIGHT: part of the uniform share.")] = 0.5,
    dose: Annotated[
        list[float] | None, typer.Option("--dose", help="Threshold under which everything is cancelled; may be given again.")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", help="Random draws of each control.")] = 12,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Neglected tokens cancelled one by one.")] = 32,
    top_heads: Annotated[int, typer.Option("--top-heads", help="Heads tested by hiding; 0 tests none.")] = 8,
    quick: Annotated[bool, typer.Option("--quick", help="The fewer runs of a suite; options given stand before them.")] = False,
    graphs: Graphs = 0,
    graph_nodes: GraphNodes = 200,
    *,
    common: Common,
) -> None:
    """LAYER-SALIENCE: what does it stop looking at, and did it matter?"""
    prompts = gather_prompts(prompt, file, candidates=[answer] if answer is not None and file is not None else None)
    from symbolic_residue.shells import LayerSalienceConfig, LayerSalienceShell

    given: dict[str, Any] = {"threshold": threshold, "draws": draws, "max_tokens": max_tokens, "top_heads": top_heads}
    if dose:
        given["doses"] = tuple(dose)
    if quick:
        defaults = LayerSalienceConfig()
        config = LayerSalienceConfig.quick(**{name: value for name, value in given.items() if value != getattr(defaults, name)})
    else:
        config = LayerSalienceConfig.make(**given)
    shell = LayerSalienceShell(loaded=common.open(), config=config)

    def run(item: Any, told: Any) -> Any:
        messages = [dict(m) for m in item.messages] if item.messages is not None else None
        follow = answer if answer is not None else item.candidates[0] if item.candidates else None
        return shell.run(
            item.prompt, messages=messages, chat=chat and messages is None, answer=follow, seed=common.seed, progress=told
        )

    run_shell(
        common, shell, prompts, run, chat=chat, in_chat=lambda item: chat or item.messages is not None, graphs=(graphs, graph_nodes)
    )
