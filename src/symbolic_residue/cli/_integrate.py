"""``residue shells integrate``: several shells on one prompt, and what they blame together."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import (
    Adapter,
    Device,
    Dtype,
    gather_prompts,
    Json,
    measure_items,
    Model,
    NoReport,
    open_for_cli,
    Output,
    Seed,
)

__all__ = ["TOGETHER", "integrate"]

TOGETHER = "together"
"""The item of the run folder that holds what the shells blame together; the others are named by their shells."""


def integrate(
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    shell: Annotated[
        list[str] | None,
        typer.Option("--shell", "-s", help="Only this shell; give it twice or more. Default: all.", show_default=False),
    ] = None,
    elsewhere: Annotated[
        list[str] | None,
        typer.Option("--elsewhere", help="Another text, for the crossed control. Repeatable.", show_default=False),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Each shell's full options instead of those of a suite.")] = False,
    model: Model = "demo",
    adapter: Adapter = None,
    output: Output = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Every shell on one prompt: which heads, layers and tokens do several of them blame, against chance?"""
    gather_prompts(prompt, None)
    from symbolic_residue.diagnose import failed_item, ItemResult, items_row
    from symbolic_residue.prompts import PromptItem, PromptSet
    from symbolic_residue.shells import config_class, make_shell, ShellIntegrator, SHELLS

    names = list(dict.fromkeys(shell or SHELLS))
    configs = {name: (config_class(name).make if full else config_class(name).quick)() for name in names}
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    joint = ShellIntegrator({name: make_shell(name, loaded, configs[name]) for name in names})
    results: list[Any] = []

    def work(item: PromptItem, progress: Any) -> Any:
        if not results:
            results.append(joint.run_all(prompt, seed=seed, progress=progress))
        here = results[0]
        if item.id in here.refused:
            return failed_item(item.id, prompt, here.refused[item.id], chat=False, seed=seed)
        if item.id != TOGETHER:
            findings = here.findings[item.id]
            return ItemResult(
                item.id, findings.tables() | {"items": row(findings.summary)}, findings.tensors(), findings.summary, findings
            )
        others = [joint.run_all(text, seed=seed, progress=progress) for text in elsewhere or []]
        found = joint.integrated_attribution(here, elsewhere=others, seed=seed)
        return ItemResult(item.id, found.tables() | {"items": row(found.summary)}, {}, found.summary)

    def row(summary: str) -> Any:
        return items_row(
            prompt=prompt, text=None, chat=False, n_tokens=None, seed=seed, status="done", error=None, summary=summary
        )  # fmt: skip

    code = measure_items(
        kind="integrate",
        loaded=loaded,
        prompts=PromptSet([PromptItem(id=name, prompt=prompt) for name in (*names, TOGETHER)], []),
        config={
            "shells": {name: config.model_dump(mode="json") for name, config in configs.items()},
            "elsewhere": elsewhere or [],
            "seed": seed,
        },
        output=output,
        resume=False,
        seed=seed,
        report=not no_report,
        as_json=json,
        work=work,
    )
    raise typer.Exit(code)
