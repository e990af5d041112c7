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
from symbolic_residue.errors import ConfigError, RunExistsError, WriteError

if TYPE_CHECKING:
    from symbolic_residue.dictionaries import Transcoders
    from symbolic_residue.graph import AskedTarget, Graph, GraphHeads, Look

__all__ = [
    "Candidate",
    "ComplianceOpening",
    "RefusalOpening",
    "asked_dictionary",
    "asked_rule",
    "asked_targets",
    "graph",
    "unit_words",
    "write_page",
]

_SHOWN = 15
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
    heads: Annotated[
        int, typer.Option("--heads", min=0, help="Kept edges, of most influence, that are split over heads; 0 splits none.")
    ] = 3000,
    looks: Annotated[
        int, typer.Option("--looks", min=0, help="Heads of which the attention score is split: why they look where they look.")
    ] = 2,
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
        from symbolic_residue.graph import load_graph, load_heads

        if show.is_file():
            _page_of(show, output or default_output("graph"), json)
            return

        kept = load_graph(show)
        _answer(kept, load_heads(kept, show), show, json)
        return
    asked = asked_targets(target or [], against, candidate, refusal, compliance)
    folder = output or default_output("graph")
    if (folder / "graph.json").exists():
        raise RunExistsError(f"{folder} holds a graph already.", todo="Name another --output.")
    units = asked_dictionary(dictionary)
    loaded = open_for_cli(model, adapter=adapter, dtype=dtype, device=device)
    from rich.console import Console

    from symbolic_residue.graph import attribute_prompt, promoted_tokens, save_heads
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.prompts import build_prompt

    instrument = Instrument(loaded)
    built = build_prompt(loaded.tokenizer, prompt, chat=chat, max_tokens=loaded.parts.max_context)
    with Console(stderr=True).status(f"{len(built.ids)} tokens, {nodes} nodes"):
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
        carried = found.heads(instrument, edges=heads, looks=looks, dictionary=units) if heads else None
        if carried is not None:
            save_heads(carried, folder)
        if not no_report:
            write_page(found, folder, built.text, carried)
    _answer(found, carried, folder, json)


def write_page(found: Graph, folder: Path, prompt: str | None = None, heads: GraphHeads | None = None) -> None:
    """``report.html`` beside the graph: the pruned graph with its supernodes, and heads where they are given.

    Raises:
        WriteError: it cannot be written.
    """
    from symbolic_residue.report import graph_page

    data = found.to_neuronpedia(supernodes=found.supernodes().rows(found), prompt=prompt, heads=heads)
    page = graph_page(data)
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


def asked_dictionary(folder: Path | None) -> Transcoders | None:
    """The dictionary that a folder holds."""
    if folder is None:
        return None
    from symbolic_residue.dictionaries import open_dictionary

    return open_dictionary(folder, progress=lambda line: typer.echo(line, err=True))


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


