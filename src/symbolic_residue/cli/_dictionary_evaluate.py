"""``residue dictionary evaluate``: how well a dictionary stands in for the MLPs, on documents that it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import Adapter, Device, Dtype, echo_json, Json, Model, open_for_cli, Seed
from symbolic_residue.cli._dictionary_train import Texts
from symbolic_residue.errors import CorpusError

__all__ = ["DictionaryArgument", "PredictsOption", "ReadsOption", "TopKOption", "evaluate_command"]

DictionaryArgument = Annotated[Path, typer.Argument(metavar="DICTIONARY", help="A dictionary's folder.", show_default=False)]
ReadsOption = Annotated[
    str | None,
    typer.Option("--reads", help="resid_mid, mlp_in or normalized, where the files do not say it.", show_default=False),
]
PredictsOption = Annotated[
    str | None, typer.Option("--predicts", help="mlp_out or mlp, where the files do not say it.", show_default=False)
]
TopKOption = Annotated[int | None, typer.Option("-k", help="Of TopK, where the files do not say it.", show_default=False)]

_LEAST = 3


def evaluate_command(
    dictionary: DictionaryArgument,
    texts: Texts,
    documents: Annotated[int, typer.Option("--documents", "-n", min=1, help="The most that are run.")] = 16,
    tokens: Annotated[int, typer.Option("--tokens", min=_LEAST, help="Of each document, from its beginning.")] = 64,
    reads: ReadsOption = None,
    predicts: PredictsOption = None,
    k: TopKOption = None,
    seed: Seed = 0,
    model: Model = "demo",
    adapter: Adapter = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Measure a dictionary: unexplained share, active features, and what the model loses when features stand in for MLPs.

    Documents that the dictionary is known to have been trained on are left out. n counts documents, and intervals are over them. The columns of means are the
    control: the mean write in the MLP's place.
    """
    from symbolic_residue.dictionaries import evaluate_dictionary, open_dictionary, read_documents, text_sha256, trained_texts

    opened = open_dictionary(dictionary, reads=reads, predicts=predicts, k=k, progress=lambda line: typer.echo(line, err=True))  # type: ignore[arg-type]
    found = read_documents(texts)
    seen = trained_texts(dictionary)
    new = [text for text in found if text_sha256(text) not in seen]
    if not new:
        raise CorpusError(
            f"All {len(found)} documents were trained on.",
            why="A dictionary is better on text that it was trained on than on any other.",
            todo="Give other documents, or train with --hold-out.",
        )
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from rich.console import Console

    from symbolic_residue.instrument import Instrument

    call: Any = loaded.tokenizer
    ids = [list(call(text, verbose=False)["input_ids"])[:tokens] for text in new]
    prompts = [one for one in ids if len(one) >= _LEAST][:documents]
    if not prompts:
        raise CorpusError(f"No document has {_LEAST} tokens.", todo="Give longer documents.")
    with Console(stderr=True).status(f"{len(prompts)} documents, {len(opened.layers)} layers"):
        table = evaluate_dictionary(Instrument(loaded), opened, prompts, seed=seed)
    trained_for = opened.source.get("weights_sha256")
    same = None if trained_for is None else trained_for == loaded.provenance.weights_sha256
    about = {
        "dictionary": str(dictionary), "kind": opened.kind, "documents": len(prompts), "trained_on": len(found) - len(new),
        "training_texts_known": bool(seen), "trained_on_this_model": same, "layers": table.to_dicts(),
    }  # fmt: skip
    if json:
        echo_json(about)
        return
    _show(about)


def _show(about: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for name in ("layer", "FVU", "L0", "KL", "of means", "KL up to here", "of means", "largest"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in about["layers"]:
        table.add_row(
            str(row["layer"]), _cell(row, "fvu"), f"{row['l0']:.1f}", *(_cell(row, name) for name in ("kl", "kl_mean", "kl_up_to", "kl_mean_up_to")),
            f"{100 * row['largest']:.0f} %",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"n = {about['documents']} documents, 95 % intervals over them; the first position is left as it is. KL in nats, of the model with MLPs replaced by "
        "features, or by their mean write (control). largest: share of the variance that one position holds",
        markup=False,
    )
    if about["trained_on"]:
        console.print(f"left out: {about['trained_on']} documents that it was trained on", markup=False)
    if not about["training_texts_known"]:
        console.print("the folder does not say what it was trained on: these documents may be among it", markup=False)
    if about["trained_on_this_model"] is False:
        console.print("trained on other weights than this model's", markup=False)
    worse = [str(row["layer"]) for row in about["layers"] if row["kl"] >= row["kl_mean"]]
    if worse:
        console.print(f"no better than the mean write in layer {', '.join(worse)}", markup=False)


def _cell(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]".replace("[", r"\["))
