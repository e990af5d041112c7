"""``residue shell NAME``: run one controlled failure probe, with the options that matter to it."""

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
from symbolic_residue.cli._meta import meta
from symbolic_residue.cli._shell_custom import custom
from symbolic_residue.cli._shell_instruction import instruction_disruption
from symbolic_residue.cli._shell_layer_salience import layer_salience
from symbolic_residue.cli._shell_memtrace import memtrace
from symbolic_residue.cli._shell_temporal import temporal_inference

__all__ = ["shell_app"]

shell_app = typer.Typer(help="Run one controlled failure probe.", no_args_is_help=True)


@shell_app.callback()
def _group() -> None:
    """Run one controlled failure probe."""


shell_app.command("custom")(custom)
shell_app.command("instruction-disruption")(instruction_disruption)
shell_app.command("memtrace")(memtrace)
shell_app.command("layer-salience")(layer_salience)
shell_app.command("meta")(meta)
shell_app.command("temporal-inference")(temporal_inference)


@shell_app.command("value-collapse")
def value_collapse(
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
    mass: Annotated[float, typer.Option("--mass", help="Probability that the candidates hold together.")] = 0.9,
    threshold: Annotated[float, typer.Option("--yield-threshold", help="YIELD needs this probability.")] = 0.5,
    steps: Annotated[int, typer.Option("--steps", help="STABILIZE: the most steps.")] = 8,
    variants: Annotated[int, typer.Option("--variants", help="Small edits of the prompt; the intervals' n.")] = 12,
    top_heads: Annotated[int, typer.Option("--top-heads", help="Heads to ablate and patch.")] = 12,
    refiner: Annotated[str, typer.Option("--refiner", help="rollout, soft or layers: whose traces decide.")] = "layers",
    dtype: Dtype = "float32",
    device: Device = "cpu",
    resume: Resume = False,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """VALUE-COLLAPSE: can the model decide between competing next tokens?"""
    prompts = gather_prompts(prompt, file, candidates=candidate, control=control)
    from symbolic_residue.diagnose import diagnose_item
    from symbolic_residue.shells import ValueCollapseConfig, ValueCollapseShell

    config = ValueCollapseConfig.make(
        mass=mass, yield_threshold=threshold, steps=steps, variants=variants, top_heads=top_heads, verdict_refiner=refiner
    )
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    shell = ValueCollapseShell(loaded=loaded, config=config)
    code = measure_items(
        kind="value-collapse",
        loaded=loaded,
        prompts=prompts,
        config={"shells": {"value-collapse": config.model_dump(mode="json")}, "chat": chat, "seed": seed},
        output=output,
        resume=resume,
        seed=seed,
        report=not no_report,
        as_json=json,
        work=lambda item, progress: diagnose_item(shell, item, chat=chat, seed=seed, progress=progress),
    )
    raise typer.Exit(code)
