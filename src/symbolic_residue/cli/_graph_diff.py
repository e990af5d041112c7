"""``residue graph diff``: what one prompt (or model) has that another lacks, edge by edge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TYPE_CHECKING

import typer

from symbolic_residue.cli._common import (
    Adapter,
    Chat,
    default_output,
    Device,
    Dtype,
    echo_json,
    Json,
    Model,
    NoReport,
    open_for_cli,
    Output,
)
from symbolic_residue.cli._dictionary_evaluate import PredictsOption, ReadsOption, TopKOption
from symbolic_residue.cli._graph import (
    asked_dictionary,
    asked_rule,
    asked_targets,
    Candidate,
    ComplianceOpening,
    RefusalOpening,
    write_page,
)
from symbolic_residue.cli._graph_answer import unit_words
from symbolic_residue.errors import ConfigError, RunExistsError

if TYPE_CHECKING:
    from symbolic_residue.graph import Difference

__all__ = ["diff"]

_SHOWN = 15


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A prompt, or a kept graph's folder.", show_default=False)],
    b: Annotated[
        str | None,
        typer.Argument(
            metavar="B", help="The same to take off; A's prompt, where --model-b or --adapter is given.", show_default=False
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="As of residue graph; default A's top tokens.", show_default=False),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="A token that --target is explained against.", show_default=False)
    ] = None,
    candidate: Candidate = None,
    refusal: RefusalOpening = None,
    compliance: ComplianceOpening = None,
    nodes: Annotated[int, typer.Option("--nodes", "-n", min=0, help="Neurons that each chooses; both get the union.")] = 1000,
    position: Annotated[int, typer.Option("--position", help="Where the next token is explained; -1 is the last.")] = -1,
    rule: Annotated[str, typer.Option("--rule", help="half or gate.")] = "half",
    rest: Annotated[str, typer.Option("--rest", help="position or layer.")] = "position",
    dictionary: Annotated[
        Path | None,
        typer.Option("--dictionary", help="Folder of a dictionary whose features stand for neurons, in both.", show_default=False),
    ] = None,
    reads: ReadsOption = None,
    predicts: PredictsOption = None,
    k: TopKOption = None,
    chat: Chat = False,
    model: Model = "demo",
    adapter: Adapter = None,
    model_b: Annotated[
        str | None,
        typer.Option("--model-b", help="B's model; default --model, without --adapter if B is left out.", show_default=False),
    ] = None,
    output: Output = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """A − B: which edges differ between a failing and a healthy prompt of as many tokens, or a tuned model and its base?

    Rows add up to the difference of what the model gave. Kept graphs are compared on the units that both have; prompts on the union of what each chooses.
    One pair is one observation.
    """
    folders = [text is not None and (Path(text) / "graph.json").is_file() for text in (a, b)]
    if folders[0] != folders[1] and (b is not None or folders[0]):
        raise ConfigError("One of the two is a kept graph, and the other is not.", todo="Give two prompts, or two folders.")
    if b is None and model_b is None and adapter is None:
        raise ConfigError(
            "There is nothing to compare with.", todo="Give B, or --model-b, or --adapter (against the model without it)."
        )
    if folders[0] and dictionary is not None:
        raise ConfigError(
            "--dictionary was given with kept graphs.",
            why="They have the dictionary that they were made with.",
            todo="Leave --dictionary out, or give two prompts.",
        )
    folder = output or default_output("graph-diff")
    if (folder / "a").exists() or (folder / "b").exists():
        raise RunExistsError(f"{folder} holds a comparison already.", todo="Name another --output.")
    from symbolic_residue.graph import attribute_pair, load_graph, save_graph

    if folders[0]:
        found = load_graph(a).diff(load_graph(str(b)))
    else:
        from symbolic_residue.instrument import Instrument
        from symbolic_residue.prompts import build_prompt

        units = asked_dictionary(dictionary, reads, predicts, k)
        loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
        second = None
        if model_b is not None or b is None:
            second = Instrument(open_for_cli(model_b or model, adapter=None, dtype=dtype, device=device))
        one, two = (build_prompt(loaded.tokenizer, text, chat=chat, max_tokens=loaded.parts.max_context) for text in (a, b or a))
        found = attribute_pair(
            Instrument(loaded), one, two, other=second, units=units or "neurons", position=position, max_nodes=nodes, rule=asked_rule(rule), rest=rest,
            targets=asked_targets(target or [], against, candidate, refusal, compliance),
        )  # fmt: skip
    save_graph(found.a, folder / "a")
    save_graph(found.b, folder / "b")
    if not no_report:
        write_page(found.graph(), folder)
    _answer(found, folder, json)


def _answer(found: Difference, folder: Path, as_json: bool) -> None:
    check, changed = found.check(), found.changed(_SHOWN)
    if as_json:
        said: dict[str, Any] = {
            "folder": str(folder),
            "targets": [
                {"name": a.name, "a": a.value, "b": b.value, "change": a.value - b.value}
                for a, b in zip(found.a.targets, found.b.targets, strict=True)
            ],
            "nodes": len(found),
            "chosen": list(found.chosen),
            "adds_up": {"worst": check.worst, "tolerance": check.tolerance, "rows": len(check.relative)},
            "accounted": found.graph().accounted().to_dicts(),
            "changed": changed.to_dicts(),
            "neurons": found.nodes().head(_SHOWN).to_dicts(),
        }
        echo_json(said)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from symbolic_residue.figures import visible

    console = Console(highlight=False)
    console.print(
        f"{len(found.a.tokens)} tokens, {len(found)} {unit_words(found.a)} in both (chosen: {found.chosen[0]} in A, {found.chosen[1]} in B)"
    )
    split = found.graph().accounted()
    kinds = split["kind"].unique(maintain_order=True).to_list()
    table = Table(box=None, pad_edge=False, title="difference of each target, and what makes it (logits)", title_justify="left")
    for name in ("target", "A", "B", "A − B", *kinds):
        table.add_column(name, justify="left" if name == "target" else "right", header_style="dim")
    for i, (a, b) in enumerate(zip(found.a.targets, found.b.targets, strict=True)):
        parts = split["value"][i * len(kinds) : (i + 1) * len(kinds)].to_list()
        numbers = (a.value, b.value, a.value - b.value, *parts)
        table.add_row(escape(visible(a.name)), *(f"{number:.3f}" for number in numbers))
    console.print(table)
    table = Table(box=None, pad_edge=False, title="edges that changed most", title_justify="left")
    for name in ("target", "source", "A", "B", "A − B", "share"):
        table.add_column(name, justify="left" if name in ("target", "source") else "right", header_style="dim")
    for row in changed.iter_rows(named=True):
        numbers = (f"{row[name]:.3g}" for name in ("a", "b", "change", "share"))
        table.add_row(escape(visible(row["target"])), escape(visible(row["source"])), *numbers)
    console.print(table)
    console.print(
        f"[dim]Rows add up to the difference within {check.worst:.1e} of both rows' sizes. share: of both rows' sizes. One pair is one observation.[/]"
    )
    console.print(f"Kept in {escape(str(folder))}")
