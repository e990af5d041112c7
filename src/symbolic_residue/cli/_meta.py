"""``residue shell meta NAME``: what a frame that describes a shell changes of its verdicts."""

from __future__ import annotations

from pathlib import Path
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
    Seed,
)

__all__ = ["meta"]


def meta(
    name: Annotated[str, typer.Argument(help="The shell: a name from residue shells list.")],
    prompt: Annotated[str | None, typer.Argument(help="One text. Give it, or --file.", show_default=False)] = None,
    file: File = None,
    frame: Annotated[Path | None, typer.Option("--frame", help="A text file with a frame of your own.", show_default=False)] = None,
    chat: Chat = False,
    model: Model = "demo",
    adapter: Adapter = None,
    output: Output = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Run a shell unframed, framed by its own description, and under the scrambled frame; the paired shifts are over the texts."""
    prompts = gather_prompts(prompt, file)
    from symbolic_residue.diagnose import shell_item
    from symbolic_residue.errors import ConfigError
    from symbolic_residue.prompts import PromptItem, PromptSet
    from symbolic_residue.shells import config_class, make_shell, MetaShell

    if any(item.prompt is None for item in prompts.items):
        raise ConfigError("A frame goes around texts, and the file holds conversations.", todo='Give "prompt" in each line.')
    if not prompts.items:
        raise ConfigError("The file holds no prompt that can be read.")
    words = None
    if frame is not None:
        try:
            words = frame.read_text("utf-8")
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"The frame {frame} cannot be read.", why=str(error)) from error
    options: dict[str, Any] = {"top_heads": 0} if "top_heads" in config_class(name).model_fields else {}
    config = config_class(name).quick(**options)
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    shell = MetaShell(make_shell(name, loaded, config), frame=words)
    texts = [str(item.prompt) for item in prompts.items]
    code = measure_items(
        kind="meta",
        loaded=loaded,
        prompts=PromptSet([PromptItem(id=name, prompt=texts[0])], prompts.bad),
        config={"shells": {name: config.model_dump(mode="json")}, "frame": shell.frame, "texts": texts, "chat": chat, "seed": seed},
        output=output,
        resume=False,
        seed=seed,
        report=not no_report,
        as_json=json,
        work=lambda item, progress: shell_item(
            shell,
            item.id,
            texts[0],
            lambda told: shell.run(texts[0], texts=texts[1:], chat=chat, seed=seed, progress=told),
            chat=chat,
            seed=seed,
            progress=progress,
        ),
    )
    raise typer.Exit(code)
