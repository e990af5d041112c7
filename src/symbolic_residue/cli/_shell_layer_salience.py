"""``residue shell layer-salience``: what does the model stop looking at, and did it matter?"""

from __future__ import annotations

from typing import Annotated, Any

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

__all__ = ["layer_salience"]


def layer_salience(
    prompt: Prompt = None,
    file: File = None,
    chat: Chat = False,
    model: Model = "demo",
    adapter: Adapter = None,
    output: Output = None,
    seed: Seed = 0,
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
    dtype: Dtype = "float32",
    device: Device = "cpu",
    resume: Resume = False,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """LAYER-SALIENCE: what does it stop looking at, and did it matter?"""
    prompts = gather_prompts(prompt, file, candidates=[answer] if answer is not None and file is not None else None)
    from symbolic_residue.diagnose import shell_item
    from symbolic_residue.shells import LayerSalienceConfig, LayerSalienceShell

    given: dict[str, Any] = {"threshold": threshold, "draws": draws, "max_tokens": max_tokens, "top_heads": top_heads}
    if dose:
        given["doses"] = tuple(dose)
    if quick:
        defaults = LayerSalienceConfig()
        config = LayerSalienceConfig.quick(**{name: value for name, value in given.items() if value != getattr(defaults, name)})
    else:
        config = LayerSalienceConfig.make(**given)
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    shell = LayerSalienceShell(loaded=loaded, config=config)

    def work(item: Any, progress: Any) -> Any:
        messages = [dict(m) for m in item.messages] if item.messages is not None else None
        follow = answer if answer is not None else item.candidates[0] if item.candidates else None
        return shell_item(
            shell,
            item.id,
            item.prompt or "",
            lambda told: shell.run(
                item.prompt, messages=messages, chat=chat and messages is None, answer=follow, seed=seed, progress=told
            ),
            chat=chat or messages is not None,
            seed=seed,
            progress=progress,
        )

    code = measure_items(
        kind="layer-salience",
        loaded=loaded,
        prompts=prompts,
        config={"shells": {"layer-salience": config.model_dump(mode="json")}, "chat": chat, "seed": seed},
        output=output,
        resume=resume,
        seed=seed,
        report=not no_report,
        as_json=json,
        work=work,
    )
    raise typer.Exit(code)
