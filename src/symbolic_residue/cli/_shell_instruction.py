"""``residue shell instruction-disruption``: what does a model do with two orders at once?"""

from __future__ import annotations

from typing import Annotated

import typer

from symbolic_residue.cli._common import File
from symbolic_residue.cli._failure_graphs import GraphNodes, Graphs
from symbolic_residue.cli._shell_common import chosen, Common, measuring, run_shell
from symbolic_residue.errors import ConfigError

__all__ = ["instruction_disruption"]


@measuring
def instruction_disruption(
    first: Annotated[str | None, typer.Argument(metavar="[FIRST]", help="An instruction that a program can verify.")] = None,
    second: Annotated[str | None, typer.Argument(metavar="[SECOND]", help="Another one.")] = None,
    file: File = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="A question to ask; again for more. Default: the packaged ones.")
    ] = None,
    control: Annotated[
        str | None, typer.Option("--control", help="An instruction compatible with the first; default: chosen.")
    ] = None,
    arrangement: Annotated[
        list[str] | None, typer.Option("--arrangement", help="user+user or system+user; again for both. Default: both.")
    ] = None,
    frame: Annotated[str | None, typer.Option("--frame", help="chat, plain, or auto (chat where there is a template).")] = None,
    examples: Annotated[
        int | None, typer.Option("--examples", help="Worked examples with each instruction; 0: words alone.")
    ] = None,
    tasks: Annotated[int | None, typer.Option("--tasks", help="Questions in every frame; the intervals' n.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", help="The longest answer.")] = None,
    top_heads: Annotated[int | None, typer.Option("--top-heads", help="Heads to ablate; 0: verdicts only.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The options of a suite: one arrangement, plain text, short answers.")
    ] = False,
    graphs: Graphs = 0,
    graph_nodes: GraphNodes = 200,
    *,
    common: Common,
) -> None:
    """INSTRUCTION-DISRUPTION: what does a model do with two orders at once?"""
    from symbolic_residue.prompts import PromptSet, read_prompts
    from symbolic_residue.shells.instruction_disruption import (
        InstructionDisruptionConfig,
        InstructionDisruptionShell,
        InstructionQuestion,
    )

    if file is not None:
        if first is not None or task or control is not None:
            raise ConfigError("Instructions, --task and --control belong to a single pair.", todo="Put them in the file.")
        prompts = read_prompts(file, InstructionQuestion)
    else:
        if first is None or second is None:
            raise ConfigError("Give two instructions, or --file with pairs.")
        prompts = PromptSet([InstructionQuestion(id="pair", first=first, second=second, tasks=task, control=control)], [])  # type: ignore[list-item]
    options = chosen(
        arrangements=tuple(arrangement) if arrangement else None,
        frame=frame,
        examples=examples,
        tasks=tasks,
        max_new_tokens=max_new_tokens,
        top_heads=top_heads,
    )
    config = InstructionDisruptionConfig.quick(**options) if quick else InstructionDisruptionConfig.make(**options)
    shell = InstructionDisruptionShell(loaded=common.open(), config=config)
    run_shell(
        common,
        shell,
        prompts,
        lambda item, told: shell.run(**item.asked(), seed=common.seed, progress=told),
        shown=lambda item: item.shown,
        graphs=(graphs, graph_nodes),
    )
