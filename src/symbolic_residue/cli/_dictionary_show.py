"""``residue dictionary show``: what a dictionary's files hold, without a model."""

from __future__ import annotations

from typing import Any

import typer

from symbolic_residue.cli._common import echo_json, Json
from symbolic_residue.cli._dictionary_evaluate import DictionaryArgument, PredictsOption, ReadsOption, TopKOption

__all__ = ["show_command"]


def show_command(
    dictionary: DictionaryArgument,
    reads: ReadsOption = None,
    predicts: PredictsOption = None,
    k: TopKOption = None,
    json: Json = False,
) -> None:
    """Show what a dictionary's files hold: format, layers, features, where they read and write."""
    from symbolic_residue.dictionaries import open_dictionary, trained_texts

    opened = open_dictionary(dictionary, reads=reads, predicts=predicts, k=k, progress=lambda line: typer.echo(line, err=True))  # type: ignore[arg-type]
    found = {
        "kind": opened.kind, "d_model": opened.d_model, "sha256": opened.sha256, "source": dict(opened.source),
        "documents_trained_on": len(trained_texts(dictionary)),
        "layers": [
            {
                "layer": i, "features": one.n_features, "activation": one.activation.kind, "k": one.activation.k, "reads": one.reads,
                "predicts": one.predicts, "writes_to": sorted(one.decoders), "skip": one.skip is not None,
            }
            for i, one in opened.layers.items()
        ],
    }  # fmt: skip
    if json:
        echo_json(found)
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from symbolic_residue.cli._errors import visible

    console = Console(highlight=False, soft_wrap=True, markup=False)
    source = found["source"]
    console.print(
        visible(
            f"{found['kind']} of {source.get('model') or 'an unnamed model'}, format {source.get('format')}, width {found['d_model']}"
        )
    )
    table = Table(box=None, pad_edge=False)
    for name in ("layer", "features", "activation", "reads", "predicts", "writes to", "skip"):
        table.add_column(name, no_wrap=True)
    for row in found["layers"]:
        activation = row["activation"] + (f" {row['k']}" if row["k"] is not None else "")
        targets = row["writes_to"]
        told = str(targets[0]) if len(targets) == 1 else f"{len(targets)} layers, {targets[0]} to {targets[-1]}"
        table.add_row(
            str(row["layer"]), str(row["features"]), activation, row["reads"], row["predicts"], told, "yes" if row["skip"] else ""
        )
    console.print(table)
    if found["documents_trained_on"]:
        console.print(f"trained on {found['documents_trained_on']} documents (training.json)")
    console.print(f"sha256 {found['sha256']}")
