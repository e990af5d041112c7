"""``residue shells silence``: where the model says nothing, why, who is overruled, and which units are ghosts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from symbolic_residue.cli._across import gather_texts, measure_together, Texts, TOGETHER
from symbolic_residue.cli._common import (
    Adapter,
    Chat,
    default_output,
    Device,
    Dtype,
    File,
    Json,
    Model,
    NoReport,
    one_token,
    open_for_cli,
    Output,
    Resume,
    Seed,
)
from symbolic_residue.cli._failure_graphs import graph_config, GraphNodes, Graphs, item_of, silence_graphs
from symbolic_residue.errors import ConfigError

__all__ = ["silence"]


def silence(
    texts: Texts = None,
    file: File = None,
    end: Annotated[
        list[str] | None,
        typer.Option("--end", help="A token that ends a text; again for more. Default: the model's own.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="Heads, and MLPs, to ablate.")] = 8,
    random_heads: Annotated[int, typer.Option("--random-heads", min=0, help="Heads of the control.")] = 24,
    graphs: Graphs = 0,
    graph_nodes: GraphNodes = 200,
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
    """Does end-of-text come first, which components push it, which push content and are overruled, and which units are ghosts?

    Lines of --file: {"prompt": …, "control": …}; the control is a matched prompt on which the model speaks.
    """
    prompts = gather_texts(texts, file)
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from symbolic_residue.diagnose import build_item, silence_item, silence_together
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.shells import end_tokens

    instrument = Instrument(loaded)
    if loaded.parts.logit_softcap is not None:
        why = "The parts of an attribution do not add up to a capped difference."
        raise ConfigError("The model soft-caps its logits.", why=why)
    ends = end_tokens(instrument, [one_token(loaded.tokenizer, word) for word in end] if end else None)

    def together(run: Any, items: Any, progress: Any) -> Any:
        import polars as pl

        built = [build_item(instrument, item, chat=chat) for item in items]
        table = run.table("endings")
        return silence_together(
            instrument,
            [prompt for prompt, _ in built],
            [control for _, control in built],
            pl.concat([table.clear(), *(table.filter(pl.col("item") == item.id) for item in items)]),
            item=TOGETHER,
            end=ends,
            top=top,
            random_heads=random_heads,
            chat=chat,
            seed=seed,
            progress=progress,
        )

    path = output or default_output("silence")

    def graphs_of(run: Any, progress: Any) -> Any:
        return silence_graphs(instrument, run, top=graphs, nodes=graph_nodes, ends=ends, seed=seed, progress=progress)

    code = measure_together(
        kind="silence",
        loaded=loaded,
        prompts=prompts,
        config={"end": ends, "top": top, "random_heads": random_heads, "chat": chat} | graph_config(graphs, graph_nodes),
        after={item_of("silence"): graphs_of} if graphs else None,
        output=path,
        resume=resume,
        seed=seed,
        report=not no_report,
        as_json=json,
        each=lambda item, progress: silence_item(instrument, item, end=ends, chat=chat, seed=seed),
        together=together,
    )
    raise typer.Exit(code)
