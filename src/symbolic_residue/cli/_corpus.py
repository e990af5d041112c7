"""``residue corpus``: a corpus of failures, searched by signature.

1. ``add RUN…``: the signatures of all items of saved runs go into the corpus folder.
2. ``search RUN [--item]``: which entries are nearest to an item of a run.
3. ``list``: what is in it.

"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import echo_json, Json
from symbolic_residue.errors import ConfigError

__all__ = ["corpus_app"]

corpus_app = typer.Typer(
    help="Keep failures by their signature, and search for similar ones.", no_args_is_help=True, add_completion=False
)

_Corpus = Annotated[Path, typer.Option("--corpus", "-c", help="The corpus's folder.")]
_FOLDER = Path("residue-corpus")


@corpus_app.command("add")
def add_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    corpus: _Corpus = _FOLDER,
    replace: Annotated[bool, typer.Option("--replace", help="Write items that are already there anew.")] = False,
    json: Json = False,
) -> None:
    """Add the signatures of saved runs: every run's items, or none of any."""
    found = [one for run in runs for one in _of_run(run)]
    if not found:
        raise ConfigError("The runs hold no finished item with a signature.")
    from symbolic_residue.store import Corpus

    store = Corpus.open(corpus, create=True)
    new = store.add(found, replace=replace)
    if json:
        echo_json({"corpus": str(corpus), "added": [entry.model_dump() for entry in new], "entries": len(store.entries)})
        return
    typer.echo(f"{len(new)} added; {len(store.entries)} in {corpus}.")


@corpus_app.command("search")
def search_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    item: Annotated[
        str | None, typer.Option("--item", help="Which item; may be left out where there is one.", show_default=False)
    ] = None,
    corpus: _Corpus = _FOLDER,
    top: Annotated[int, typer.Option("--top", min=1, help="How many.")] = 10,
    all_models: Annotated[bool, typer.Option("--all-models", help="Also entries of other models.")] = False,
    json: Json = False,
) -> None:
    """The entries nearest to an item of a run; the item itself is left out."""
    from symbolic_residue.shells import COMPONENTS
    from symbolic_residue.store import Corpus, corpus_key

    found = {facts["item"]: (facts, frame) for facts, frame in _of_run(run)}
    if item is None and len(found) == 1:
        item = next(iter(found))
    if item is None or item not in found:
        asked = "Which item?" if item is None else f"There is no finished item {item!r} in {run}."
        raise ConfigError(asked, todo=f"Use --item with one of: {', '.join(found) or 'none'}.")
    facts, frame = found[item]
    import numpy as np

    store = Corpus.open(corpus)
    near = store.search(
        frame,
        [c.name for c in COMPONENTS],
        np.array([c.high - c.low for c in COMPONENTS]),
        weights_sha256=None if all_models else facts["weights_sha256"],
        top=top,
        without=corpus_key(facts),
    )
    if json:
        echo_json({"item": item, "corpus": str(corpus), "in_corpus": len(store.entries), "found": near.to_dicts()})
        return
    if not len(near):
        typer.echo("Nothing in the corpus can be compared with it.")
        return
    first = near.row(0, named=True)
    known = "" if first["typical"] is None else f" Two entries drawn at random are {first['typical']:.2f} apart."
    typer.echo(f"Compared with {first['entries']} of {len(store.entries)} entries.{known}")
    columns = ["rank", "distance", "shared", "run", "item", "kind", "summary"]
    _table(columns, [[_cell(row[c]) for c in columns] for row in near.iter_rows(named=True)])


@corpus_app.command("list")
def list_command(corpus: _Corpus = _FOLDER, json: Json = False) -> None:
    """What is in the corpus."""
    from symbolic_residue.store import Corpus

    store = Corpus.open(corpus)
    if json:
        echo_json([entry.model_dump() for entry in store.entries])
        return
    columns = ["run", "item", "kind", "model", "summary"]
    _table(columns, [[_cell(getattr(entry, c)) for c in columns] for entry in store.entries])


def _of_run(path: Path) -> list[tuple[dict[str, Any], Any]]:
    """Facts and signature of every finished item of a run."""
    from symbolic_residue.shells import signatures
    from symbolic_residue.store import RunFolder

    run = RunFolder.open(path)
    done = run.done_items()
    if not done:
        return []
    tables = {name: run.table(name) for name in run.manifest.tables}
    rows = {row["item"]: row for row in tables["items"].iter_rows(named=True)}
    provenance = run.manifest.provenance
    measured = {name: frame for name, frame in tables.items() if name != "items"}
    return [
        (
            {
                "run": path.resolve().name,
                "item": one.name,
                "created": run.manifest.created,
                "model": str(provenance.get("model", "")),
                "weights_sha256": str(provenance.get("weights_sha256", "")),
                "kind": run.manifest.kind,
                "text": rows[one.name]["prompt"],
                "summary": rows[one.name]["summary"] or "",
            },
            one.frame(),
        )
        for one in (signatures(measured) if measured else [])
        if one.name in done
    ]


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from symbolic_residue.cli._errors import visible

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    Console(highlight=False).print(table)
