"""``residue shell memtrace``: does a fact stated early survive to the question?"""

from __future__ import annotations

from typing import Annotated

import typer

from symbolic_residue.cli._common import Chat, File, Prompt
from symbolic_residue.cli._failure_graphs import GraphNodes, Graphs
from symbolic_residue.cli._shell_common import chosen, Common, measuring, run_shell
from symbolic_residue.errors import ConfigError

__all__ = ["memtrace"]


@measuring
def memtrace(
    prompt: Prompt = None,
    file: File = None,
    fact: Annotated[str | None, typer.Option("--fact", help="The text that states the answer; default: found.")] = None,
    question: Annotated[str | None, typer.Option("--question", help="The prompt's end; default: its last sentence.")] = None,
    answer: Annotated[
        list[str] | None,
        typer.Option("--answer", help="What should come next; again for further fields. Default: what the model says."),
    ] = None,
    foil: Annotated[
        list[str] | None,
        typer.Option("--foil", help="A wrong answer of the same type; again for more. Default: the model's guesses."),
    ] = None,
    control: Annotated[str | None, typer.Option("--control", help="The fact with another value.")] = None,
    distance: Annotated[
        list[int] | None, typer.Option("--distance", min=0, help="Tokens of padding; again for more. Default: 0 to 1024.")
    ] = None,
    padding: Annotated[
        list[str] | None, typer.Option("--padding", help="natural, repetitive or adversarial; again for more, the first is judged.")
    ] = None,
    distractor: Annotated[
        list[str] | None, typer.Option("--distractor", help="A sentence that looks like the fact, for adversarial padding.")
    ] = None,
    draws: Annotated[int | None, typer.Option("--draws", help="Texts of padding of each kind; the intervals' n.")] = None,
    top_heads: Annotated[int | None, typer.Option("--top-heads", help="Heads to ablate and patch; 0: verdicts only.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The options of a suite: three distances up to 40 tokens.")] = False,
    chat: Chat = False,
    graphs: Graphs = 0,
    graph_nodes: GraphNodes = 200,
    *,
    common: Common,
) -> None:
    """MEMTRACE: does a fact stated early survive to the question?"""
    from symbolic_residue.prompts import PromptSet, read_prompts
    from symbolic_residue.shells.memtrace import MemtraceConfig, MemtraceQuestion, MemtraceShell

    given = chosen(
        fact=fact,
        question=question,
        answer=answer or None,
        foils=[foil] if foil else None,
        control=control,
        distractors=distractor or None,
    )
    if (prompt is None) == (file is None):
        raise ConfigError("Give a prompt, or --file with prompts." if prompt is None else "Give a prompt or --file, not both.")
    if file is not None:
        if given:
            raise ConfigError(f"--{next(iter(given))} belongs to a single prompt.", todo="Put it in the file.")
        prompts = read_prompts(file, MemtraceQuestion)
    else:
        prompts = PromptSet([MemtraceQuestion.make(prompt=prompt, **given)], [])  # type: ignore[list-item]
    options = chosen(
        distances=tuple(sorted({0, *distance})) if distance else None,
        paddings=tuple(padding) if padding else None,
        draws=draws,
        top_heads=top_heads,
    )
    config = MemtraceConfig.quick(**options) if quick else MemtraceConfig.make(**options)
    shell = MemtraceShell(loaded=common.open(), config=config)
    run_shell(
        common,
        shell,
        prompts,
        lambda item, told: shell.run(item.prompt, **item.asked(), chat=chat, seed=common.seed, progress=told),
        chat=chat,
        graphs=(graphs, graph_nodes),
    )
