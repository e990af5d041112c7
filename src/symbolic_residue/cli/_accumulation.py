"""``residue shells errors``: how errors grow from layer to layer, of the logit lens or of a replacement of the user's own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._across import gather_texts, measure_together, Texts, TOGETHER
from symbolic_residue.cli._common import (
    Adapter,
    Chat,
    Device,
    Dtype,
    File,
    Json,
    Model,
    NoReport,
    open_for_cli,
    Output,
    Resume,
    Seed,
)
from symbolic_residue.errors import ConfigError

__all__ = ["errors"]


def errors(
    texts: Texts = None,
    file: File = None,
    replacement: Annotated[
        str | None,
        typer.Option(
            "--replacement",
            metavar="FILE.py:NAME",
            help="A function (layer, source) -> target, or a mapping of layers to functions or modules. Default: the logit lens.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[str, typer.Option("--source", help="The point that a replacement reads, as mlp_in.")] = "resid_post",
    target: Annotated[str, typer.Option("--target", help="The point that it replaces, as mlp_out.")] = "resid_post",
    chat: Chat = False,
    model: Model = "demo",
    adapter: Adapter = None,
    output: Output = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    resume: Resume = False,
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """How do errors grow over the layers, one replaced alone and all up to it, beside random errors of equal length?

    The code of --replacement is imported and runs with your rights.
    """
    prompts = gather_texts(texts, file)
    if replacement is None and (source, target) != ("resid_post", "resid_post"):
        raise ConfigError("--source and --target belong to --replacement.", why="The logit lens reads the residual stream.")
    from symbolic_residue.cli._shell_custom import load_object

    made = None if replacement is None else load_object(replacement)
    if made is not None and not callable(made) and not hasattr(made, "items"):
        raise ConfigError(
            f"{replacement} is a {type(made).__name__}.", todo="Name a function (layer, source) -> target, or a mapping."
        )
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from symbolic_residue.diagnose import errors_item, errors_together
    from symbolic_residue.instrument import Instrument

    instrument = Instrument(loaded)
    if made is not None:
        instrument.points([f"{source}.*", f"{target}.*"])

    def together(run: Any, items: Any, progress: Any) -> Any:
        return errors_together(run.table("curves"), item=TOGETHER, lens=made is None, seed=seed)

    code = measure_together(
        kind="errors",
        loaded=loaded,
        prompts=prompts,
        config={
            "replacement": replacement,
            "replacement_sha256": _sha256(replacement),
            "source": source,
            "target": target,
            "chat": chat,
        },
        output=output,
        resume=resume,
        seed=seed,
        report=not no_report,
        as_json=json,
        each=lambda item, progress: errors_item(
            instrument, item, replacement=made, source=source, target=target, chat=chat, seed=seed
        ),
        together=together,
    )
    raise typer.Exit(code)


def _sha256(replacement: str | None) -> str | None:
    """Of the file that is named, so that a run is not gone on with under other code; None for a module."""
    path = Path((replacement or "").rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".py" and path.is_file() else None
