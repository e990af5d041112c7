"""``residue concepts train``: directions of a corpus, in a run folder.

1. Corpus, options and the tokens of every text are judged before a folder is made.
2. The same command again goes on where it was stopped. Another corpus, model or setting is refused with what differs; batch size and side of padding may
   change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from symbolic_residue.cli._common import Adapter, default_output, Device, Dtype, echo_json, Json, Model, open_for_cli, Output, Seed
from symbolic_residue.cli._concepts_run import bar, keep_item, KIND, number_list, reopened
from symbolic_residue.cli._words import words
from symbolic_residue.errors import RunExistsError

__all__ = ["train_command"]


def train_command(
    corpus: Annotated[
        Path | None,
        typer.Argument(metavar="[CORPUS]", help="A corpus: folder or JSONL. Default: the packaged one.", show_default=False),
    ] = None,
    model: Model = "demo",
    adapter: Adapter = None,
    output: Output = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers, such as 0-9,12; default: all.", show_default=False)
    ] = None,
    concepts: Annotated[
        str | None, typer.Option("--concepts", help="Only these, parted by commas; default: all.", show_default=False)
    ] = None,
    pooling: Annotated[
        str, typer.Option("--pooling", help="Which token stands for a text: last, last_content, mean_last_m.")
    ] = "last",
    m: Annotated[int, typer.Option("--m", min=1, help="Tokens of mean_last_m.")] = 16,
    estimator: Annotated[str, typer.Option("--estimator", help="difference, logistic or lda.")] = "difference",
    against: Annotated[
        str, typer.Option("--against", help="Compared with: baseline (neutral tellings), others (other concepts) or all.")
    ] = "baseline",
    chat: Annotated[bool, typer.Option("--chat", help="Render each text as a user's turn by the chat template.")] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts a forward.")] = 16,
    side: Annotated[str, typer.Option("--side", help="Where padding goes: left or right.")] = "right",
    seed: Seed = 0,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Find a direction for each concept and layer. Stopped, the same command goes on."""
    from symbolic_residue.concepts import packaged_corpus, read_corpus

    wanted = None if layers is None else number_list(layers, "--layers")
    named = None if concepts is None else [name.strip() for name in concepts.split(",") if name.strip()]
    source = packaged_corpus() if corpus is None else read_corpus(corpus)  # refused before a model is opened
    path = output or default_output(KIND)
    if path.exists() and not (path / "manifest.json").exists():
        raise RunExistsError(f"{path} is there and holds no run.", todo="Choose another folder.")
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from symbolic_residue.concepts import prepare_training
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.store import RunFolder

    plan = prepare_training(
        Instrument(loaded), source, pooling=pooling, m=m, layers=wanted, estimator=estimator, against=against, concepts=named,  # type: ignore[arg-type]
        chat=chat, batch_size=batch_size, side=side, seed=seed,  # type: ignore[arg-type]
    )  # fmt: skip
    provenance = loaded.provenance.model_copy(update={"seed": seed}).model_dump(mode="json")
    config = {
        "model": str(Path(model).resolve()) if Path(model).is_dir() else model,
        "adapter": None if adapter is None else str(adapter.resolve()), "dtype": dtype, "device": device,
        "corpus": "packaged" if corpus is None else str(corpus), "corpus_sha256": plan.corpus.sha256, "concepts": named,
        **plan.settings, "batch_size": batch_size, "side": side,
    }  # fmt: skip
    if (path / "manifest.json").exists():
        if RunFolder.open(path).manifest.kind == KIND:
            plan.check(path)
        run_folder: Any = reopened(path, config, drop=lambda item: item == "directions")
    else:
        command = ["residue", *words.get()]
        run_folder = RunFolder.create(path, kind=KIND, command=command, provenance=provenance, config=config)
    with run_folder as run, bar("opening the model") as tell:
        done = plan.into(path, tell)
        found = done.directions
        summary = f"{len(found.concepts)} concepts, {len(found.layers)} layers; {len(done.labels)} texts of {len(done.corpus.scenarios)} scenarios"
        keep_item(run, "directions", summary, seed=seed)
    few = [one for one in plan.warnings if one.kind == "too few texts" and one.concept in found.concepts]
    if json:
        echo_json(
            {
                "run": str(path), "concepts": list(found.concepts), "layers": list(found.layers), "texts": len(done.labels),
                "scenarios": len(done.corpus.scenarios), "skipped": [_plain(one) for one in done.pooled.skipped],
                "not_ranked": [one.concept for one in few], "warnings": len(plan.warnings),
            }
        )  # fmt: skip
        return
    from rich.console import Console

    from symbolic_residue.cli._errors import visible

    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(summary)
    if len(few) < len(plan.warnings):
        source_name = "" if corpus is None else f" {corpus}"
        console.print(f"{len(plan.warnings) - len(few)} warnings about the corpus: residue concepts validate{visible(source_name)}")
    for one in few:
        console.print(visible(f"{one.detail}: it is measured and not ranked."))
    for skipped in done.pooled.skipped:
        console.print(visible(f"layer {skipped.layer} has no heads: {skipped.reason}"))
    console.print(visible(f"run: {path}"))
    console.print(visible(f"next: residue concepts report {path}"))


def _plain(one: Any) -> dict[str, Any]:
    return {"layer": one.layer, "module": one.module, "reason": one.reason}
