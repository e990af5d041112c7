"""``residue graph``: the attribution graph of a prompt, with or without a dictionary, and whether it adds up."""

from __future__ import annotations

from dataclasses import replace
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
from symbolic_residue.cli._graph_answer import answer
from symbolic_residue.cli._graph_texts import read_texts
from symbolic_residue.errors import ConfigError, PromptError, RunExistsError, WriteError

if TYPE_CHECKING:
    from symbolic_residue.dictionaries import Transcoders
    from symbolic_residue.graph import AskedTarget, Graph, GraphHeads, Supernodes, TokenPair
    from symbolic_residue.instrument import Instrument

__all__ = [
    "Candidate",
    "ComplianceOpening",
    "RefusalOpening",
    "asked_dictionary",
    "asked_rule",
    "asked_targets",
    "graph",
    "write_page",
]

_LABELS = 3

Candidate = Annotated[
    list[str] | None,
    typer.Option("--candidate", help="Of --target collapse; again for more. Default: all tokens.", show_default=False),
]
RefusalOpening = Annotated[
    list[str] | None,
    typer.Option("--refusal", help="Of --target refusal: an answer's opening that refuses; again for more.", show_default=False),
]
ComplianceOpening = Annotated[
    list[str] | None, typer.Option("--compliance", help="The same: an opening that complies; again for more.", show_default=False)
]


