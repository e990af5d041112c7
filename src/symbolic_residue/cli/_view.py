"""``residue shells attention``: where chosen heads look, and what each key adds to the next token through them."""

from __future__ import annotations

from typing import Annotated

import typer

from symbolic_residue.cli._across import digest, gather_texts, Texts
from symbolic_residue.cli._common import (
    Adapter,
    Chat,
    Device,
    Dtype,
    File,
    Json,
    measure_items,
    Model,
    NoReport,
    one_token,
    open_for_cli,
    Output,
    Resume,
    Seed,
)
from symbolic_residue.errors import ConfigError

__all__ = ["attention"]


def attention(
    texts: Texts = None,
    file: File = None,
    heads: Annotated[
        str | None, typer.Option("--heads", metavar="L.H,…", help="Heads as layer.head, with commas.", show_default=False)
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="A next token; again for more. Default: the best over the second best.", show_default=False),
    ] = None,
    last: Annotated[int, typer.Option("--last", min=1, help="How many last rows.")] = 24,
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
    """Where do chosen heads look, and what does each key add to the next token through them?"""
    prompts = gather_texts(texts, file)
    chosen = _heads(heads)
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from symbolic_residue.diagnose import attention_item
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.shells.across import check_heads

    instrument = Instrument(loaded)
    check_heads(instrument, chosen)
    targets = [one_token(loaded.tokenizer, text) for text in target or []]
    code = measure_items(
        kind="attention",
        loaded=loaded,
        prompts=prompts,
        config={
            "heads": [list(head) for head in chosen],
            "targets": targets,
            "last": last,
            "chat": chat,
            "prompts_sha256": digest(prompts),
            "seed": seed,
        },
        output=output,
        resume=resume,
        seed=seed,
        report=not no_report,
        as_json=json,
        work=lambda item, progress: attention_item(instrument, item, chosen, targets=targets, last=last, chat=chat, seed=seed),
    )
    raise typer.Exit(code)


def _heads(text: str | None) -> list[tuple[int, int]]:
    try:
        pairs = [part.strip().split(".") for part in (text or "").split(",")]
        return list(dict.fromkeys((int(layer), int(head)) for layer, head in pairs))
    except ValueError:
        said = "--heads is missing." if text is None else f"--heads {text!r} is not understood."
        raise ConfigError(said, todo="Write heads as layer.head with commas between, as in 3.1,4.0.") from None