def _answer(graph: Graph, heads: GraphHeads | None, folder: Path, as_json: bool) -> None:
    from symbolic_residue.graph import graph_scores

    check, accounted, nodes, kept = graph.check(), graph.accounted(), graph.nodes(), graph.prune()
    scores, errors = graph_scores(graph), graph.errors()
    if as_json:
        echo_json(
            {
                "folder": str(folder),
                "tokens": list(graph.tokens),
                "targets": [vars(target) for target in graph.targets],
                "nodes": len(graph),
                "dictionary": graph.dictionary or None,
                "scores": vars(scores),
                "rest": errors.to_dicts(),
                "adds_up": {"worst": check.worst, "tolerance": check.tolerance, "rows": len(check.relative)},
                "accounted": accounted.to_dicts(),
                "kept": {"units": int(kept.columns[: len(graph)].sum()), "edges": int(kept.edges.sum())},
                "most_influential": nodes.head(_SHOWN).to_dicts(),
                "heads": None if heads is None else _heads_json(graph, heads),
            }
        )
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from symbolic_residue.figures import visible

    console = Console(highlight=False)
    console.print(
        f"{len(graph.tokens)} tokens, {len(graph)} {unit_words(graph)} as nodes, {graph.n_targets} targets ({graph.columns.n_layers} layers)"
    )
    if graph.uncapped:
        console.print("The model soft-caps its logits: those before the cap are explained.")
    share = dict(zip(errors["layer"].to_list(), errors["influence"].to_list(), strict=True))
    for layer in graph.dictionary.get("layers", ()):
        fvu, l0 = (layer[name] for name in ("fvu", "l0"))
        if fvu is not None:
            console.print(
                f"Layer {layer['layer']}: features leave {fvu:.0%} of the MLP's variance over positions unexplained; {l0:.0f} are active a position; "
                f"its rest has {share[layer['layer']]:.1%} of the influence."
            )
    if graph.dictionary:
        console.print(
            f"Replacement score {scores.replacement:.3f}, completeness {scores.completeness:.3f} (as circuit-tracer defines them; 1: no rest, 0: all rest)."
        )
    table = Table(box=None, pad_edge=False, title="what each target is made of (logits)", title_justify="left", title_style="bold")
    kinds = accounted["kind"].unique(maintain_order=True).to_list()
    for name in ("target", "probability", "value", *kinds):
        table.add_column(name, justify="left" if name == "target" else "right", header_style="dim")
    for i, target in enumerate(graph.targets):
        parts = accounted["value"][i * len(kinds) : (i + 1) * len(kinds)].to_list()
        shown = "" if target.probability is None else f"{target.probability:.3f}"
        table.add_row(escape(visible(target.name)), shown, f"{target.value:.3f}", *(f"{part:.3f}" for part in parts))
    console.print(table)
    console.print(
        f"[dim]Every row adds up: at most {check.worst:.1e} of its edges' size is missing (rounding; refused above {check.tolerance:.0e}). "
        f"rest: the {unit_words(graph)} that are no nodes{', and what features leave unexplained' if graph.dictionary else ''}.[/]"
    )
    words = dict(zip(_keys(graph), graph.labels or [()] * len(graph), strict=True))
    table = Table(box=None, pad_edge=False, title=f"most influential {unit_words(graph)}", title_justify="left", title_style="bold")
    for name in ("layer", "unit", "at", "token", "activation", "effect", "influence", "raises"):
        table.add_column(name, justify="left" if name in ("token", "raises") else "right", header_style="dim")
    for row in nodes.head(_SHOWN).iter_rows(named=True):
        label = words[row["layer"], row["position"], row["neuron"]]
        table.add_row(
            str(row["layer"]),
            f"{'f' if row['kind'] == 'feature' else ''}{row['neuron']}",
            str(row["position"]),
            escape(visible(row["token"], spaces="ends")),
            f"{row['activation']:.3g}",
            f"{row['effect']:.3g}",
            f"{row['influence']:.3f}",
            escape(" ".join(visible(word, spaces="ends") for word in label)),
        )
    console.print(table)
    console.print(
        "[dim]effect: total, on the first target (logits). influence: share of absolute edges over all paths. raises: tokens it writes directly (a hint). "
        "Neurons at position 0 often carry the attention sink: they are the same for most prompts.[/]"
    )
    if heads is not None:
        for line in _heads_said(graph, heads):
            console.print(escape(line))
    console.print(
        f"80 % of influence: {int(kept.columns[: len(graph)].sum())} {unit_words(graph)}, {int(kept.edges.sum())} edges. Kept in {escape(str(folder))}"
    )


def _heads_json(graph: Graph, heads: GraphHeads) -> dict[str, Any]:
    return {
        "edges": len(heads),
        "influence": heads.share,
        "refused": heads.refused,
        "looks": [
            {name: getattr(look, name) for name in ("layer", "head", "query", "key", "score", "weight", "carries")}
            | {"query_token": graph.tokens[look.query], "key_token": graph.tokens[look.key]}
            for look in heads.looks
        ],
    }


def _heads_said(graph: Graph, heads: GraphHeads) -> list[str]:
    """Which heads carry most, in words."""
    from symbolic_residue.figures import visible

    said = [f"{len(heads)} edges, {heads.share:.0%} of the influence of all kept ones, are split over heads in heads.safetensors."]
    if heads.refused:
        said.append(f"No head's score is split: {heads.refused}")
    return said + [_look_said(look, graph, visible) for look in heads.looks]


def _look_said(look: Look, graph: Graph, visible: Any) -> str:
    names = graph.column_names()
    at, there = (f"{visible(graph.tokens[t], spaces='ends')} @{t}" for t in (look.query, look.key))
    of_key = ", ".join(f"{names[c]} {term:+.2f}" for c, term in look.of_key[:3])
    return (
        f"Head {look.layer}.{look.head} at {at} looks at {there} (weight {look.weight:.2f}) and carries {look.carries:.1%} of their influence from there. "
        f"Its score {look.score:.2f}, by what stands at the key: {of_key}, all others {look.score - sum(t for _, t in look.of_key[:3]):+.2f}."
    )


def unit_words(graph: Graph) -> str:
    """What a graph's units are called."""
    layers = len(graph.feature_layers)
    return "neurons" if not layers else "features" if layers == graph.columns.n_layers else "features and neurons"


def _keys(graph: Graph) -> list[tuple[int, int, int]]:
    units = graph.units
    return list(zip(units.layer.tolist(), units.position.tolist(), units.neuron.tolist(), strict=True))