def graph(
    prompt: Annotated[str | None, typer.Argument(help="The prompt. Give it, or --show.", show_default=False)] = None,
    show: Annotated[
        Path | None,
        typer.Option(
            "--show",
            help="Show a graph that was kept, from its folder; or a graph JSON from elsewhere, as a page in --output.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="top, top:N, entropy; silence, repeat, collapse or refusal; a next token, or #ID of one; again for more. Default: top.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="A token: the one --target is explained against it, not the mean.", show_default=False),
    ] = None,
    candidate: Candidate = None,
    refusal: RefusalOpening = None,
    compliance: ComplianceOpening = None,
    corrupted: Annotated[
        str | None,
        typer.Option(
            "--corrupted",
            help="A prompt of as many tokens that is answered by --against: nodes are the units that make the difference, and what they bring back when "
            "they alone are kept is measured.",
            show_default=False,
        ),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", "-n", min=0, help="Neurons that become nodes.")] = 1000,
    position: Annotated[int, typer.Option("--position", help="Where the next token is explained; -1 is the last.")] = -1,
    rule: Annotated[str, typer.Option("--rule", help="half or gate: how gated neurons are made linear.")] = "half",
    rest: Annotated[
        str, typer.Option("--rest", help="position or layer: what the other neurons are put together by.")
    ] = "position",
    dictionary: Annotated[
        Path | None,
        typer.Option(
            "--dictionary", help="Folder of a dictionary whose features stand for neurons in its layers.", show_default=False
        ),
    ] = None,
    reads: ReadsOption = None,
    predicts: PredictsOption = None,
    k: TopKOption = None,
    heads: Annotated[
        int, typer.Option("--heads", min=0, help="Kept edges, of most influence, that are split over heads; 0 splits none.")
    ] = 3000,
    looks: Annotated[
        int, typer.Option("--looks", min=0, help="Heads of which the attention score is split: why they look where they look.")
    ] = 2,
    contexts: Annotated[
        str | None,
        typer.Option(
            "--contexts",
            help="A file of texts (a line each, or JSONL with text or prompt), or packaged: groups are labelled by where their neurons act in them.",
            show_default=False,
        ),
    ] = None,
    chat: Chat = False,
    model: Model = "demo",
    adapter: Adapter = None,
    output: Output = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    no_report: NoReport = False,
    json: Json = False,
) -> None:
    """Which tokens and neurons produced the answer, through which layers, and how much of it is accounted for?

    Direct effects with attention patterns and norm denominators held as they are on this prompt; every row adds up to what the model gave, or the graph is
    refused. A graph says what produced the answer in that linear replacement of the model; what would change it is for an intervention to say.
    """
    if (prompt is None) == (show is None):
        raise ConfigError("Give a prompt, or --show with a graph's folder.")
    if show is not None:
        from symbolic_residue.graph import load_circuit, load_graph, load_heads, load_supernodes

        if show.is_file():
            _page_of(show, output or default_output("graph"), json)
            return

        kept = load_graph(show)
        answer(kept, load_heads(kept, show), load_supernodes(kept, show), show, json, load_circuit(kept, show))
        return
    asked = asked_targets(target or [], against, candidate, refusal, compliance)
    if corrupted is not None:
        _pair_fits(asked, position)
    texts = None if contexts is None else read_texts(contexts)
    folder = output or default_output("graph")
    if (folder / "graph.json").exists():
        raise RunExistsError(f"{folder} holds a graph already.", todo="Name another --output.")
    units = asked_dictionary(dictionary, reads, predicts, k)
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from rich.console import Console

    from symbolic_residue.graph import (
        attribute_circuit,
        attribute_prompt,
        label_supernodes,
        promoted_tokens,
        save_circuit,
        save_heads,
        save_supernodes,
    )
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.prompts import build_prompt

    instrument = Instrument(loaded)
    built = build_prompt(loaded.tokenizer, prompt, chat=chat, max_tokens=loaded.parts.max_context)
    with Console(stderr=True).status(f"{len(built.ids)} tokens, {nodes} nodes"):
        circuit = None
        if corrupted is not None:
            pair = _pair(instrument, prompt, corrupted, asked, chat)
            found, circuit = attribute_circuit(
                instrument, pair, units=units or "neurons", max_nodes=nodes, rule=asked_rule(rule), rest=rest
            )
        else:
            found = attribute_prompt(
                instrument,
                built,
                targets=asked,
                units=units or "neurons",
                position=position,
                max_nodes=nodes,
                rule=asked_rule(rule),
                rest=rest,
            )
        labels = promoted_tokens(loaded.parts, loaded.tokenizer, found.units, found.activations, _LABELS, dictionary=units)
        found = replace(found, labels=tuple(map(tuple, labels)))
        found.save(folder)
        if circuit is not None:
            save_circuit(circuit, folder)
        carried = found.heads(instrument, edges=heads, looks=looks, dictionary=units) if heads else None
        if carried is not None:
            save_heads(carried, folder)
        groups = label_supernodes(instrument, found, found.supernodes(), texts=texts, dictionary=units)
        save_supernodes(groups, folder)
        if not no_report:
            write_page(found, folder, built.text, carried, groups, None if circuit is None else circuit.said())
    answer(found, carried, groups, folder, json, circuit)


def _pair_fits(asked: list[AskedTarget], position: int) -> None:
    """Whether what was asked for is one logit difference, of the last position."""
    if len(asked) != 1 or not isinstance(asked[0], tuple) or not all(isinstance(one, str) for one in asked[0]):
        raise ConfigError(
            "--corrupted needs one --target and --against, as text.",
            why="What is brought back is a difference of two tokens' logits.",
        )
    if position != -1:
        raise ConfigError("--corrupted explains the last position.", todo="Leave --position out, or shorten both prompts.")


def _pair(instrument: Instrument, prompt: str | None, corrupted: str, asked: list[AskedTarget], chat: bool) -> TokenPair:
    from symbolic_residue.graph import token_pair
    from symbolic_residue.prompts import CounterfactualPair

    right, wrong = asked[0]  # type: ignore[misc]
    for text, name in ((prompt or "", "The prompt"), (corrupted, "--corrupted")):
        if not text.strip():
            raise PromptError(f"{name} is empty or whitespace.", todo="Give some text.")
    if prompt == corrupted or right == wrong:
        raise ConfigError(
            "Both prompts are the same." if right != wrong else "Both tokens are the same.", todo="Give two that differ."
        )
    pair = CounterfactualPair(
        id="asked", category="asked", clean=prompt or "", corrupted=corrupted, answer=str(right), wrong=str(wrong)
    )
    return token_pair(instrument, pair, chat=chat)


def write_page(
    found: Graph,
    folder: Path,
    prompt: str | None = None,
    heads: GraphHeads | None = None,
    groups: Supernodes | None = None,
    note: str | None = None,
) -> None:
    """``report.html`` beside the graph: the pruned graph with its supernodes (those given, or unlabelled ones), heads and a note where they are given.

    Raises:
        WriteError: it cannot be written.
    """
    from symbolic_residue.report import graph_page

    data = found.to_neuronpedia(supernodes=found.supernodes() if groups is None else groups, prompt=prompt, heads=heads)
    page = graph_page(data, note=note)
    try:
        (folder / "report.html").write_text(page, "utf-8")
    except OSError as error:
        raise WriteError(f"The report cannot be written to {folder}.", why=str(error)) from error


def _page_of(path: Path, folder: Path, as_json: bool) -> None:
    """The page of a graph JSON from elsewhere."""
    from symbolic_residue.graph import read_neuronpedia
    from symbolic_residue.report import graph_page

    data = read_neuronpedia(path).plain()
    page = folder / "report.html"
    if page.exists():
        raise RunExistsError(f"{page} exists already.", todo="Name another --output.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page.write_text(graph_page(data), "utf-8")
    except OSError as error:
        raise WriteError(f"The report cannot be written to {folder}.", why=str(error)) from error
    said = {"page": str(page), "nodes": len(data["nodes"]), "links": len(data["links"]), "slug": data["metadata"]["slug"]}
    if as_json:
        echo_json(said)
        return
    typer.echo(f"{said['nodes']} nodes and {said['links']} links, {said['slug']}: {page}")


def asked_dictionary(folder: Path | None, reads: str | None, predicts: str | None, k: int | None) -> Transcoders | None:
    """The dictionary that a folder holds, and what its files do not say."""
    if folder is None:
        if (reads, predicts, k) != (None, None, None):
            raise ConfigError(
                "--reads, --predicts and -k say something of a dictionary.", todo="Give --dictionary, or leave them out."
            )
        return None
    from symbolic_residue.dictionaries import open_dictionary

    return open_dictionary(folder, reads=reads, predicts=predicts, k=k, progress=lambda line: typer.echo(line, err=True))  # type: ignore[arg-type]


def asked_rule(text: str) -> Any:
    """How gated neurons are made linear, as written on the command line."""
    if text not in ("half", "gate"):
        raise ConfigError(f"--rule {text!r} is not known.", todo="Write half or gate.")
    return text


def asked_targets(
    texts: list[str],
    against: str | None,
    candidates: list[str] | None = None,
    refusals: list[str] | None = None,
    compliances: list[str] | None = None,
) -> list[AskedTarget]:
    """Targets as written on the command line; the top tokens where none are."""
    for option, given, name in (
        ("--candidate", candidates, "collapse"),
        ("--refusal", refusals, "refusal"),
        ("--compliance", compliances, "refusal"),
    ):
        if given and name not in texts:
            raise ConfigError(f"{option} belongs to --target {name}.", todo=f"Add --target {name}.")
    if against is None:
        return [_failure(text, candidates, refusals, compliances) or _meant(text) for text in texts] or ["top"]
    if len(texts) != 1:
        raise ConfigError("--against goes with one --target.", todo="Give one --target, a token.")
    return [(_meant(texts[0]), _meant(against))]


def _failure(
    text: str, candidates: list[str] | None, refusals: list[str] | None, compliances: list[str] | None
) -> AskedTarget | None:
    """``collapse`` and ``refusal`` with the tokens that were given."""
    if text == "collapse" and candidates:
        from symbolic_residue.graph import Collapse

        return Collapse(tuple(map(_meant, candidates)))
    if text == "refusal" and (refusals or compliances):
        from symbolic_residue.graph import Refusal

        return Refusal(tuple(map(_meant, refusals or ())), tuple(map(_meant, compliances or ())))
    return None


def _meant(text: str) -> str | int:
    """``#123`` is the token of that number; ``\\n`` and ``\\t`` are line feed and tab."""
    if text.startswith("#") and text[1:].isdecimal():
        return int(text[1:])
    return text.replace("\\n", "\n").replace("\\t", "\t")
