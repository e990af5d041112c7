"""``residue dictionary train``: a dictionary of features from texts, in a folder.

1. Texts and options are judged before a model is opened. Documents are held out by their text alone, so that the same ones are held out again.
2. The same command goes on where it was stopped; another model, other texts or options are refused in the same folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import Adapter, Device, Dtype, echo_json, Json, Model, open_for_cli, Seed
from symbolic_residue.cli._concepts_run import number_list
from symbolic_residue.errors import ConfigError, CorpusError

__all__ = ["Texts", "train_command"]

Texts = Annotated[
    str,
    typer.Argument(
        metavar="TEXTS", help="Documents: a folder of .txt files, a .txt or .jsonl file, or python-docs.", show_default=False
    ),
]


def train_command(
    texts: Texts,
    output: Annotated[Path, typer.Option("--output", "-o", help="The dictionary's folder.", show_default=False)],
    kind: Annotated[
        str, typer.Option("--kind", help="transcoder: each layer for itself. clt: features write to all later layers too.")
    ] = "transcoder",
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers, such as 0-9,12; default: all.", show_default=False)
    ] = None,
    features: Annotated[int, typer.Option("--features", "-f", help="Of each layer.")] = 1024,
    activation: Annotated[str, typer.Option("--activation", help="topk or jumprelu.")] = "topk",
    k: Annotated[
        int | None, typer.Option("-k", help="Of topk: features kept at a position. No default.", show_default=False)
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="Of jumprelu: weight of the number of active features.", show_default=False)
    ] = None,
    skip: Annotated[bool, typer.Option("--skip", help="A linear path beside the features.")] = False,
    steps: Annotated[int, typer.Option("--steps", help="Of the optimiser.")] = 2000,
    batch: Annotated[int, typer.Option("--batch", help="Tokens a step.")] = 512,
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr", help="The highest.")] = 1e-3,
    dead_after: Annotated[int, typer.Option("--dead-after", help="Silent tokens after which a feature is dead.")] = 100_000,
    context: Annotated[int, typer.Option("--context", help="Tokens that the model reads at once.")] = 128,
    stored: Annotated[str, typer.Option("--stored", help="Activations on disk: float16 or float32.")] = "float16",
    random_encoder: Annotated[
        bool, typer.Option("--random-encoder", help="The control: an encoder that learns nothing, decoders trained as long.")
    ] = False,
    held_out: Annotated[float, typer.Option("--hold-out", help="Share of the documents that is not trained on.")] = 0.2,
    activations: Annotated[
        Path | None, typer.Option("--activations", help="Folder of activations to keep and share.", show_default=False)
    ] = None,
    anew: Annotated[bool, typer.Option("--anew", help="Throw away what the folder holds of another training.")] = False,
    seed: Seed = 0,
    model: Model = "demo",
    adapter: Adapter = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Train features that stand in for a model's MLPs. Stopped, the same command goes on.

    The first position of every piece of text holds the attention sink and is left out. A dictionary trained in minutes on a little text is a poor one: see how
    poor with: residue dictionary evaluate
    """
    from symbolic_residue.dictionaries import hold_out, read_documents, train_dictionary, TrainingPlan

    plan = TrainingPlan(
        kind=kind, layers=None if layers is None else number_list(layers, "--layers"), features=features, activation=activation, k=k,  # type: ignore[arg-type]
        sparsity=sparsity, skip=skip, steps=steps, batch=batch, learning_rate=learning_rate, dead_after=dead_after, context=context,
        stored=stored, random_encoder=random_encoder, seed=seed,  # type: ignore[arg-type]
    )  # fmt: skip
    training, kept = hold_out(read_documents(texts), held_out)
    if not training:
        raise CorpusError(f"All {len(kept)} documents are held out.", todo="Give more documents, or a smaller --hold-out.")
    if held_out and not kept:
        raise ConfigError(
            f"None of the {len(training)} documents is held out.",
            why="There would be no text to measure the dictionary on.",
            todo="Give more documents, or a larger --hold-out; --hold-out 0 trains on all.",
        )
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    with bars({"activations": "reading the model", "training": "training"}) as tell:
        done = train_dictionary(loaded, training, output, plan, anew=anew, activations=activations, progress=tell)
    last = done.records.tail(20)
    found = {
        "folder": str(output), "kind": done.dictionary.kind, "layers": done.layers.to_dicts(), "documents": len(training), "held_out": len(kept),
        "tokens": done.tokens, "left_out": done.left_out, "unexplained_in_training": last["unexplained"].mean(), "active": last["active"].mean(),
        "dead": int(last["dead"][-1]), "sha256": done.dictionary.sha256,
    }  # fmt: skip
    if json:
        echo_json(found)
        return
    _show(found, plan.features, texts)


@contextmanager
def bars(titles: dict[str, str]) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error for each part of the work."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(titles[what], total=total)
            progress.update(tasks[what], completed=done)

        yield tell


def _show(found: dict[str, Any], features: int, texts: str) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{found['kind']}: {len(found['layers'])} layers of {features} features, {found['tokens']} positions of {found['documents']} documents "
        f"({found['held_out']} held out); {found['left_out']} second sinks left out"
    )
    console.print(
        f"in training (last 20 steps): {100 * found['unexplained_in_training']:.0f} % of the outputs' variance unexplained, "
        f"{found['active']:.1f} active features a layer; {found['dead']} dead at the end"
    )
    top = sorted(found["layers"], key=lambda row: -row["first_written"])[:3]
    told = ", ".join(f"layer {row['layer']} {row['first_written']:,.1f}" for row in top)
    console.print(f"what MLPs write at the first position (left out), in mean square over elsewhere: {told}")
    console.print(f"dictionary: {found['folder']}")
    if found["held_out"]:
        console.print(f"next: residue dictionary evaluate {found['folder']} {texts}")
