"""``residue read``: exact attention readouts of a prompt to Parquet."""

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
    open_for_cli,
    Output,
    Prompt,
    Resume,
)
from symbolic_residue.errors import ConfigError

__all__ = ["read"]


def read(
    prompt: Prompt = None,
    file: File = None,
    chat: Chat = False,
    model: Model = "demo",
    adapter: Adapter = None,
    output: Output = None,
    rows: Annotated[str, typer.Option("--rows", help="all, or query rows such as -1 or 5,7,-1.")] = "all",
    span: Annotated[list[str] | None, typer.Option("--span", help="NAME=TEXT: a region of its own. Repeatable.")] = None,
    backend: Annotated[
        str, typer.Option("--backend", help="What computes the readouts: auto, native, triton, torch, blocks, dense.")
    ] = "auto",
    mode: Annotated[str, typer.Option("--mode", help="observe (the model's own attention runs, too), replace, or auto.")] = "auto",
    dtype: Dtype = "float32",
    device: Device = "cpu",
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Read attention of every layer and head: region masses, entropy (nats), distance (tokens), largest weight and its key.

    The tables are readout_mass (layer, head, row, region, mass) and readout_stats (layer, head, row, ...), beside items and tokens.
    """
    chosen = _rows(rows)
    spans = [_span(text) for text in span or []]
    prompts = gather_prompts(prompt, file)
    from symbolic_residue.instrument.attention import check_backend

    check_backend(backend, mode)
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from symbolic_residue.diagnose import read_item

    code = measure_items(
        kind="read",
        loaded=loaded,
        prompts=prompts,
        config={"rows": rows, "spans": dict(spans), "chat": chat, "backend": backend, "mode": mode},
        output=output,
        resume=resume,
        seed=0,
        report=False,
        as_json=json,
        work=lambda item, progress: read_item(
            loaded, item, chat=chat, rows=chosen, spans=spans, backend=backend, mode=mode, progress=progress
        ),
    )
    raise typer.Exit(code)


def _rows(text: str) -> tuple[int, ...] | None:
    if text.strip() == "all":
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--rows {text!r} is not understood.", todo="Write all, or whole numbers separated by commas.") from None


def _span(text: str) -> tuple[str, str]:
    name, separator, content = text.partition("=")
    if not (name and separator and content):
        raise ConfigError(f"--span {text!r} is not understood.", todo="Write NAME=TEXT, where TEXT occurs in the prompt.")
    return name, content
