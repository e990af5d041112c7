"""``residue shells integrate``: several shells on one prompt, and what they blame together.

1. Every shell on every text (the prompt, then those of ``--elsewhere``) is one item of the run folder: its findings, and in the table ``blame`` everything
   that it blames. A shell of which nothing can be asked on a text is a failed item with the reason.
2. The item ``together`` is made last, from those tables alone. So a run that was stopped goes on with ``--resume`` where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import default_output, gather_prompts
from symbolic_residue.cli._shell_common import Common, measuring
from symbolic_residue.errors import ConfigError, InputError

__all__ = ["TOGETHER", "integrate"]

TOGETHER = "together"
"""The item of the run folder that holds what the shells blame together; the others are named by their shells."""


@measuring
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
    *,
    common: Common,
) -> None:
    """Every shell on one prompt: which heads, layers and tokens do several of them blame, against chance? A shell that has nothing to ask there is left out."""
    gather_prompts(prompt, None)
    from symbolic_residue.diagnose import failed_item, ItemResult, items_row, shell_item
    from symbolic_residue.prompts import PromptItem, PromptSet
    from symbolic_residue.shells import config_class, make_shell, ShellIntegrator, SHELLS
    from symbolic_residue.shells.across import blame_table

    names = list(dict.fromkeys(shell or SHELLS))
    texts: list[str] = list(dict.fromkeys([prompt, *(elsewhere or ())]))
    configs = {name: (config_class(name).make if full else config_class(name).quick)() for name in names}
    folder = common.output or default_output("integrate")
    loaded = common.open()
    joint = ShellIntegrator({name: make_shell(name, loaded, configs[name]) for name in names})
    asked = {_item(name, i): (name, text) for i, text in enumerate(texts) for name in names}

    def work(item: PromptItem, progress: Any) -> Any:
        if item.id == TOGETHER:
            return together()
        name, text = asked[item.id]
        try:
            arguments = joint.arguments(name, text)
        except InputError as error:
            return failed_item(item.id, text, str(error), chat=False, seed=common.seed)
        result = shell_item(
            joint.shells[name],
            item.id,
            text,
            lambda told: joint.shells[name].run(**arguments, seed=common.seed, progress=told),
            seed=common.seed,
            progress=progress,
        )
        if result.findings is not None:
            result.tables["blame"] = blame_table(name, result.findings)
        return result

    def together() -> Any:
        runs = kept_runs(folder, names, texts)
        try:
            found = joint.integrated_attribution(runs[0], elsewhere=runs[1:], seed=common.seed)
        except ConfigError as error:  # fewer than two shells ran
            return failed_item(TOGETHER, prompt, str(error), chat=False, seed=common.seed)
        row = items_row(
            prompt=prompt,
            text=None,
            chat=False,
            n_tokens=None,
            seed=common.seed,
            status="done",
            error=None,
            summary=found.summary,
        )
        return ItemResult(TOGETHER, found.tables() | {"items": row}, {}, found.summary)

    items = [PromptItem(id=key, prompt=text) for key, (_, text) in asked.items()]
    code = Common(**{**vars(common), "output": folder}).measure(
        kind="integrate",
        loaded=loaded,
        prompts=PromptSet([*items, PromptItem(id=TOGETHER, prompt=prompt)], []),
        config={
            "shells": {name: config.model_dump(mode="json") for name, config in configs.items()},
            "elsewhere": texts[1:],
            "prompt": prompt,
        },
        work=work,
    )
    # A shell that was not asked for by name and has nothing to ask of the text is no failure.
    raise typer.Exit(0 if code == 1 and shell is None and _integrated(folder) else code)


def kept_runs(folder: Path, names: list[str], texts: list[str]) -> list[Any]:
    """What the run folder holds of every text, as ``IntegratedRun``s, the prompt's first."""
    from symbolic_residue.shells.across import IntegratedRun, KeptBlame
    from symbolic_residue.store import RunFolder

    run = RunFolder.open(folder)
    done, errors = set(run.done_items()), dict(run.table("items").select("item", "error").iter_rows())
    blame = dict(run.table("blame").group_by("item"))
    out = []
    for i, text in enumerate(texts):
        here = {name: _item(name, i) for name in names}
        empty = run.table("blame").clear()
        findings = {name: KeptBlame(blame.get((key,), empty).drop("item")) for name, key in here.items() if key in done}
        refused = {name: errors[key] or "It failed." for name, key in here.items() if key in errors and key not in done}
        out.append(IntegratedRun(text, findings, refused))
    return out


def _item(name: str, text: int) -> str:
    return name if text == 0 else f"{name}.elsewhere-{text}"


def _integrated(folder: Path) -> bool:
    from symbolic_residue.store import RunFolder

    return TOGETHER in RunFolder.open(folder).done_items()
