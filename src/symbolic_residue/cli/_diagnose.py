"""``residue diagnose``: why does the model fail on this prompt?"""

from __future__ import annotations

from typing import Annotated

import typer

from symbolic_residue.cli._common import (
    Adapter,
    Chat,
    Device,
    Dtype,
    File,
    gather_prompts,
    Json,
    measure_items,
    Model,
    NoReport,
    open_for_cli,
    Output,
    Prompt,
    Resume,
    Seed,
)

__all__ = ["diagnose"]


def diagnose(
    prompt: Prompt = None,
    file: File = None,
    chat: Chat = False,
    model: Model = "demo",
    adapter: Adapter = None,
    output: Output = None,
    seed: Seed = 0,
    candidate: Annotated[
        list[str] | None, typer.Option("--candidate", help="A competing next token; give it twice or more.")
    ] = None,
    control: Annotated[str | None, typer.Option("--control", help="A matched prompt whose answer is settled.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    resume: Resume = False,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Find out why a model fails on a prompt: verdicts with their controls, who pulls which way, and a report."""
    prompts = gather_prompts(prompt, file, candidates=candidate, control=control)
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from symbolic_residue.diagnose import diagnose_item
    from symbolic_residue.shells import ValueCollapseShell

    shell = ValueCollapseShell(loaded=loaded)
    code = measure_items(
        kind="diagnose",
        loaded=loaded,
        prompts=prompts,
        config={"shells": {"value-collapse": shell.config.model_dump(mode="json")}, "chat": chat, "seed": seed},
        output=output,
        resume=resume,
        seed=seed,
        report=not no_report,
        as_json=json,
        work=lambda item, progress: diagnose_item(shell, item, chat=chat, seed=seed, progress=progress),
    )
    raise typer.Exit(code)
